"""Second sets: other data on which what was trained on the first is evaluated.

Other pictures, another language, another speaker, or the experiment's own test rows with noise:

    evaluate_on:
      elsewhere: {reader: manifest, settings: {file: /data/other.csv}, split: null}
      german: {columns: {text: caption_de}}
      noisy: {changes: {image: {name: noise, share: 0.5}}}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fusetune.config import check
from fusetune.manifest.contents import digest_column
from fusetune.manifest.schema import MEDIA, Modality

TEST = "test"


@dataclass(frozen=True)
class SecondSet:
    """
    Attributes:
        reader: name in the registry of readers; None: the experiment's own validated manifest.
        settings: the reader's own.
        split: the rows that are taken, where there are splits; None: all.
        columns: modality, or column of the task -> the column that plays its part here.
        roots: modality -> folder of the files that its column names, where it isn't that of `data.modalities`.
        changes: modality -> a change of each sample, as in `augment`; always the same one of the same sample.
    """

    reader: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = TEST
    columns: Mapping[str, str] = field(default_factory=dict)
    roots: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(
            self.reader is not None or not self.settings, "settings: they are a reader's; name it: `reader: manifest`."
        )

    def modalities(self, own: Mapping[str, Modality], where: str) -> dict[str, Modality]:
        """The experiment's, with the columns and folders of this set."""
        for key in (*self.roots, *self.changes):
            check(key in own, f"{where}: no modality '{key}'. Known: {', '.join(own)}.")
        for name in self.roots:
            check(own[name].kind in MEDIA, f"{where}.roots: '{name}' is of kind {own[name].kind} and has no files.")
        return {
            name: replace(m, column=self.columns.get(name, m.column), root=self.roots.get(name, m.root), augment={})
            for name, m in own.items()
        }

    def table(self, read: pa.Table, modalities: Mapping[str, Modality], targets: Sequence[str], where: str) -> pa.Table:
        """The rows of this set, all of split `test`, the task's columns under their own names.

        Args:
            read: what the reader made, or the experiment's manifest.
            modalities: of the experiment.
            targets: the columns that the task needs.
        """
        table = read
        for part, column in self.columns.items():
            check(
                part in modalities or part in targets,
                f"{where}.columns: '{part}' is neither a modality ({', '.join(modalities)}) nor a column of the task "
                f"({', '.join(targets)}).",
            )
            check(
                column in table.column_names,
                f"{where}.columns.{part}: there is no column '{column}'. There are {', '.join(table.column_names)}.",
            )
            if part in modalities:
                table = _without(table, digest_column(part))  # of the column that was meant before
            else:
                values = table[column]
                table = _without(table, part).append_column(part, values)
        for part in self.roots:
            table = _without(table, digest_column(part))
        if "split" in table.column_names and self.split is not None:
            splits = pc.unique(table["split"]).to_pylist()
            table = table.filter(pc.equal(table["split"], self.split))
            check(
                table.num_rows > 0,
                f"{where}.split: no row of split '{self.split}'; there are {', '.join(map(str, splits))}; null: all.",
            )
        check(table.num_rows > 0, f"{where}: there are no rows.")
        return _without(table, "split").append_column("split", pa.array([TEST] * table.num_rows, pa.string()))


def _without(table: pa.Table, column: str) -> pa.Table:
    return table.drop_columns([column]) if column in table.column_names else table
