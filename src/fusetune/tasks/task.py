"""The contract of a task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

HeadMaker = Callable[[int, int], nn.Module]  # (width, outputs) -> a head adapter


class Task(ABC):
    """What is asked of the model.

    Attributes:
        metric: name of the metric that early stopping and the champion go by; higher is better.
        fuses: whether the streams may meet before the head; a task that compares them must keep them apart.
        by_row: whether what `decode` says of a row depends on that row alone.
    """

    metric: ClassVar[str]
    fuses: ClassVar[bool] = True
    by_row: ClassVar[bool] = True
    Config: ClassVar[type[Any]]

    @abstractmethod
    def __init__(self, config: Any) -> None: ...

    @abstractmethod
    def columns(self) -> list[str]:
        """Manifest columns that `targets` needs."""

    @abstractmethod
    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Learn label sets and the like from the training rows."""

    @abstractmethod
    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """One target a row."""

    @abstractmethod
    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        """The head: pooled streams by modality, (batch, width) each, to outputs."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor: ...

    @abstractmethod
    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        """Per metric, each sample's own score; the metric is its mean, the bootstrap resamples it."""

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {name: float(scores.mean()) for name, scores in self.per_sample(outputs, targets).items()}

    @abstractmethod
    def decode(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Outputs as a user reads them: one dict of columns a sample."""

    def probabilities(self, outputs: Tensor) -> dict[str, tuple[list[str], Tensor]]:
        """By column, for tasks that have such: the labels and (rows, labels) that add up to 1."""
        del outputs
        return {}

    def state(self) -> dict[str, Any]:
        """What `fit` learned, as JSON; `restore` takes it back."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`."""
        del state
