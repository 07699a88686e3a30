"""Heads of retrieval: two sides in a common space, that is learned or the towers' own.

Their `config` is a `retrieval.RetrievalConfig`.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.tasks.joined_head import FEW, LinearStart, frozen
from fusetune.tasks.linear_space import compared
from fusetune.tasks.task import HeadMaker


class ManySidedHead(nn.Module):
    """A space that is trained, of sides with several streams each, side by side."""

    def __init__(self, config: Any, widths: Mapping[str, int], make: HeadMaker) -> None:
        super().__init__()
        self.sides = config.sides
        self.widths = {name: widths[name] for own in self.sides.values() for name in own}
        self.norms = nn.ModuleDict({n: _norm(w) for n, w in self.widths.items()})
        totals = {side: sum(self.widths[name] for name in own) for side, own in self.sides.items()}
        self.heads = nn.ModuleDict({side: make(total, config.embedding_dim) for side, total in totals.items()})
        self.log_scale = nn.Parameter(torch.tensor(2.3))  # log of 10, as in CLIP

    def forward(self, pooled: Mapping[str, Tensor]) -> Tensor:
        """(batch, 2, embedding_dim), as `TwoSidedHead` has it; a stream that isn't there is zeros.

        Args:
            pooled: behind the junction.
        """
        one, found = next(iter(pooled.values())), []
        for side, own in self.sides.items():
            parts = [self.norms[n](pooled[n]) if n in pooled else one.new_zeros(len(one), self.widths[n]) for n in own]
            found.append(F.normalize(self.heads[side](torch.cat(parts, -1)), dim=-1))
        return torch.stack(found, 1) * self.log_scale.exp().clamp(max=100) ** 0.5


class TwoSidedHead(nn.Module):
    """Two spaces side by side: the linear one of the frozen streams (`linear_space`), and the one that is trained.

    While it is trained the second has the whole share; afterwards validation rows say (`training.mixing`).
    """

    def __init__(self, config: Any, widths: Mapping[str, int], make: HeadMaker) -> None:
        super().__init__()
        self.sides, dim = (config.query, config.target), config.embedding_dim
        self.heads = nn.ModuleDict({side: make(widths[side], dim) for side in self.sides})
        self.log_scale = nn.Parameter(torch.tensor(2.3))  # log of 10, as in CLIP
        self.mean = nn.ParameterDict({side: frozen(torch.zeros(widths[side])) for side in self.sides})
        self.std = nn.ParameterDict({side: frozen(torch.ones(widths[side])) for side in self.sides})
        self.weight = nn.ParameterDict({side: frozen(torch.zeros(dim, widths[side])) for side in self.sides})
        self.shares = frozen(torch.tensor([0.0, 1.0]))  # of the linear space, of the trained one
        self.begun = False

    @torch.no_grad()
    def begin(self, start: LinearStart) -> None:
        """Know this space; it is heard as soon as it has a share."""
        self.begun = True
        for side in self.sides:
            self.mean[side].copy_(start.mean[side])
            self.std[side].copy_(start.std[side])
            self.weight[side].copy_(start.weight[side])

    def forward(self, pooled: Mapping[str, Tensor], entered: Mapping[str, Tensor] | None = None) -> Tensor:
        """(batch, 2, 2 embedding_dim): of each space unit length times its share, and times the square root of the
        scale that is trained; dot products are logits.

        Args:
            pooled: behind the junction.
            entered: in front of it; None: nothing stands between.
        """
        known = compared(self, {side: (entered or pooled)[side] for side in self.sides})
        trained = [F.normalize(self.heads[side](pooled[side]), dim=-1) for side in self.sides]
        scale = self.log_scale.exp().clamp(max=100) ** 0.5
        return torch.cat([self.shares[0] * known, self.shares[1] * scale * torch.stack(trained, 1)], -1)


class OwnSpaceHead(nn.Module):
    """What the towers' own space says, and what is learned beside it: nothing at first.

    Attributes:
        embeds: the modalities that it is given in their space.
    """

    def __init__(self, config: Any, space: Any, widths: Mapping[str, int], make: HeadMaker) -> None:
        super().__init__()
        self.embeds = (config.query, config.target)
        self.heads = nn.ModuleDict({side: make(widths[side], space.width) for side in self.embeds})
        self.gain = nn.ParameterDict({side: nn.Parameter(torch.zeros(space.width)) for side in self.embeds})
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.space = space
        self.forget()

    @torch.no_grad()
    def forget(self) -> None:
        """Everything that was learned: the space is as the checkpoint has it."""
        for gain in self.gain.values():
            gain.zero_()
        self.log_scale.fill_(self.space.log_scale)

    def forward(
        self, pooled: Mapping[str, Tensor], embedded: Mapping[str, Tensor], entered: Mapping[str, Tensor]
    ) -> Tensor:
        """As `TwoSidedHead` has it."""
        del entered
        sides = [
            F.normalize(embedded[side] + self.gain[side] * self.heads[side](pooled[side]), dim=-1)
            for side in self.embeds
        ]
        return torch.stack(sides, 1) * (self.log_scale.exp().clamp(max=100) ** 0.5)


def _norm(width: int) -> nn.Module:
    return nn.LayerNorm(width, elementwise_affine=False) if width > FEW else nn.Identity()
