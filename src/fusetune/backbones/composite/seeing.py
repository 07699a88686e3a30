"""The encoder of pictures or sounds of a composite model, and its connector, as a tower."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.audio_towers import SpectrogramTower, features_of
from fusetune.backbones.composite.cuts import CONNECTOR, ENCODER, MEMORY, PLACES, Carried
from fusetune.backbones.composite.model import CompositeModel
from fusetune.backbones.tower import Tower
from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens, pad

BICUBIC = 3  # PIL's number of the filter that the image processors of these models use


class SeeingTower(Tower):
    """The encoder of pictures up to what the connector reads, and the connector as its last block.

    A sample is a list of one PIL image. At the top stand the states at the picture's places in the text, or what
    cross-attention reads.
    """

    kind = "image"

    def __init__(self, composite: CompositeModel, processor: Any, side: int | None = None) -> None:
        super().__init__()
        family, self.processor = composite.family, processor
        self.side = side or (family.side(composite.model.config) if family.side else None)
        self._composite = (composite,)  # in a tuple: its other parts are not this tower's
        self.encoder = composite.model.get_submodule(family.tower)
        self.connector = nn.ModuleList(composite.model.get_submodule(path) for path in family.connector)
        self._cuts = [cut for cut in composite.cuts if cut.part in (ENCODER, CONNECTOR, PLACES, MEMORY)]
        config = composite.model.config
        vision = getattr(config, "vision_config", config)
        self.inside: int = getattr(vision, "embed_dim", None) or vision.hidden_size  # width between its blocks
        self.width = self.inside if family.memory else config.get_text_config().hidden_size
        self.depth = len(self._cuts) - 1

    @property
    def composite(self) -> CompositeModel:
        return self._composite[0]

    def blocks(self) -> nn.ModuleList:
        last = list(self.connector)[-1:]
        return nn.ModuleList([*self.composite.blocks(ENCODER)[: self.depth - len(last)], *last])

    def roles(self) -> Mapping[str, str]:
        return self.composite.family.encoder_roles

    def prepare(self, samples: Sequence[Any]) -> Tokens:
        given = [self._item(sample) for sample in samples if sample is not None]
        rows = self._process(given).flatten(1) if given else torch.zeros(0, self._size)
        each = iter(rows)
        return pad([torch.zeros(0, rows.shape[1]) if s is None else next(each)[None] for s in samples])

    def _item(self, sample: Any) -> Any:
        check(len(sample) <= 1, f"a composite model reads one picture a sample, found {len(sample)}.")
        return sample[0]

    def advance(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        present = tokens.mask.any(1)
        if start == stop:
            return tokens
        if not (present.is_meta or present.any()):
            width = self.width if stop == self.depth else self.inside
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
        brought = {"side": self.side} if self.side else {}
        return {"class": type(self.processor).__name__, **self.processor.to_dict(), **brought}

    def save_pretrained(self, folder: Path) -> None:
        raise TypeError("this tower belongs to its composite model, which is saved by reference")

    @cached_property
    def shape(self) -> torch.Size:
        """Of a picture or sound, as the model takes it."""
        return self._process([self._item(self._blank())]).shape[1:]

    def _blank(self) -> Any:
        from PIL import Image

        return [Image.new("RGB", (64, 64))]

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
        inputs = {**self.composite.wordless(len(pictures)), **self.composite.seen(pictures)}
        carried = None if states is None else Carried(self.composite.laid(states))
        out = self.composite.carry(inputs, self._cuts[stop], self._cuts[start] if start else None, carried).states
        return out.view(len(pictures), -1, out.shape[-1]) if self.composite.family.flat else out

    def _process(self, pictures: Sequence[Any]) -> Tensor:
        shown = [picture.convert("RGB") for picture in pictures]
        if self.side:
            shown = [picture.resize((self.side, self.side), BICUBIC) for picture in shown]
        if self.composite.family.process:
            return self.composite.family.process(self.processor, shown)
        found = self.processor(images=shown, return_tensors="pt")
        values: Tensor = found["pixel_values"]
        if values.ndim != 4:
            raise FusetuneError(
                f"a picture is cut into several by this checkpoint's {type(self.processor).__name__}; composite models "
                "whose pictures are one tensor each can be a base."
            )
        return values


class HearingTower(SeeingTower):
    """The same of sounds (Whisper); a sample is an `Audio`; what is shorter is padded, what is longer is cut."""

    kind = "audio"

    @property
    def most_seconds(self) -> float:
        return float(self.processor.chunk_length)

    def _item(self, sample: Any) -> Any:
        return sample

    def _blank(self) -> Any:
        return SpectrogramTower.blank()

    def _process(self, sounds: Sequence[Any]) -> Tensor:
        return torch.cat([features_of(self.processor, sound) for sound in sounds])
