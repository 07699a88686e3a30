"""How fast samples are decoded: by one thread, by threads, by processes, with nothing behind them.

pytest -m benchmark -s tests/benchmarks/test_decoders.py
"""

import os

import numpy as np
import pyarrow as pa
import pytest
import torch
from measuring import in_turn, seconds, show
from PIL import Image

from fusetune.features import decoding
from fusetune.features.chunks import Chunk
from fusetune.features.index import CacheSettings
from fusetune.features.source import Source
from fusetune.keys import Keys
from fusetune.manifest.schema import Modality

pytestmark = pytest.mark.benchmark
COUNT, SIDE = 512, 640


def test_threads_and_processes_that_decode(tmp_path, monkeypatch):
    import full_size

    random = np.random.default_rng(0)
    for i in range(COUNT):
        coarse = Image.fromarray(random.integers(0, 255, (SIDE // 16, SIDE // 16, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE)).save(tmp_path / f"{i}.jpg", quality=90)
    table = pa.table({"image": [f"{i}.jpg" for i in range(COUNT)], "split": ["train"] * COUNT})
    source = Source(table, {"image": Modality("image", root=str(tmp_path))})
    backbone = full_size.backbone()
    chunk = Chunk(("image",), np.arange(COUNT), Keys.of(f"{i + 1:064x}" for i in range(COUNT)), {})
    cores, device = os.cpu_count() or 1, torch.device("cpu")

    def run(threads: int, processes: int) -> float:
        monkeypatch.setattr(decoding, "threads_beside", lambda _: threads)
        settings = CacheSettings(decoders=processes)
        return seconds(lambda: [None for _ in decoding.prepared_ahead(backbone, source, [chunk], settings, device)])

    ways = {"one thread": (1, 0)}
    for several in sorted({2, 4, 8, cores} & set(range(2, cores + 1))):
        ways |= {f"{several} threads": (several, 0), f"{several} processes": (1, several)}
    found = in_turn({name: lambda way=way: run(*way) for name, way in ways.items()}, 5)
    rows = [[name, f"{COUNT / value:.0f}", f"{found['one thread'] / value:.2f}"] for name, value in found.items()]
    show(f"JPEG of {SIDE} pixels to 224, {cores} cores", ["decoding", "samples/s", "ratio"], rows)
