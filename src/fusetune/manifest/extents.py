"""How large a sample is: a picture's width and height in pixels, a sound's or a video's seconds."""

from pathlib import Path
from typing import Any

from fusetune.errors import FusetuneError
from fusetune.manifest.files import path_problem
from fusetune.manifest.headers import duration, video_seconds
from fusetune.manifest.pictures import shown_size
from fusetune.manifest.schema import Audio, Modality

Extent = tuple[float, ...]


def extent_of_cell(modality: Modality, cell: Any, where: str) -> Extent | None:
    """By the header of what a manifest's cell holds or names; None for a kind of modality that has none.

    Raises:
        FusetuneError: a file that isn't there, a header that doesn't tell, or several pictures.
    """
    if modality.kind == "image":
        pictures = cell if isinstance(cell, list) else [cell]
        if len(pictures) != 1:
            raise FusetuneError(f"{where}: expected one picture, found {len(pictures)}.")
        return shown_size(_file_or_bytes(modality, pictures[0], where), where)
    if modality.kind not in ("audio", "video"):
        return None
    seconds = duration if modality.kind == "audio" else video_seconds
    return (seconds(_file_or_bytes(modality, cell, where), where),)


def _file_or_bytes(modality: Modality, cell: Any, where: str) -> Any:
    """A path as a file below its root, of which a header alone is read."""
    if not isinstance(cell, str):
        return cell
    if problem := path_problem(modality.root, cell):
        raise FusetuneError(f"{where}: {problem[1]} ({problem[0]}).")
    return Path(modality.root, cell)


def extent_of_sample(sample: Any) -> Extent | None:
    """Of what `decoders.decode` has made; None where that doesn't tell any more (the frames of a video)."""
    if isinstance(sample, Audio):
        return (len(sample.waveform) / sample.sampling_rate,)
    if isinstance(sample, list) and len(sample) == 1 and hasattr(sample[0], "size") and hasattr(sample[0], "convert"):
        return (float(sample[0].width), float(sample[0].height))
    return None
