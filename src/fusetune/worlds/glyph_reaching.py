"""A gripper over a picture of four characters, and an instruction that means one of them: 'pick up the small letter'.

An action is (right, down): how far the gripper moves, in shares of the picture's side, at most `REACH` each. When the
steps are over it closes; the episode succeeds if it is over the box of the character that is meant then. Seen are the
picture with the gripper in it, a ring; the instruction; and where the gripper is, (x, y) in shares. Characters are
those of `splits`' test part, which no demonstration shows.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusetune.config import check
from fusetune.manifest.readers import glyph_faces
from fusetune.manifest.readers.glyph_boxes import SIDE, TYPES, Laid, draw_scene
from fusetune.manifest.readers.glyph_faces import Glyph
from fusetune.manifest.readers.glyphs import GlyphSettings, code, pgm, split_of
from fusetune.worlds.world import SUCCESS, Episode, World

REACH = 0.25  # of the picture's side, in one step and one direction
GAIN = 0.5  # share of the way that an expert goes in a step
RING = (3.0, 4.5)  # pixels from its middle, of the gripper as it is seen
VERBS = ("pick up", "take", "grab")


@dataclass(frozen=True)
class ReachingSettings:
    """
    Attributes:
        faces: the typefaces, by font file name.
        splits: share of the code points per split, as in `glyph_boxes`.
        split: whose characters are in the pictures.
        seed: of the splits.
        steps: actions of an episode.
        noise: standard deviation of what a camera adds to each pixel, in shares of white.
        slip: standard deviation by which the gripper misses where it was sent, in shares of a picture's side.
    """

    faces: tuple[str, ...]
    splits: Mapping[str, float] = field(default_factory=lambda: {"train": 0.7, "val": 0.1, "test": 0.2})
    split: str = "test"
    seed: int = 0
    steps: int = 8
    noise: float = 0.0
    slip: float = 0.0

    def __post_init__(self) -> None:
        samples = dict.fromkeys(self.splits, 1)
        GlyphSettings(self.faces, splits=self.splits, samples=samples)  # which says what is wrong
        check(self.split in self.splits, f"split: expected one of {', '.join(self.splits)}, found '{self.split}'.")
        check(self.steps > 0, f"steps: expected at least 1, found {self.steps}.")
        for name in ("noise", "slip"):
            check(getattr(self, name) >= 0, f"{name}: expected a positive number or 0, found {getattr(self, name)}.")


class Reaching(Episode):
    """
    Attributes:
        laid: the characters.
        target: the number of the one that is meant.
        at: where the gripper is, (x, y) in shares.
    """

    def __init__(self, config: ReachingSettings, pools: Sequence[Sequence[Glyph]], seed: str) -> None:
        self._rng = random.Random(seed)
        self._config, self.kind = config, self._rng.choice(TYPES)
        canvas, self.laid, phrase, self.target = draw_scene(pools, self.kind, self._rng)
        self._canvas = canvas
        self.instruction = f"{self._rng.choice(VERBS)} {phrase}"
        self.at = np.array([self._rng.uniform(0.05, 0.95), self._rng.uniform(0.05, 0.95)])

    @property
    def group(self) -> str:
        """The code point of what is meant."""
        return code(self.laid[self.target].glyph.char)

    def observation(self) -> dict[str, Any]:
        state = [float(value) for value in self.at]
        return {"image": [pgm(self._seen())], "text": self.instruction, "state": state}

    def act(self, action: NDArray[np.float64]) -> None:
        slip = np.array([self._rng.gauss(0, 1), self._rng.gauss(0, 1)]) * self._config.slip
        self.at = (self.at + np.clip(action[:2], -REACH, REACH) + slip).clip(0, 1)
        self.steps += 1
        if self.steps >= self._config.steps:
            over = [number for number, one in enumerate(self.laid) if self._over(one)]
            self.outcome = "another character" if over else "nothing there"
            self.outcome = SUCCESS if self.target in over else self.outcome

    def picture(self) -> Any:
        from PIL import Image

        return Image.fromarray(self._seen())

    def towards(self, number: int) -> NDArray[np.float64]:
        """The action that comes nearer to one of the characters."""
        left, top, right, bottom = self.laid[number].box
        away = np.array([left + right, top + bottom]) / (2 * SIDE) - self.at
        return np.clip(GAIN * away, -REACH, REACH)

    def _over(self, one: Laid) -> bool:
        left, top, right, bottom = one.box
        x, y = self.at * SIDE
        return bool(left <= x <= right and top <= y <= bottom)

    def _seen(self) -> NDArray[np.uint8]:
        rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
        away = np.hypot(columns - self.at[0] * SIDE, rows - self.at[1] * SIDE)
        seen = np.where((away >= RING[0]) & (away <= RING[1]), 255, self._canvas)
        if not self._config.noise:
            return seen.astype(np.uint8)
        rng = np.random.default_rng(self._rng.getrandbits(32))
        return (seen + rng.normal(0, 255 * self._config.noise, seen.shape)).clip(0, 255).astype(np.uint8)


def expert(episode: Reaching, rng: random.Random) -> NDArray[np.float64]:
    del rng
    return episode.towards(episode.target)


def any_character(episode: Reaching, rng: random.Random) -> NDArray[np.float64]:
    """Goes to one of the four, the same one throughout."""
    if not hasattr(episode, "chosen"):
        episode.chosen = rng.randrange(len(episode.laid))  # type: ignore[attr-defined]
    return episode.towards(episode.chosen)  # type: ignore[attr-defined]


class GlyphReaching(World):
    Config = ReachingSettings
    references = {"an expert": expert, "any character": any_character}

    def __init__(self, config: ReachingSettings) -> None:
        self._config, shared = config, GlyphSettings(config.faces, splits=config.splits, seed=config.seed)
        self._pools = [
            [g for g in glyph_faces.glyphs(face) if split_of(g.char, shared) == config.split] for face in config.faces
        ]

    def episode(self, seed: str) -> Reaching:
        return Reaching(self._config, self._pools, seed)
