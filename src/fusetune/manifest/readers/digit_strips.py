"""Digits seen and heard second by second: in which of them do the two agree (audio-visual event localisation).

Each of ten seconds has a handwritten digit and a recording of a spoken one, both of the Free Spoken Digit Dataset's
folder that `avdigits` reads (CC BY-SA 4.0). In one stretch of seconds the same digit is seen and heard, which is its
label; in all others they differ: background. Neither side knows without the other. Pictures are given as 64 numbers,
sounds as log-mel energies, four a second; recordings and pictures never stand in two splits.
"""

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fusetune.config import build
from fusetune.manifest.readers.avdigits import sources as sources
from fusetune.manifest.readers.ave import BACKGROUND, SECONDS
from fusetune.manifest.readers.layouts import check_samples, manifest, there
from fusetune.manifest.readers.spoken_moments import RATE, mel_frames, wave_of
from fusetune.manifest.schema import SPLITS

STRETCH = (3, 6)  # seconds in which both agree, least and most
STEPS = 4  # tokens of a second of sound
DIGITS = 10


@dataclass(frozen=True)
class DigitStripSettings:
    """
    Attributes:
        folder: holds recordings, pictures and pairs.
        samples: per split.
        seed: of the samples.
    """

    folder: str
    samples: Mapping[str, int] = field(default_factory=lambda: {"train": 2000, "val": 300, "test": 600})
    seed: int = 0

    def __post_init__(self) -> None:
        check_samples(self.samples)


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """Columns pixels (10, 64), mel (40, 40), segments (10 labels)."""
    import pyarrow.parquet as pq

    config = build(DigitStripSettings, settings, where)
    folder = Path(config.folder)
    said: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    drawn: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for pair in pq.read_table(there(folder / "av_pairs.parquet")).to_pylist():
        said[pair["split"]][int(pair["digit"])].append(pair["file"])
        drawn[pair["split"]][int(pair["digit"])].append(pair["image_id"])
    with np.load(there(folder / "digit_images.npz"), allow_pickle=False) as opened:
        images = opened["image"].reshape(-1, 64).astype(np.float32)
    known: dict[str, NDArray[np.float32]] = {}
    rows = []
    for split in SPLITS:
        rng = random.Random(f"strips-{config.seed}-{split}")
        for number in range(config.samples[split]):
            length, digit = rng.randint(*STRETCH), rng.randrange(DIGITS)
            begin = rng.randint(0, SECONDS - length)
            seen, heard, labels = [], [], []
            for second in range(SECONDS):
                agree = begin <= second < begin + length
                picture = digit if agree else rng.randrange(DIGITS)
                sound = digit if agree else (picture + rng.randrange(1, DIGITS)) % DIGITS
                seen.append(images[rng.choice(drawn[split][picture])])
                heard.append(_second(folder, rng.choice(said[split][sound]), known))
                labels.append(str(digit) if agree else BACKGROUND)
            name = f"{split}-{number:05d}"
            rows.append(
                {"sample_id": name, "split": split, "group_id": name, "pixels": np.stack(seen),
                 "mel": np.concatenate(heard), "segments": labels}
            )  # fmt: skip
    return manifest(rows, where)


def _second(folder: Path, name: str, known: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """(STEPS, bands): a recording cut or filled up to a second."""
    if name not in known:
        wave = wave_of(folder, name)[:RATE]
        known[name] = mel_frames(np.pad(wave, (0, RATE - len(wave))), 1 / STEPS)[:STEPS]
    return known[name]
