"""A composite model, and what its forward is given: words laid out, pictures, blanks in their place."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.composite.cuts import Carried
from fusetune.backbones.composite.families import CLASSES, composite_family
from fusetune.backbones.replay import forward_of
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens

FRAMES, PLACE_FRAMES = 2, 4  # of a sound's spectrogram, to a state inside its encoder and to a place in the text


class GivenModel(nn.Module):
    """A model of `transformers`, its row in the table, and inputs as it takes them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        name = type(model).__name__
        family = composite_family(name, model.config)
        if family is None:
            raise FusetuneError(f"backbone: no composite model of class {name}. Known: {', '.join(CLASSES)}.")
        self.model, self.family = model, family
        family.mend(model)
        self.picture_shape: Any = None  # of `pixel_values`, without the number of pictures; where somebody has said it
        self.picture_side: int | None = None  # the same of the pixels that pictures are brought to
        self.requires_grad_(False)
        self.eval()

    @property
    def image_id(self) -> int | None:
        """The token at a picture's places, or the word that stands for it; None: cross-attention alone tells of it."""
        config = self.model.config
        if not (self.family.placed or self.family.crossed):
            return None
        names = ("image_token_id", "image_token_index", "audio_token_index")
        return next(number for name in names if (number := getattr(config, name, None)) is not None)

    @property
    def stand_in_id(self) -> int:
        """A token that stands for any word where the places alone count."""
        return next(i for i in range(3) if i != self.image_id)

    def wordless(self, rows: int) -> dict[str, Any]:
        """Inputs of a pass that ends in front of the language model."""
        device = self.model.get_input_embeddings().weight.device
        ids = torch.full((rows, 2), self.stand_in_id, device=device)  # one alone would go on from a prompt
        return self.worded(ids, torch.ones_like(ids))

    def worded(self, ids: Tensor, mask: Tensor, answer: Tensor | None = None) -> dict[str, Any]:
        """Inputs of a pass over a sequence that has been laid out: ids, mask, and which of it an answer is."""
        words, real = self.family.words
        inputs: dict[str, Any] = {words: ids}
        if not mask.is_meta:  # without values there is no padding
            inputs[real] = mask.long()
        inputs |= self._unasked()
        if self.family.question:
            inputs |= self._saying(torch.full_like(ids[:, :1], self.first_id), None)
        places = torch.eq(ids, self.image_id) if self.family.marked and self.image_id is not None else None
        if places is not None and not mask.is_meta and bool(places.any()):
            inputs |= {"mm_token_type_ids": places.int()} | self.grid(places.any(1))
        if not (self.family.causal or mask.is_meta):  # what asks is read in both directions
            inputs["token_type_ids"] = torch.zeros_like(ids) if answer is None else answer.long()
        return inputs

    @property
    def first_id(self) -> int:
        """Of a decoder that answers from what another part has read: the token in front of every answer."""
        config = self.model.config.get_text_config()
        start: int | None = getattr(config, "decoder_start_token_id", None)
        return config.bos_token_id if start is None else start

    def answered(self, read: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """Inputs of a pass over answers, (rows, tokens), behind what has been read: its mask, (rows, tokens)."""
        words, real = self.family.words
        inputs: dict[str, Any] = {words: torch.full_like(read, self.stand_in_id, dtype=torch.long)}
        if not read.is_meta:
            inputs[real] = read.long()
        return inputs | self._unasked() | self._saying(ids, mask)

    def _unasked(self) -> dict[str, Any]:
        """What a connector that reads the question has to be given in a pass in which it sees nothing."""
        return {"qformer_input_ids": None} if self.family.instructed else {}

    @staticmethod
    def _saying(ids: Tensor, mask: Tensor | None) -> dict[str, Any]:
        told = {} if mask is None or mask.is_meta else {"decoder_attention_mask": mask.long()}
        return {"decoder_input_ids": ids, **told}

    def seen(self, pictures: Tensor) -> dict[str, Any]:
        """Inputs that pictures (or sounds) are, (pictures, *shape of one)."""
        there = torch.ones(len(pictures), dtype=torch.bool, device=pictures.device)
        inputs = {self.family.media[0]: pictures.flatten(0, 1) if self.family.flat else pictures, **self.grid(there)}
        if self.family.instructed:
            inputs["qformer_input_ids"] = there[:, None].long()  # any, below what reads it
        return inputs

    def shown(self, states: Tensor, lengths: Tensor) -> tuple[dict[str, Any], Carried]:
        """Inputs of blank pictures or sounds, and their states, (pictures, tokens, width), at their places.

        Args:
            lengths: (pictures,), places of each.
        """
        given = self.seen(states.new_ones(len(states), *self.picture_shape))
        if self.family.measured:
            given |= self.family.measured(PLACE_FRAMES * lengths, self.picture_shape[-1])
        return given, Carried(self.laid(states, places=True))

    def pictures(self, seen: Tokens | None) -> Tensor | None:
        """States of the pictures that are there, (pictures, tokens, width), of a stream; None: no row has one."""
        if seen is None or not seen.mask.any():
            return None
        if self.family.several:  # parts of one length, of which each row has as many as it has
            return seen.values[seen.mask].unflatten(0, (-1, math.gcd(*seen.mask.sum(1).tolist())))
        return seen.values[seen.mask.any(1)]

    def grid(self, present: Tensor) -> dict[str, Tensor]:
        """How the patches of pictures lie, where the model asks."""
        return self.family.grid(self.picture_shape, self.picture_side, present) if self.family.grid else {}

    def laid(self, states: Tensor, places: bool = False) -> Tensor:
        """States of pictures, (pictures, tokens, width), as the model has them in the encoder, or at places."""
        if self.family.flat:
            return states.flatten(0, 1)
        return (
            states
            if places or not self.family.packed
            else states.unflatten(1, (self.picture_shape[0], -1)).flatten(0, 1)
        )

    def unseen(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs of a pass without any picture, changed where the model's forward asks for one all the same."""
        if self.family.resume:
            self.family.resume(self.model, inputs, None, len(inputs[self.family.words[0]]))
        return inputs

    def said(self, states: Tensor) -> Tensor:
        """(rows, tokens, vocabulary): what the model's own head makes of states behind the final norm."""
        from transformers.modeling_outputs import BaseModelOutputWithPast

        if self.family.memory:
            if getattr(self.model.config.get_text_config(), "scale_decoder_outputs", False):  # T5's, whose head is tied
                states = states * states.shape[-1] ** -0.5
            given: Tensor = self.model.get_submodule(self.family.head)(states)
            return given
        ids = torch.full(states.shape[:2], self.stand_in_id, device=states.device)
        language = self.model.get_submodule(self.family.language.rpartition(".")[0])
        out = BaseModelOutputWithPast(last_hidden_state=states)
        with forward_of(language, lambda *_, **__: out):
            logits: Tensor = self(self.unseen(self.worded(ids, torch.ones_like(ids)))).logits
        return logits


def counted(seen: Tokens) -> Tensor:
    """(samples that have any,): places of each."""
    counts = seen.mask.sum(1)
    return counts[counts > 0]
