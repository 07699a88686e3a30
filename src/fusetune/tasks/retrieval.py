"""Find the name of a picture, and the picture of a name: two streams compared in one space."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.config import check
from fusetune.tasks.task import HeadMaker, Task


@dataclass(frozen=True)
class RetrievalConfig:
    """
    Attributes:
        query, target: the two modalities.
        group: the column that says which rows are the same thing; each query looks for any target of its group.
        embedding_dim: width of the common space.
    """

    query: str = "image"
    target: str = "text"
    group: str = "group_id"
    embedding_dim: int = 64

    def __post_init__(self) -> None:
        check(self.embedding_dim > 0, f"embedding_dim: expected a positive width, found {self.embedding_dim}.")


class _TwoSidedHead(nn.Module):
    def __init__(self, config: RetrievalConfig, widths: Mapping[str, int], make: HeadMaker) -> None:
        super().__init__()
        self.sides = (config.query, config.target)
        self.heads = nn.ModuleDict({side: make(widths[side], config.embedding_dim) for side in self.sides})
        self.log_scale = nn.Parameter(torch.tensor(2.3))  # log of 10, as in CLIP

    def forward(self, pooled: Mapping[str, Tensor]) -> Tensor:
        """(batch, 2, embedding_dim), unit length times the square root of the scale: dot products are logits."""
        sides = [F.normalize(self.heads[side](pooled[side]), dim=-1) for side in self.sides]
        return torch.stack(sides, 1) * (self.log_scale.exp().clamp(max=100) ** 0.5)


class Retrieval(Task):
    """Contrastive loss within the batch; recall@k over the whole split."""

    metric = "recall_at_1"
    fuses = False
    by_row = False
    Config = RetrievalConfig

    def __init__(self, config: RetrievalConfig) -> None:
        self.config = config

    def columns(self) -> list[str]:
        return [self.config.group]

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Nothing is learned: groups are only compared for equality."""

    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        values = [str(value) for value in columns[self.config.group]]
        index = {value: i for i, value in enumerate(sorted(set(values)))}
        return torch.tensor([index[value] for value in values])

    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        for side in (self.config.query, self.config.target):
            check(side in widths, f"retrieval: no modality '{side}'. Known: {', '.join(widths)}.")
        return _TwoSidedHead(self.config, widths, make)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits = outputs[:, 0] @ outputs[:, 1].T
        same = targets[:, None] == targets[None, :]
        # several rows of one group are all right: the likelihood of finding any of them
        rows = logits.logsumexp(1) - logits.masked_fill(~same, -torch.inf).logsumexp(1)
        columns = logits.logsumexp(0) - logits.masked_fill(~same, -torch.inf).logsumexp(0)
        return (rows.mean() + columns.mean()) / 2

    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        scores = outputs[:, 0] @ outputs[:, 1].T
        same = targets[:, None] == targets[None, :]
        best = scores.masked_fill(~same, -torch.inf).max(1, keepdim=True).values
        # each other group counts once, by its best row
        groups, column = targets.unique(return_inverse=True)
        by_group = scores.new_full((len(scores), len(groups)), -torch.inf)
        by_group.scatter_reduce_(1, column.expand_as(scores), scores, "amax")
        rank = (by_group > best).sum(1)
        return {f"recall_at_{k}": (rank < k).float().cpu().numpy() for k in (1, 5, 10)}

    def decode(self, outputs: Tensor) -> list[dict[str, Any]]:
        scores = outputs[:, 0] @ outputs[:, 1].T
        best = scores.max(-1)
        return [{"best_row": i, "score": s} for i, s in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
