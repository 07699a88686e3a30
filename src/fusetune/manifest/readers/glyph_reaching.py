"""Embedded data for instruction to action: an expert's demonstrations in the world `glyph_reaching`.

While it demonstrates, what it does is disturbed, and what it would have done is written down, so that there is
something to learn from where nobody wants to be (DART, Laskey et al., CoRL 2017). Splits are by code point.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.config import build, check
from fusetune.manifest.readers.layouts import check_samples
from fusetune.manifest.schema import SPLITS
from fusetune.worlds.glyph_reaching import GlyphReaching, ReachingSettings, expert

DISTURBED = 0.3  # share of the actions that are
DISTURBANCE = 0.12  # standard deviation, in shares of the picture's side


@dataclass(frozen=True)
class DemonstrationSettings:
    """
    Attributes:
        faces: the typefaces, by font file name.
        splits: share of the code points per split.
        samples: episodes per split.
        steps: of an episode.
        chunk: actions of a row: of this step and those behind it. Behind the end of an episode the gripper stays where
            it is.
        seed: of splits and episodes.
    """

    faces: tuple[str, ...]
    splits: Mapping[str, float] = field(default_factory=lambda: {"train": 0.7, "val": 0.1, "test": 0.2})
    samples: Mapping[str, int] = field(default_factory=lambda: {"train": 6400, "val": 600, "test": 600})
    steps: int = 3
    chunk: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_samples(self.samples)
        for name in ("steps", "chunk"):
            check(getattr(self, name) > 0, f"{name}: expected at least 1, found {getattr(self, name)}.")


def read(settings: Mapping[str, Any], where: str = "reader glyph_reaching") -> pa.Table:
    """One row a step: image, text (the instruction), state (x, y), action (`chunk` of them), question_type."""
    config = build(DemonstrationSettings, settings, where)
    rows = []
    for split in SPLITS:
        world = GlyphReaching(ReachingSettings(config.faces, config.splits, split, config.seed, config.steps))
        for number in range(config.samples[split]):
            name = f"{split}-{number:05d}"
            seen, actions = demonstrated(world, f"reaching-{config.seed}-{name}")
            still = [np.zeros(2)] * (config.chunk - 1)
            for step, one in enumerate(seen):
                chunk = [action.tolist() for action in [*actions, *still][step : step + config.chunk]]
                rows.append({"sample_id": f"{name}-{step:02d}", "split": split, **one, "action": chunk})
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def demonstrated(world: GlyphReaching, seed: str) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """What is seen in each step, and what the expert does, or would have done."""
    rng, episode = random.Random(f"{seed}-disturbed"), world.episode(seed)
    seen, actions = [], []
    while not episode.outcome:
        seen.append(episode.observation() | {"group_id": episode.group, "question_type": episode.kind})
        actions.append(expert(episode, rng))
        done = actions[-1]
        if rng.random() < DISTURBED:
            done = done + np.array([rng.gauss(0, DISTURBANCE), rng.gauss(0, DISTURBANCE)])
        episode.act(done)
    return seen, actions


_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("split", pa.string()),
        ("group_id", pa.string()),
        ("image", pa.list_(pa.binary())),
        ("text", pa.string()),
        ("state", pa.list_(pa.float32())),
        ("action", pa.list_(pa.list_(pa.float32()))),
        ("question_type", pa.string()),
    ]
)
