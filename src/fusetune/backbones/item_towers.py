"""Towers whose model takes inputs of one fixed shape: pictures, videos of so many frames, padded spectrograms.

A sample has one such item or several; their tokens stand one item after the other. Depth 0 is (batch, items, values).
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.backbones.geometry import Views, grid
from fusetune.backbones.transformers_tower import RowTower, last_hidden_state
from fusetune.config import check
from fusetune.tokens import Lattice, Tokens, pad


class ItemTower(RowTower):
    """What towers of fixed-shape items share."""

    @abstractmethod
    def _items(self, sample: Any) -> Sequence[Any]:
        """The items of a decoded sample."""

    @abstractmethod
    def _process(self, items: Sequence[Any]) -> Tensor:
        """Items to (items, ...), as the model takes them."""

    def prepare(self, samples: Sequence[Any]) -> Tokens:
        items = [() if sample is None else self._items(sample) for sample in samples]
        values = torch.zeros(0, self._input_shape.numel())
        if any(items):
            values = self._process([item for several in items for item in several]).flatten(1)
        return pad(torch.split(values, [len(several) for several in items]))

    def tokens_out(self, tokens_in: int) -> int:
        return tokens_in * self._tokens_per_item

    def preprocessing(self) -> dict[str, Any]:
        return {"class": type(self.processor).__name__, **self.processor.to_dict()}

    @cached_property
    def _input_shape(self) -> torch.Size:
        return self._process(self._items(self.blank())).shape[1:]

    @cached_property
    def _tokens_per_item(self) -> int:
        with torch.no_grad():
            blank = torch.zeros(1, *self._input_shape, device=self.model.device, dtype=self.model.dtype)
            self.row_samples = torch.zeros(1, dtype=torch.long, device=self.model.device)
            return last_hidden_state(self.model(blank)).shape[1]

    def _rows(self, tokens: Tokens, start: int) -> tuple[Tensor, Tensor]:
        if start == 0:
            return tokens.values.flatten(0, 1), tokens.mask.flatten()[:, None]
        states = tokens.values.unflatten(1, (-1, self._tokens_per_item)).flatten(0, 1)
        return states, tokens.mask.unflatten(1, (-1, self._tokens_per_item)).flatten(0, 1)

    def _inputs(self, states: Tensor, mask: Tensor, start: int) -> dict[str, Tensor]:
        shape = self._input_shape
        values = states.new_zeros(1, *shape) if start else states.view(-1, *shape)
        return {self.model.main_input_name: values}

    def _tokens(self, out: Tensor, mask: Tensor, samples: int) -> Tokens:
        real = mask.any(1)[:, None].expand(out.shape[:2])
        return Tokens(out.reshape(samples, -1, out.shape[-1]), real.reshape(samples, -1))


class ImageTower(ItemTower):
    """A vision encoder; a sample is a list of PIL images."""

    kind, processor_class = "image", "AutoImageProcessor"

    @classmethod
    def blank(cls) -> Any:
        from PIL import Image

        return [Image.new("RGB", (64, 64))]

    def _items(self, sample: Any) -> Sequence[Any]:
        return sample

    def lattice(self) -> Lattice:
        found = grid(self._tokens_per_item, *self._input_shape[-2:])
        check(
            found is not None, f"an encoder whose {self._tokens_per_item} tokens of a picture form no rows and columns."
        )
        assert found is not None
        return found

    def view(self, extent: Sequence[float]) -> tuple[float, ...]:
        return self._views(extent) if len(extent) > 1 else super().view(extent)  # of frames, all are seen

    @cached_property
    def _views(self) -> Views:
        return Views(self._process)

    def _process(self, items: Sequence[Any]) -> Tensor:
        pictures = [picture.convert("RGB") for picture in items]
        return self.processor(images=pictures, return_tensors="pt")["pixel_values"]


class VideoTower(ItemTower):
    """A video encoder; a sample is a list of PIL frames, of which it takes as many as its model sees, evenly spaced."""

    kind, processor_class = "video", "AutoImageProcessor"

    @classmethod
    def blank(cls) -> Any:
        return ImageTower.blank()

    def _items(self, sample: Any) -> Sequence[Any]:
        return [sample]

    def lattice(self) -> Lattice:
        tubelet, tokens = getattr(self.model.config, "tubelet_size", None), self._tokens_per_item
        tubelet = tubelet[0] if isinstance(tubelet, list | tuple) else tubelet
        times = self.model.config.num_frames // tubelet if tubelet else 0
        of_time = grid((tokens - tokens % times) // times, *self._input_shape[-2:]) if times else None
        check(
            of_time is not None and of_time.lead == 0,
            "a video encoder whose tokens don't stand time by time, row by row. Expected one of tubelets (VideoMAE, "
            "ViViT), or frames through an image encoder (kind: image, a list of pictures).",
        )
        assert of_time is not None
        return Lattice(tokens % times, times, of_time.rows, of_time.columns)

    def _process(self, items: Sequence[Any]) -> Tensor:
        frames = self.model.config.num_frames
        videos = []
        for video in items:
            picks = np.linspace(0, len(video) - 1, frames).round().astype(int)
            videos.append([video[i].convert("RGB") for i in picks])
        return self.processor(videos, return_tensors="pt")["pixel_values"]
