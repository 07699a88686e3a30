"""Manifest cells to arrays: one function a kind, nothing else knows how a modality is stored."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.errors import FusetuneError
from fusetune.manifest.schema import Audio

MOST_PIXELS = 64_000_000  # of one picture; a small file may unpack to many gigabytes


def decode(kind: str, cell: Any, where: str, frames: int = 16) -> Any:
    """Decode one cell of the manifest.

    Args:
        kind: the modality's kind (`manifest.schema.KINDS`).
        cell: the Arrow cell as a Python value. Images are encoded bytes (any format of Pillow's) or a list of them,
            one per picture of the sample; sounds and videos are encoded bytes too (any format of libsndfile's, of
            FFmpeg's).
        where: row and column, for the error message.
        frames: of a video, evenly spaced.

    Returns:
        image: a list of PIL images; audio: `Audio`, channels averaged; text: str; sequence: (tokens, width) float32;
        vector: (1, width) float32; video: a list of PIL images.

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
    return _video(cell, where, frames)


def _image(data: Any, where: str):
    from PIL import Image, UnidentifiedImageError

    if not isinstance(data, bytes):
        raise FusetuneError(f"{where}: expected the bytes of an image, found {type(data).__name__}.")
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MOST_PIXELS:
            raise FusetuneError(f"{where}: {image.width} x {image.height} pixels; expected at most {MOST_PIXELS:,}.")
        image.load()
    except UnidentifiedImageError:
        raise FusetuneError(f"{where}: {len(data)} bytes are no readable image (of no format that is known).") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FusetuneError(f"{where}: {len(data)} bytes are no readable image ({error}).") from None
    return image


def _audio(data: Any, where: str) -> Audio:
    import soundfile

    if not isinstance(data, bytes):
        raise FusetuneError(f"{where}: expected the bytes of a sound, found {type(data).__name__}.")
    try:
        waveform, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        track = _audio_track(data)  # of a video, or a format that libsndfile doesn't know
        if track is None:
            raise FusetuneError(f"{where}: {len(data)} bytes are no readable sound ({error.error_string})") from None
        waveform, rate = track
    if not len(waveform):
        raise FusetuneError(f"{where}: a sound without samples.")
    return Audio(waveform.mean(1), rate)


def _audio_track(data: bytes) -> tuple[np.ndarray, int] | None:
    """(samples, channels) and their rate by FFmpeg; None where it finds no sound."""
    import av

    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp")
            frames = [part for frame in container.decode(stream) for part in resampler.resample(frame)]
            return np.concatenate([frame.to_ndarray() for frame in frames], 1).T, stream.rate
    except (av.FFmpegError, IndexError, ValueError):
        return None


def _video(data: Any, where: str, frames: int) -> list[Any]:
    """Frames at evenly spaced times, by one pass over the file; never more than two of them decoded ahead."""
    import av

    if not isinstance(data, bytes):
        raise FusetuneError(f"{where}: expected the bytes of a video, found {type(data).__name__}.")
    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            count = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
            container.seek(0)
            wanted = np.linspace(0, max(0, count - 1), frames).round().astype(int).tolist()
            found: list[Any] = []
            last = None
            for number, frame in enumerate(container.decode(stream)):
                last = frame
                while len(found) < frames and wanted[len(found)] <= number:
                    found.append(frame.to_image())
            if last is None:
                raise FusetuneError(f"{where}: a video without frames.")
            return found + [last.to_image()] * (frames - len(found))  # its header promised more than there are
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise FusetuneError(f"{where}: {len(data)} bytes are no readable video ({error}).") from None


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
