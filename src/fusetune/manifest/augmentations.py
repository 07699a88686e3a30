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
    },
)


def make_augmentation(settings: Mapping[str, Any], kind: str, where: str) -> Any:
    """An augmentation from ``{name: ..., <its settings>}``; raises FusetuneError if it is not for this kind."""
    options = dict(settings)
    cls = augmentations.get(options.pop("name", ""))
    if kind not in cls.kinds:
        raise FusetuneError(f"{where}: this one changes {', '.join(cls.kinds)}; the modality is of kind '{kind}'.")
    return build(cls, options, where)


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
    """Gaussian noise.

    Attributes:
        share: its standard deviation, relative to that of the sample.
    """

    share: float = 0.1
    kinds = ("audio", "sequence", "vector")

    def __post_init__(self) -> None:
        check(self.share > 0, f"share: expected a positive number, found {self.share}.")

    def __call__(self, sample: Any, generator: np.random.Generator) -> Any:
        values = sample.waveform if isinstance(sample, Audio) else sample
        noise = generator.standard_normal(values.shape, dtype=np.float32) * (self.share * float(values.std()))
        return Audio(values + noise, sample.sampling_rate) if isinstance(sample, Audio) else values + noise
