"""Towers over Hugging Face `transformers`: any encoder with one stack of blocks, entered and left at any depth.

Leaving: a hook in front of block `stop` keeps its input and stops the forward pass. Entering: the model's own forward
runs (so masks, position codes and the final norm are its own), but the embeddings and the blocks before `start` do
nothing, and a hook puts the cached states in front of block `start`. Both are exact: in eval mode and float32 the
outputs equal those of an undivided run bit by bit.
"""

import json
import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.tower import Tower
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens, pad

TEXT_LIMIT = 512  # tokens; more is cut, as the tokenizers of the field do


@dataclass(frozen=True)
class Family:
    """Where a `transformers` model keeps its stack of blocks and its embeddings.

    Attributes:
        options: for `from_pretrained`; a pooler that no checkpoint holds would be random, new at every load.
    """

    blocks: str
    embeddings: str = "embeddings"
    options: Mapping[str, Any] = field(default_factory=dict)


FAMILIES = {
    "vit": Family("layers", options={"add_pooling_layer": False}),
    "bert": Family("encoder.layer", options={"add_pooling_layer": False}),
    "clip_vision_model": Family("encoder.layers"),
    "clip_text_model": Family("encoder.layers"),
}


class _Left(Exception):
    """Carries the hidden states out of a forward pass that stops early."""

    def __init__(self, hidden_states: Tensor) -> None:
        self.hidden_states = hidden_states


class TransformersTower(Tower):
    """What image and text towers share.

    Args:
        model: an encoder of `transformers`, without a head.
        processor: its own image processor or tokenizer.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        family = FAMILIES.get(model.config.model_type)
        if family is None:
            raise FusetuneError(
                f"towers: no entry for the model type '{model.config.model_type}'; known: {', '.join(FAMILIES)}. "
                "A family is one line in FAMILIES."
            )
        self.model: Any = model.eval()
        self.processor, self._family = processor, family
        self.depth, self.width = len(self.blocks()), model.config.hidden_size

    @classmethod
    @abstractmethod
    def from_pretrained(cls, source: str | Path) -> "TransformersTower":
        """Load weights and processor from a local folder or a hub id, as `transformers` does."""

    def blocks(self) -> nn.ModuleList:
        return self.model.get_submodule(self._family.blocks)

    def save_pretrained(self, folder: Path) -> None:
        _quiet()
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def advance(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        if start == stop:
            return tokens
        states, mask = self._rows(tokens, start)  # (rows, tokens or pixels, ...)
        present = mask.any(1)
        if not present.any():  # no sample of the batch has this modality
            shape = (len(tokens.values), self.tokens_out(1))
            empty = torch.zeros(*shape, self.width, device=mask.device, dtype=self.model.dtype)
            return Tokens(empty, torch.zeros(shape, device=mask.device, dtype=torch.bool))
        inputs = self._inputs(states[present], mask[present], start)
        with self._entered(states[present] if start else None, start), self._left_at(stop):
            try:
                out = self.model(**inputs).last_hidden_state
            except _Left as left:
                out = left.hidden_states
        if present.all():
            return self._tokens(out, mask, len(tokens.values))
        full = out.new_zeros(len(mask), *out.shape[1:])
        return self._tokens(full.index_put((present.nonzero().squeeze(1),), out), mask, len(tokens.values))

    @abstractmethod
    def _rows(self, tokens: Tokens, start: int) -> tuple[Tensor, Tensor]:
        """Tokens as the model's rows: an image of a sample is a row, a text is a row."""

    @abstractmethod
    def _inputs(self, states: Tensor, mask: Tensor, start: int) -> dict[str, Tensor]:
        """Keyword arguments of the model's forward; placeholders of the right shape where `start` > 0."""

    @abstractmethod
    def _tokens(self, out: Tensor, mask: Tensor, samples: int) -> Tokens:
        """The model's rows as tokens again."""

    @contextmanager
    def _entered(self, states: Tensor | None, start: int) -> Iterator[None]:
        if states is None:
            yield
            return
        blocks, embeddings = self.blocks(), self.model.get_submodule(self._family.embeddings)
        with ExitStack() as stack:
            stack.enter_context(_forward(embeddings, lambda *_, **__: states))
            for block in blocks[:start]:
                stack.enter_context(_forward(block, lambda hidden_states, *_, **__: hidden_states))
            hook = blocks[start].register_forward_pre_hook(lambda _, args: (states, *args[1:]))
            stack.callback(hook.remove)
            yield

    @contextmanager
    def _left_at(self, stop: int) -> Iterator[None]:
        if stop == self.depth:
            yield
            return

        def leave(_, args):
            raise _Left(args[0])

        hook = self.blocks()[stop].register_forward_pre_hook(leave)
        try:
            yield
        finally:
            hook.remove()


