"""An adapter of whole streams behind blocks of the trunk."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

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
        self._trunk = (trunk,)  # in a tuple: not to be registered as a part of ours
        self._handles: list[Any] = []  # of hooks

    def attach(self) -> None:
        for name, adapter in self.members.named_children():
            self._handles.append(self._trunk[0].behind(int(name), self._change(adapter)))

    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        raise TypeError("the hooks on the trunk's blocks call the members")

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _change(self, adapter: Any) -> Callable[[Mapping[str, Tokens]], Mapping[str, Tokens]]:
        return lambda streams: adapter(streams) if self.active else streams
