"""Small real media files, and a sound manifest that points to them."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from fusetune.manifest.schema import Modality

SPLIT = ["train"] * 12 + ["val"] * 6 + ["test"] * 6
ROWS = len(SPLIT)


def png(number: int, size: tuple[int, int] = (12, 10)) -> bytes:
    buffer = io.BytesIO()
    image = Image.new("RGB", size, (number * 7 % 256, number, 90))
    image.paste((9, 9, 9), (0, 0, size[0] // 2, size[1]))
    image.save(buffer, "png")
    return buffer.getvalue()


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "jpeg")
    return buffer.getvalue()


def wav(values: np.ndarray, rate: int = 8000) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, values, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def tone(number: int, seconds: float = 0.2) -> np.ndarray:
    return 0.3 * np.sin(np.arange(int(8000 * seconds)) * (0.1 + 0.01 * number))


def clip(number: int, frames: int = 6) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(frames):
            shade = np.full((32, 32, 3), (number * 5 + index * 30) % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def manifest(root: Path) -> tuple[pa.Table, dict[str, Modality]]:
    """Six modalities, 24 rows, everything in order."""
    (root / "media").mkdir(parents=True, exist_ok=True)
    for row in range(ROWS):
        (root / "media" / f"{row}.png").write_bytes(png(row))
        (root / "media" / f"{row}.wav").write_bytes(wav(tone(row)))
        (root / "media" / f"{row}.mp4").write_bytes(clip(row))
    columns = {
        "sample_id": [f"s{row}" for row in range(ROWS)],
        "split": SPLIT,
        "group_id": [f"g{row // 2}" for row in range(ROWS)],
        "label": ["cat", "dog"] * (ROWS // 2),
        "image": [f"media/{row}.png" for row in range(ROWS)],
        "sound": [f"media/{row}.wav" for row in range(ROWS)],
        "clip": [f"media/{row}.mp4" for row in range(ROWS)],
        "text": [f"text number {row}" for row in range(ROWS)],
        "points": [[[float(row), 1.0]] * (1 + row % 3) for row in range(ROWS)],
        "numbers": [[float(row), 2.0, 3.0] for row in range(ROWS)],
    }
    kinds = {"image": "image", "sound": "audio", "clip": "video", "text": "text", "points": "sequence"}
    modalities = {name: Modality(kind, root=str(root)) for name, kind in {**kinds, "numbers": "vector"}.items()}
    return pa.table(columns), modalities
