"""The head over all streams, and linear models of the frozen streams beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.config import digest
from fusetune.tasks.task import HeadMaker

CLIP = 5.0  # standard deviations
FEW = 16  # numbers of all streams: a norm takes mean and scale from them, which of so few is much of what they say


@dataclass(frozen=True)
class LinearStart:
    """Outputs ``prior + sum_m share_m (W_m x_m + b_m - prior)`` of standardised streams x_m; a missing one is left out.

    Attributes:
        mean, std: of each pooled stream in training, (width,); infinite spread where a channel is constant.
        weight: W_m, (outputs, width).
        bias: b_m, (outputs,).
        prior: what is best without any input, (outputs,).
        shares: by modality, from 0.
        losses: by modality, the loss of its out-of-fold outputs; under `""` that of all together.
    """

    mean: Mapping[str, Tensor]
    std: Mapping[str, Tensor]
    weight: Mapping[str, Tensor]
    bias: Mapping[str, Tensor]
    prior: Tensor
    shares: Mapping[str, float]
    losses: Mapping[str, float] = field(default_factory=dict)

    def of(self, names: Sequence[str]) -> "LinearStart":
        """The same of some modalities; of one alone, with a share of 1."""
        shares = {name: 1.0 if len(names) == 1 else self.shares[name] for name in names}

        def some(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: values[name] for name in names}

        parts = (some(self.mean), some(self.std), some(self.weight), some(self.bias))
        return LinearStart(*parts, self.prior, shares, self.losses)

    def tensors(self) -> dict[str, Tensor]:
        """For a file, and for `from_tensors`."""
        found = {"prior": self.prior}
        for name in self.shares:
            parts = {"mean": self.mean, "std": self.std, "weight": self.weight, "bias": self.bias}
            found |= {f"{key}.{name}": values[name] for key, values in parts.items()}
            found[f"share.{name}"] = torch.tensor(self.shares[name])
            found[f"loss.{name}"] = torch.tensor(self.losses[name])
        return found | {"loss.": torch.tensor(self.losses[""])}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "LinearStart":
        by: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            by.setdefault(kind, {})[name] = value
        shares = {name: value.item() for name, value in by["share"].items()}
        losses = {name: value.item() for name, value in by["loss"].items()}
        return cls(by["mean"], by["std"], by["weight"], by["bias"], tensors["prior"], shares, losses)

    def digest(self) -> str:
        return digest({name: value.tolist() for name, value in self.tensors().items()})


def standardised(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Within `CLIP`; rows of zeros, which lack the modality, stay zeros."""
    present = (values != 0).any(-1, keepdim=True)
    return ((values - mean) / std).clamp(-CLIP, CLIP) * present


class JoinedHead(nn.Module):
    """All pooled streams side by side, in the order of the modalities at training, into the head that is trained.

    Where linear models of the frozen streams are known (`begin`), outputs are theirs, on the streams as they come to
    the junction, times one share, plus those of the trained head on what leaves it, times another. While it is trained
    the head has the whole share; afterwards the two are mixed as validation rows say (`training.mixing`).
    """

    def __init__(self, widths: Mapping[str, int], outputs: int, make: HeadMaker) -> None:
        super().__init__()
        self.widths = dict(widths)
        total = sum(widths.values())
        self.norm = nn.LayerNorm(total, elementwise_affine=False) if total > FEW else nn.Identity()
        self.head: Any = make(sum(widths.values()), outputs)
        self.mean = nn.ParameterDict({n: frozen(torch.zeros(width)) for n, width in widths.items()})
        self.scale = nn.ParameterDict({n: frozen(torch.ones(width)) for n, width in widths.items()})
        self.weight = nn.ParameterDict({n: frozen(torch.zeros(outputs, width)) for n, width in widths.items()})
        self.bias = nn.ParameterDict({n: frozen(torch.zeros(outputs)) for n in widths})
        self.prior = frozen(torch.zeros(outputs))
        self.shares = frozen(torch.tensor([0.0, 1.0]))  # of the linear models, of what is trained
        self.begun = False
        self._both = True  # whether the linear models have a share; looked up where training or evaluation begins

    def train(self, mode: bool = True) -> "JoinedHead":
        self._both = self.shares.is_meta or bool(self.shares[0] != 0)
        return super().train(mode)

    @torch.no_grad()
    def begin(self, start: LinearStart) -> None:
        """Know these linear models; they are heard as soon as they have a share."""
        self.begun = True
        one = start.of(list(self.widths))
        self.prior.copy_(one.prior)
        for name, share in one.shares.items():
            self.mean[name].copy_(one.mean[name])
            self.scale[name].copy_(1 / one.std[name])
            self.weight[name].copy_(share * one.weight[name])
            self.bias[name].copy_(share * (one.bias[name] - one.prior))

    def forward(self, pooled: Mapping[str, Tensor], entered: Mapping[str, Tensor] | None = None) -> Tensor:
        """
        Args:
            pooled: behind the junction.
            entered: in front of it; None: nothing stands between.
        """
        trained = self.shares[1] * self.trained(pooled)
        return self.shares[0] * self.known(entered or pooled) + trained if self._both else trained

    def known(self, entered: Mapping[str, Tensor]) -> Tensor:
        """What the linear models say."""
        known: Tensor = self.prior
        for name, values in self._streams(entered).items():
            present = (values != 0).any(-1, keepdim=True)
            x = ((values - self.mean[name]) * self.scale[name]).clamp(-CLIP, CLIP) * present
            known = known + x @ self.weight[name].T + present * self.bias[name]
        return known

    def trained(self, pooled: Mapping[str, Tensor]) -> Tensor:
        """What the trained head says."""
        return self.head(self.norm(torch.cat(list(self._streams(pooled).values()), -1)))

    def _streams(self, pooled: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All of them, in order; zeros for one that isn't there."""
        one = next(iter(pooled.values()))
        return {n: pooled[n] if n in pooled else one.new_zeros(len(one), width) for n, width in self.widths.items()}


def heard(head: nn.Module, pooled: Mapping[str, Tensor], entered: Mapping[str, Tensor] | None) -> Tensor:
    """A head's outputs; one that knows no linear models takes what leaves the junction alone."""
    return head(pooled, entered) if hasattr(head, "shares") else head(pooled)


def joined_heads(head: nn.Module) -> list[Any]:
    """Those in a task's head that know linear models; `shares` of theirs and of what is trained mix the two."""
    return [module for module in head.modules() if getattr(module, "begun", False)]


def frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
