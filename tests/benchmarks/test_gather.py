"""Random minibatches from disk: ours, a raw numpy memmap, and the formats of the field, the same samples in all.

    pytest -m benchmark -s tests/benchmarks/test_gather.py

Two modalities of 50 to 200 tokens x 768 float16, batches of 32, collated to padded tensors. A format that is not
installed is left out.
"""

import gc
import importlib.util
import itertools
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from measuring import evict, in_turn, show

from fusetune.backbones.backbone import Frontier
from fusetune.features import dataset as feature_dataset
from fusetune.features.dataset import FeatureSet
from fusetune.features.index import Features
from fusetune.features.storage import Store
from fusetune.features.store import Entry
from fusetune.keys import Keys

pytestmark = pytest.mark.benchmark
SAMPLES = int(os.environ.get("FUSETUNE_BENCHMARK_SAMPLES", 4000))
WIDTH, BATCH, NAMES = 768, 32, ("image", "text")
WARM_BATCHES, COLD_BATCHES, ROUNDS = 60, 12, 5


def data():
    rng = np.random.default_rng(0)
    lengths = {name: rng.integers(50, 201, SAMPLES) for name in NAMES}
    values = {n: rng.standard_normal((int(lengths[n].sum()), WIDTH), np.float32).astype(np.float16) for n in NAMES}
    offsets = {name: np.concatenate([[0], lengths[name].cumsum()]) for name in NAMES}
    return {n: [values[n][a:b] for a, b in itertools.pairwise(offsets[n])] for n in NAMES}


def padded(rows: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = np.array([len(row) for row in rows])
    out = np.zeros((len(rows), lengths.max(), WIDTH), np.float16)
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(out), torch.arange(out.shape[1]) < torch.from_numpy(lengths)[:, None]


class Ours:
    """FeatureSet on the memory map, up to the padded float16 batch."""

    keys = Keys.of(f"{i + 1:064x}" for i in range(SAMPLES))

    @classmethod
    def write(cls, folder: Path, samples) -> None:
        for name in NAMES:
            entry = Entry.of(Store(folder), name)
            for start in range(0, SAMPLES, 512):
                some = samples[name][start : start + 512]
                lengths = torch.tensor([len(row) for row in some])
                entry.write(cls.keys[start : start + 512], torch.from_numpy(np.concatenate(some)), lengths)

    def __init__(self, folder: Path) -> None:
        features = Features(Frontier({n: 1 for n in NAMES}), {n: n for n in NAMES}, dict.fromkeys(NAMES, self.keys))
        before, feature_dataset.free_memory = feature_dataset.free_memory, lambda _: 0
        self.features = FeatureSet(features, folder, torch.device("cpu"))
        feature_dataset.free_memory = before
        self.features._arrived = lambda streams: streams  # the cast to float32 is the model's cost, not the store's

    def epoch(self, batches):
        for _, streams in self.features.batches([torch.from_numpy(batch) for batch in batches]):
            yield streams


class Memmap:
    @staticmethod
    def write(folder: Path, samples) -> None:
        folder.mkdir()
        for name in NAMES:
            np.concatenate(samples[name]).tofile(folder / name)
            np.save(folder / f"{name}.npy", np.cumsum([0, *(len(row) for row in samples[name])]))

    def __init__(self, folder: Path) -> None:
        self.maps = {name: np.memmap(folder / name, np.float16, "r").reshape(-1, WIDTH) for name in NAMES}
        self.offsets = {name: np.load(folder / f"{name}.npy") for name in NAMES}

    def epoch(self, batches):
        for batch in batches:
            yield {n: padded([self.maps[n][self.offsets[n][i] : self.offsets[n][i + 1]] for i in batch]) for n in NAMES}


class Datasets:
    package = "datasets"

    @staticmethod
    def write(folder: Path, samples) -> None:
        import datasets

        datasets.disable_progress_bars()
        features = datasets.Features({name: datasets.Value("large_binary") for name in NAMES})
        columns = {name: [row.tobytes() for row in samples[name]] for name in NAMES}
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder))

    def __init__(self, folder: Path) -> None:
        import datasets

        self.dataset = datasets.load_from_disk(str(folder))

    def epoch(self, batches):
        for batch in batches:
            found = self.dataset[batch.tolist()]
            yield {n: padded([np.frombuffer(x, np.float16).reshape(-1, WIDTH) for x in found[n]]) for n in NAMES}


class Lance:
    package = "lance"

    @staticmethod
    def write(folder: Path, samples) -> None:
        import lance
        import pyarrow as pa

        columns = {n: pa.array([row.tobytes() for row in samples[n]], pa.large_binary()) for n in NAMES}
        lance.write_dataset(pa.table(columns), str(folder))

    def __init__(self, folder: Path) -> None:
        import lance

        self.dataset = lance.dataset(str(folder))

    def epoch(self, batches):
        for batch in batches:
            found = self.dataset.take(batch.tolist())
            buffers = {n: [np.frombuffer(x.as_buffer(), np.float16) for x in found[n]] for n in NAMES}
            yield {n: padded([x.reshape(-1, WIDTH) for x in buffers[n]]) for n in NAMES}


