"""The contracts of adapters, by site."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from fusetune.tokens import Tokens


@dataclass(frozen=True)
class Stream:
    """What an adapter can know of a stream before it sees one.

    Attributes:
        width: floats per token at the junction.
        max_tokens: the largest number of tokens of any sample.
    """

    width: int
    max_tokens: int


class Adapter(nn.Module):
    """A small trainable module of a placement."""

    site: ClassVar[str]
    Config: ClassVar[type[Any]]

    def delta(self) -> Any:
        """What can be folded into the base's weights.

        Raises:
            TypeError: for an adapter that adds a computation of its own, such as a fusion of several streams.
        """
        raise TypeError(f"{type(self).__name__} can't be merged into the base: it is no change of the base's weights.")

    def on_step(self, step: int) -> None:
        """Called by the loop after each optimizer step; adaptive ranks and the like override it."""


class JunctionAdapter(Adapter, ABC):
    """Streams in, streams out; `__init__(config, streams)` with a `Stream` by modality."""

    site = "junction"

    @abstractmethod
    def __init__(self, config: Any, streams: Mapping[str, Stream]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]: ...


class HeadAdapter(Adapter, ABC):
    """Pooled streams (batch, width) to (batch, outputs); `__init__(config, width, outputs)`."""

    site = "head"

    @abstractmethod
    def __init__(self, config: Any, width: int, outputs: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, pooled: Tensor) -> Tensor: ...


class BackboneAdapter(ABC):
    """Opens parameters of the backbone; `__init__(config)`, then `apply(backbone)`."""

    site: ClassVar[str] = "backbone"
    Config: ClassVar[type[Any]]

    @abstractmethod
    def __init__(self, config: Any) -> None: ...

    @abstractmethod
    def apply(self, backbone: Any) -> list[str]:
        """Make parameters trainable; returns the names of the modules that were opened."""
