"""An adapter in a bank, and what a request may ask of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.config import check
from fusetune.plan.adapted import AdaptedModel
from fusetune.training.data import ANSWER, DataSettings


@dataclass(frozen=True)
class Held:
    """An adapter in memory, off the backbone until it is asked for.

    Attributes:
        part: the backbone as its modalities see it.
        frontier: below it the bare backbone is all there is.
        shared: whether its requests can go through the backbone together with other adapters'.
    """

    name: str
    data: DataSettings
    model: AdaptedModel
    part: Backbone
    frontier: Frontier
    shared: bool
    bytes: int

    @property
    def path(self) -> tuple[Any, ...]:
        """What its requests pass through: those with the same may be run together."""
        return (*self.data.modalities, self.part.trunk is not None)


def shared(model: AdaptedModel) -> bool:
    """Whether all that it changes below the junction are low-rank products, and the rest runs once."""
    return not model.task.speaks and all(
        placed.site == "junction" or placed.adapter.low_rank() is not None for placed in model.placed
    )


def check_request(row: int, held: Held, samples: Mapping[str, Sequence[Any]], first: int) -> None:
    known = list(held.data.modalities)
    given = [name for name, column in samples.items() if column[row] is not None]
    unknown = [name for name in given if name not in known]
    check(
        not unknown,
        f"request {first + row}: adapter '{held.name}' takes {', '.join(known)}, not '{''.join(unknown[:1])}'.",
    )
    check(bool(given), f"request {first + row}: no modality is given; adapter '{held.name}' takes {', '.join(known)}.")


def lowest(frontiers: Sequence[Frontier]) -> Frontier:
    towers = {name: min(f.towers[name] for f in frontiers) for name in frontiers[0].towers}
    speaks = ANSWER in towers  # an answer that is still to be given starts in front of the trunk
    return Frontier({n: k for n, k in towers.items() if n != ANSWER}, 0 if speaks else min(f.trunk for f in frontiers))
