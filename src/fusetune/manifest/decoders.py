"""Manifest cells to arrays: one function a kind, nothing else knows how a modality is stored."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fusetune.errors import FusetuneError
from fusetune.manifest.contents import is_list
from fusetune.manifest.pictures import read_picture
from fusetune.manifest.schema import Audio, Modality

# of each kind: raised when the same bytes become another sample, so that nothing cached before is taken for it
VERSIONS = {"image": 2, "text": 1, "audio": 1, "video": 1, "sequence": 1, "vector": 1}


def decode(kind: str, cell: Any, where: str, frames: int = 16, background: str = "white") -> Any:
    """Decode one cell of the manifest.

    Args:
        kind: the modality's kind (`manifest.schema.KINDS`).
        cell: the Arrow cell as a Python value. Images are encoded bytes (any format of Pillow's) or a list of them,
            one per picture of the sample; sounds and videos are encoded bytes too (any format of libsndfile's, of
            FFmpeg's).
        where: row and column, for the error message.
        frames: of a video, evenly spaced.
        background: a colour, seen where a picture is transparent.

    Returns:
        image: a list of PIL images of mode L or RGB; audio: `Audio`, channels averaged; text: str; sequence: (tokens,
        width) float32; vector: (1, width) float32; video: a list of PIL images.

    Raises:
        FusetuneError: names `where`, what was found and what was expected.
    """
    if kind == "text":
        if not isinstance(cell, str):
            raise FusetuneError(f"{where}: expected text, found {type(cell).__name__}.")
        return cell
    if kind == "image":
        cells = cell if isinstance(cell, list) else [cell]
        for item in cells:
            if not isinstance(item, bytes):
                raise FusetuneError(f"{where}: expected the bytes of an image, found {type(item).__name__}.")
        return [read_picture(item, where, background) for item in cells]
    if kind == "audio":
        return _audio(cell, where)
    if kind in ("sequence", "vector"):
        return _floats(cell, where, dimensions=2 if kind == "sequence" else 1).reshape(-1, _last(cell))
    return _video(cell, where, frames)


def decoded(modality: Modality, cell: Any, where: str) -> Any:
    """One cell, as its modality's settings say; see `decode`."""
    return decode(modality.kind, cell, where, modality.frames, modality.background)


def vectors(cells: Any) -> list[Any] | None:
    """Cells of a column of vectors, each as `decode` gives it, all at once.

    None where one has to be looked at alone: another width, or what is no finite number.
    """
    kind = cells.type
    if not is_list(kind) or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        return None
    flat = [chunk.flatten() for chunk in cells.chunks]
    widths = set(pc.list_value_length(cells).drop_null().unique().to_pylist())
    if len(widths) != 1 or 0 in widths or any(part.null_count for part in flat):
        return None
    values = np.concatenate([part.to_numpy(zero_copy_only=False) for part in flat]).astype(np.float32)
    if not np.isfinite(values).all():
        return None
    found = iter(values.reshape(-1, 1, widths.pop()))
    return [next(found) if there else None for there in cells.is_valid().to_pylist()]


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
    mono = waveform.mean(1)
    energy = float(np.square(waveform, dtype=np.float64).sum()) / waveform.shape[1]
    kept = float(np.square(mono, dtype=np.float64).sum()) / energy if energy > 0 else 1.0
    return Audio(mono, rate, kept)


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
