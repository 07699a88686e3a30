"""A fusion of the streams of one side, where two sides are compared: experts of a video, and no word of its caption."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fusetune.adapters.adapter import Stream, StreamAdapter, StreamAdapters
from fusetune.tokens import Tokens


class OneSide(StreamAdapters):
    """An adapter that is given some of the streams; the others pass it by.

    Args:
        adapter: made for those streams.
        names: theirs.
    """

    members: nn.ModuleList

    def __init__(self, adapter: StreamAdapter, names: Sequence[str]) -> None:
        nn.Module.__init__(self)
        self.members, self.names = nn.ModuleList([adapter]), tuple(names)

    @property
    def inner(self) -> StreamAdapter:
        return self.members[0]  # type: ignore[return-value]

    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        own = {name: streams[name] for name in self.names if name in streams}
        return {**streams, **self.inner(own)} if len(own) > 1 else dict(streams)

    def streams_out(self, streams: Mapping[str, Stream]) -> dict[str, Stream]:
        own = {name: streams[name] for name in self.names}
        return {**streams, **self.inner.streams_out(own)}

    def observed(self) -> Mapping[str, Tensor]:
        return self.inner.observed()
