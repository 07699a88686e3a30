"""What the cache wins: an epoch from the frontier against one that recomputes the frozen blocks, beside the FLOP ratio.

    pytest -m benchmark -s tests/benchmarks/test_epoch.py

ViT-B and BERT-B sizes (197 and about 32 tokens), optimizer included, on whatever device there is. At the junction
batches are of 64 (`train.batch_size`); where frozen blocks run, of 8 on a CPU.
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
    "fusion gate at the junction": {"where": "junction", "adapter": "fusion_gate"},
    "wander at the junction": {"where": "junction", "adapter": "wander", "config": {"bottleneck_dim": 16}},
    "last block of each tower": {**OPEN, "config": {"parts": ["towers"], "top_blocks": 1}},
    "top half of each tower": {**OPEN, "config": {"parts": ["towers"], "top_blocks": 6}},
}


def test_epoch_from_the_cache(tmp_path):
    device = pick_device("auto")
    few, many, small, large = (16, 256, 8, 64) if device.type == "cpu" else (512, 4096, 64, 64)
    rows = []
    for name, placement in PLANS.items():
        runs, flops, at_junction = {}, None, placement["where"] == "junction"
        for way in ("cache", "recompute"):
            count, batch = (many, large) if way == "cache" and at_junction else (few, small)
            made = full_size.experiment(count, placement)
            if way == "cache":
                flops = account(made, CacheSettings())
            else:
                made.frontiers = {1: Frontier(dict.fromkeys(made.frontier.towers, 0))}
            features = made.extract(tmp_path, CacheSettings(), lambda *_: None, device)
            split = made.split("train", features, tmp_path, device)
            settings = TrainSettings(batch_size=batch, autocast=False)
            model = made.model.to(device)
            scaler = torch.amp.GradScaler(device.type, enabled=False)
            steps = Steps(model, split, make_optimizer(model, settings), scaler, settings, 1000, Reporter())

            def epoch(steps=steps):
                steps.epoch(0, 0)
                if device.type == "cuda":
                    torch.cuda.synchronize()

            runs[way] = lambda epoch=epoch, count=count: seconds(epoch) / count * 1e3
        for run in runs.values():
            run()  # warm up
        found = in_turn(runs, 3 if device.type == "cpu" else 5)
        ratio = found["recompute"] / found["cache"]
        rows.append(
            [name, f"{found['recompute']:.1f}", f"{found['cache']:.3f}", f"{ratio:.2f}", f"{flops.flop_ratio:.2f}",
             f"{ratio / flops.flop_ratio:.0%}"]
        )  # fmt: skip
    headings = ["plan", "recomputed, ms a sample", "from the cache, ms", "times faster", "FLOP ratio", "of it"]
    show(f"epochs on {device}, medians", headings, rows)
