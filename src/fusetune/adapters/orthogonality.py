"""Keeping what a new adapter changes apart from what given ones do.

Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning" (O-LoRA), EMNLP 2023, arXiv
2310.14152: for each low-rank matrix A (r x d) of the new adapter and A' (r' x d) of a given one at the same place,

    penalty = weight * mean |cos(a_i, a'_j)|^2 over all pairs of rows, summed over places and given adapters

What is reported is the overlap of the subspaces: ||Q' Q'^T||_F^2 / min(r, r') with orthonormal bases, the mean squared
cosine of the principal angles: 0 apart, 1 the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.adapters.trained import read_folder
from fusetune.config import check
from fusetune.errors import FusetuneError


@dataclass(frozen=True)
class Orthogonal:
    """
    Attributes:
        to: folders of trained adapters of the same plan.
        weight: of the penalty.
    """

    to: tuple[str, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        check(len(self.to) > 0, "orthogonal.to: expected at least one folder of a trained adapter, found none.")
        check(self.weight >= 0, f"orthogonal.weight: expected 0 or more, found {self.weight}.")


class Orthogonality:
    """The penalty, and the overlap that is left.

    Raises:
        FusetuneError: a given adapter has no matrix at a place of the new one.
    """

    def __init__(self, settings: Orthogonal, trained: Mapping[str, nn.Parameter]) -> None:
        self.settings = settings
        self.pairs: list[tuple[str, nn.Parameter, Tensor]] = []  # the new matrix of a place, and a given one
        for folder in settings.to:
            tensors = read_folder(folder)[1]
            for name, parameter in trained.items():
                if _low_rank(parameter) and not name.startswith("head."):
                    there = tensors.get(name)
                    if there is None or there.shape[-1] != parameter.shape[-1]:
                        raise FusetuneError(
                            f"orthogonal.to: '{folder}' has no matrix at '{name}' to be kept apart from."
                        )
                    self.pairs.append((name, parameter, there))
        check(bool(self.pairs), "orthogonal: the plan has no low-rank matrix that could be kept apart from another.")

    def penalty(self) -> Tensor:
        """A scalar, to be added to the loss."""
        terms = []
        for _, parameter, given in self.pairs:
            rows = F.normalize(parameter, dim=-1)
            other = F.normalize(given.to(rows.device, rows.dtype), dim=-1)
            terms.append((rows @ other.T).square().mean())
        return self.settings.weight * torch.stack(terms).sum()

    def overlap(self) -> dict[str, float]:
        """By place, 0 to 1; the mean over the given adapters."""
        found: dict[str, list[float]] = {}
        for name, parameter, given in self.pairs:
            rows = parameter.detach().cpu().float()
            bases: Sequence[Tensor] = [torch.linalg.qr(matrix.float().T).Q for matrix in (rows, given)]
            shared = (bases[0].T @ bases[1]).square().sum() / min(len(rows), len(given))
            found.setdefault(name, []).append(shared.item())
        return {name: sum(values) / len(values) for name, values in found.items()}


def _low_rank(tensor: Tensor) -> bool:
    """Matrices that read few directions of many: `down` and LoRA's A."""
    return tensor.ndim == 2 and len(tensor) < tensor.shape[1]
