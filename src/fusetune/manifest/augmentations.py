"""Random changes of training samples, each drawn from a generator that belongs to one sample and one view."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusetune.config import build, check
from fusetune.errors import FusetuneError
from fusetune.manifest.schema import Audio
from fusetune.registry import Registry

augmentations = Registry(
    "augmentations",
    {
        "crop_flip": "fusetune.manifest.augmentations:CropFlip",
        "noise": "fusetune.manifest.augmentations:Noise",
        "misprints": "fusetune.manifest.augmentations:Misprints",
    },
)


def make_augmentation(settings: Mapping[str, Any], kind: str, where: str) -> Any:
    """An augmentation from ``{name: ..., <its settings>}``; raises FusetuneError if it is not for this kind."""
    options = dict(settings)
    cls = augmentations.get(options.pop("name", ""))
    if kind not in cls.kinds:
        raise FusetuneError(f"{where}: this one changes {', '.join(cls.kinds)}; the modality is of kind '{kind}'.")
    return build(cls, options, where)


def moves(settings: Mapping[str, Any]) -> bool:
    """Whether what is seen in a picture, or heard at a time, is elsewhere in what an augmentation makes of it."""
    return bool(settings) and getattr(augmentations.get(settings.get("name", "")), "moves", False)


@dataclass(frozen=True)
class CropFlip:
    """A random crop of each picture, and its mirror image half of the time.

    Attributes:
        smallest: least share of the picture's area that is kept.
        flip: whether to mirror; false where left and right mean something.
    """

    smallest: float = 0.6
    flip: bool = True
    kinds = ("image", "video")
    moves = True

    def __post_init__(self) -> None:
        check(0 < self.smallest <= 1, f"smallest: expected a share of at most 1, found {self.smallest}.")

    def __call__(self, sample: Any, generator: np.random.Generator) -> Any:
        side = np.sqrt(generator.uniform(self.smallest, 1))
        x, y = generator.uniform(0, 1 - side, 2)
        mirrored = self.flip and generator.random() < 0.5
        return [self._changed(picture, side, x, y, mirrored) for picture in sample]  # the same for all of a sample's

    @staticmethod
    def _changed(picture: Any, side: float, x: float, y: float, mirrored: bool) -> Any:
        from PIL import ImageOps

        width, height = picture.size
        box = (x * width, y * height, (x + side) * width, (y + side) * height)
        cut = picture.resize(picture.size, box=box)
        return ImageOps.mirror(cut) if mirrored else cut


@dataclass(frozen=True)
class Noise:
    """Gaussian noise; of pictures on each channel, which stays within black and white.

    Attributes:
        share: its standard deviation, relative to that of the sample.
    """

    share: float = 0.1
    kinds = ("image", "video", "audio", "sequence", "vector")

    def __post_init__(self) -> None:
        check(self.share > 0, f"share: expected a positive number, found {self.share}.")

    def __call__(self, sample: Any, generator: np.random.Generator) -> Any:
        if isinstance(sample, list):
            return [self._speckled(picture, generator) for picture in sample]
        if isinstance(sample, Audio):
            return sample._replace(waveform=self._noisy(sample.waveform, generator))
        return self._noisy(sample, generator)

    def _noisy(self, values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        noise = generator.standard_normal(values.shape, dtype=np.float32)
        return values + noise * (self.share * float(values.std()))

    def _speckled(self, picture: Any, generator: np.random.Generator) -> Any:
        from PIL import Image

        values = self._noisy(np.asarray(picture, np.float32), generator)
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


@dataclass(frozen=True)
class Misprints:
    """Letters that are replaced by others of the same text.

    Attributes:
        share: of the letters.
    """

    share: float = 0.1
    kinds = ("text",)

    def __post_init__(self) -> None:
        check(0 < self.share <= 1, f"share: expected a share of at most 1, found {self.share}.")

    def __call__(self, sample: str, generator: np.random.Generator) -> str:
        letters = [character for character in sample if character.isalpha()]
        hit = generator.random(len(sample)) < self.share
        drawn = generator.integers(0, max(1, len(letters)), len(sample))
        changed = [
            letters[which] if struck and character.isalpha() else character
            for character, struck, which in zip(sample, hit, drawn, strict=True)
        ]
        return "".join(changed)