class ImageTower(TransformersTower):
    """A vision encoder; a sample is one picture or several, whose tokens stand one picture after the other."""

    kind = "image"

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "ImageTower":
        from transformers import AutoConfig, AutoImageProcessor

        _quiet()
        config = _load(AutoConfig, source)
        if config.model_type == "clip":
            from transformers import CLIPVisionModel as Model
        else:
            from transformers import AutoModel as Model  # type: ignore[assignment]
        return cls(_load(Model, source, **_options(config)), _load(AutoImageProcessor, source))

    def prepare(self, samples: Sequence[Any]) -> Tokens:
        """Each sample: a list of PIL images; depth 0 is (batch, pictures, channels * height * width)."""
        pictures = [picture.convert("RGB") for sample in samples for picture in sample or ()]
        shape = self._pixel_shape
        pixels = torch.zeros(0, shape.numel())
        if pictures:
            pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"].flatten(1)
        return pad(torch.split(pixels, [len(sample or ()) for sample in samples]))

    def tokens_out(self, tokens_in: int) -> int:
        return tokens_in * self._tokens_per_picture

    def preprocessing(self) -> dict[str, Any]:
        return self.processor.to_dict()

    @cached_property
    def _pixel_shape(self) -> torch.Size:
        from PIL import Image

        blank = self.processor(images=[Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]
        return blank.shape[1:]

    @cached_property
    def _tokens_per_picture(self) -> int:
        with torch.no_grad():
            pixels = torch.zeros(1, *self._pixel_shape, device=self.model.device, dtype=self.model.dtype)
            return self.model(pixel_values=pixels).last_hidden_state.shape[1]

    def _rows(self, tokens: Tokens, start: int) -> tuple[Tensor, Tensor]:
        if start == 0:
            return tokens.values.flatten(0, 1), tokens.mask.flatten()[:, None]
        per_picture = self._tokens_per_picture
        states = tokens.values.unflatten(1, (-1, per_picture)).flatten(0, 1)
        return states, tokens.mask.unflatten(1, (-1, per_picture)).flatten(0, 1)

    def _inputs(self, states: Tensor, mask: Tensor, start: int) -> dict[str, Tensor]:
        if start == 0:
            return {"pixel_values": states.view(-1, *self._pixel_shape)}
        return {"pixel_values": states.new_zeros(1, *self._pixel_shape)}

    def _tokens(self, out: Tensor, mask: Tensor, samples: int) -> Tokens:
        real = mask.any(1)[:, None].expand(out.shape[:2])
        return Tokens(out.reshape(samples, -1, out.shape[-1]), real.reshape(samples, -1))


class TextTower(TransformersTower):
    """A text encoder; depth 0 is (batch, tokens, 1) token ids."""

    kind = "text"

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "TextTower":
        from transformers import AutoConfig, AutoTokenizer

        _quiet()
        config = _load(AutoConfig, source)
        if config.model_type == "clip":
            from transformers import CLIPTextModel

            model = _load(CLIPTextModel, source)
        else:
            from transformers import AutoModel

            model = _load(AutoModel, source, **_options(config))
        return cls(model, _load(AutoTokenizer, source))

    def prepare(self, samples: Sequence[Any]) -> Tokens:
        rows = [torch.zeros(0, 1, dtype=torch.long)] * len(samples)
        present = [i for i, sample in enumerate(samples) if sample is not None]
        if present:
            batch = self.processor([samples[i] for i in present], truncation=True, max_length=self._limit)
            for i, ids in zip(present, batch["input_ids"], strict=True):
                rows[i] = torch.tensor(ids).unsqueeze(1)
        return pad(rows)

    def tokens_out(self, tokens_in: int) -> int:
        return tokens_in

    def preprocessing(self) -> dict[str, Any]:
        state = json.loads(self.processor.backend_tokenizer.to_str())
        # set by whichever call came last, not part of what the tokenizer is
        state.pop("truncation", None)
        state.pop("padding", None)
        return {"tokenizer": state, "max_length": self._limit}

    @property
    def _limit(self) -> int:
        return min(self.processor.model_max_length, self.model.config.max_position_embeddings, TEXT_LIMIT)

    def _rows(self, tokens: Tokens, start: int) -> tuple[Tensor, Tensor]:
        return tokens.values, tokens.mask

    def _inputs(self, states: Tensor, mask: Tensor, start: int) -> dict[str, Tensor]:
        ids = states.squeeze(-1) if start == 0 else torch.zeros_like(mask, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": mask.long()}

    def _tokens(self, out: Tensor, mask: Tensor, samples: int) -> Tokens:
        return Tokens(out, mask)


@contextmanager
def _forward(module: nn.Module, function: Any) -> Iterator[None]:
    """Give one module another forward for a while; parameters, hooks and names stay as they are."""
    module.__dict__["forward"] = function
    try:
        yield
    finally:
        del module.__dict__["forward"]


def _load(cls: Any, source: str | Path, **options: Any) -> Any:
    try:
        return cls.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FusetuneError(
            f"backbone '{source}': {cls.__name__} can't be loaded ({first}). Expected a local folder made by "
            "save_pretrained, or a hub id and a network."
        ) from error


def _options(config: Any) -> Mapping[str, Any]:
    family = FAMILIES.get(config.model_type)
    return family.options if family else {}


def _quiet() -> None:
    """No bars for a handful of tensors, and no advice about packages that we don't use."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
