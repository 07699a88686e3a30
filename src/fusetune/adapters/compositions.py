"""Several adapters of whole streams as one: one after another, side by side, averaged, attended over, routed.

With adapters f_i and streams X, d_i = f_i(X) - X:

    stack                 X <- f_n(.. f_1(X))
    parallel              X <- X + sum_i d_i
    average               X <- X + 1/n sum_i d_i
    adapter_fusion        X <- X + sum_i a_i d_i,  a = softmax_i((X Q)(X + d_i) K), token by token
                          Pfeiffer et al., "AdapterFusion", EACL 2021, arXiv 2005.00247; f_i are trained and frozen,
                          Q and K are learned
    mixture_of_adapters   X <- X + sum_{i in top k} p_i d_i,  p = softmax_i(x R), x: the means of all streams
                          Shazeer et al., ICLR 2017, arXiv 1701.06538; with n sum_i (share of the samples routed to i)
                          (mean p_i) as a penalty, Fedus et al., JMLR 2022, arXiv 2101.03961, equation 4

The members have to leave widths and numbers of tokens as they are.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.adapters.adapter import Stream, StreamAdapter, StreamAdapters
from fusetune.adapters.gates import Gate
from fusetune.adapters.streams import pooled
from fusetune.adapters.trained import load_trained
from fusetune.config import build, check
from fusetune.tokens import Tokens


@dataclass(frozen=True)
class Member:
    """
    Attributes:
        adapter: its name in the registry; left out where `trained` says it.
        config: its settings.
        trained: folder of a trained adapter whose first adapter at the junction is taken, frozen.
        frozen: not trained; what `trained` becomes in an artifact, which holds the tensors itself.
    """

    adapter: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    trained: str | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        check(
            (self.adapter is None) != (self.trained is None),
            "adapters: each needs either `adapter`, the name of a method, or `trained`, the folder of a trained one.",
        )


@dataclass(frozen=True)
class CompositionConfig:
    """
    Attributes:
        adapters: the members.
    """

    adapters: tuple[Member, ...]

    def __post_init__(self) -> None:
        check(len(self.adapters) > 0, "adapters: expected at least one, found none.")


class Composition(StreamAdapters):
    """What all compositions share: the members."""

    members: nn.ModuleList
    Config = CompositionConfig

    def __init__(self, config: Any, streams: Mapping[str, Stream]) -> None:
        super().__init__(config, streams)
        self.members = nn.ModuleList(_member(m, i, streams) for i, m in enumerate(config.adapters))


class Stack(Composition):
    """One after another."""

    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        for member in self.members:
            streams = member(streams)
        return dict(streams)


class SideBySide(Composition):
    """The members read the same streams; what they would change is combined."""

    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        changes = [_change(member(streams), streams) for member in self.members]
        return {
            name: Tokens(tokens.values + self.combined(name, streams, [c[name] for c in changes]), tokens.mask)
            for name, tokens in streams.items()
        }

    @abstractmethod
    def combined(self, name: str, streams: Mapping[str, Tokens], changes: list[Tensor]) -> Tensor:
        """One change of the stream `name`, (batch, tokens, width), from the members'."""


class Parallel(SideBySide):
    """Side by side: the changes add up."""

    def combined(self, name: str, streams: Mapping[str, Tokens], changes: list[Tensor]) -> Tensor:
        return torch.stack(changes).sum(0)


class Average(SideBySide):
    """Side by side: the mean of the changes."""

    def combined(self, name: str, streams: Mapping[str, Tokens], changes: list[Tensor]) -> Tensor:
        return torch.stack(changes).mean(0)


@dataclass(frozen=True)
class AdapterFusionConfig(CompositionConfig):
    """
    Attributes:
        key_dim: width of queries and keys.
    """

    key_dim: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.key_dim > 0, f"key_dim: expected a positive width, found {self.key_dim}.")
        check(
            all(member.trained or member.frozen for member in self.adapters),
            "adapters: adapter_fusion attends over trained adapters; give the folder of each as `trained`.",
        )


