"""Node functions of `new`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusetune.config import build, check


@dataclass(frozen=True)
class NewSettings:
    """
    Attributes:
        table: .parquet, .csv, .tsv or .jsonl, one row a sample; or a folder with a folder of pictures, sounds or videos
            for each label.
        label: the column that is to be predicted; None: guessed by its name.
        name: of the experiment; None: the table's.
        root: the folder that paths of media are below; None: looked for beside the table.
        overwrite: whether conf/<name> may be written anew.
    """

    table: str | None = None
    label: str | None = None
    name: str | None = None
    root: str | None = None
    overwrite: bool = False


def new_experiment(settings: Mapping[str, Any]) -> None:
    """Look at a table, write an experiment's files for it, and say what was guessed."""
    from fusetune.backbones.first_choice import first_bases
    from fusetune.manifest.class_folders import listed
    from fusetune.manifest.guessing import guess, modality_name
    from fusetune.manifest.readers.table import read
    from fusetune.pipelines.conf_source import conf_source, project_root
    from fusetune.pipelines.new.conf_files import conf_files

    chosen = build(NewSettings, settings, "new")
    check(
        bool(chosen.table),
        "new.table: expected a file or a folder: --params new.table=/data/samples.csv,new.label=kind",
    )
    given = Path(str(chosen.table)).expanduser().resolve()
    name = chosen.name or re.sub(r"\W+", "_", given.stem).strip("_").lower()
    conf = conf_source()
    check(conf.is_dir(), f"new: expected a folder of conf to write to, found {conf}.")
    folder = conf / name
    check(
        chosen.overwrite or not folder.exists(),
        f"new.name: {folder} is there already. Choose another name, or new.overwrite=true.",
    )
    check(name not in ("base", "local"), f"new.name: '{name}' is Kedro's own. Choose another one.")
    table_file, label, root = given, chosen.label, Path(chosen.root or given.parent)
    if given.is_dir():
        table_file, root = project_root() / "data" / "01_raw" / name / "samples.csv", given
        label = listed(given, table_file)
    table = read({"file": str(table_file)}, "new.table")
    numbered = [column for column in ("sample_id", "group_id") if table[column].equals(table["sample_id"])]
    found = guess(table.drop_columns(numbered), root, label)
    bases, missing = first_bases({modality_name(column): kind for column, kind in found.modalities.items()})
    files = conf_files(name, table_file, table.num_rows, found, bases)
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text)
    _show(name, table.num_rows, found, missing, folder)


def _show(name: str, rows: int, found: Any, missing: bool, folder: Path) -> None:
    from rich import get_console
    from rich.table import Table

    table = Table(title=f"{rows:,} rows: what each column was taken for")
    table.add_column("column")
    table.add_column("taken for")
    for column, why in found.why.items():
        kind = found.modalities.get(column)
        table.add_row(column, f"{kind}: {why}" if kind else why)
    console = get_console()
    console.print(table)
    told = [f"Written: {folder}. A wrong guess is one line there."]
    if missing:
        told.append(
            "No hub answered, so small encoders are fitted to your training rows; pretrained ones are named there."
        )
    first = "lora" if found.task["name"] == "generation" else "late_fusion"
    told += [
        f"Next: kedro run --pipelines validate --env {name}     what is wrong with the data, in seconds",
        f"      kedro run --pipelines train_{first} --env {name}     a first adapter, and what scikit-learn reaches",
        f"      kedro run --pipelines compare --env {name}     which method wins",
    ]
    for line in told:
        console.print(line, markup=False, soft_wrap=True, highlight=False)
