"""How what a language model reads lies in one sequence: trained tokens, prompt, picture, the prompt's rest, answer."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fusetune.tokens import Tokens

FRONT = "in front"  # the name of trained tokens, beside those of streams


@dataclass(frozen=True)
class Layout:
    """
    Attributes:
        masks: by stream, (rows, tokens), in the order in which `which` counts through them.
        which: (rows, longest), the token of them all that stands there.
        real: (rows, longest), whether anything does.
    """

    masks: Mapping[str, Tensor]
    which: Tensor
    real: Tensor

    @classmethod
    def of(cls, masks: Mapping[str, Tensor], text: str, image: str, answer: str, offset: int, front: int) -> "Layout":
        """The first `offset` tokens of a text, the picture, the rest of the text, its answer.

        Args:
            masks: by stream; real tokens stand first.
            text, image, answer: names of streams, which may be absent.
            front: tokens in front of everything.
        """
        mask = next(iter(masks.values()))
        none = mask.new_zeros(len(mask), 0)
        which, real = _laid_out(masks.get(text, none), masks.get(image, none), masks.get(answer, none), offset)
        named = {name: masks[name] for name in (text, image, answer) if name in masks}
        if front:
            added = real.new_ones(len(real), front)
            places = torch.arange(front, device=which.device).expand(len(which), -1)
            which, real = torch.cat([places, (which + front) * real], 1), torch.cat([added, real], 1)
            named = {FRONT: added, **named}
        return cls(named, which, real)

    def padded_in_front(self) -> "Layout":
        """The same with all rows ending together."""
        length = self.real.shape[1]
        at = (torch.arange(length, device=self.real.device) + self.real.sum(1, keepdim=True)) % length
        return Layout(self.masks, self.which.gather(1, at), self.real.gather(1, at))

    def repeated(self, rows: int) -> "Layout":
        """For so many rows: each as often as it goes (beams)."""
        times = rows // len(self.which)
        masks = {name: mask.repeat_interleave(times, 0) for name, mask in self.masks.items()}
        return Layout(masks, self.which.repeat_interleave(times, 0), self.real.repeat_interleave(times, 0))

    def places(self) -> dict[str, Tensor]:
        """By stream, (rows, longest): its places."""
        found, start = {}, 0
        for name, mask in self.masks.items():
            found[name] = (self.which >= start) & (self.which < start + mask.shape[1]) & self.real
            start += mask.shape[1]
        return found

    def joined(self, streams: Mapping[str, Tokens]) -> Tensor:
        """The one sequence, (rows, longest, width)."""
        states = torch.cat([streams[name].values for name in self.masks], 1)
        return (
            states.gather(1, self.which[..., None].expand(*self.which.shape, states.shape[-1])) * self.real[..., None]
        )

    def apart(self, joint: Tensor) -> dict[str, Tokens]:
        """The streams in it."""
        lengths = [mask.shape[1] for mask in self.masks.values()]
        whole = joint.new_zeros(len(joint), sum(lengths), joint.shape[-1])
        whole = whole.scatter_add(1, self.which[..., None].expand_as(joint), joint * self.real[..., None])
        parts = zip(self.masks.items(), whole.split(lengths, 1), strict=True)
        return {name: Tokens(states, mask) for (name, mask), states in parts}


def _laid_out(text: Tensor, image: Tensor, answer: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Which of `cat([text, image, answer])` stands where, and whether anything does, (rows, longest) each."""
    texts, places, answers = (mask.sum(1, keepdim=True) for mask in (text, image, answer))
    before, prompt, most = texts.clamp(max=offset), texts + places, text.shape[1] + image.shape[1]
    longest = most + answer.shape[1] if text.is_meta else int((prompt + answers).max().clamp(min=1))
    at = torch.arange(longest, device=text.device)[None]
    in_image = (at >= before) & (at < before + places)
    of_text = torch.where(at < before, at, at - places)
    which = torch.where(in_image, text.shape[1] + at - before, of_text)
    which = torch.where(at >= prompt, most + at - prompt, which)
    real = at < prompt + answers
    return which.masked_fill(~real, 0), real


def blank_words(
    layout: Layout, streams: Mapping[str, Tokens], image: str, width: int, front: Tensor | None
) -> dict[str, Tokens]:
    """What has the shapes of embedded words, of the streams and of tokens in front of them, (tokens, width)."""
    masks = layout.masks
    own = (
        {}
        if front is None or FRONT not in masks
        else {FRONT: Tokens(front.expand(*masks[FRONT].shape, -1), masks[FRONT])}
    )
    return own | {
        name: Tokens(tokens.values[..., :width], tokens.mask)
        if name == image
        else Tokens(tokens.mask.new_zeros(*tokens.mask.shape, width).float(), tokens.mask)
        for name, tokens in streams.items()
    }
