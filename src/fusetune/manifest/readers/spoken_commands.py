"""A spoken command and a picture: which of four handwritten digits is meant, and what is to be done with it.

A command is two spoken digits, one behind the other, of one speaker: the first names a digit in the picture, the second
is the number of an action (one: remove, two: copy, three: turn, four: enlarge). The answer is where the digit is, a
box, and the action. Recordings and pictures are those of the Free Spoken Digit Dataset's folder that `avdigits` reads
(CC BY-SA 4.0); none stands in two splits. Sounds are log-mel energies, ten a second, each with its neighbours.
"""

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.config import build, check
from fusetune.manifest.readers.avdigits import sources as sources
from fusetune.manifest.readers.glyph_boxes import SIDE, put_ink
from fusetune.manifest.readers.glyphs import pgm
from fusetune.manifest.readers.layouts import check_samples, manifest, there
from fusetune.manifest.readers.spoken_moments import log_mel, strung, wave_of
from fusetune.manifest.schema import SPLITS

ACTIONS = {1: "remove", 2: "copy", 3: "turn", 4: "enlarge"}
CELLS = 4
GREYS = 16  # of a handwritten digit's pixels
LARGEST = 3.5  # times its own 8 x 8 pixels


@dataclass(frozen=True)
class SpokenCommandSettings:
    """
    Attributes:
        folder: holds recordings, pictures and pairs.
        samples: per split.
        held_out: a speaker of the test split alone; None: everybody is in every split.
        seed: of the samples.
    """

    folder: str
    samples: Mapping[str, int] = field(default_factory=lambda: {"train": 6000, "val": 600, "test": 1200})
    held_out: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_samples(self.samples)


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """Columns image, mel (tokens, width), box (left, top, right, bottom, in pixels), action, speaker."""
    import pyarrow.parquet as pq

    config = build(SpokenCommandSettings, settings, where)
    folder = Path(config.folder)
    pairs = pq.read_table(there(folder / "av_pairs.parquet")).to_pylist()
    speakers = sorted({pair["speaker"] for pair in pairs})
    check(
        config.held_out in (None, *speakers),
        f"{where}.held_out: expected one of {', '.join(speakers)}, found '{config.held_out}'.",
    )
    with np.load(there(folder / "digit_images.npz"), allow_pickle=False) as opened:
        images = opened["image"].reshape(-1, 8, 8).astype(np.float32)
    said: dict[str, dict[str, dict[int, list[str]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    drawn: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        digit, split = int(pair["digit"]), pair["split"]
        drawn[split][digit].append(pair["image_id"])
        if config.held_out:
            split = "test" if pair["speaker"] == config.held_out else "val" if split == "val" else "train"
        said[split][pair["speaker"]][digit].append(pair["file"])
    wave_by_name, rows = cache(partial(wave_of, folder)), []
    for split in SPLITS:
        rng = random.Random(f"commands-{config.seed}-{split}")
        for number in range(config.samples[split]):
            digits, canvas = rng.sample(range(10), CELLS), np.zeros((SIDE, SIDE), np.uint8)
            shown = [images[rng.choice(drawn[split][digit])] for digit in digits]
            boxes = [put_ink(canvas, _grey(one), i, rng, LARGEST) for i, one in enumerate(shown)]
            asked, action = rng.randrange(CELLS), rng.choice(sorted(ACTIONS))
            own = said[split][rng.choice(sorted(said[split]))]
            wave, _ = strung([wave_by_name(rng.choice(own[digit])) for digit in (digits[asked], action)], rng)
            rows.append(
                {
                    "sample_id": f"{split}-{number:05d}",
                    "split": split,
                    "group_id": f"{split}-{number:05d}",
                    "image": [pgm(canvas)],
                    "mel": log_mel(wave),
                    "box": list(boxes[asked]),
                    "action": ACTIONS[action],
                }
            )
    return manifest(rows, where)


def _grey(digit: np.ndarray) -> np.ndarray:
    return (digit * (255 / GREYS)).astype(np.uint8)
