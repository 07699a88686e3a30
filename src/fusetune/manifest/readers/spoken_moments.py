"""Spoken digits strung together, and when a certain one is said: temporal grounding in sound.

The recordings are those of the Free Spoken Digit Dataset, as `avdigits` reads them (CC BY-SA 4.0). A sample is a few of
one speaker's recordings with pauses between, and a sentence that asks for a digit; a digit that is said twice has two
moments, and either is right. Recordings never stand in two splits. Sounds come as log-mel energies (Davis and
Mermelstein 1980), ten times a second, each with its neighbours; or, on request, as they are.
"""

import io
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fusetune.config import build, check
from fusetune.manifest.readers.avdigits import sources as sources
from fusetune.manifest.readers.layouts import check_samples, manifest, there
from fusetune.manifest.schema import SPLITS

RATE = 8000  # Hz, of the recordings
STEP = 0.1  # seconds from one token to the next
NEIGHBOURS = 2  # of a token, on either side
MELS, WINDOW, HOP = 40, 256, 80  # bands; samples of a frame, and from frame to frame
DIGITS = (4, 7)  # said in a sample, least and most
PAUSE = (0.05, 0.4)  # seconds
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SENTENCES = ("when is a {} said", "find the {}", "where does somebody say {}")


@dataclass(frozen=True)
class SpokenMomentSettings:
    """
    Attributes:
        folder: holds recordings and `av_pairs.parquet`.
        samples: per split.
        held_out: a speaker of the test split alone, with all of his recordings; None: everybody is in every split.
        sound: a column `sound` of WAV bytes in place of `mel`.
        seed: of the samples.
    """

    folder: str
    samples: Mapping[str, int] = field(default_factory=lambda: {"train": 3000, "val": 500, "test": 1000})
    held_out: str | None = None
    sound: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_samples(self.samples)


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """Columns mel (tokens, width) or sound, text, span (a list of them), duration, speaker."""
    import pyarrow.parquet as pq

    config = build(SpokenMomentSettings, settings, where)
    pairs = pq.read_table(there(Path(config.folder, "av_pairs.parquet"))).to_pylist()
    said: dict[str, dict[str, dict[int, list[str]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    speakers = sorted({pair["speaker"] for pair in pairs})
    check(
        config.held_out in (None, *speakers),
        f"{where}.held_out: expected one of {', '.join(speakers)}, found '{config.held_out}'.",
    )
    for pair in pairs:
        split = pair["split"]
        if config.held_out:
            split = "test" if pair["speaker"] == config.held_out else "val" if split == "val" else "train"
        said[split][pair["speaker"]][int(pair["digit"])].append(pair["file"])
    wave_by_name = cache(partial(wave_of, Path(config.folder)))
    rows = []
    for split in SPLITS:
        rng = random.Random(f"spoken-{config.seed}-{split}")
        for number in range(config.samples[split]):
            speaker = rng.choice(sorted(said[split]))
            digits = [rng.randrange(len(WORDS)) for _ in range(rng.randint(*DIGITS))]
            parts = [wave_by_name(rng.choice(said[split][speaker][d])) for d in digits]
            wave, spans = strung(parts, rng)
            asked = rng.choice(digits)
            rows.append(
                {
                    "sample_id": f"{split}-{number:05d}",
                    "split": split,
                    "group_id": f"{split}-{number:05d}",
                    **({"sound": _wav(wave)} if config.sound else {"mel": log_mel(wave)}),
                    "text": rng.choice(SENTENCES).format(WORDS[asked]),
                    "span": [span for digit, span in zip(digits, spans, strict=True) if digit == asked],
                    "duration": len(wave) / RATE,
                    "speaker": speaker,
                }
            )
    return manifest(rows, where)


def log_mel(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """(tokens, (1 + 2 NEIGHBOURS) MELS): mean log-mel energies of each `STEP`, and of those beside it."""
    steps = mel_frames(wave, STEP)
    padded = np.pad(steps, ((NEIGHBOURS, NEIGHBOURS), (0, 0)), mode="edge")
    return np.concatenate([padded[i : i + len(steps)] for i in range(2 * NEIGHBOURS + 1)], 1)


def mel_frames(wave: NDArray[np.float32], step: float) -> NDArray[np.float32]:
    """(tokens, MELS): mean log-mel energies of each `step`, in seconds."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    filters = mel_filter_bank(WINDOW // 2 + 1, MELS, 60.0, RATE / 2, RATE)
    frames = spectrogram(
        wave, window_function(WINDOW, "hann"), WINDOW, HOP, power=2.0, mel_filters=filters, mel_floor=1e-8,
        log_mel="log",
    ).T  # fmt: skip
    each = round(step * RATE / HOP)
    return np.stack([frames[i : i + each].mean(0) for i in range(0, len(frames), each)]).astype(np.float32)


def strung(parts: Sequence[NDArray[np.float32]], rng: random.Random) -> tuple[NDArray[np.float32], list[list[float]]]:
    """One behind another with pauses of silence, and where each stands, in seconds."""
    pieces, spans, at = [], [], 0
    for part in parts:
        pause = np.zeros(round(rng.uniform(*PAUSE) * RATE), np.float32)
        pieces += [pause, part]
        spans.append([(at + len(pause)) / RATE, (at + len(pause) + len(part)) / RATE])
        at += len(pause) + len(part)
    return np.concatenate(pieces), spans


def wave_of(folder: Path, name: str) -> NDArray[np.float32]:
    """A recording, (samples,)."""
    import soundfile

    wave, rate = soundfile.read(there(folder / "recordings" / name), dtype="float32")
    check(rate == RATE, f"{folder / 'recordings' / name}: {rate} Hz, expected {RATE}.")
    return wave


def _wav(wave: NDArray[np.float32]) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
