"""Towers over audio encoders; a sample is an `Audio`, resampled to the rate that the encoder was trained on."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.backbones.families import load
from fusetune.backbones.item_towers import ItemTower
from fusetune.backbones.replay import Left, entered, left_at
from fusetune.backbones.transformers_tower import TransformersTower, last_hidden_state
from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.manifest.schema import Audio
from fusetune.tokens import Lattice, Tokens, pad

KALDI_HOP = 0.01  # seconds from frame to frame


class AudioTower:
    """Chooses between the two kinds of audio tower by what the model's own feature extractor makes."""

    @staticmethod
    def from_pretrained(source: str | Path, revision: str | None = None, **options: Any) -> TransformersTower:
        from transformers import AutoFeatureExtractor

        processor = load(AutoFeatureExtractor, source, revision)
        values = features_of(processor, SpectrogramTower.blank())
        cls = WaveTower if values.ndim == 2 else SpectrogramTower
        return cls.from_pretrained(source, revision=revision, **options)


def resampled(audio: Audio, rate: int) -> np.ndarray:
    """The waveform (samples,), float32, at `rate` Hz."""
    if audio.sampling_rate == rate:
        return audio.waveform
    import soxr

    return soxr.resample(audio.waveform, audio.sampling_rate, rate).astype(np.float32)


def features_of(processor: Any, audio: Audio) -> Tensor:
    """What the feature extractor makes of one sound, (1, ...)."""
    rate = processor.sampling_rate
    made = processor(resampled(audio, rate), sampling_rate=rate, return_tensors="pt")
    return made[processor.model_input_names[0]]


class SpectrogramTower(ItemTower):
    """An audio encoder over spectrograms of one length (Whisper: 30 s, AST: 10 s); a sample is an `Audio`.

    Shorter sounds are padded by the feature extractor and attended to as silence, as in the model's training; longer
    ones are cut.
    """

    kind, processor_class = "audio", "AutoFeatureExtractor"

    @classmethod
    def blank(cls) -> Any:
        return Audio(np.zeros(16_000, np.float32), 16_000)

    @property
    def most_seconds(self) -> float | None:
        """Of a sound; None where the feature extractor doesn't say."""
        if hasattr(self.processor, "chunk_length"):
            return float(self.processor.chunk_length)  # Whisper's
        frames = getattr(self.processor, "max_length", None)
        return frames * KALDI_HOP if frames else None  # AST's

    def lattice(self) -> Lattice:
        times = self._tokens_per_item
        check(
            any(frames % times == 0 for frames in self._input_shape),
            f"an audio encoder whose {times} tokens are no times of a sound, but patches of its spectrogram (AST). "
            "Expected one such as Whisper or Wav2Vec2.",
        )
        return Lattice(times=times)

    def view(self, extent: Sequence[float]) -> tuple[float, ...]:
        return 0.0, self.most_seconds or extent[0]  # what is shorter is filled up with silence

    def _items(self, sample: Any) -> Sequence[Any]:
        return [sample]

    def _process(self, items: Sequence[Any]) -> Tensor:
        rate = self.processor.sampling_rate
        waveforms = [resampled(item, rate) for item in items]
        rows = [
            self.processor(w, sampling_rate=rate, return_tensors="pt")[self.model.main_input_name] for w in waveforms
        ]
        if len({row.shape for row in rows}) > 1:
            shapes = sorted({str(tuple(row.shape[1:])) for row in rows})
            raise FusetuneError(
                f"backbone: {type(self.processor).__name__} makes spectrograms of several shapes, {', '.join(shapes)}; "
                "expected one, as of Whisper or AST."
            )
        return torch.cat(rows)


