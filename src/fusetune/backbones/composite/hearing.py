"""The encoder of sounds of a composite model, and its connector, as a tower."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusetune.backbones.audio_towers import SpectrogramTower, features_of, resampled
from fusetune.backbones.composite.cuts import ENCODER
from fusetune.backbones.composite.given import FRAMES, PLACE_FRAMES
from fusetune.backbones.composite.seeing import SeeingTower
from fusetune.tokens import Lattice, Tokens


class HearingTower(SeeingTower):
    """Sounds of one length (Whisper); a sample is an `Audio`; what is shorter is padded, what is longer is cut."""

    kind = "audio"

    @property
    def most_seconds(self) -> float:
        return float(self.processor.chunk_length)

    def lattice(self) -> Lattice | None:
        return None  # a place of it is a moment

    def view(self, extent: Sequence[float]) -> tuple[float, ...]:
        return 0.0, self.most_seconds

    def _items(self, sample: Any) -> Sequence[Any]:
        return [sample]

    def _blank(self) -> Any:
        return SpectrogramTower.blank()

    def _process(self, sounds: Sequence[Any]) -> Tensor:
        return torch.cat([features_of(self.processor, sound) for sound in sounds])


class MeasuredTower(HearingTower):
    """Sounds of their own length (Qwen2-Audio): padding is masked in the encoder and takes no place in the text.

    At depth 0 the number of frames that are there stands behind a sound's spectrogram. One of a moment is heard with a
    moment of silence behind it: a single place would be read as the sign for a whole sound.
    """

    def view(self, extent: Sequence[float]) -> tuple[float, ...]:
        return 0.0, min(extent[0], self.most_seconds)

    @cached_property
    def shape(self) -> torch.Size:
        return features_of(self.processor, self._blank()).shape[1:]

    @property
    def size(self) -> int:
        return self.shape.numel() + 1

    def advance(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        present, meta = tokens.mask.any(1), tokens.mask.is_meta
        if start == stop:
            return tokens
        self.row_samples = None if meta else present.nonzero()[:, 0]
        if not (meta or present.any()):
            return self._nothing(tokens, stop)
        values = tokens.values if meta else tokens.values[present]
        if start == 0:
            frames, states = values[:, 0, -1].long(), None
            sounds = values[:, 0, :-1].view(-1, *self.shape)
        else:
            frames = (tokens.mask if meta else tokens.mask[present]).sum(1)
            frames = frames * (FRAMES if self._cuts[start].part == ENCODER else PLACE_FRAMES)
            sounds = values.new_ones(len(values), *self.shape)
            states = F.pad(values, (0, 0, 0, self.tokens_at(start) - values.shape[1]))
        out, lengths = self._seen(sounds, states, start, stop, frames=frames), self._lengths(frames, stop)
        longest = out.shape[1] if meta else int(lengths.max())
        mask = torch.arange(longest, device=out.device) < lengths[:, None]
        out = out[:, :longest] * mask[..., None]
        if len(out) == len(present):
            return Tokens(out, mask)
        whole = out.new_zeros(len(present), *out.shape[1:]).index_put((present,), out)
        return Tokens(whole, mask.new_zeros(len(present), longest).index_put((present,), mask))

    def _lengths(self, frames: Tensor, depth: int) -> Tensor:
        """Tokens of each sound at a depth, by the strides of its encoder."""
        inside = (frames - 1) // 2 + 1
        return inside if self._cuts[depth].part == ENCODER else (inside - 2) // 2 + 1

    def _seen(self, pictures: Tensor, states: Tensor | None, start: int, stop: int, **told: Tensor) -> Tensor:
        """As of pictures; `frames` of each sound, (sounds,): where nobody tells, all are there."""
        most = self.shape[-1]
        frames = told.get("frames", torch.full((len(pictures),), most, device=pictures.device))
        measured: Any = self.composite.family.measured
        return super()._seen(pictures, states, start, stop, **measured(frames, most))

    def _process(self, sounds: Sequence[Any]) -> Tensor:
        rate, rows = self.processor.sampling_rate, []
        for sound in sounds:
            made = self.processor(
                resampled(sound, rate), sampling_rate=rate, return_attention_mask=True, padding="max_length",
                return_tensors="pt",
            )  # fmt: skip
            values = made["input_features"].flatten(1)
            frames = made["attention_mask"].sum(1, keepdim=True).clamp(min=2 * PLACE_FRAMES)
            rows.append(torch.cat([values, frames.to(values.dtype)], 1))
        return torch.cat(rows)
