"""Merging by task vectors: what adapters change of one base's weights, added up.

A task vector is the change of the base's parameters, by place (Ilharco et al., "Editing Models with Task Arithmetic",
ICLR 2023, arXiv 2212.04089). With vectors t_1 .. t_n and weights w_i:

    linear   sum_i w_i t_i; a negative weight forgets
    ties     keep the largest entries of each t_i, take for each entry the sign with more weight behind it, and the mean
             of those that have it (Yadav et al., NeurIPS 2023, arXiv 2306.01708, algorithm 1)
    dare     drop entries at random and scale the rest up, then linear or ties (Yu et al., ICML 2024, arXiv 2311.03099)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusetune.config import check
from fusetune.errors import FusetuneError

TaskVector = Mapping[str, Tensor]  # change by place, e.g. `text.layers.0.attention.query.weight`


@dataclass(frozen=True)
class MergeSettings:
    """
    Attributes:
        how: linear, ties, dare_linear or dare_ties.
        density: share of a task vector's entries that ties and dare keep.
        rank: of the low-rank factors that hold the merged change; None: as large as the change has it. That is the sum
            of the adapters' ranks for `linear`, and may be the whole matrix's for the others.
        seed: of what dare drops.
    """

    how: str = "linear"
    density: float = 0.2
    rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.how in WAYS, f"merge.how: expected one of {', '.join(WAYS)}, found '{self.how}'.")
        check(0 < self.density <= 1, f"merge.density: expected a share above 0, found {self.density}.")
        check(self.rank is None or self.rank > 0, f"merge.rank: expected at least 1, found {self.rank}.")


def merge_vectors(
    vectors: Mapping[str, TaskVector], weights: Sequence[float], settings: MergeSettings
) -> dict[str, Tensor]:
    """One task vector of several, which are given by name.

    Raises:
        FusetuneError: the vectors change different places.
    """
    check(len(weights) == len(vectors), f"merge: {len(vectors)} adapters, but {len(weights)} weights.")
    first, like = next(iter(vectors.items()))
    for name, vector in vectors.items():
        for place in sorted(set(vector) ^ set(like)):
            holds, lacks = (name, first) if place in vector else (first, name)
            raise FusetuneError(
                f"merge: adapter '{holds}' changes '{place}', adapter '{lacks}' does not. Merge adapters that change "
                "the same places."
            )
    flat = torch.stack([torch.cat([vector[place].flatten().float() for place in like]) for vector in vectors.values()])
    merged = WAYS[settings.how](flat, torch.tensor(weights).unsqueeze(1), settings)
    parts = merged.split([tensor.numel() for tensor in like.values()])
    return {place: part.view_as(like[place]) for place, part in zip(like, parts, strict=True)}


def linear(vectors: Tensor, weights: Tensor, settings: MergeSettings) -> Tensor:
    """(adapters, entries) to (entries,)."""
    del settings
    return (weights * vectors).sum(0)


def ties(vectors: Tensor, weights: Tensor, settings: MergeSettings) -> Tensor:
    """Trimmed, one sign elected, and the mean of who has it; (adapters, entries) to (entries,)."""
    kept = max(1, round(settings.density * vectors.shape[1]))
    smallest = vectors.abs().topk(kept, 1).values[:, -1:]
    trimmed = weights * torch.where(vectors.abs() >= smallest, vectors, 0.0)
    sign = trimmed.sum(0).sign()
    agreeing = (trimmed.sign() == sign) & (trimmed != 0)
    return (trimmed * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)


def _dared(behind: Callable[[Tensor, Tensor, MergeSettings], Tensor]) -> Callable[..., Tensor]:
    def dare(vectors: Tensor, weights: Tensor, settings: MergeSettings) -> Tensor:
        generator = torch.Generator().manual_seed(settings.seed)
        kept = torch.rand(vectors.shape, generator=generator) < settings.density
        return behind(vectors * kept / settings.density, weights, settings)

    return dare


def _all_of(vectors: Tensor, weights: Tensor, settings: MergeSettings) -> Tensor:
    """TIES behind DARE trims nothing more: what was dropped is zero."""
    del settings
    return ties(vectors, weights, MergeSettings(density=1.0))


WAYS: dict[str, Callable[[Tensor, Tensor, MergeSettings], Tensor]] = {
    "linear": linear,
    "ties": ties,
    "dare_linear": _dared(linear),
    "dare_ties": _dared(_all_of),
}


def low_rank_factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(A, B) with B A nearest to `change` (out, in) among all of that rank; A: (rank, in), B: (out, rank)."""
    u, s, v = torch.linalg.svd(change.double(), full_matrices=False)
    root = s[:rank].sqrt()
    a, b = (root[:, None] * v[:rank]), u[:, :rank] * root
    missing = rank - len(root)  # a rank beyond the matrix's own is filled up with zeros
    a = torch.cat([a, a.new_zeros(missing, a.shape[1])]) if missing > 0 else a
    b = torch.cat([b, b.new_zeros(len(b), missing)], 1) if missing > 0 else b
    return a.to(change.dtype), b.to(change.dtype)
