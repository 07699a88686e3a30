"""What filling the cache costs beyond the forward pass: extraction against a plain frozen loop over the same batches.

pytest -m benchmark -s tests/benchmarks/test_filling.py
"""

import shutil

import full_size
import pytest
import torch
from measuring import in_turn, seconds, show

from fusetune.backbones.backbone import Frontier
from fusetune.device import pick_device
from fusetune.features.extraction import extract
from fusetune.features.index import CacheSettings

pytestmark = pytest.mark.benchmark


def test_extraction_beside_a_plain_frozen_loop(tmp_path):
    device = pick_device("auto")
    count, batch, rounds = (64, 16, 5) if device.type == "cpu" else (2048, 128, 5)
    made = full_size.experiment(count)
    backbone, source, frontier = made.model.backbone.to(device), made.source, made.frontier
    ground, size = Frontier(dict.fromkeys(frontier.towers, 0)), len(source)

    @torch.no_grad()
    def plain() -> None:
        for start in range(0, size, batch):
            rows = list(range(start, min(start + batch, size)))
            samples = {name: source.decoded(name, rows) for name in source.modalities}
            streams = {name: tokens.to(device) for name, tokens in backbone.prepare(samples).items()}
            backbone.advance(streams, ground, frontier)
        if device.type == "cuda":
            torch.cuda.synchronize()

    def cached() -> None:
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        settings = CacheSettings(batch_size=batch)
        extract(backbone, source, frontier, tmp_path / "store", settings, lambda *_: None, device)

    plain()
    found = in_turn({"plain": lambda: seconds(plain), "cached": lambda: seconds(cached)}, rounds)
    written = sum(f.stat().st_size for f in (tmp_path / "store").rglob("*.safetensors"))
    rows = [
        [name, f"{value:.2f}", f"{size / value:.1f}", f"{value / found['plain'] - 1:+.1%}"]
        for name, value in found.items()
    ]
    show(f"{size} samples on {device}, {written / 1e6:.0f} MB", ["loop", "seconds", "samples/s", "overhead"], rows)