class WaveTower(TransformersTower):
    """An encoder of raw waveforms (Wav2Vec2, HuBERT); depth 0 is (batch, samples, 1).

    The convolutions in front of the blocks see one sound at a time: in the group-norm variants they depend on the
    padding, so that a sound would get other features in other company.
    """

    kind, processor_class, cuts = "audio", "AutoFeatureExtractor", True

    @classmethod
    def blank(cls) -> Any:
        return SpectrogramTower.blank()

    def __init__(self, model: Any, processor: Any, max_tokens: int | None = None) -> None:
        if getattr(model.config, "add_adapter", False):
            raise FusetuneError("backbone: a convolutional adapter behind the blocks (add_adapter) is not supported.")
        super().__init__(model, processor, max_tokens)

    @property
    def most_seconds(self) -> float | None:
        """Of a sound, that `max_tokens` leaves of it; None: any length."""
        return self._most_samples / self.processor.sampling_rate if self.max_tokens else None

    def view(self, extent: Sequence[float]) -> tuple[float, ...]:
        return 0.0, min(extent[0], self.most_seconds or extent[0])

    def prepare(self, samples: Sequence[Any]) -> Tokens:
        rate = self.processor.sampling_rate
        rows = []
        for sample in samples:
            row = torch.zeros(0)
            if sample is not None:
                waveform = resampled(sample, rate)[: self._most_samples]
                if len(waveform) < self._window:
                    raise FusetuneError(
                        f"a sound of {len(waveform)} samples at {rate} Hz; the encoder needs at least {self._window}."
                    )
                row = self.processor(waveform, sampling_rate=rate, return_tensors="pt")["input_values"][0]
            rows.append(row.unsqueeze(1))
        return pad(rows)

    @property
    def _most_samples(self) -> int | None:
        if self.max_tokens is None:
            return None
        return self._window + (self.max_tokens - 1) * math.prod(self.model.config.conv_stride)

    @property
    def _window(self) -> int:
        """Samples that the convolutions need for one frame."""
        window = 1
        for kernel, stride in reversed(
            list(zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True))
        ):
            window = (window - 1) * stride + kernel
        return window

    def tokens_out(self, tokens_in: int) -> int:
        self.row_samples = torch.zeros(1, dtype=torch.long, device=self.model.device)
        with torch.no_grad():
            shortest = max(tokens_in, self._window)
            silence = torch.zeros(shortest, 1, device=self.model.device, dtype=self.model.dtype)
            return len(self._front(silence))

    def preprocessing(self) -> dict[str, Any]:
        cut = {"max_tokens": self.max_tokens} if self.max_tokens else {}
        return {"class": type(self.processor).__name__, **self.processor.to_dict(), **cut}

    def advance(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        if start == stop:
            return tokens
        if not tokens.mask.any():
            return self.nothing(tokens)
        if start == 0:
            empty = tokens.values.new_zeros(0, self.width)
            rows = []
            for number, row in enumerate(tokens.ragged()):
                self.row_samples = torch.tensor([number], device=row.device)
                rows.append(self._front(row) if len(row) else empty)
            tokens = pad(rows)
            if not self.family:  # the whole model was one block
                return tokens
        present = tokens.mask.any(1)
        self.row_samples = present.nonzero().squeeze(1)
        out = self._run(tokens.values[present], tokens.mask[present], start, stop)
        full = out.new_zeros(len(present), *out.shape[1:])
        return Tokens(full.index_put((present.nonzero().squeeze(1),), out), tokens.mask)

    def _front(self, waveform: Tensor) -> Tensor:
        """One sound (samples, 1) to what stands before the first block, (frames, width)."""
        try:
            if not self.family:
                return last_hidden_state(self.model(waveform.T))[0]
            with left_at(self.blocks()[0]):
                self.model(waveform.T)
        except Left as left:
            return left.hidden_states[0]
        raise AssertionError("a forward pass did not reach its first block")

    def _run(self, states: Tensor, mask: Tensor, start: int, stop: int) -> Tensor:
        if self.family is None:
            raise TypeError("an encoder outside the table has no blocks to run one by one")
        stack = self.model.get_submodule(self.family.stack)
        with entered(self.model, self.family, states, start):
            if stop == self.depth:
                return last_hidden_state(stack(states.clone(), attention_mask=mask))  # it writes zeros into its input
            try:
                with left_at(self.blocks()[stop]):
                    stack(states.clone(), attention_mask=mask)
            except Left as left:
                return left.hidden_states
        raise AssertionError("a forward pass did not reach the block that it was to be left at")
