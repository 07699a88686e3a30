"""Manifest cells to arrays: one function a kind, nothing else knows how a modality is stored."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.errors import FusetuneError
from fusetune.manifest.schema import Audio

NOT_YET = "decoding of {} is not part of this version; kinds that work: image, text, audio, sequence, vector."


def decode(kind: str, cell: Any, where: str) -> Any:
    """Decode one cell of the manifest.

    Args:
        kind: the modality's kind (`manifest.schema.KINDS`).
        cell: the Arrow cell as a Python value. Images are encoded bytes (any format of Pillow's) or a list of them,
            one per picture of the sample; sounds are encoded bytes (any format of libsndfile's: WAV, FLAC, OGG, MP3).
        where: row and column, for the error message.

    Returns:
        image: a list of PIL images; audio: `Audio`, channels averaged; text: str; sequence: (tokens, width) float32;
        vector: (1, width) float32.

    Raises:
        FusetuneError: names `where`, what was found and what was expected.
    """
    if kind == "text":
        if not isinstance(cell, str):
            raise FusetuneError(f"{where}: expected text, found {type(cell).__name__}.")
        return cell
    if kind == "image":
        cells = cell if isinstance(cell, list) else [cell]
        return [_image(item, where) for item in cells]
    if kind == "audio":
        return _audio(cell, where)
    if kind in ("sequence", "vector"):
        return _floats(cell, where, dimensions=2 if kind == "sequence" else 1).reshape(-1, _last(cell))
    raise FusetuneError(f"{where}: " + NOT_YET.format(kind))


def _image(data: Any, where: str):
    from PIL import Image, UnidentifiedImageError

    if not isinstance(data, bytes):
        raise FusetuneError(f"{where}: expected the bytes of an image, found {type(data).__name__}.")
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise FusetuneError(f"{where}: {len(data)} bytes are no readable image ({error}).") from None
    return image


def _audio(data: Any, where: str) -> Audio:
    import soundfile

    if not isinstance(data, bytes):
        raise FusetuneError(f"{where}: expected the bytes of a sound, found {type(data).__name__}.")
    try:
        waveform, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise FusetuneError(f"{where}: {len(data)} bytes are no readable sound ({error.error_string})") from None
    if not len(waveform):
        raise FusetuneError(f"{where}: a sound without samples.")
    return Audio(waveform.mean(1), rate)


def duration(data: bytes | Path, where: str) -> float:
    """Seconds of a sound, by its header alone."""
    import soundfile

    try:
        found = soundfile.info(io.BytesIO(data) if isinstance(data, bytes) else str(data))
    except soundfile.LibsndfileError as error:
        raise FusetuneError(f"{where}: no readable sound ({error.error_string})") from None
    return found.frames / found.samplerate


def _last(cell: Any) -> int:
    return len(cell[0]) if isinstance(cell[0], list | np.ndarray) else len(cell)


def _floats(cell: Any, where: str, dimensions: int) -> np.ndarray:
    try:
        array = np.asarray(cell, dtype=np.float32)
    except (TypeError, ValueError):
        raise FusetuneError(f"{where}: expected {dimensions}-dimensional floats of one width.") from None
    if array.ndim != dimensions or not array.size:
        raise FusetuneError(f"{where}: expected {dimensions}-dimensional floats, found shape {array.shape}.")
    if not np.isfinite(array).all():
        raise FusetuneError(f"{where}: NaN or infinity among the values.")
    return array
