"""The contracts of adapters, by what they act on."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
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


@dataclass(frozen=True)
class Block:
    """One block that a placement chose.

    Attributes:
        number: in its stack.
        module: the block itself.
        rank: what the placement says of the adapter's size in this block; None: the adapter's own config.
    """

    number: int
    module: nn.Module
    rank: int | None = None


@dataclass(frozen=True)
class Stack:
    """A tower or the trunk, as an adapter inside it sees it.

    Attributes:
        name: the modality, or ``trunk``.
        module: the whole tower or trunk.
        roles: what the parts of a block are for -> their paths in a block (``query`` -> ``self_attn.q_proj``).
        streams: names of the streams that pass through, with their widths.
    """

    name: str
    module: nn.Module
    roles: Mapping[str, str]
    streams: Mapping[str, Stream]


class Adapter(nn.Module):
    """A small trainable module of a placement.

    Attributes:
        sites: where it may be placed: towers, trunk, connector, junction, head, backbone.
        rank_key: the field of its config that a placement's rank stands for, where it has one.
        bounded: whether it takes no more tokens of a stream than `Stream.max_tokens`, those of the longest sample that
            the training had.
        changes_weights: those attach before those that read what the changed modules put out.
        active: an adapter that is not passes everything through unchanged (gradual unfreezing).
    """

    sites: ClassVar[tuple[str, ...]]
    Config: ClassVar[type[Any]]
    rank_key: ClassVar[str | None] = None
    bounded: ClassVar[bool] = False
    changes_weights: ClassVar[bool] = False
    active: bool = True

    @classmethod
    def sized(cls, config: Any, rank: int | None) -> Any:
        """Its config with a placement's rank in it; None, or an adapter without a size, leaves it as it is."""
        return replace(config, **{cls.rank_key: rank}) if rank and cls.rank_key else config

    def delta(self) -> Mapping[str, Tensor]:
        """What can be folded into the base's weights: name of a parameter in its stack -> what is added to it.

        Raises:
            TypeError: for an adapter that adds a computation of its own, such as a fusion of several streams.
        """
        raise TypeError(f"{type(self).__name__} can't be merged into the base: it is no change of the base's weights.")

    def trained(self) -> list[nn.Parameter]:
        """The parameters that belong to it, wherever they are registered."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def attach(self) -> None:
        """Put what acts inside the backbone there; after `detach` once more as it was."""

    def detach(self) -> None:
        """Take it off the backbone, which is then as it was; what was trained stays with the adapter."""

    def low_rank(self) -> Mapping[str, tuple[Tensor, Tensor]] | None:
        """What it adds to linear layers, where that is all it does: path in its stack -> (A, B), y + B A x.

        A: (rank, in), B: (out, rank). None: it does something else, and is no part of a batched low-rank product.
        """
        return None

    def set_active(self, active: bool) -> None:
        """Switch it on or off; what it opened of the base is trainable while it is on."""
        self.active = active

    def penalty(self) -> Tensor | None:
        """What is added to the task's loss in training, a scalar, after a forward pass."""
        return None

    def observed(self) -> Mapping[str, Tensor]:
        """What the last forward pass showed, (batch, columns) by name: gates, routes."""
        return {}

    def fold(self) -> None:
        """Drop what only training needs; called once, after training and before an artifact is loaded."""

    def on_start(self, steps: int) -> None:
        """Called by the loop before the first of `steps` optimizer steps."""

    def on_step(self, step: int) -> None:
        """Called by the loop after each optimizer step, gradients still there; adaptive ranks and the like use it."""

    def training_state(self) -> dict[str, Tensor]:
        """What a resumed run needs besides parameters; `restore_training_state` takes it back."""
        return {}

    def restore_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `training_state`."""
        del state


def total_penalty(several: Iterable[Any]) -> Tensor | None:
    """The sum of the adapters' penalties; None where none has one."""
    found = [penalty for adapter in several if (penalty := adapter.penalty()) is not None]
    return torch.stack(found).sum() if found else None


class StreamAdapter(Adapter, ABC):
    """Streams in, streams out; `__init__(config, streams)` with a `Stream` by modality.

    At the junction it acts once; in the trunk there is one behind each chosen block; as a connector it acts when the
    towers have run as far as `reach` says.

    Attributes:
        reads_means: of the streams it takes the mean of the tokens alone, and what it makes of them changes by the same
            vector for every token (`Tokens.shifted`); features then need one token a row.
    """

    sites: ClassVar[tuple[str, ...]] = ("junction", "trunk")
    reads_means: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, config: Any, streams: Mapping[str, Stream]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]: ...

    def streams_out(self, streams: Mapping[str, Stream]) -> dict[str, Stream]:
        """What the streams are behind it."""
        return dict(streams)

    def reach(self, depths: Mapping[str, int]) -> dict[str, int]:
        """As a connector: how far each tower has run when it acts; by default to the top."""
        return dict(depths)


class StreamAdapters(StreamAdapter, ABC):
    """Several of them as one adapter: what the `members` ask for and observe is asked for and observed together."""

    members: nn.ModuleList | nn.ModuleDict
    label: ClassVar[str] = "{}"  # a member's name in front of what it observes

    def penalty(self) -> Tensor | None:
        return total_penalty(self.members.children())

    def observed(self) -> Mapping[str, Tensor]:
        return {
            f"{self.label.format(number)}_{name}": values
            for number, member in self.members.named_children()
            for name, values in member.observed().items()  # type: ignore[operator]
        }


class HeadAdapter(Adapter, ABC):
    """Pooled streams (batch, width) to (batch, outputs); `__init__(config, width, outputs)`."""

    sites = ("head",)

    @abstractmethod
    def __init__(self, config: Any, width: int, outputs: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, pooled: Tensor) -> Tensor: ...


class BlockAdapter(Adapter, ABC):
    """Acts inside blocks of one tower or of the trunk; `__init__(config, stack, blocks)`, then `attach()`.

    Its modules are its own: the base's parameters and their names stay what they are, hooks on the base's modules do
    the work.
    """

    sites: ClassVar[tuple[str, ...]] = ("towers", "trunk")
    missing: frozenset[str] = frozenset()  # what the config asks for and no given block has

    @abstractmethod
    def __init__(self, config: Any, stack: Stack, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.stack_name = stack.name
        self._handles: list[Any] = []

    @abstractmethod
    def attach(self) -> None: ...

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @abstractmethod
    def claims(self) -> list[str]:
        """What it takes for itself in its stack: two placements that claim the same are an error."""


class BackboneAdapter(Adapter, ABC):
    """Opens parameters of the backbone outside any block too; `__init__(config)`, then `open_in(backbone)`."""

    sites = ("backbone",)

    @abstractmethod
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.opened: list[nn.Parameter] = []

    @abstractmethod
    def open_in(self, backbone: Any) -> list[str]:
        """Make parameters trainable; returns the names of the modules that were opened."""

    def trained(self) -> list[nn.Parameter]:
        return self.opened

    def delta(self) -> Mapping[str, Tensor]:
        return {}  # it trains the base's weights themselves
