"""One call from a table to an adapter, and one back from a folder: `fusetune.adapt`, `fusetune.load`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.backbones.alignment import AlignSettings
from fusetune.backbones.backbone import Backbone
from fusetune.backbones.bases import opened, reference, save_base
from fusetune.backbones.first_choice import first_bases
from fusetune.backbones.sources import BackboneSettings, TowerSource
from fusetune.bank.artifact import Artifact
from fusetune.bank.bank import Bank
from fusetune.config import build, check
from fusetune.device import pick_device
from fusetune.errors import FusetuneError
from fusetune.features.composing import compose
from fusetune.features.index import CacheSettings
from fusetune.manifest.decoders import decoded
from fusetune.manifest.guessing import guess, modality_name
from fusetune.manifest.readers.table import numbered, read, renamed
from fusetune.manifest.schema import MEDIA
from fusetune.manifest.split_settings import SplitSettings
from fusetune.manifest.splits import with_splits
from fusetune.plan.plan import Plan
from fusetune.runs.experiment import Experiment
from fusetune.runs.run import train_and_test
from fusetune.training.data import DataSettings, fitting_rows, load_backbone
from fusetune.training.epochs import Reporter
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.settings import of_method

ADAPTER, BASE, METRICS, STORE = "adapter", "base.json", "metrics.json", "store"
PRESETS = Path(__file__).parents[3] / "conf" / "base" / "methods"


@dataclass(frozen=True)
class Adapted:
    """A trained adapter on its base.

    Attributes:
        folder: what `fusetune.load` takes.
        metrics: of the test split, as `metrics.json` of a pipeline has them.
        told: the result in a sentence.
        data: what samples are made of.
    """

    folder: Path
    metrics: Mapping[str, Any]
    told: str
    data: DataSettings
    bank: Bank

    def predict(self, samples: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
        """An answer a sample.

        Args:
            samples: by modality; texts as they are, of media paths or the bytes of files, of numbers lists; None where
                a sample lacks one.

        Raises:
            FusetuneError: a cell that can't be read, with its row and modality.
        """
        unknown = sorted(set(samples) - set(self.data.modalities))
        check(not unknown, f"predict: unknown modality {unknown}. Known: {', '.join(self.data.modalities)}.")
        read = {name: [self._decoded(name, i, cell) for i, cell in enumerate(cells)] for name, cells in samples.items()}
        return self.bank.answers([ADAPTER] * max(map(len, read.values()), default=0), read)

    def _decoded(self, name: str, row: int, cell: Any) -> Any:
        modality, where = self.data.modalities[name], f"row {row}, '{name}'"
        if cell is None:
            return None
        if modality.kind in MEDIA and isinstance(cell, str | Path):
            check(Path(cell).is_file(), f"{where}: there is no file {cell}.")
            cell = Path(cell).read_bytes()
        return decoded(modality, cell, where)


def adapt(
    table: str | Path | pa.Table,
    out: str | Path,
    *,
    label: str | None = None,
    root: str | Path | None = None,
    base: str | Mapping[str, str] | None = None,
    method: str | Mapping[str, Any] = "late_fusion",
    train: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Adapted:
    """Train an adapter on a table and test it.

    Args:
        table: .parquet, .csv, .tsv or .jsonl, or a table of pyarrow's; one row a sample. Without a column `split`,
            70/15/15% are drawn.
        out: folder for adapter, base, metrics and cached features; a second call adds to the features that are there.
        label: the column to be predicted; None: guessed by its name.
        root: the folder that paths of media are below; None: looked for beside the table.
        base: a hub id or folder for all modalities, or one for each by name; None: by kind.
        method: a file of conf/base/methods by its name, or what one holds: ``{"placements": [...]}``.
        train: settings of `train`, before which a method's own go.
        data: `modalities` and `task` as in conf; None: guessed.

    Raises:
        FusetuneError: what can't be guessed or read, with what was expected.
    """
    folder, given = Path(out), table if isinstance(table, pa.Table) else read({"file": str(table)}, "table")
    beside = Path(root) if root else Path.cwd() if isinstance(table, pa.Table) else Path(table).resolve().parent
    named, settings = _settings(given, beside, label, data)
    rows = _with_parts(given, named)
    backbone = _base(rows, settings, base, folder / "bases")
    (folder / BASE).write_text(json.dumps(reference(backbone, folder / BASE), indent=2) + "\n")
    name, preset = (method, _preset(method)) if isinstance(method, str) else ("method", method)
    trained = of_method({**(train or {}), "device": device, "seed": seed}, preset, name)
    cache, store = CacheSettings(device=device), folder / STORE
    plan = build(Plan, preset, name)
    experiment = Experiment(rows, load_backbone(folder / BASE, settings), settings, plan, seed, name)
    experiment.begin(store, cache, _quiet)
    features = experiment.extract(store, cache, _quiet, pick_device(device))
    result = train_and_test(
        experiment, features, store, trained, EvaluationSettings(), folder / "checkpoints", Reporter(), name, {}
    )
    result.artifact.save_pretrained(folder / ADAPTER)
    (folder / METRICS).write_text(json.dumps({**result.metrics, "told": result.sentence()}, indent=2) + "\n")
    return load(folder, device)


def load(folder: str | Path, device: str = "auto") -> Adapted:
    """What `adapt` has written, or an experiment's: raises FusetuneError for a folder without an adapter or a base."""
    folder = Path(folder)
    for name in (ADAPTER, BASE):
        check((folder / name).exists(), f"{folder}: expected what fusetune.adapt writes, found no {name} in it.")
    bank = Bank(opened(folder / BASE), device=pick_device(device))
    bank.load(ADAPTER, folder / ADAPTER)
    metrics = json.loads((folder / METRICS).read_text()) if (folder / METRICS).is_file() else {}
    data = build(DataSettings, Artifact.from_pretrained(folder / ADAPTER).config["data"], str(folder / ADAPTER))
    return Adapted(folder, metrics, metrics.pop("told", ""), data, bank)


