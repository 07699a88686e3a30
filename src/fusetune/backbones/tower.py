"""The contract of every tower, and the fingerprint that names its weights."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.config import to_plain
from fusetune.tokens import Lattice, Tokens


class Tower(nn.Module, ABC):
    """One frozen encoder for one modality.

    Depth 0 is the preprocessed input; depth k (0 < k < depth) is what block k-1 puts out; `depth` is the last hidden
    state, with the final norm where the model has one.

    Attributes:
        kind: the modality's kind (`manifest.schema.KINDS`).
        depth: number of blocks.
        width: width of the last hidden state.
        origin: the `sources.TowerSource` that it was loaded from; a tower that has one is saved by reference.
        probe: of a tower that `align` fitted: what a linear probe on validation rows scores ``behind`` its MLP and
            ``before`` it, on the plain numbers; None: nobody asked.
        row_samples: while it runs, the sample in the batch that each row of its layers belongs to (several pictures
            of a sample are several rows, a missing one is none); None: row i is sample i.
    """

    kind: str
    depth: int
    width: int
    origin: Any = None
    probe: Mapping[str, float] | None = None
    row_samples: Tensor | None = None

    @abstractmethod
    def prepare(self, samples: Sequence[Any]) -> Tokens:
        """Decoded samples (`manifest.decoders.decode`; None = missing) to tokens at depth 0."""

    @abstractmethod
    def advance(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        """Run the blocks from depth `start` to depth `stop`."""

    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The stack of blocks; block k leads from depth k to depth k + 1."""

    def roles(self) -> Mapping[str, str]:
        """What the parts of a block are for -> their paths in a block; adapters find linear layers by these names."""
        return {}

    @abstractmethod
    def tokens_out(self, tokens_in: int) -> int:
        """How many tokens leave a tower for `tokens_in` tokens at depth 0."""

    def lattice(self) -> Lattice | None:
        """How the tokens of one item lie at the top; None: one behind another, each a time of its own.

        Raises:
            FusetuneError: they stand for no places (what a resampler or a Q-Former makes).
        """
        return None

    def view(self, extent: Sequence[float]) -> tuple[float, ...]:
        """The part of a sample that the tokens are of: where it begins in each direction, then where it ends.

        Args:
            extent: of the sample: a picture's width and height in pixels, or a sound's or a video's seconds.
        """
        return (*(0.0 for _ in extent), *extent)

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """What `prepare` depends on besides the sample: part of the cache's key."""

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None: ...

    def space(self) -> Any:
        """The `common_space.Space` in which `embed` compares this tower with another; None: it has none of its own."""
        return None

    def embed(self, tokens: Tokens) -> Tensor:
        """(batch, width) in that space, of tokens at the tower's top; zeros for a sample without this modality."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """SHA-256 (hex) of weights and preprocessing."""
        return fingerprint(self.state_dict(), self.preprocessing())


def fingerprint(state: dict[str, Tensor], extra: Any = None) -> str:
    """SHA-256 (hex) of tensors by name, dtype, shape and bytes, and of anything that JSON can hold."""
    sha = hashlib.sha256(json.dumps(to_plain(extra), sort_keys=True, default=str).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        sha.update(tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return sha.hexdigest()