class Litdata:
    package = "litdata"

    @staticmethod
    def write(folder: Path, samples) -> None:
        from litdata.streaming.writer import BinaryWriter

        folder.mkdir()
        writer = BinaryWriter(str(folder), chunk_bytes="64MB")
        for i in range(SAMPLES):
            writer[i] = {name: torch.from_numpy(samples[name][i]) for name in NAMES}
        writer.done()
        writer.merge()

    def __init__(self, folder: Path) -> None:
        from litdata import StreamingDataset

        self.dataset = StreamingDataset(str(folder))

    def epoch(self, batches):
        for batch in batches:
            found = [self.dataset[int(i)] for i in batch]
            yield {n: padded([sample[n].numpy() for sample in found]) for n in NAMES}


class Webdataset:
    """Tar files can only be read in order: batches come shuffled from a buffer of 256 samples."""

    package = "webdataset"

    @staticmethod
    def write(folder: Path, samples) -> None:
        import webdataset

        folder.mkdir()
        with webdataset.ShardWriter(f"{folder}/%04d.tar", maxcount=512, verbose=0) as sink:
            for i in range(SAMPLES):
                sink.write({"__key__": f"{i:06d}", **{f"{n}.npy": samples[n][i] for n in NAMES}})

    def __init__(self, folder: Path) -> None:
        self.files = sorted(str(f) for f in folder.glob("*.tar"))

    def epoch(self, batches):
        import webdataset

        stream = iter(webdataset.WebDataset(self.files, shardshuffle=False).shuffle(256).decode())
        for _ in batches:
            found = list(itertools.islice(stream, BATCH))
            yield {n: padded([sample[f"{n}.npy"] for sample in found]) for n in NAMES}


def test_random_minibatches(tmp_path):
    samples = data()
    formats = {"raw numpy memmap": Memmap, "ours, mapped": Ours, "datasets, large_binary": Datasets, "lance": Lance,
               "litdata": Litdata, "webdataset (in order)": Webdataset}  # fmt: skip
    known = {}
    for name, cls in formats.items():
        package = getattr(cls, "package", None)
        if package and not importlib.util.find_spec(package):
            print(f"{name}: not installed, left out")
            continue
        cls.write(tmp_path / cls.__name__, samples)
        known[name] = cls
    opened = {name: cls(tmp_path / cls.__name__) for name, cls in known.items()}
    _check(opened, samples)
    bytes_a_sample = sum(row.nbytes for n in NAMES for row in samples[n]) / SAMPLES
    rng = np.random.default_rng(1)

    def rate(name: str, count: int, cold: bool) -> float:
        folder = tmp_path / known[name].__name__
        if cold:  # what is mapped can't be evicted: close, evict, open again
            opened[name] = None
            gc.collect()
            evict(folder)
            opened[name] = known[name](folder)
        order = rng.permutation(SAMPLES)[: count * BATCH].reshape(-1, BATCH)
        began = time.perf_counter()
        for _ in opened[name].epoch(order):
            pass
        return count * BATCH / (time.perf_counter() - began)

    warm = in_turn({name: lambda name=name: rate(name, WARM_BATCHES, False) for name in known}, ROUNDS)
    cold = in_turn({name: lambda name=name: rate(name, COLD_BATCHES, True) for name in known}, ROUNDS)
    base = warm["raw numpy memmap"], cold["raw numpy memmap"]
    rows = [
        [name, f"{warm[name]:,.0f}", f"{warm[name] * bytes_a_sample / 1e9:.2f}", f"{warm[name] / base[0]:.2f}",
         f"{cold[name]:,.0f}", f"{cold[name] * bytes_a_sample / 1e9:.2f}", f"{cold[name] / base[1]:.2f}"]
        for name in known
    ]  # fmt: skip
    title = f"random minibatches of {BATCH} from {SAMPLES} samples of {bytes_a_sample / 1e3:.0f} kB"
    show(title, ["format", "warm, samples/s", "GB/s", "of raw", "cold, samples/s", "GB/s", "of raw"], rows)


def _check(opened, samples) -> None:
    """All formats that can be asked give the same batch."""
    index = np.array([5, 3, SAMPLES - 1, 17])
    for name, reader in opened.items():
        if "in order" in name:
            continue
        for batch in reader.epoch([index]):
            for modality in NAMES:
                found = batch[modality]
                values = found.values if hasattr(found, "values") else found[0]
                expected, _ = padded([samples[modality][i] for i in index])
                assert torch.equal(values, expected), name
