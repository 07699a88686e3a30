"""The comparison: variants to jobs, jobs to cells; what is there already is not computed again."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from fusetune.comparison.cells import Cell, read_cell
from fusetune.comparison.jobs import Job, Part, Place, Shared, told
from fusetune.comparison.pool import devices, run_jobs
from fusetune.comparison.ray_pool import run_jobs_with_ray
from fusetune.comparison.search import finished_search
from fusetune.comparison.settings import CompareSettings
from fusetune.comparison.variants import Variant, variants
from fusetune.comparison.work import BUSY
from fusetune.config import build, digest
from fusetune.features.index import CacheSettings, Features
from fusetune.features.source import Source
from fusetune.runs.account import ADAM, Account, account
from fusetune.training.data import DataSettings, load_backbone, make_task, without_roots
from fusetune.training.evaluation import EvaluationSettings

logger = logging.getLogger(__name__)
PROCESS = 500_000_000  # bytes that a process takes before it has any data
STEP, RATE = 1e-3, 2e10  # seconds of a step beside its arithmetic, FLOP/s of a core: a guess, for the time left
RATES = ("learning_rate", "base_learning_rate", "rate_factors", "weight_decay")  # may differ within a batched model
MOVED = 16  # conditions of the test samples that a job holds, at most


@dataclass
class Row:
    """What is known of a variant: its cells, what failed, what it costs by the account."""

    variant: Variant
    cells: dict[int, Cell] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    account: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] | None = None
    keys: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """
    Attributes:
        rows: in the order of the settings.
        features: an index of each frontier that was cached, so that the store keeps them.
        computed: cells that are new in this run.
    """

    rows: Sequence[Row]
    features: Sequence[Features]
    computed: int

    @property
    def kept(self) -> int:
        """Cells that were there."""
        return len({str(cell.folder) for row in self.rows for cell in row.cells.values()}) - self.computed

    def failed(self) -> dict[str, dict[int, str]]:
        """What failed in training, by variant and seed; a variant that doesn't fit has not come so far."""
        return {row.variant.name: row.errors for row in self.rows if row.errors and row.account}


class Watcher:
    """What wants to know how a comparison goes; nothing happens here."""

    def begun(self, rows: Sequence[Row], jobs: Sequence[Job]) -> None: ...
    def heard(self, job: Job, kind: str, place: Place | None, details: tuple[Any, ...]) -> None: ...
    def ended(self) -> None: ...


def shared_by_all(
    table: pa.Table,
    base: Path,
    data: Mapping[str, Any],
    train: Mapping[str, Any],
    cache: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    settings: Mapping[str, Any],
    store: Path | str,
    folder: Path,
    code: str,
    lengths: Mapping[str, int] | None = None,
) -> Shared:
    """From the parameters as conf has them, by the names that they have there."""
    sample, stored = build(DataSettings, data, "data"), build(CacheSettings, cache, "cache")
    fingerprint = load_backbone(base, sample).fingerprint(list(sample.modalities))
    columns = make_task(sample.task).columns()
    origin = digest([Source(table, sample.modalities).digest(columns), fingerprint, stored, without_roots(sample)])
    chosen = build(CompareSettings, settings, "compare")
    if chosen.continual.ways:
        chosen.continual.of_each(sample)  # before anything is trained
    return Shared(
        table,
        base,
        sample,
        train,
        stored,
        build(EvaluationSettings, evaluation, "evaluate"),
        chosen,
        store,
        folder,
        code,
        origin,
        lengths,
    )


def compare(
    shared: Shared,
    methods: Mapping[str, Mapping[str, Any]],
    progress: Callable[[int, int, int], None],
    watcher: Watcher,
) -> Comparison:
    """Train what is missing and read what is there.

    Args:
        methods: what the methods' files hold, by name.
        progress: of the cache; see `extraction.extract`.
    """
    alone = [name for name, usual in (("devices", 1), ("fsdp", False)) if shared.train.get(name, usual) != usual]
    if alone:
        logger.warning("compare: train.%s left out; each training has one device", " and train.".join(alone))
    places = devices(shared.settings.workers, shared.train.get("device", "auto"))
    rows, jobs, features = [], [], []
    for variant in variants(shared.settings, methods):
        row, job, cached = _prepared(shared, variant, progress, places[0])
        rows.append(row)
        jobs += [job] if job else []
        features += cached
    jobs = _joined(shared, _unlike(jobs, rows), places[0])
    by_name = {row.variant.name: row for row in rows}
    computed = 0

    def heard(job: Job, kind: str, place: Place | None, details: tuple[Any, ...]) -> None:
        nonlocal computed
        if kind == "failed":
            named = [place] if place is not None else [p for p in job.places() if p[1] not in by_name[p[0]].cells]
            for name, seed in named:
                by_name[name].errors |= {seed: details[0]}
        elif kind == "cell":
            computed += 1
            cell = read_cell(Path(details[0]))
            if cell and place is not None:
                by_name[place[0]].cells[place[1]] = cell
                for row in rows:  # the same cell may stand in another row
                    row.cells |= {s: cell for s, key in row.keys.items() if shared.cell(key) == cell.folder}
        watcher.heard(job, kind, place, details)

    watcher.begun(rows, jobs)
    try:
        if shared.settings.ray:
            run_jobs_with_ray(shared, jobs, places[0], heard)
        else:
            run_jobs(shared, jobs, places, heard)
    finally:
        watcher.ended()
    for row in rows:
        if row.variant.search:
            row.search = finished_search(shared, row.variant)
            row.variant = row.variant.found(row.search["best"]) if row.search else row.variant
    found = Comparison(rows, _distinct(features), computed)
    if not found.failed():  # nothing is left that could go on from one
        shutil.rmtree(shared.folder / "checkpoints", ignore_errors=True)
    return found


