"""The encoder of pictures of a composite model, and its connector, as a tower."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.composite.cuts import CONNECTOR, ENCODER, MEMORY, PLACES, Carried
from fusetune.backbones.composite.model import CompositeModel
from fusetune.backbones.geometry import Views, grid
from fusetune.backbones.tower import Tower
from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.tokens import Lattice, Tokens, pad

BICUBIC = 3  # PIL's number of the filter that the image processors of these models use


class SeeingTower(Tower):
    """The encoder of pictures up to what the connector reads, and the connector as its last block.

    A sample is a list of one PIL image, or of several where model and prompt take them, whose states stand one behind
    another; of a video they are its frames. At the top stand the states at the pictures' places in the text, or what
    cross-attention reads.

    Args:
        side: pixels that pictures are brought to, both ways.

    Attributes:
        most: pictures of a sample.
    """

    kind, most = "image", 1

    def __init__(self, composite: CompositeModel, processor: Any, side: int | None = None) -> None:
        super().__init__()
        family, self.processor = composite.family, processor
        self.side = side or (family.side(composite.model.config) if family.side else None)
        self._composite = (composite,)  # in a tuple: its other parts are not this tower's
        self.encoder = composite.model.get_submodule(family.tower)
        own = () if family.instructed else family.connector  # else it belongs to what reads the text
        self.connector = nn.ModuleList(composite.model.get_submodule(path) for path in own)
        if family.apart and not family.instructed:
            self.apart = composite.model.get_parameter(family.apart)
        parts = {ENCODER, CONNECTOR, PLACES, MEMORY}
        parts -= ({PLACES} if family.instructed else set()) | ({MEMORY} if family.question else set())
        self._cuts = [cut for cut in composite.cuts if cut.part in parts]
        config = composite.model.config
        vision = getattr(config, "vision_config", None) or getattr(config, "audio_config", config)
        self.inside: int = getattr(vision, "embed_dim", None) or vision.hidden_size  # width between its blocks
        self.depth = len(self._cuts) - 1
        language = config.get_text_config().hidden_size
        reads = family.instructed or not (family.placed or family.crossed)  # the encoder's own states
        self.width = self.inside if reads else language * self.composite.taps.beside(self._cuts[-1])

    @property
    def composite(self) -> CompositeModel:
        return self._composite[0]

    def blocks(self) -> nn.ModuleList:
        last = list(self.connector)[-1:]
        return nn.ModuleList([*self.composite.blocks(ENCODER)[: self.depth - len(last)], *last])

    def roles(self) -> Mapping[str, str]:
        return self.composite.family.encoder_roles

    def modules_of_whole(self) -> dict[str, str]:
        """Where its modules stand in the whole model."""
        family = self.composite.family
        if family.instructed:
            return {"encoder": family.tower}
        connector = {f"connector.{i}": path for i, path in enumerate(family.connector)}
        return {"encoder": family.tower} | connector | ({"apart": family.apart} if family.apart else {})

    @property
    def places(self) -> int:
        """Of one picture in a text."""
        config = self.composite.model.config
        return config.num_query_tokens if self.composite.family.instructed else self.tokens_out(1)

    @property
    def unread(self) -> list[str]:
        """Blocks of the encoder behind what the connector reads, by their paths in the whole model."""
        family = self.composite.family
        count = len(self.composite.blocks(ENCODER))
        return [f"{family.encoder}.{i}" for i in range(family.read(self.composite.model.config, count), count)]

    def prepare(self, samples: Sequence[Any]) -> Tokens:
        given = [() if sample is None else self._items(sample) for sample in samples]
        shown = [item for items in given for item in items]
        rows = self._process(shown).flatten(1) if shown else torch.zeros(0, self.size)
        return pad(torch.split(rows, [len(items) for items in given]))

    def _items(self, sample: Any) -> Sequence[Any]:
        check(
            len(sample) <= self.most,
            f"this composite model and its prompt take {self.most} pictures a sample, found {len(sample)}."
            if self.most > 1
            else f"a composite model reads one picture a sample here, found {len(sample)}. Several can stand one "
            "behind another in a LLaVA or PaliGemma whose prompt (backbone.prompt) puts nothing between them.",
        )
        return list(sample)

    def advance(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        present = tokens.mask.any(1)
        if start == stop:
            return tokens
        if not (present.is_meta or present.any()):
            self.row_samples = present.nonzero()[:, 0]
            return self._nothing(tokens, stop)
        each = self.tokens_at(start)
        there = tokens.mask.unflatten(1, (-1, each)).any(-1)  # (rows, pictures)
        values = tokens.values.unflatten(1, (-1, each))
        values = values.flatten(0, 1) if there.is_meta else values[there]
        self.row_samples = None if there.is_meta else there.nonzero()[:, 0]
        pictures = values.view(-1, *self.shape) if start == 0 else values.new_ones(len(values), *self.shape)
        out = self._seen(pictures, values if start else None, start, stop)
        mask = there[..., None].expand(*there.shape, out.shape[1]).flatten(1, 2)
        if len(out) < there.numel():
            out = out.new_zeros(*there.shape, *out.shape[1:]).index_put(there.nonzero(as_tuple=True), out)
        return Tokens(out.reshape(*mask.shape, out.shape[-1]), mask)

    @property
    def gridded(self) -> bool:
        """Whether the language blocks know rows and columns of a picture's places, or its tiles, so that none can be
        missing."""
        return self.composite.family.marked or self.composite.family.crossed is not None

    @property
    def connected(self) -> tuple[int, int]:
        """Tokens that the connector is given at once, and those that it has to give."""
        read = self.tokens_at(self.depth - 1)
        tile = read // self.shape[0]
        return (tile, tile) if self.composite.family.packed else (read, self.tokens_at(self.depth))

    def _nothing(self, tokens: Tokens, depth: int) -> Tokens:
        """What stands there beside rows that have something."""
        width = self.width if depth == self.depth else self.inside * self.composite.taps.beside(self._cuts[depth])
        empty = tokens.values.new_zeros(len(tokens.mask), self.tokens_at(depth), width)
        return Tokens(empty, torch.zeros(empty.shape[:2], dtype=torch.bool, device=empty.device))

    def tokens_out(self, tokens_in: int) -> int:
        return tokens_in * self.tokens_at(self.depth)

    @property
    def model_type(self) -> str:
        """What `transformers` calls the family of the whole model."""
        return self.composite.model.config.model_type

    def seen_size(self) -> tuple[int, int]:
        """Width and height of a picture as the model takes it, in pixels."""
        if len(self.shape) < 3:
            return self.side or 0, self.side or 0
        return self.shape[-1], self.shape[-2]

    def lattice(self) -> Lattice | None:
        family, config = self.composite.family, self.composite.model.config
        made = family.instructed or family.crossed or family.packed or "qformer" in family.connector
        tokens = self.tokens_at(self.depth)
        width, height = self.seen_size()
        found = None if made or getattr(config, "perceiver_config", None) else grid(tokens, height, width)
        check(
            found is not None,
            f"a {type(self.composite.model).__name__}, whose {tokens} tokens of a picture stand for no places in it. "
            "Expected a model whose connector keeps rows and columns (LLaVA, PaliGemma, Qwen-VL, SmolVLM).",
        )
        return found

    def view(self, extent: Sequence[float]) -> tuple[float, ...]:
        if len(self.shape) < 3 or len(extent) == 1:
            return super().view(extent)  # brought to its side as a whole, or frames: all are seen
        return self._views(extent)

    @cached_property
    def _views(self) -> Views:
        return Views(lambda pictures: self._process(pictures).reshape(-1, *self.shape[-3:]))

    def preprocessing(self) -> dict[str, Any]:
        brought = {"side": self.side} if self.side else {}
        return {"class": type(self.processor).__name__, **self.processor.to_dict(), **brought}

    def save_pretrained(self, folder: Path) -> None:
        raise TypeError("this tower belongs to its composite model, which is saved by reference")

    @cached_property
    def shape(self) -> torch.Size:
        """Of a picture or sound, as the model takes it."""
        return self._process(self._items(self._blank())).shape[1:]

    def _blank(self) -> Any:
        from PIL import Image

        return [Image.new("RGB", (64, 64))]

    @property
    def size(self) -> int:
        """Numbers of one picture, or sound."""
        return self.shape.numel()

    def tokens_at(self, depth: int) -> int:
        """Of one picture at this depth."""
        inside, read, top = self._counts
        return 1 if depth == 0 else top if depth == self.depth else read if depth == self.depth - 1 else inside

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        """Tokens of one picture inside the encoder, in front of the connector, and at the top."""
        parameter = next(self.encoder.parameters())
        states = torch.ones(1, *self.shape, device=parameter.device, dtype=parameter.dtype)
        counts, start = [], 0
        with torch.no_grad():
            for stop in (1, self.depth - 1, self.depth):
                if stop > start:
                    blank = states if start == 0 else states.new_ones(1, *self.shape)
                    states, start = self._seen(blank, states if start else None, start, stop), stop
                counts.append(states.shape[1])
        return tuple(counts)

    def _seen(self, pictures: Tensor, states: Tensor | None, start: int, stop: int, **told: Tensor) -> Tensor:
        """(pictures, tokens, width) at depth `stop`; `told` are further inputs."""
        inputs = {**self.composite.wordless(len(pictures)), **self.composite.seen(pictures), **told}
        carried = None if states is None else Carried(self.composite.laid(states))
        out = self.composite.carry(inputs, self._cuts[stop], self._cuts[start] if start else None, carried).states
        return out.reshape(len(pictures), -1, out.shape[-1])

    def _process(self, pictures: Sequence[Any]) -> Tensor:
        shown = [picture.convert("RGB") for picture in pictures]
        if self.side:
            shown = [picture.resize((self.side, self.side), BICUBIC) for picture in shown]
        if self.composite.family.process:
            return self.composite.family.process(self.processor, shown)
        found = self.processor(images=shown, return_tensors="pt")
        values: Tensor = found["pixel_values"]
        if values.ndim != (5 if self.composite.family.packed else 4):
            raise FusetuneError(
                f"a picture is cut into several by this checkpoint's {type(self.processor).__name__}; composite models "
                "whose pictures are one tensor each can be a base."
            )
        return values