def _settings(
    table: pa.Table, beside: Path, label: str | None, data: Mapping[str, Any] | None
) -> tuple[Mapping[str, str], DataSettings]:
    """The columns that play parts, and the settings of data; guessed where they aren't given."""
    if data is not None:
        return {}, build(DataSettings, {"use_trunk": False, **data}, "data")
    known = [part for part in ("sample_id", "group_id") if part in table.column_names]
    found = guess(table.drop_columns(known), beside, label)
    if found.task["name"] == "generation":
        raise FusetuneError(
            f"label: '{label}' holds answers in words; `kedro run --pipelines new` writes a conf for them."
        )
    modalities = {
        modality_name(column): {"kind": kind, "column": column, "root": found.roots.get(column, ".")}
        for column, kind in found.modalities.items()
    }
    settings = {"modalities": modalities, "task": found.task, "use_trunk": False}
    return found.parts, build(DataSettings, settings, "data")


def _with_parts(table: pa.Table, parts: Mapping[str, str]) -> pa.Table:
    """With sample_id, group_id and split, drawn where there is none."""
    for part, column in parts.items():
        table = renamed(table, part, column, "table")
    table = numbered(table)
    return table if "split" in table.column_names else with_splits(table, SplitSettings(0.7, 0.15, 0.15))


def _base(rows: pa.Table, data: DataSettings, base: str | Mapping[str, str] | None, bases: Path) -> Path:
    """The folder of the base that the encoders make."""
    kinds = {name: modality.kind for name, modality in data.modalities.items()}
    chosen = dict.fromkeys(kinds, base) if isinstance(base, str) else {**first_bases(kinds)[0], **(base or {})}
    towers = BackboneSettings(towers={n: TowerSource(source) for n, source in chosen.items()}).sources(kinds)
    fitting = fitting_rows(rows, data)
    return save_base(compose(towers, fitting, _no_embedded, AlignSettings(), _quiet), bases)


def _no_embedded() -> Backbone:
    raise FusetuneError("base: the embedded one is a demonstration of the pipelines. Expected a hub id or a folder.")


def _preset(name: str) -> Mapping[str, Any]:
    import yaml

    file = PRESETS / f"{name}.yml"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in PRESETS.glob("*.yml"))) or "none on this machine"
        raise FusetuneError(f"method: '{name}' is no file of {PRESETS}. Known: {known}. Or give its placements.")
    return yaml.safe_load(file.read_text())[name]


def _quiet(*_: Any) -> None: ...
