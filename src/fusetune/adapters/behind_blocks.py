"""An adapter of whole streams behind blocks of the trunk."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from fusetune.adapters.adapter import StreamAdapter, StreamAdapters
from fusetune.tokens import Tokens


class BehindBlocks(StreamAdapters):
    """One behind each chosen block; together they are one placement.

    Behind block k means in front of block k + 1: what block k puts out can still be cached.
    """

    label = "block{}"

    def __init__(self, made: Mapping[int, StreamAdapter], trunk: Any) -> None:
        super().__init__(None, {})
        self.members = nn.ModuleDict({str(number): adapter for number, adapter in made.items()})
        self._layers = list(trunk.layers)  # not to be registered as parts of ours
        self._handles: list[Any] = []  # of hooks

    def attach(self) -> None:
        layers = self._layers
        for name, adapter in self.members.named_children():
            number = int(name)
            if number + 1 < len(layers):
                self._handles.append(layers[number + 1].register_forward_pre_hook(self._before(adapter)))
            else:
                self._handles.append(layers[number].register_forward_hook(self._behind(adapter)))

    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        raise TypeError("the hooks on the trunk's blocks call the members")

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before(self, adapter: Any) -> Callable[..., Any]:
        return lambda _, args: (self._adapted(adapter, *args), args[1]) if self.active else None

    def _behind(self, adapter: Any) -> Callable[..., Any]:
        return lambda _, args, out: self._adapted(adapter, out, args[1]) if self.active else out

    def _adapted(self, adapter: Any, values: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
        streams = adapter({name: Tokens(states, masks[name]) for name, states in values.items()})
        return {name: tokens.values for name, tokens in streams.items()}
