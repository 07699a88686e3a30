"""One chunk of samples: through the backbone, batch by batch, and into the store."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.device import extraction_dtype
from fusetune.features.chunks import Chunk
from fusetune.features.decoding import Prepared, batches, deaths_told, prepared_ahead
from fusetune.features.index import CacheSettings, Features, stored_dtype
from fusetune.features.source import Source
from fusetune.features.storage import Store
from fusetune.features.store import Entry
from fusetune.tokens import Tokens

Progress = Callable[[int, int, int], None]  # samples done, samples, bytes written


def extract_chunk(
    backbone: Backbone, source: Source, features: Features, chunk: Chunk, store: Store, settings: CacheSettings, device
) -> int:
    """Compute and write one chunk, beside others at work on this machine; returns the bytes written."""
    streams, apart = Gathered(chunk.names), replace(settings, decoders=settings.decoders or 0)
    ready = prepared_ahead(backbone, source, [chunk], apart, device)
    with deaths_told():
        for _ in streams.fill(backbone, ready, features, chunk, settings, device):
            pass
    return streams.write(chunk, features, store, settings)


class Gathered:
    """The real tokens of a chunk's streams, packed, on the CPU."""

    def __init__(self, names: Sequence[str]) -> None:
        self.values: dict[str, list[Tensor]] = {name: [] for name in names}
        self.lengths: dict[str, list[Tensor]] = {name: [] for name in names}
        self.bytes = 0

    def fill(
        self,
        backbone: Backbone,
        ready: Iterator[Prepared],
        features: Features,
        chunk: Chunk,
        settings: CacheSettings,
        device: torch.device,
    ) -> Iterator[int]:
        """Compute the chunk batch by batch; yields the number of samples of each.

        Args:
            ready: batches that are prepared, this chunk's first.
        """
        for batch in batches(chunk, settings.batch_size):
            self._add(_advance(backbone, next(ready), chunk, features.frontier, settings, device), features, settings)
            yield len(batch)

    def _add(self, streams: Mapping[str, Tokens], features: Features, settings: CacheSettings) -> None:
        for name, tokens in streams.items():
            values, dtype = tokens.values[tokens.mask], stored_dtype(features.frontier, name, settings)
            if dtype in ("float16", "bfloat16"):  # on the device: half the bytes to bring home
                values = values.to(getattr(torch, dtype))
            self.values[name].append(values.cpu())
            self.lengths[name].append(tokens.mask.sum(1).cpu())
            self.bytes += values.numel() * (1 if dtype == "int8" else values.element_size())

    def write(self, chunk: Chunk, features: Features, store: Store, settings: CacheSettings) -> int:
        size = 0
        for name in chunk.names:
            entry = Entry.of(store, features.entries[name])
            values, lengths = torch.cat(self.values.pop(name)), torch.cat(self.lengths[name])
            shard = entry.write(chunk.keys, values, lengths, stored_dtype(features.frontier, name, settings))
            size += entry.folder.size(shard.file)
        return size


@torch.no_grad()
def _advance(
    backbone: Backbone, streams: Prepared, chunk: Chunk, frontier: Frontier, settings: CacheSettings, device
) -> dict[str, Tokens]:
    """The chunk's streams at the frontier."""
    ground = Frontier(dict.fromkeys(chunk.names, 0))
    towers = Frontier({name: frontier.towers[name] for name in chunk.names}, frontier.trunk)
    at_device = {name: tokens.to(device) for name, tokens in streams.items()}
    dtype = extraction_dtype(device, settings.dtype)
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        return backbone.advance(at_device, ground, towers)
