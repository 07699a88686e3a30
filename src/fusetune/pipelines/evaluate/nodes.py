"""Node functions of `evaluate`."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusetune.config import check

logger = logging.getLogger(__name__)
FIRST = "test"  # the experiment's own test rows, beside which the others stand


def evaluate_adapters(
    manifest: Any,
    adapters: Path,
    bases: Path,
    store: Path,
    evaluate_on: Mapping[str, Any],
    named: Sequence[str],
    register: Mapping[str, Any],
    data: Mapping[str, Any],
    validate: Mapping[str, Any],
    cache: Mapping[str, Any],
    evaluate: Mapping[str, Any],
) -> tuple[dict[str, Any], Any, Any]:
    """Metrics by adapter and set, the predictions behind them, and a figure."""
    import pyarrow as pa

    from fusetune.bank.artifact import Artifact
    from fusetune.config import build
    from fusetune.device import pick_device
    from fusetune.errors import FusetuneError
    from fusetune.features.index import CacheSettings
    from fusetune.features.storage import Store
    from fusetune.pipelines.progress import ExtractionProgress
    from fusetune.pipelines.tracking import log_dict, log_metrics, metric_name
    from fusetune.report.figures import Figures, by_set
    from fusetune.runs.second_sets import evaluate_on as evaluated
    from fusetune.training.data import with_roots
    from fusetune.training.evaluation import EvaluationSettings

    check(
        bool(evaluate_on),
        "evaluate_on: there is no set to evaluate on. Name one, e.g. evaluate_on: {elsewhere: {reader: manifest, "
        "settings: {file: /data/other.csv}}}, or evaluate_on: {noisy: {changes: {image: {name: noise, share: 0.5}}}}.",
    )
    settings, judged = build(CacheSettings, cache, "cache"), build(EvaluationSettings, evaluate, "evaluate")
    device, sets = pick_device(settings.device), SecondSets(manifest, {FIRST: {}, **evaluate_on}, validate)
    found: dict[str, Any] = {}
    tables = []
    for reference, folder in chosen_adapters(named, adapters, register):
        try:
            artifact = Artifact.from_pretrained(folder)
            model = artifact.build(artifact.base_in(bases))
        except FusetuneError as error:
            if named:
                raise
            logger.warning("%s is left out: %s", reference, error)  # of a base that was, e.g.: the others don't wait
            continue
        for name, rows in sets.rows(with_roots(artifact.data(), data)).items():
            with ExtractionProgress() as progress:
                result = evaluated(artifact, model, rows, Store(store), settings, judged, device, progress)
            found.setdefault(reference, {})[name] = result.plain() | {"set_aside": rows.set_aside}
            constants = {"adapter": [reference] * result.rows, "set": [name] * result.rows}
            columns = {column: result.predictions[column] for column in result.predictions.column_names}
            tables.append(pa.table({**constants, **columns}))
            logger.info("%s on %s: %s", reference, name, sentence(found[reference][name]))
    check(bool(found), "evaluate: no adapter of this experiment can be loaded; what is wrong with each is said above.")
    log_dict(found, "second_sets.json")
    log_metrics(
        {
            metric_name(f"{reference}.{name}.{metric}"): value
            for reference, own in found.items()
            for name, one in own.items()
            for metric, value in one["metrics"].items()
            if isinstance(value, float)
        }
    )
    title = f"On other data, with {judged.confidence:.0%} intervals"
    figures = Figures({"second_sets": lambda: by_set(found, title)})
    return found, pa.concat_tables(tables, promote_options="permissive"), figures


def sentence(one: Mapping[str, Any]) -> str:
    """'accuracy 0.412 (0.380 to 0.441) on 913 rows, 3 left out: no target that the training knew'."""
    name, metrics = one["metric"], one["metrics"]
    told = f"{name} {metrics[name]:.3f} ({metrics[f'{name}_low']:.3f} to {metrics[f'{name}_high']:.3f})"
    told += f" on {one['rows']} rows"
    if one["rows_left_out"]:
        told += f", {one['rows_left_out']} left out: no target that the training knew"
    if one["rows_too_long"]:
        told += f", {one['rows_too_long']} left out: more tokens than the adapter was made for"
    return told + (f", {one['set_aside']} set aside: they fail a check" if one["set_aside"] else "")


def chosen_adapters(named: Sequence[str], adapters: Path, register: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """What each adapter is called, and its folder: those that are named, or all that this experiment has trained."""
    from fusetune.adapters.trained import CONFIG
    from fusetune.pipelines.predict.nodes import PredictSettings, adapter_of

    if named:
        return [adapter_of(PredictSettings(adapter=name), register) for name in named]
    folders = sorted(file.parent for file in Path(adapters).glob(f"*/{CONFIG}"))
    check(
        bool(folders),
        f"{adapters}: no adapter has been trained here yet. Run e.g. `kedro run --pipelines train_wander`, or name "
        "some: evaluate_adapters: [NAME@ALIAS, NAME/VERSION or a folder].",
    )
    return [(folder.name, folder) for folder in folders]


def read_set(name: str, settings: Mapping[str, Any], manifest: Any) -> Any:
    """What a set's reader makes, or the experiment's own manifest."""
    from fusetune.config import build
    from fusetune.manifest.readers import readers
    from fusetune.manifest.second_sets import SecondSet

    chosen = build(SecondSet, settings, f"evaluate_on.{name}")
    if chosen.reader is None:
        return manifest
    return readers.get(chosen.reader)(chosen.settings, f"evaluate_on.{name}.settings")


class SecondSets:
    """The sets' sound rows, read once, and checked once for the same data."""

    def __init__(self, manifest: Any, evaluate_on: Mapping[str, Any], validate: Mapping[str, Any]) -> None:
        self.manifest, self.evaluate_on, self.validate = manifest, evaluate_on, validate
        self._read: dict[str, Any] = {}
        self._known: dict[str, dict[str, Any]] = {}

    def rows(self, data: Any) -> dict[str, Any]:
        """By name.

        Args:
            data: `DataSettings` of an experiment or an adapter.
        """
        from fusetune.config import digest
        from fusetune.training.data import without_roots

        key = digest(without_roots(data))
        if key not in self._known:
            self._known[key] = {name: self._checked(name, data) for name in self.evaluate_on}
        return self._known[key]

    def _checked(self, name: str, data: Any) -> Any:
        import pyarrow.compute as pc

        from fusetune.config import build
        from fusetune.features.source import Source
        from fusetune.manifest.checks import ValidationSettings
        from fusetune.manifest.second_sets import SecondSet
        from fusetune.pipelines.progress import DecodeProgress
        from fusetune.runs.second_sets import sound_rows

        settings = self.evaluate_on[name]
        if name not in self._read:
            self._read[name] = read_set(name, settings, self.manifest)
        chosen, train = build(SecondSet, settings, f"evaluate_on.{name}"), None
        if chosen.reader:  # which may hold what was trained on
            train = Source(self.manifest.filter(pc.equal(self.manifest["split"], "train")), data.modalities)
        checks = build(ValidationSettings, self.validate, "validate")
        with DecodeProgress() as progress:
            rows = sound_rows(name, chosen, self._read[name], data, checks, train, progress)
        for text in rows.told:
            logger.warning("evaluate_on.%s: %s", name, text)
        return rows