def _prepared(
    shared: Shared, variant: Variant, progress: Callable[[int, int, int], None], device: torch.device
) -> tuple[Row, Job | None, list[Features]]:
    """The row with the cells that are there, a job for those that aren't, and the features that both need."""
    row = Row(variant)
    found = finished_search(shared, variant) if variant.search else None
    if found:
        variant = variant.found(found["best"])
        row = Row(variant, search=found)
    try:
        experiment = shared.experiment(variant, variant.seeds[0])
        settings = shared.training(variant, variant.seeds[0])
        costs = account(experiment, shared.cache, settings.batch_size)
    except Exception as error:  # it doesn't fit, or is a third party's and broken: the others do without it
        row.errors = dict.fromkeys(variant.seeds, told(error))
        return row, None, []
    features = experiment.extract(shared.store, shared.cache, progress, device)
    row.account = costs.plain()
    missing = list(variant.seeds)
    if not variant.search:
        row.keys = {seed: shared.key(experiment, features, variant, seed) for seed in variant.seeds}
        cells = {seed: read_cell(shared.cell(key)) for seed, key in row.keys.items()}
        row.cells = {seed: cell for seed, cell in cells.items() if cell}
        missing = [seed for seed, cell in cells.items() if not cell]
    if not missing:
        return row, None, [features]
    steps = -(-len(experiment.rows["train"]) // settings.batch_size) * settings.epochs
    flops = costs.flops * settings.batch_size
    turns = len(missing) + (shared.settings.search.trials if variant.search else 0)
    job = Job(
        (Part(variant, tuple(missing)),),
        _memory(shared, costs, len(experiment.source), len(missing)),
        flops,
        steps * turns * (STEP + flops / RATE),
        settings.epochs,
    )
    return row, job, [features]


def _memory(shared: Shared, costs: Account, samples: int, members: int) -> int:
    """Bytes of a job: the members' own, what all share, features and the conditions of the test samples."""
    own = costs.memory_bytes - 4 * costs.base_parameters
    together = members if shared.settings.batch_seeds else 1
    weights = 4 * (costs.base_parameters + (1 + ADAM) * costs.trainable_parameters * together)
    tested = 2 * costs.cache_bytes // max(1, samples) * shared.settings.robustness.samples * MOVED
    return PROCESS + weights + max(0, own) * together + costs.cache_bytes + tested


def _unlike(jobs: Sequence[Job], rows: Sequence[Row]) -> list[Job]:
    """Jobs without the cells that an earlier one makes: the scaling's whole data set stands in the comparison too."""
    keys, claimed, found = {row.variant.name: row.keys for row in rows}, set(), []
    for job in jobs:
        (part,) = job.parts
        own = keys[part.variant.name]
        seeds = tuple(seed for seed in part.seeds if own.get(seed) not in claimed or not own)
        claimed |= set(own.values())
        if seeds:
            share = len(seeds) / len(part.seeds)
            found.append(replace(job, parts=(Part(part.variant, seeds),), seconds=job.seconds * share))
    return found


def _joined(shared: Shared, jobs: Sequence[Job], device: torch.device) -> list[Job]:
    """Variants that differ in their rates alone become one job, where its seeds are trained as one batched model."""
    found: dict[str, Job] = {}
    for number, job in enumerate(jobs):
        (part,) = job.parts
        variant, key = part.variant, f"{number} alone"
        if shared.settings.batch_seeds and job.flops <= BUSY[device.type] and not variant.search:
            same = {n: v for n, v in variant.settings["train"].items() if n not in RATES}
            key = digest([{**variant.settings, "train": same}, variant.share])
        if key in found:
            other = found[key]
            memory, seconds = other.memory + job.memory - PROCESS, other.seconds + job.seconds
            job = replace(other, parts=other.parts + job.parts, memory=memory, seconds=seconds)
        found[key] = job
    return list(found.values())


def _distinct(features: Sequence[Features]) -> list[Features]:
    found: dict[str, Features] = {}
    for several in features:
        for one in (several, *several.later.values()):
            found.setdefault(str(sorted(one.entries.items())), one)
    return list(found.values())
