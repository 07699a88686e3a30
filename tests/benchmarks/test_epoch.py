"""What the cache wins: an epoch from the frontier against one that recomputes the frozen blocks, beside the FLOP ratio.

    pytest -m benchmark -s tests/benchmarks/test_epoch.py

ViT-B and BERT-B sizes (197 and about 32 tokens), optimizer included, on whatever device there is.
"""

import full_size
import pytest
import torch
from measuring import in_turn, seconds, show

from fusetune.backbones.backbone import Frontier
from fusetune.device import pick_device
from fusetune.features.index import CacheSettings
from fusetune.runs.account import account
from fusetune.training.epochs import Reporter
from fusetune.training.optimizer import make_optimizer
from fusetune.training.settings import TrainSettings
from fusetune.training.steps import Steps

pytestmark = pytest.mark.benchmark
OPEN = {"where": "backbone", "adapter": "unfreeze"}
PLANS = {
    "wander at the junction": {"where": "junction", "adapter": "wander", "config": {"bottleneck_dim": 16}},
    "last block of each tower": {**OPEN, "config": {"parts": ["towers"], "top_blocks": 1}},
    "top half of each tower": {**OPEN, "config": {"parts": ["towers"], "top_blocks": 6}},
}


def test_epoch_from_the_cache(tmp_path):
    device = pick_device("auto")
    count, rounds = (16, 3) if device.type == "cpu" else (512, 5)
    rows = []
    for name, placement in PLANS.items():
        runs, flops = {}, None
        for cached in (True, False):
            made = full_size.experiment(count, placement)
            if cached:
                flops = account(made, CacheSettings())
            else:
                made.frontiers = {1: Frontier(dict.fromkeys(made.frontier.towers, 0))}
            features = made.extract(tmp_path, CacheSettings(), lambda *_: None, device)
            split = made.split("train", features, tmp_path, device)
            settings = TrainSettings(batch_size=8 if device.type == "cpu" else 64, autocast=False)
            model = made.model.to(device)
            scaler = torch.amp.GradScaler(device.type, enabled=False)
            steps = Steps(model, split, make_optimizer(model, settings), scaler, settings, 1000, Reporter())

            def epoch(steps=steps):
                steps.epoch(0, 0)
                if device.type == "cuda":
                    torch.cuda.synchronize()

            runs["cache" if cached else "recompute"] = lambda epoch=epoch: seconds(epoch)
        for run in runs.values():
            run()  # warm up
        found = in_turn(runs, rounds)
        ratio = found["recompute"] / found["cache"]
        rows.append(
            [name, f"{found['recompute']:.3f}", f"{found['cache']:.4f}", f"{ratio:.2f}", f"{flops.flop_ratio:.2f}",
             f"{ratio / flops.flop_ratio:.0%}"]
        )  # fmt: skip
    headings = ["plan", "recomputed, s", "from the cache, s", "times faster", "FLOP ratio", "of it"]
    show(f"an epoch of {count} samples on {device}, medians of {rounds}", headings, rows)