def files_of_sets(evaluate_on: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Hashes of what the sets' readers read, and of what their tables point to."""
    from fusetune.config import build
    from fusetune.features.source import Source, listed_digest
    from fusetune.manifest.schema import modalities_of
    from fusetune.manifest.second_sets import SecondSet
    from fusetune.pipelines.ingest.nodes import files_read

    own, contents = modalities_of(data), {}
    with_reader = {name: settings for name, settings in evaluate_on.items() if settings.get("reader")}
    for name, settings in with_reader.items():
        where = f"evaluate_on.{name}"
        modalities = build(SecondSet, settings, where).modalities(own, where)
        contents[name] = listed_digest(Source(read_set(name, settings, None), modalities).readable_keys())
    return {"files": files_read(with_reader), "contents": contents}


def read_outside(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the node reads that no catalog knows: adapters, and the sets' own files."""
    from fusetune.hooks import use_tracking
    from fusetune.pipelines.conf_source import project_root
    from fusetune.pipelines.hashing import content_hash

    use_tracking(project_root())
    chosen = chosen_adapters(inputs["params:evaluate_adapters"], inputs["adapters"], inputs["params:register"])
    adapters = [[name, content_hash(folder)] for name, folder in chosen]
    return {"adapters": adapters, **files_of_sets(inputs["params:evaluate_on"], inputs["params:data"])}


evaluate_adapters.outside = read_outside  # type: ignore[attr-defined]
