"""What main memory rows take: a process of its own for each size, since memory that is freed isn't always given back.

python rows_in_memory.py run /tmp/rows 1000000 prints a JSON list of [phase, seconds, MB at its peak].

MB are of memory that the system can't take away (RssAnon); what is mapped is the page cache's.
"""

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

WIDTH, GROUP, HELD = 16, 2**17, 10_000
HERE = Path(__file__).parents[2]


class Watch:
    """Seconds and peaks of phases."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float, float]] = []
        self.phase, self.peak, self.began = "", 0.0, 0.0
        threading.Thread(target=self._look, daemon=True).start()

    def begin(self, phase: str) -> None:
        now = time.perf_counter()
        if self.phase:
            self.told.append((self.phase, now - self.began, max(self.peak, own_memory())))
            print(json.dumps(self.told[-1]), file=sys.stderr, flush=True)
        self.phase, self.peak, self.began = phase, own_memory(), now

    def _look(self) -> None:
        while True:
            self.peak = max(self.peak, own_memory())
            time.sleep(0.01)


def own_memory() -> float:
    """MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1e3


def vectors(file: Path, size: int) -> None:
    """A validated manifest of two vectors whose product says the label, with a fixed number of held-out rows."""
    drawn = np.random.default_rng(0)

    def part(begin: int, count: int) -> pa.Table:
        left, right = (drawn.standard_normal((count, WIDTH)).astype(np.float32) for _ in range(2))
        number = np.arange(begin, begin + count)
        names = pc.cast(pa.array(number), pa.string())
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * WIDTH)
        label = np.where(left[:, 0] * right[:, 0] + left[:, 1] > 0, "yes", "no")
        split = np.where(number < HELD, "val", np.where(number < 2 * HELD, "test", "train"))
        lists = {n: pa.ListArray.from_arrays(offsets, pa.array(v.ravel())) for n, v in (("a", left), ("b", right))}
        return pa.table({"sample_id": names, "split": split, "group_id": names, **lists, "label": label})

    write(file, part, size)


def texts(file: Path, size: int) -> None:
    """A table of somebody's own: two rows an author, five kinds."""
    drawn, kinds = np.random.default_rng(0), pa.array(["cat", "dog", "bird", "fish", "horse"])

    def part(begin: int, count: int) -> pa.Table:
        number = pc.cast(pa.array(np.arange(begin, begin + count)), pa.string())
        author = pc.cast(pa.array(np.arange(begin, begin + count) // 2), pa.string())
        kind = kinds.take(pa.array(drawn.integers(0, 5, count)))
        text = pc.binary_join_element_wise("a thing of number", number, " ")
        return pa.table({"id": number, "author": author, "kind": kind, "text": text})

    write(file, part, size)


def write(file: Path, part, size: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(file, part(0, 1).schema) as writer:
        for begin in range(0, size, GROUP):
            writer.write_table(part(begin, min(GROUP, size - begin)))


def manifest(folder: Path, size: int, watch: Watch) -> None:
    """Reading, splitting and validating; what comes out is written each time, as the pipelines do."""
    from fusetune.manifest.checks import ValidationSettings
    from fusetune.manifest.readers.table import read
    from fusetune.manifest.schema import Modality
    from fusetune.manifest.split_settings import SplitSettings
    from fusetune.manifest.splits import with_splits
    from fusetune.manifest.validation import validate
    from fusetune.on_disk import read_parquet, write_parquet

    texts(folder / "given.parquet", size)
    watch.begin("read")
    table = read({"file": str(folder / "given.parquet"), "sample_id": "id", "group_id": "author"}, "x")
    watch.begin("split")
    table = with_splits(table, SplitSettings(stratify="kind"))
    watch.begin("write and read")
    write_parquet(table, folder / "manifest.parquet")
    table = read_parquet(folder / "manifest.parquet")
    watch.begin("validate")
    outcome = validate(table, {"text": Modality("text")}, ["kind"], ValidationSettings())
    assert outcome.sound.num_rows == size


def run(folder: Path, size: int, watch: Watch) -> None:
    """From a validated manifest to a tested adapter, features read from the map."""
    import torch

    from fusetune.backbones.alignment import AlignSettings
    from fusetune.backbones.sources import TowerSource
    from fusetune.config import build
    from fusetune.features import dataset
    from fusetune.features.composing import compose
    from fusetune.features.index import CacheSettings, Features
    from fusetune.on_disk import read_parquet
    from fusetune.plan.plan import Plan
    from fusetune.runs.__main__ import read_parameters
    from fusetune.runs.experiment import Experiment
    from fusetune.runs.run import train_and_test
    from fusetune.training.data import DataSettings, fitting_rows
    from fusetune.training.epochs import Reporter
    from fusetune.training.evaluation import EvaluationSettings
    from fusetune.training.settings import of_method

    vectors(folder / "manifest.parquet", size)
    dataset.free_memory = lambda _: 0  # nothing fits: all is read from the map
    conf = read_parameters([HERE / "conf" / "base"], ["train.epochs=1", "train.batch_size=1024", "train.device=cpu"])
    cpu, method, quiet = torch.device("cpu"), conf["late_fusion"], lambda *_: None
    settings = of_method(conf["train"], method, "late_fusion")
    cache = build(CacheSettings, {**conf["cache"], "shard_size": 16384, "batch_size": 4096}, "cache")
    modalities = {name: {"kind": "vector"} for name in ("a", "b")}
    task = {"name": "classification", "label": "label"}
    data = build(DataSettings, {"modalities": modalities, "task": task, "use_trunk": False}, "data")
    watch.begin("open the manifest, fit the base")
    table = read_parquet(folder / "manifest.parquet")
    sources = {name: TowerSource(source="features") for name in modalities}
    backbone = compose(sources, fitting_rows(table, data), None, AlignSettings(), quiet)
    watch.begin("cache features")
    made = Experiment(table, backbone, data, build(Plan, method, "late_fusion"), 0, "late_fusion")
    made.extract(folder / "store", cache, quiet, cpu).save(folder / "features.arrow")
    features = Features.load(folder / "features.arrow")
    watch.begin("linear start")
    made.begin(folder / "store", cache, quiet)
    watch.begin("an epoch, test")
    evaluation = build(EvaluationSettings, conf["evaluate"], "evaluate")
    folders = folder / "store", settings, evaluation, folder / "checkpoints"
    result = train_and_test(made, features, *folders, Reporter(), "late_fusion", {})
    assert result.metrics["test"]["accuracy"] > 0.8


if __name__ == "__main__":
    what, where, rows = sys.argv[1:]
    watched = Watch()
    {"run": run, "manifest": manifest}[what](Path(where), int(rows), watched)
    watched.begin("")
    print(json.dumps(watched.told))
