"""Find the name of a picture, and the picture of a name: two streams compared in one space."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.config import check
from fusetune.tasks.retrieval_heads import ManySidedHead, OwnSpaceHead, TwoSidedHead
from fusetune.tasks.task import HeadMaker, LinearPart, Task, content_column

RECALLS = (1, 5, 10)
SPACES = ("auto", "own", "learned")
CHUNK = 1024  # rows that are compared with all others at once
ROUNDING = 1e-6  # share of the largest score within which two scores are equal


@dataclass(frozen=True)
class RetrievalConfig:
    """
    Attributes:
        query, target: the two modalities. What is the same item goes by their contents.
        query_with, target_with: further modalities of that side: the experts of a video, its sound. A fusion at the
            junction acts within a side.
        group: the column that says which rows are the same thing; each query looks for any target of its group.
        embedding_dim: width of the common space, where it is learned.
        space: own: the two towers' own, with its scale (CLIP, SigLIP), from which training starts; learned: a new one;
            auto: their own where they share one.
        best: how many of the other side's items an answer names.
    """

    query: str = "image"
    target: str = "text"
    query_with: tuple[str, ...] = ()
    target_with: tuple[str, ...] = ()
    group: str = "group_id"
    embedding_dim: int = 128
    space: str = "auto"
    best: int = 10

    def __post_init__(self) -> None:
        check(self.embedding_dim > 0, f"embedding_dim: expected a positive width, found {self.embedding_dim}.")
        check(self.space in SPACES, f"space: expected one of {', '.join(SPACES)}, found '{self.space}'.")
        named = [self.query, *self.query_with, self.target, *self.target_with]
        check(len(set(named)) == len(named), f"retrieval: each modality is of one side; found {', '.join(named)}.")
        check(self.best > 0, f"best: expected at least 1, found {self.best}.")

    @property
    def sides(self) -> dict[str, tuple[str, ...]]:
        """By the modality that a side is named after, all of its own."""
        return {self.query: (self.query, *self.query_with), self.target: (self.target, *self.target_with)}


class Retrieval(Task):
    """Contrastive loss within the batch; recall@k and median rank over the whole split, in both directions.

    Rows belong together if they share the group, the query or the target: a text that stands in two rows is one item,
    and either row's picture is right for it. `recall_at_k` is of queries among targets, `reverse_recall_at_k` of
    targets among queries. Of items whose scores are equal the right one has the mean of the ranks that they share.
    """

    metric = "recall_at_1"
    fuses = False
    by_row = False
    by_sample = False
    plain = "pairs"
    Config = RetrievalConfig

    def __init__(self, config: RetrievalConfig) -> None:
        self.config = config

    def columns(self) -> list[str]:
        return [self.config.group]

    def content_modalities(self) -> list[str]:
        return [self.config.query, self.config.target]

    def fused_apart(self) -> list[tuple[str, ...]]:
        return [own for own in self.config.sides.values() if len(own) > 1]

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Nothing is learned: groups are only compared for equality."""

    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """(rows, 3): numbers of the group, of the query's content and of the target's."""
        groups = [str(value) for value in columns[self.config.group]]
        sides = [_items(columns.get(content_column(name)), len(groups)) for name in self.content_modalities()]
        return torch.stack([_numbered(groups), *(_numbered(items) for items in sides)], 1)

    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        for name in (name for own in self.config.sides.values() for name in own):
            check(name in widths, f"retrieval: no modality '{name}'. Known: {', '.join(widths)}.")
        if self.fused_apart():
            return ManySidedHead(self.config, widths, make)
        return TwoSidedHead(self.config, widths, make)

    def head_in(self, spaces: Mapping[str, Any], widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        query, target = (spaces.get(side) for side in self.content_modalities())
        shared = bool(query and target and query.identity == target.identity)
        check(
            shared or self.config.space != "own",
            f"data.task.space: '{self.config.query}' and '{self.config.target}' have no common space of their own. "
            "Expected towers of one dual encoder (CLIP, SigLIP), or space: learned.",
        )
        if shared and self.config.space != "learned" and not self.fused_apart():
            return OwnSpaceHead(self.config, query, widths, make)
        return self.head(widths, make)

    def linear_parts(self) -> dict[str, LinearPart]:
        return {} if self.fused_apart() else {"": LinearPart(self, self.config.embedding_dim, pairs=True)}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits, same = outputs[:, 0] @ outputs[:, 1].T, _together(targets, targets)
        # several rows of one group are all right: the likelihood of finding any of them
        rows = logits.logsumexp(1) - logits.masked_fill(~same, -torch.inf).logsumexp(1)
        columns = logits.logsumexp(0) - logits.masked_fill(~same, -torch.inf).logsumexp(0)
        return (rows.mean() + columns.mean()) / 2

    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for prefix, ranks in self._ranks(outputs, targets):
            for k in RECALLS:
                found[f"{prefix}recall_at_{k}"] = (ranks <= k).float().cpu().numpy()
        return found

    def aggregates(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {f"{prefix}median_rank": ranks.median().item() for prefix, ranks in self._ranks(outputs, targets)}

    def _ranks(self, outputs: Tensor, targets: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Of the best right item, from 1, for each row, in each direction."""
        targets = targets.reshape(len(targets), -1).to(outputs.device)
        rows = torch.arange(len(targets), device=outputs.device)
        for prefix, side, other in (("", 0, 1), ("reverse_", 1, 0)):
            items = targets[:, 1 + other] if targets.shape[1] > 1 else rows
            yield prefix, _ranks(outputs[:, side], outputs[:, other], targets, items)

    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, Any]]:
        """Of each row the best items of the other side: ``best_<modality>``, row numbers, and their cosines."""
        rows: list[dict[str, Any]] = [{} for _ in outputs]
        names = self.content_modalities()
        for side, other in ((0, 1), (1, 0)):
            items = _numbered(_items((contents or {}).get(names[other]), len(outputs)))
            numbers, cosines = _best(outputs[:, side], outputs[:, other], items, self.config.best)
            for row, best, scores in zip(rows, numbers.tolist(), cosines.tolist(), strict=True):
                row |= {f"best_{names[other]}": best, f"best_{names[other]}_cosines": scores}
        return rows

    def row_columns(self) -> list[str]:
        return [f"best_{name}" for name in self.content_modalities()]


def _items(contents: Sequence[str] | None, count: int) -> list[str]:
    """What is the same item has the same name; what has no content is like nothing else."""
    contents = contents or [""] * count
    return [content or f"row {row}" for row, content in enumerate(contents)]


def _numbered(values: Sequence[str]) -> Tensor:
    index = {value: i for i, value in enumerate(sorted(set(values)))}
    return torch.tensor([index[value] for value in values])


def _together(some: Tensor, all_: Tensor) -> Tensor:
    """(rows of some, rows of all): whether they share the group, the query or the target."""
    some, all_ = some.reshape(len(some), -1), all_.reshape(len(all_), -1)
    return (some[:, None] == all_[None]).any(-1)


def _ranks(side: Tensor, other: Tensor, targets: Tensor, items: Tensor) -> Tensor:
    """Rank of the best right item for each row of `side`, float, from 1.

    Of t right and f wrong items that share a score, the first right one comes behind f / (t + 1) wrong ones on average;
    a score that is no number is the worst: of a wrong item it counts as better, of the right one as last.
    """
    _, place = items.unique(return_inverse=True)
    count, ranks = int(place.max()) + 1, []
    for start in range(0, len(side), CHUNK):
        scores = side[start : start + CHUNK] @ other.T
        right = _together(targets[start : start + CHUNK], targets)
        at = place.expand_as(scores)
        best = scores.new_full((len(scores), count), -torch.inf).scatter_reduce_(1, at, scores, "amax")
        is_right = right.new_zeros(best.shape).scatter_reduce_(1, at, right, "amax")
        wanted = best.masked_fill(~is_right, -torch.inf).amax(1, keepdim=True)
        rounding = ROUNDING * scores.abs().amax(1, keepdim=True)
        equal = (best - wanted).abs() <= rounding
        better = (((best > wanted) & ~equal) | best.isnan()).sum(1)
        rank = 1 + better + (equal & ~is_right).sum(1) / ((equal & is_right).sum(1) + 1)
        ranks.append(torch.where(wanted.squeeze(1).isnan(), torch.full_like(rank, count), rank))
    return torch.cat(ranks)


def _best(side: Tensor, other: Tensor, items: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """First rows and cosines of the best items for each row of `side`."""
    _, place = items.unique(return_inverse=True)
    first = torch.full((int(place.max()) + 1,), len(place)).scatter_reduce_(0, place, torch.arange(len(place)), "amin")
    side, other = F.normalize(side, dim=-1), F.normalize(other[first], dim=-1)
    found = [(part @ other.T).topk(min(count, len(first))) for part in side.split(CHUNK)]
    return first[torch.cat([best.indices for best in found])], torch.cat([best.values for best in found])
