"""The encoder of pictures of a composite model, and its connector, as a tower."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.composite.model import CONNECTOR, ENCODER, PLACES, Carried, CompositeModel
from fusetune.backbones.tower import Tower
from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens, pad


class SeeingTower(Tower):
    """The encoder of pictures up to what the connector reads, and the connector as its last block.

    A sample is a list of one PIL image. At the top stand the states at the picture's places in the text.
    """

    kind = "image"

    def __init__(self, composite: CompositeModel, processor: Any) -> None:
        super().__init__()
        family, self.processor = composite.family, processor
        self._composite = (composite,)  # in a tuple: its other parts are not this tower's
        self.encoder = composite.model.get_submodule(family.tower)
        self.connector = nn.ModuleList(composite.model.get_submodule(path) for path in family.connector)
        self._cuts = [cut for cut in composite.cuts if cut.part in (ENCODER, CONNECTOR, PLACES)]
        self.depth, self.width = len(self._cuts) - 1, composite.model.config.get_text_config().hidden_size

    @property
    def composite(self) -> CompositeModel:
        return self._composite[0]

    def blocks(self) -> nn.ModuleList:
        encoder = self.composite.blocks(ENCODER)[: self.depth - 1]
        return nn.ModuleList([*encoder, self.connector[-1]])

    def roles(self) -> Mapping[str, str]:
        return self.composite.family.encoder_roles

    def prepare(self, samples: Sequence[Any]) -> Tokens:
        pictures = [sample for sample in samples if sample is not None]
        several = max((len(sample) for sample in pictures), default=1)
        check(several <= 1, f"a composite model reads one picture a sample, found {several}.")
        rows = self._process([sample[0] for sample in pictures]).flatten(1) if pictures else torch.zeros(0, self._size)
        each = iter(rows)
        return pad([torch.zeros(0, rows.shape[1]) if s is None else next(each)[None] for s in samples])

    def advance(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        present = tokens.mask.any(1)
        if start == stop:
            return tokens
        if not (present.is_meta or present.any()):
            width: int = self.width if stop == self.depth else self.composite.model.config.vision_config.hidden_size
            return Tokens(tokens.values.new_zeros(len(present), 1, width), torch.zeros_like(present)[:, None])
        values = tokens.values if present.is_meta else tokens.values[present]
        self.row_samples = None if present.is_meta else present.nonzero().squeeze(1)
        pictures = values.view(-1, *self.shape) if start == 0 else values.new_ones(len(values), *self.shape)
        out = self._seen(pictures, values if start else None, start, stop)
        mask = present[:, None].expand(len(present), out.shape[1])
        if len(out) == len(present):
            return Tokens(out, mask)
        whole = out.new_zeros(len(present), *out.shape[1:])
        return Tokens(whole.index_put((present.nonzero().squeeze(1),), out), mask)

    def tokens_out(self, tokens_in: int) -> int:
        return self._places

    def preprocessing(self) -> dict[str, Any]:
        return {"class": type(self.processor).__name__, **self.processor.to_dict()}

    def save_pretrained(self, folder: Path) -> None:
        raise TypeError("this tower belongs to its composite model, which is saved by reference")

    @cached_property
    def shape(self) -> torch.Size:
        """Of a picture, as the model takes it."""
        from PIL import Image

        return self._process([Image.new("RGB", (64, 64))]).shape[1:]

    @property
    def _size(self) -> int:
        return self.shape.numel()

    @cached_property
    def _places(self) -> int:
        with torch.no_grad():
            parameter = next(self.encoder.parameters())
            blank = torch.ones(1, *self.shape, device=parameter.device, dtype=parameter.dtype)
            return self._seen(blank, None, 0, self.depth).shape[1]

    def _seen(self, pictures: Tensor, states: Tensor | None, start: int, stop: int) -> Tensor:
        """(pictures, tokens, width) at depth `stop`."""
        inputs = {"pixel_values": pictures, **self.composite.wordless(len(pictures))}
        carried = None if states is None else Carried(states)
        return self.composite.carry(inputs, self._cuts[stop], self._cuts[start] if start else None, carried).states

    def _process(self, pictures: Sequence[Any]) -> Tensor:
        found = self.processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")
        values: Tensor = found["pixel_values"]
        if values.ndim != 4:
            raise FusetuneError(
                f"a picture is cut into several by this checkpoint's {type(self.processor).__name__}; composite models "
                "whose pictures are one tensor each can be a base."
            )
        return values
