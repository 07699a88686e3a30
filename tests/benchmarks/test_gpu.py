"""What a GPU makes of it: steps against what memory allows, replayed and launched one by one; gathers; seeds together.

    pytest -m benchmark -s tests/benchmarks/test_gpu.py

ViT-B and BERT-B sized streams, bfloat16, Wander at the junction.
"""

import statistics
import time
from dataclasses import replace

import full_size
import pytest
import torch
from measuring import show

from fusetune.features import dataset
from fusetune.features.dataset import FeatureSet
from fusetune.features.index import CacheSettings
from fusetune.training.epochs import Reporter
from fusetune.training.loop import assign, train
from fusetune.training.optimizer import make_optimizer
from fusetune.training.settings import TrainSettings
from fusetune.training.steps import Steps
from fusetune.training.together import train_together

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU"),
]
WANDER = {"where": "junction", "adapter": "wander", "config": {"bottleneck_dim": 16}}
LAST = {"where": "backbone", "adapter": "unfreeze", "config": {"parts": ["towers"], "top_blocks": 1}}
COUNT = 4096
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """Experiments by name and their features, extracted once."""
    folder, found = tmp_path_factory.mktemp("store"), {}
    for name, placement in (("wander", WANDER), ("last block", LAST)):
        made = full_size.experiment(COUNT, placement)
        begun = time.perf_counter()
        features = made.extract(folder, CacheSettings(batch_size=256), lambda *_: None, CUDA)
        found[name] = made, features, time.perf_counter() - begun
    return folder, found


def milliseconds(run, times: int) -> float:
    """Median of 5 means over so many runs, on the device's own clock."""
    found = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            run()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) / times)
    return statistics.median(found)


def bandwidth() -> float:
    """Bytes a second that a copy within the GPU reads and writes."""
    one = torch.empty(2**28, device=CUDA)
    other = torch.empty_like(one)
    return 2 * one.numel() * 4 / (milliseconds(lambda: other.copy_(one), 5) / 1e3)


def test_steps(cached):
    folder, found = cached
    rate, rows = bandwidth(), []
    for name, (made, features, seconds) in found.items():
        split = made.split("train", features, folder, CUDA)
        print(f"{name}: {COUNT / seconds:.0f} samples/s into the store, decoding included; {split.features.placement}")
        for size in (64, 512, 2048) if name == "wander" else (64,):
            times = {}
            for graph in (False, True):
                settings = TrainSettings(batch_size=size, graph=graph)
                model = made.model.to(CUDA)
                scaler = torch.amp.GradScaler("cuda", enabled=False)
                steps = Steps(model, split, make_optimizer(model, settings), scaler, settings, 10_000, Reporter())
                steps.epoch(0, 0)
                times[graph] = milliseconds(lambda steps=steps: steps.epoch(0, 0), 2) / (COUNT // size)
            numbers = size * sum(
                max(1, lengths.max()) * rows_.values.shape[1]
                for lengths, rows_ in zip(
                    split.features.lengths().values(), split.features._packed.values(), strict=True
                )
            )
            # read in 2 bytes, written in 4, read by the pooling and by the adapter forward, by the adapter backward
            floor = numbers * (2 + 4 + 4 + 4 + 4) / rate * 1e3
            gain = f"{times[False] / times[True]:.1f}" if steps._graph else "not replayed"
            rows.append(
                [f"{name}, {size}", f"{times[False]:.3f}", f"{times[True]:.3f}", gain,
                 f"{floor:.3f}", f"{times[True] / floor:.2f}"]
            )  # fmt: skip
    headings = ["plan, batch", "ms, launched", "ms, replayed", "times faster", "ms, bytes alone", "replayed / bytes"]
    show(f"a step on {torch.cuda.get_device_name()}, {rate / 1e12:.2f} TB/s", headings, rows)


def test_gathers(cached, monkeypatch):
    """From main memory and from the map, into pinned memory and over: against the copy of as many pinned bytes."""
    folder, found = cached
    made, features, _ = found["wander"]
    picked = features.of_rows(made.rows["train"], augmented=True)
    own, rows = torch.empty(2**28, dtype=torch.uint8).pin_memory(), []
    there = torch.empty(2**28, dtype=torch.uint8, device=CUDA)
    rate = 2**28 / (milliseconds(lambda: there.copy_(own, non_blocking=True), 4) / 1e3)
    for place, free in (("GPU", 1e15), ("main memory", 0), ("memory map", -1)):
        monkeypatch.setattr(
            dataset, "free_memory", lambda device, free=free: free if device.type == "cuda" or free else 1e15
        )
        features_ = FeatureSet(picked, folder, CUDA)
        indices = list(torch.randperm(COUNT).split(256))
        times = []
        for _ in range(4):
            begun = time.perf_counter()
            for _, states in features_.batches(indices):
                del states
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
        speed = features_.bytes / min(times)
        rows.append([place, features_.placement[:40], f"{speed / 1e9:.2f}", f"{speed / rate:.0%}"])
    show(f"batches of 256; a pinned copy moves {rate / 1e9:.1f} GB/s", ["from", "placement", "GB/s", "of a copy"], rows)


def test_seeds_together(cached, tmp_path):
    folder, found = cached
    made, features, _ = found["wander"]
    splits = [made.split(name, features, folder, CUDA) for name in ("train", "val")]
    model = made.model.to(CUDA)
    initial = {name: p.detach().clone() for name, p in model.trainable().items()}
    rows, turns = [], iter(range(1000))
    for graph in (False, True):
        one = TrainSettings(epochs=2, batch_size=64, graph=graph, patience=9)

        def alone(one=one):
            assign(model, initial)
            return train(model, *splits, one, "key", tmp_path / str(next(turns)), Reporter())[-1].seconds

        def together(count, one=one):
            several = [replace(one, seed=seed) for seed in range(count)]
            members = train_together(model, [initial] * count, *splits, several, "key", tmp_path / str(next(turns)))
            return members[0].history[-1].seconds * count

        alone(), together(2)
        single = alone()
        rows += [
            [f"{n} seeds, graph {graph}", f"{single:.2f}", f"{(t := together(n)):.2f}", f"{t / single:.1f}"]
            for n in (5, 16)
        ]
    show("an epoch of 4,096 samples, batches of 64", ["", "s, one", "s, all together", "times one"], rows)
