"""How large a medium is once it is decoded, by its header alone: nothing is unpacked."""

import io
from pathlib import Path

from fusetune.errors import FusetuneError
from fusetune.manifest.pictures import opened_picture


def pixels(data: bytes, where: str) -> int:
    """Width x height of a picture."""
    with opened_picture(data, where) as image:
        return image.width * image.height


def samples(data: bytes, where: str) -> int:
    """Samples of a sound, of all channels; raises FusetuneError where its header doesn't tell."""
    import soundfile

    try:
        found = soundfile.info(io.BytesIO(data))
        return found.frames * found.channels
    except soundfile.LibsndfileError as error:
        seconds, rate, channels = _track(data, where, error.error_string)
        return int(seconds * rate) * channels


def frames(data: bytes, where: str) -> tuple[int, int]:
    """Frames of a video and the pixels of one; raises FusetuneError where its header doesn't tell."""
    import av

    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            count = stream.frames
            if not count and container.duration and stream.average_rate:
                count = int(container.duration / av.time_base * stream.average_rate)
            size = stream.width * stream.height
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise FusetuneError(f"{where}: {len(data)} bytes are no readable video ({error}).") from None
    if not count or not size:
        raise FusetuneError(f"{where}: the video's header doesn't say how long it is.")
    return count, size


def duration(data: bytes | Path, where: str) -> float:
    """Seconds of a sound."""
    import soundfile

    try:
        found = soundfile.info(io.BytesIO(data) if isinstance(data, bytes) else str(data))
    except soundfile.LibsndfileError as error:
        raise FusetuneError(f"{where}: no readable sound ({error.error_string})") from None
    return found.frames / found.samplerate


def video_seconds(data: bytes | Path, where: str) -> float:
    """Seconds of a video; raises FusetuneError where its header doesn't tell."""
    import av

    try:
        with av.open(io.BytesIO(data) if isinstance(data, bytes) else str(data), "r") as container:
            stream = container.streams.video[0]
            if stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            seconds = container.duration / av.time_base if container.duration else 0.0
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise FusetuneError(f"{where}: no readable video ({error}).") from None
    if not seconds:
        raise FusetuneError(f"{where}: the video's header doesn't say how long it is.")
    return seconds


def _track(data: bytes, where: str, reason: str) -> tuple[float, int, int]:
    """Seconds, rate and channels of a container's sound."""
    import av

    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.audio[0]
            seconds = container.duration / av.time_base if container.duration else 0.0
            found = seconds, stream.rate, stream.channels
    except (av.FFmpegError, IndexError, ValueError):
        raise FusetuneError(f"{where}: {len(data)} bytes are no readable sound ({reason})") from None
    if not seconds:
        raise FusetuneError(f"{where}: the sound's header doesn't say how long it is.")
    return found
