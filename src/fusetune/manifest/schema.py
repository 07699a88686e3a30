"""What a manifest is: one row a sample, one column a modality, plus split, group and labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from fusetune.config import build, check

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "val", "test")
MEDIA = ("image", "audio", "video")  # kinds whose cells may be paths
KINDS = ("image", "text", "audio", "video", "sequence", "vector")
REQUIRED = ("sample_id", "split", "group_id")
TURN = "\x1e"  # in a text, between what has been said in turn: question, answer, ..., question
CONVERSATION = "conversation: problem"  # the column in which a reader of conversations says what is wrong with a row


@dataclass(frozen=True)
class Modality:
    """One modality of the user's data.

    Attributes:
        kind: what it is made of; `sequence` is (tokens, width) floats, `vector` is (width,) floats.
        column: the manifest column that holds it (default: the modality's name).
        optional: a sample may be without it.
        root: folder of the files that a column of paths names; relative to where the command runs.
        frames: of a video, evenly spaced from its first to its last.
        background: a colour (a name, `#rrggbb`), seen where a picture is transparent.
        constant: of a text that is the same for every sample (an instruction); there is no column then.
        augment: random changes of training samples, ``{name: ..., <its settings>}``; needs `cache.views`.
    """

    kind: str
    column: str | None = None
    optional: bool = False
    root: str = "."
    frames: int = 16
    background: str = "white"
    constant: str | None = None
    augment: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.kind in KINDS, f"kind: expected one of {', '.join(KINDS)}, found '{self.kind}'.")
        check(
            self.constant is None or (self.kind == "text" and self.column is None),
            f"constant: expected of a text without a column, found it beside kind '{self.kind}', column {self.column}.",
        )
        check(self.frames > 0, f"frames: expected at least 1, found {self.frames}.")
        check(_is_colour(self.background), f"background: expected a colour such as white, found '{self.background}'.")

    def column_of(self, name: str) -> str:
        return self.column or name


def _is_colour(name: str) -> bool:
    if name == "white":
        return True  # the usual case costs no import
    from PIL import ImageColor

    try:
        return bool(ImageColor.getrgb(name))
    except ValueError:
        return False


def modalities_of(data: Mapping[str, Any]) -> dict[str, Modality]:
    """Those of `data` in conf, without what imports a task or a model."""
    return {
        name: build(Modality, one, f"data.modalities.{name}") for name, one in (data.get("modalities") or {}).items()
    }


class Audio(NamedTuple):
    """A decoded sound.

    Attributes:
        waveform: (samples,) float32, one channel, -1 to 1.
        sampling_rate: samples per second (Hz).
        kept: share of the channels' energy that is left in their mean; little of it where they are in anti-phase.
    """

    waveform: "np.ndarray"
    sampling_rate: int
    kept: float = 1.0
