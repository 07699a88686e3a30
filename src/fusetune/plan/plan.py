"""A method is a plan: placements of adapters on a backbone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusetune.adapters.orthogonality import Orthogonal
from fusetune.config import check


@dataclass(frozen=True)
class Placement:
    """Where and what.

    Attributes:
        where: towers (of a model that speaks: its language blocks, too), trunk, connector, junction, head, or backbone.
        adapter: its name in the registry of adapters.
        config: the adapter's own settings.
        blocks: in towers and trunk: all, top, bottom, sparse, a preset, or the settings of a `placing.Selection`.
        task: of several tasks, the one that this adapter at the junction is for; None: all.
        from_epoch: the epoch from which on it acts and is trained (gradual unfreezing).
    """

    where: str
    adapter: str
    config: Mapping[str, Any] = field(default_factory=dict)
    blocks: Any = "all"
    task: str | None = None
    from_epoch: int = 1

    def __post_init__(self) -> None:
        check(self.from_epoch > 0, f"from_epoch: expected an epoch from 1, found {self.from_epoch}.")


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        placements: in the order in which they act; exactly one is a head.
        train: settings of `train` that this method has of its own.
        orthogonal: trained adapters whose subspaces this one keeps away from.
    """

    placements: tuple[Placement, ...]
    train: Mapping[str, Any] = field(default_factory=dict)
    orthogonal: Orthogonal | None = None
