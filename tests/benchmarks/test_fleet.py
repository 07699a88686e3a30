"""Does a prediction hold? This machine's rates from a small run, and larger ones of two methods against it.

    pytest -m benchmark -s tests/benchmarks/test_fleet.py

ViT-B and BERT-B sizes, one thread; extraction with its decoding and writing, and an epoch.
"""

import statistics
import time

import full_size
import pytest
import torch
from measuring import show

from fusetune.features.index import CacheSettings
from fusetune.runs.account import account
from fusetune.runs.scale import Fleet, at_scale
from fusetune.training.epochs import Reporter
from fusetune.training.optimizer import make_optimizer
from fusetune.training.settings import TrainSettings
from fusetune.training.steps import Steps

pytestmark = pytest.mark.benchmark
PLANS = {
    "wander at the junction": {"where": "junction", "adapter": "wander", "config": {"bottleneck_dim": 16}},
    "last block of each tower": {
        "where": "backbone",
        "adapter": "unfreeze",
        "config": {"parts": ["towers"], "top_blocks": 1},
    },
}
SMALL, LARGER, BATCH, CPU = 32, (96, 256), 8, torch.device("cpu")
CACHE = CacheSettings(batch_size=8)


def measured(count: int, placement: dict, folder):
    """The account, and seconds of an extraction and of an epoch."""
    made = full_size.experiment(count, placement)
    costs = account(made, CACHE, BATCH)
    begun = time.perf_counter()
    features = made.extract(folder, CACHE, lambda *_: None, CPU)
    extraction = time.perf_counter() - begun
    split, settings = made.split("train", features, folder, CPU), TrainSettings(batch_size=BATCH)
    steps = Steps(
        made.model, split, make_optimizer(made.model, settings), torch.amp.GradScaler("cpu", enabled=False), settings,
        1000, Reporter(),
    )  # fmt: skip
    steps.epoch(0, 0)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        steps.epoch(0, 0)
        times.append(time.perf_counter() - begun)
    return made, costs, extraction, statistics.median(times)


def test_predictions_at_two_sizes(tmp_path):
    torch.set_num_threads(1)
    rows = []
    for name, placement in PLANS.items():
        made, costs, extraction, epoch = measured(SMALL, placement, tmp_path / f"{name} small")
        source = made.source
        begun = time.perf_counter()
        made.model.backbone.prepare({n: source.decoded(n, list(range(SMALL))) for n in source.modalities})
        decoding = time.perf_counter() - begun
        count = len(source)
        flops = count * costs.flops_below / (extraction - decoding * count / SMALL)
        launch = max(1e-7, (epoch - SMALL * costs.flops / flops) / (SMALL / BATCH) / max(1, costs.launches))
        fleet = Fleet(
            devices=1, cores=0, decoded=SMALL / decoding, flops=flops, launch=launch, write=1e12, disk_read=1e12
        )
        for larger in LARGER:
            made, costs, extraction, epoch = measured(larger, placement, tmp_path / f"{name} {larger}")
            found = at_scale(costs, len(made.source), BATCH, fleet, CACHE)
            of_epoch = found.epoch_seconds * larger / len(made.source)
            rows.append(
                [f"{name}, {larger}", f"{found.extraction_seconds:.1f}", f"{extraction:.1f}",
                 f"{found.extraction_seconds / extraction - 1:+.0%}", f"{of_epoch:.2f}", f"{epoch:.2f}",
                 f"{of_epoch / epoch - 1:+.0%}"]
            )  # fmt: skip
    headings = ["method, samples", "extraction, s: predicted", "measured", "off", "an epoch, s: predicted", "measured"]
    show(f"from a run of {SMALL} samples", [*headings, "off"], rows)
