"""What is compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusetune.config import check
from fusetune.runs.continual import TurnSettings


@dataclass(frozen=True)
class SearchSpace:
    """Values that a search may take: a range, or choices.

    Attributes:
        low, high: the range, both ends included.
        log: whether to draw on a logarithmic scale.
        whole: whether to draw whole numbers.
        choices: instead of a range.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    choices: Sequence[Any] = ()

    def __post_init__(self) -> None:
        ranged = self.low is not None and self.high is not None
        check(ranged != bool(self.choices), "search: expected `low` and `high`, or `choices`.")
        if self.low is not None and self.high is not None:
            check(self.low < self.high, f"search: low {self.low} is not below high {self.high}.")
            check(not self.log or self.low > 0, f"search: a logarithmic range starts above 0, found {self.low}.")


@dataclass(frozen=True)
class MethodSettings:
    """How one method enters the comparison; keys are dotted paths in its file, ``placements.0.config.rank``.

    Attributes:
        set: what is otherwise than in conf/*/methods/<method>.yml.
        grid: values by path; each combination is compared as a variant of its own.
        search: spaces by path; the best setting on the validation split is compared.
    """

    set: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    search: Mapping[str, SearchSpace] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(not (self.grid and self.search), "compare.methods: expected a grid or a search, found both.")
        for path, values in self.grid.items():
            several = isinstance(values, list | tuple) and bool(values)
            check(several, f"compare.methods, grid '{path}': expected a list of values, found {values!r}.")


@dataclass(frozen=True)
class SearchSettings:
    """
    Attributes:
        trials: of each method that has a `search`, those of earlier runs included.
        startup: trials drawn at random, before the sampler (TPE, Bergstra et al. 2011) learns from them.
        warmup: epochs of a trial before it may be pruned.
        seed: of the sampler.
    """

    trials: int = 20
    startup: int = 5
    warmup: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.trials > 0, f"compare.search.trials: expected at least 1, found {self.trials}.")


@dataclass(frozen=True)
class RobustnessSettings:
    """
    Attributes:
        samples: test samples that are looked at.
        missing: shares of (sample, modality) that are taken away; one modality always stays.
        noise: standard deviations of noise on the inputs, in units of the inputs' own; of words, the share that is
            replaced.
        seed: of both.
    """

    samples: int = 600
    missing: Sequence[float] = (0.25, 0.5)
    noise: Sequence[float] = (0.25, 0.5, 1.0)
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.samples > 0, f"compare.robustness.samples: expected at least 1, found {self.samples}.")
        for share in self.missing:
            check(0 < share < 1, f"compare.robustness.missing: expected shares between 0 and 1, found {share}.")
        for level in self.noise:
            check(level > 0, f"compare.robustness.noise: expected positive levels, found {level}.")


@dataclass(frozen=True)
class ScalingSettings:
    """Error over a size of a method and the number of training samples.

    Attributes:
        method: one of those that are compared; '' for none.
        path: of the size in its file.
        values: of the size.
        shares: of the training samples.
        seeds: of each.
    """

    method: str = ""
    path: str = ""
    values: Sequence[float] = ()
    shares: Sequence[float] = (0.25, 0.5, 1.0)
    seeds: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        for share in self.shares:
            check(0 < share <= 1, f"compare.scaling.shares: expected shares above 0 up to 1, found {share}.")


@dataclass(frozen=True)
class CompareSettings:
    """
    Attributes:
        methods: by name.
        seeds: of initialisation and order; every method is trained with each.
        train: what all methods do otherwise than `train`; a method's own `train` goes before it.
        workers: processes; 0: one a GPU, or one a core.
        ray: tasks of a Ray cluster instead, the one that RAY_ADDRESS names or one that is started on this machine; all
            machines have to see the project's folder and the store.
        memory: share of the free memory that they may take together.
        batch_seeds: train the seeds of a method as one batched model where they can be.
        search, robustness, scaling: see there.
        continual: ways in which each method takes tasks in turn beside the training that is compared; none: it doesn't.
    """

    methods: Mapping[str, MethodSettings] = field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    train: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 0
    ray: bool = False
    memory: float = 0.7
    batch_seeds: bool = True
    search: SearchSettings = field(default_factory=SearchSettings)
    robustness: RobustnessSettings = field(default_factory=RobustnessSettings)
    scaling: ScalingSettings = field(default_factory=ScalingSettings)
    continual: TurnSettings = field(default_factory=TurnSettings)

    def __post_init__(self) -> None:
        check(len(set(self.seeds)) == len(self.seeds) > 0, f"compare.seeds: expected distinct, found {self.seeds}.")
        check(0 < self.memory <= 1, f"compare.memory: expected a share of at most 1, found {self.memory}.")
        scaled = self.scaling.method
        check(
            not scaled or scaled in self.methods,
            f"compare.scaling.method: '{scaled}' is not compared. Compared are {', '.join(self.methods)}.",
        )