class AdapterFusion(SideBySide):
    """Attention over what trained adapters would do, token by token."""

    Config = AdapterFusionConfig

    def __init__(self, config: AdapterFusionConfig, streams: Mapping[str, Stream]) -> None:
        super().__init__(config, streams)
        widths = {name: stream.width for name, stream in streams.items()}
        self.query = nn.ModuleDict({n: nn.Linear(w, config.key_dim, bias=False) for n, w in widths.items()})
        self.key = nn.ModuleDict({n: nn.Linear(w, config.key_dim, bias=False) for n, w in widths.items()})
        self._seen: dict[str, Tensor] = {}

    def combined(self, name: str, streams: Mapping[str, Tokens], changes: list[Tensor]) -> Tensor:
        states, stacked = streams[name].values, torch.stack(changes, -2)  # (batch, tokens, members, width)
        keys = self.key[name](states.unsqueeze(-2) + stacked)
        scores = (self.query[name](states).unsqueeze(-2) * keys).sum(-1) * keys.shape[-1] ** -0.5
        weights = scores.softmax(-1)
        self._seen[f"attention_{name}"] = Tokens(weights.detach(), streams[name].mask).pooled()
        return (weights.unsqueeze(-1) * stacked).sum(-2)

    def observed(self) -> Mapping[str, Tensor]:
        return {**super().observed(), **self._seen}


@dataclass(frozen=True)
class MixtureConfig(CompositionConfig):
    """
    Attributes:
        top_k: members that act on a sample.
        balance: weight of the penalty that keeps all members in use.
    """

    top_k: int = 1
    balance: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            0 < self.top_k <= len(self.adapters),
            f"top_k: expected 1 to {len(self.adapters)}, the number of adapters, found {self.top_k}.",
        )
        check(self.balance >= 0, f"balance: expected 0 or more, found {self.balance}.")


class MixtureOfAdapters(SideBySide):
    """A router chooses the members for each sample; `observed` gives the weights, 0 for who was not chosen."""

    Config = MixtureConfig

    def __init__(self, config: MixtureConfig, streams: Mapping[str, Stream]) -> None:
        super().__init__(config, streams)
        self.config = config
        self.widths = {name: stream.width for name, stream in streams.items()}
        self.norm = nn.LayerNorm(sum(self.widths.values()), elementwise_affine=False)
        self.router = Gate(sum(self.widths.values()), len(config.adapters))
        nn.init.normal_(self.router.weight, std=0.02)  # equal logits would send every sample the same way
        self._weights = self._probabilities = torch.zeros(0)

    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        vectors = pooled(streams, self.widths)[0]
        self._probabilities = self.router(self.norm(torch.cat(list(vectors.values()), -1))).softmax(-1)
        chosen = self._probabilities.topk(self.config.top_k, -1).indices
        self._weights = self._probabilities * torch.zeros_like(self._probabilities).scatter(1, chosen, 1.0)
        return super().forward(streams)

    def combined(self, name: str, streams: Mapping[str, Tokens], changes: list[Tensor]) -> Tensor:
        return torch.einsum("bi,ibtd->btd", self._weights, torch.stack(changes))

    def penalty(self) -> Tensor | None:
        routed = (self._weights > 0).float().mean(0) / self.config.top_k
        balance = self.config.balance * len(self.members) * (routed * self._probabilities.mean(0)).sum()
        below = super().penalty()
        return balance if below is None else balance + below

    def observed(self) -> Mapping[str, Tensor]:
        routes = {f"route_{i}": self._weights[:, i : i + 1].detach() for i in range(len(self.members))}
        return {**super().observed(), **routes}


def _member(member: Member, number: int, streams: Mapping[str, Stream]) -> nn.Module:
    from fusetune.adapters import adapters

    if member.trained:
        name, config, tensors = load_trained(member.trained, streams)
    else:
        name, config, tensors = member.adapter or "", member.config, {}
    cls = adapters.get(name)
    check(
        issubclass(cls, StreamAdapter) and "junction" in cls.sites,
        f"adapters[{number}]: '{name}' is no adapter of whole streams.",
    )
    made = cls(build(cls.Config, config, f"adapters[{number}].config"), streams)
    check(made.streams_out(streams) == dict(streams), f"adapters[{number}]: '{name}' changes the number of tokens.")
    if member.trained:
        made.load_state_dict(tensors)
    if member.trained or member.frozen:
        made.requires_grad_(False)
    return made


def _change(after: Mapping[str, Tokens], before: Mapping[str, Tokens]) -> dict[str, Tensor]:
    return {name: after[name].values - tokens.values for name, tokens in before.items()}
