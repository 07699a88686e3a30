"""Small towers of our own for data without a pretrained encoder at hand, fitted to the training rows without labels.

Each turns a sample into one vector of plain numbers (a vector as it is, a picture as pixels, a sound as log-mel
energies, Davis and Mermelstein 1980, a sequence and a sound averaged over stretches, a text as counts of its letters'
n-grams), standardises it, and runs an MLP. `alignment` trains the MLPs so that the modalities of one sample find each
other; where that loses what the plain numbers know, the tower ends with them.
"""

import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.backbones.audio_towers import resampled
from fusetune.backbones.given_features import LayersTower, Standardise
from fusetune.errors import FusetuneError
from fusetune.tokens import Lattice, Tokens, pad

MELS = 40
NGRAMS = range(2, 5)  # letters, within words


@dataclass(frozen=True)
class AlignedSettings:
    """
    Attributes:
        inputs: numbers per sample.
        width, hidden: of the MLP's output and middle.
        side: of a picture, pixels; others are resized.
        rate: of a sound, Hz; others are resampled.
        window, hop: of a spectrogram, in seconds.
        segments: stretches over which the tokens of a sound or a sequence are averaged.
        buckets: into which the n-grams of a text are hashed.
        mlp: whether the MLP stands behind the plain numbers; without it they are what the tower gives.
    """

    inputs: int
    width: int = 64
    hidden: int = 256
    side: int = 16
    rate: int = 8000
    window: float = 0.032
    hop: float = 0.01
    segments: int = 12
    buckets: int = 1024
    mlp: bool = True


class AlignedTower(LayersTower):
    """Two blocks, the standardisation and the MLP, or the first alone; a sample is one token."""

    Settings = AlignedSettings
    registered: ClassVar[str]  # name in the registry of towers

    def __init__(self, settings: AlignedSettings) -> None:
        super().__init__(settings)
        self.depth, self.width = (2, settings.width) if settings.mlp else (1, settings.inputs)
        self.layers = nn.ModuleList([Standardise(settings.inputs)])
        if settings.mlp:
            middle = nn.Sequential(
                nn.Linear(settings.inputs, settings.hidden),
                nn.GELU(),
                nn.Linear(settings.hidden, settings.width),
                nn.LayerNorm(settings.width, elementwise_affine=False),
            )
            self.layers.append(middle)

    @classmethod
    def fitted(cls, samples: Sequence[Any], where: str) -> "AlignedTower":
        """A tower with the means and spreads of these samples, its MLP untrained."""
        probe = cls(AlignedSettings(1))
        present = [probe.numbers(sample) for sample in samples if sample is not None]
        if not present:
            raise FusetuneError(f"{where}: no training row has this modality.")
        values = torch.stack(present)
        tower = cls(AlignedSettings(values.shape[1]))
        standardise: Any = tower.layers[0]
        standardise.fit([values])
        return tower

    def plain(self) -> "AlignedTower":
        """The same tower without its MLP."""
        tower = type(self)(replace(self.settings, mlp=False))
        tower.layers[0].load_state_dict(self.layers[0].state_dict())
        return tower

    @abstractmethod
    def numbers(self, sample: Any) -> Tensor:
        """A decoded sample as (inputs,) float32."""

    def prepare(self, samples: Sequence[Any]) -> Tokens:
        rows = []
        for sample in samples:
            row = torch.zeros(0, self.settings.inputs) if sample is None else self.numbers(sample)[None]
            if row.shape[1] != self.settings.inputs:
                raise FusetuneError(
                    f"expected {self.settings.inputs} numbers for this {self.kind} tower, found {row.shape[1]}."
                )
            rows.append(row)
        return pad(rows)

    def roles(self) -> Mapping[str, str]:
        return {"mlp_input": "0", "mlp_output": "2"} if self.settings.mlp else {}  # of the second block

    def tokens_out(self, tokens_in: int) -> int:
        return 1

    def lattice(self) -> Lattice:
        raise FusetuneError("a tower from 'align' makes one token of a sample, in which nothing can be told apart.")


class AlignedVector(AlignedTower):
    """A vector as it is."""

    kind, registered = "vector", "aligned_vector"

    def numbers(self, sample: Any) -> Tensor:
        return torch.as_tensor(sample).reshape(-1).float()


class AlignedSequence(AlignedTower):
    """A sequence as mean and spread of each of its `segments` stretches."""

    kind, registered = "sequence", "aligned_sequence"

    def numbers(self, sample: Any) -> Tensor:
        return segmented(np.asarray(sample, np.float32), self.settings.segments)


class AlignedImage(AlignedTower):
    """The first picture of a sample, in colour."""

    kind, registered = "image", "aligned_image"

    def numbers(self, sample: Any) -> Tensor:
        small = sample[0].convert("RGB").resize((self.settings.side, self.settings.side))
        return torch.from_numpy(np.asarray(small, np.float32) / 255).reshape(-1)


class AlignedText(AlignedTower):
    """Counts of a text's n-grams of letters, hashed, as log(1 + count), of length 1."""

    kind, registered = "text", "aligned_text"

    def numbers(self, sample: Any) -> Tensor:
        counts: Counter[int] = Counter()
        for word in sample.lower().split():
            framed = f" {word} "
            grams = (framed[i : i + n] for n in NGRAMS for i in range(max(1, len(framed) - n + 1)))
            counts.update(zlib.crc32(gram.encode()) % self.settings.buckets for gram in grams)
        values = torch.zeros(self.settings.buckets)
        for bucket, count in counts.items():
            values[bucket] = count
        return nn.functional.normalize(values.log1p(), dim=0)


class AlignedAudio(AlignedTower):
    """A sound's log-mel frames, as mean and spread of each of `segments` stretches."""

    kind, registered = "audio", "aligned_audio"

    def numbers(self, sample: Any) -> Tensor:
        from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

        chosen = self.settings
        window, hop = round(chosen.window * chosen.rate), round(chosen.hop * chosen.rate)
        filters = mel_filter_bank(window // 2 + 1, MELS, 60.0, chosen.rate / 2, chosen.rate)
        waveform = resampled(sample, chosen.rate)
        waveform = np.pad(waveform, (0, max(0, 2 * window - len(waveform))))
        shape = window_function(window, "hann")
        power = spectrogram(waveform, shape, window, hop, power=2.0, mel_filters=filters, mel_floor=1e-8, log_mel="log")
        return segmented(power.T, chosen.segments)


def segmented(tokens: np.ndarray, segments: int) -> Tensor:
    """(tokens, width) to (segments * 2 * width,): mean and standard deviation of each of `segments` stretches."""
    if len(tokens) < segments:
        tokens = np.repeat(tokens, segments, axis=0)
    parts = np.array_split(tokens, segments)
    return torch.from_numpy(np.concatenate([[*part.mean(0), *part.std(0)] for part in parts]).astype(np.float32))


TOWERS = {tower.kind: tower for tower in (AlignedVector, AlignedSequence, AlignedImage, AlignedAudio, AlignedText)}
