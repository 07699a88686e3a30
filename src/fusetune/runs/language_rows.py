"""The rows of a manifest that has its text in several languages."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from fusetune.backbones.text_tower import TextTower
from fusetune.config import check
from fusetune.manifest.contents import digest_column
from fusetune.manifest.readers.layouts import is_drawn
from fusetune.tasks.masked_words import MaskedWordsConfig, masked

OBJECTIVES = ("translations", "masked_words")
MASKINGS = 8  # of each text
TEXT = "cross-lingual: text"  # the column of whatever language is asked


@dataclass(frozen=True)
class CrossLingualSettings:
    """
    Attributes:
        languages: name -> the column with the text in that language; the one with labels among them.
        source: the language that has labels.
        modality: the text; None: the experiment's only one.
        method: a file of conf/*/methods.
        objective: translations or masked_words.
        bottleneck_dim: of the language adapters.
        blocks: of the encoder that they stand in, counted from the top; 0: all. What lies below is cached.
        epochs: of their training.
        labels: share of the training rows whose label is also known in the language that is asked.
        seeds: of the task's method; language adapters have the first one.
    """

    languages: Mapping[str, str] = field(default_factory=dict)
    source: str = "en"
    modality: str | None = None
    method: str = "late_fusion"
    objective: str = "translations"
    bottleneck_dim: int = 48
    blocks: int = 0
    epochs: int = 30
    labels: float = 0.0
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        check(
            self.objective in OBJECTIVES,
            f"cross_lingual.objective: expected one of {', '.join(OBJECTIVES)}, found '{self.objective}'.",
        )
        for name, least in (("blocks", 0), ("epochs", 1)):
            check(
                getattr(self, name) >= least,
                f"cross_lingual.{name}: expected at least {least}, found {getattr(self, name)}.",
            )
        check(0 <= self.labels < 1, f"cross_lingual.labels: expected a share below 1, found {self.labels}.")
        check(bool(self.seeds), "cross_lingual.seeds: expected at least one.")


@dataclass(frozen=True)
class Languages:
    """
    Attributes:
        table: the manifest.
        text: the modality of the text; in what is made here it stands in the column `TEXT`.
    """

    table: pa.Table
    settings: CrossLingualSettings
    text: str

    def __post_init__(self) -> None:
        known, source = self.settings.languages, self.settings.source
        check(
            len(known) > 1,
            "cross_lingual.languages: expected at least two, each with the column of its text, e.g. {en: label_en, de: "
            "label_de}.",
        )
        check(
            source in known,
            f"cross_lingual.source: '{source}' is none of the languages. Known: {', '.join(known)}.",
        )
        for language, column in self.settings.languages.items():
            check(
                column in self.table.column_names,
                f"cross_lingual.languages.{language}: the manifest has no column '{column}'. It has "
                f"{', '.join(self.table.column_names)}.",
            )

    def rows(self, language: str) -> pa.Table:
        """The manifest with the text of a language; what is known of another column's contents is left out."""
        table = self.table
        known = [name for name in (digest_column(self.text), TEXT) if name in table.column_names]
        return table.drop_columns(known).append_column(TEXT, table[self.settings.languages[language]])

    def asked_in(self, language: str) -> pa.Table:
        """Training and validation rows in the source's text, test rows in another language's."""
        splits = self.table["split"].to_pylist()
        columns = [self.table[self.settings.languages[name]].to_pylist() for name in (self.settings.source, language)]
        texts = [there if split == "test" else here for split, here, there in zip(splits, *columns, strict=True)]
        table = self.rows(self.settings.source).drop_columns([TEXT])
        return table.append_column(TEXT, pa.array(texts, pa.string()))

    def with_labels(self, language: str) -> pa.Table:
        """The source's rows, and some training rows again in another language."""
        source, more = self.rows(self.settings.source), self._labelled("train")
        again = self.rows(language).take(more)
        names = pa.array([f"{name} ({language})" for name in again["sample_id"].to_pylist()])
        again = again.set_column(again.column_names.index("sample_id"), "sample_id", names)
        return pa.concat_tables([source, again])

    def labelled(self, language: str) -> pa.Table:
        """All rows in a language, but of training and validation those alone whose label is known in it."""
        splits = self.table["split"].to_pylist()
        test = [i for i, split in enumerate(splits) if split == "test"]
        return self.rows(language).take(sorted([*self._labelled("train"), *self._labelled("val"), *test]))

    def _labelled(self, split: str) -> list[int]:
        """Rows of a split whose label is known in the language that is asked."""
        ids = zip(self.table["sample_id"].to_pylist(), self.table["split"].to_pylist(), strict=True)
        share = self.settings.labels
        found = [i for i, (name, own) in enumerate(ids) if own == split and is_drawn(f"label {name}", share)]
        check(
            bool(found),
            f"cross_lingual.labels: {share:g} of the {split} rows is none of them. Expected a larger share.",
        )
        return found

    def masked(self, name: str, tower: Any) -> tuple[pa.Table, int]:
        """Each text masked several times over, and how many texts can't be."""
        check(
            isinstance(tower, TextTower) and getattr(tower.processor, "mask_token", None) is not None,
            "cross_lingual.objective: this encoder's tokenizer has no token for what is masked. Expected translations.",
        )
        rng, picked, texts, asked, left_out = random.Random(name), [], [], [], 0
        for i, text in enumerate(self.table[self.settings.languages[name]].to_pylist()):
            made = [masked(text or "", tower.processor, rng) for _ in range(MASKINGS)]
            left_out += made[0] is None
            for one in made:
                if one is not None:
                    picked.append(i)
                    texts.append(one[0])
                    asked.append(one[1])
        check(bool(picked), f"cross_lingual: none of the texts of '{name}' can be masked word by word.")
        table = self.rows(name).drop_columns([TEXT]).take(picked).append_column(TEXT, pa.array(texts))
        ids = pa.array([f"{name} {i}" for i, name in enumerate(table["sample_id"].to_pylist())])
        table = table.set_column(table.column_names.index("sample_id"), "sample_id", ids)
        return table.append_column(MaskedWordsConfig(self.text).asked, pa.array(asked)), left_out
