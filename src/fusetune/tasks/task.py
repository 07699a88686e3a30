"""The contract of a task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

HeadMaker = Callable[[int, int], nn.Module]  # (width, outputs) -> a head adapter


def content_column(modality: str) -> str:
    """Among the columns of `Task.targets`: the content of a modality, the same for the same content, '' for none."""
    return f"{modality}: content"


def extent_column(modality: str) -> str:
    """Among the columns of `Task.targets`: how large a sample of a modality is; None where that can't be read."""
    return f"{modality}: extent"


class LinearPart(NamedTuple):
    """A head whose outputs may be linear in the streams.

    Attributes:
        task: whose loss it has.
        outputs: how many.
        select: its own targets out of all.
        pairs: whether its outputs are two streams in a common space (`linear_space`).
    """

    task: "Task"
    outputs: int
    select: Callable[[Tensor], Tensor] = lambda targets: targets
    pairs: bool = False


def finite_rows(outputs: Tensor) -> Tensor:
    """(rows,): whether all of a row's outputs are numbers; what isn't is no answer."""
    return outputs.isfinite().flatten(1).all(1)


class Task(ABC):
    """What is asked of the model.

    Attributes:
        config: the settings, of class `Config`.
        metric: name of the metric that early stopping and the champion go by; higher is better.
        fuses: whether the streams may meet before the head; a task that compares them must keep them apart.
        plain: what a plain baseline predicts: ``classes``, ``labels``, ``numbers`` or ``pairs``; None: there is none.
        by_row: whether what `decode` says of a row depends on that row alone.
        targets_by_row: whether what `targets` says of a row, and its shape, depend on that row alone.
        by_sample: whether the loss of a batch is the mean of its samples' own.
        speaks: whether the model's own head answers in words: outputs are logits of a vocabulary.
        token_outputs: of a head that says something of each token, how many numbers; 0: its outputs are as many for
            all batches.
        head_times: how often a row goes through the head that is made for it, one behind another.
    """

    metric: str
    config: Any
    fuses: ClassVar[bool] = True
    by_row: ClassVar[bool] = True
    by_sample: bool = True
    targets_by_row: ClassVar[bool] = False
    speaks: ClassVar[bool] = False
    token_outputs: int = 0
    head_times: int = 1
    plain: ClassVar[str | None] = None
    Config: ClassVar[type[Any]]

    @abstractmethod
    def __init__(self, config: Any) -> None: ...

    @abstractmethod
    def columns(self) -> list[str]:
        """Manifest columns that `targets` needs."""

    def content_modalities(self) -> list[str]:
        """Modalities of which `targets` also needs to know which rows have the same content (`content_column`)."""
        return []

    def measured_modalities(self) -> list[str]:
        """Modalities of which `targets` and `decode` need to know how large each sample is (`extent_column`)."""
        return []

    def derived(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Columns that are made of those of `targets`: answers in words."""
        del columns
        return {}

    def meet_towers(self, towers: Mapping[str, Any]) -> None:
        """Know the encoders by modality, where answers are about what their tokens stand for."""
        del towers

    def places_in(self) -> list[str]:
        """Modalities in whose pictures places are asked for: what would move them is refused."""
        return []

    def answers_from(self, kinds: Mapping[str, str]) -> bool:
        """Whether these modalities suffice for an answer, by name and kind (`manifest.schema.KINDS`)."""
        del kinds
        return True

    def fused_apart(self) -> list[tuple[str, ...]]:
        """Of a task that compares streams, those that belong to one side and may meet before the head."""
        return []

    def contents(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """What `decode` has to know of samples, by modality, out of the columns of `targets`."""
        found = {name: columns.get(content_column(name)) for name in self.content_modalities()}
        found |= {name: columns.get(extent_column(name)) for name in self.measured_modalities()}
        return {name: list(values) for name, values in found.items() if values is not None}

    @abstractmethod
    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Learn label sets and the like from the training rows."""

    @abstractmethod
    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """One target a row."""

    def truths(self, columns: Mapping[str, Sequence[Any]]) -> Any:
        """What answers are compared with that were found without knowing the truth, as `per_sample` takes it."""
        return self.targets(columns)

    def problems(self) -> dict[str, Callable[[Any], str | None]]:
        """By target column that holds no classes: why a cell is no target, in words; None for one that is."""
        return {}

    def faults(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[str | None]]:
        """By check (of `manifest.checks.SEVERITIES`), of each row why it fails, in words; None where it doesn't."""
        del columns
        return {}

    def known(self, columns: Mapping[str, Sequence[Any]]) -> list[bool]:
        """Of each row, whether `targets` can take it."""
        return [None not in row for row in zip(*(columns[name] for name in self.columns()), strict=True)]

    @abstractmethod
    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        """The head: pooled streams by modality, (batch, width) each, to outputs."""

    def head_in(self, spaces: Mapping[str, Any], widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        """The same where towers have common spaces of their own (`backbones.common_space.Space`, by modality).

        A head with an attribute `embeds`, names of modalities, is also given those streams in their space, and all
        streams in front of the junction.
        """
        del spaces
        return self.head(widths, make)

    @property
    def prompts(self) -> Any:
        """The settings by which a dual encoder is asked (`prompted_head.Prompts`); None: it isn't."""
        return getattr(self.config, "prompts", None)

    def prompt_texts(self) -> list[list[str]]:
        """By label, the texts that a dual encoder is asked about it; [] where it isn't asked."""
        return []

    def linear_parts(self) -> dict[str, LinearPart]:
        """By name (`""` where there is one), the heads that may start from linear models of the streams."""
        return {}

    def begin(self, head: nn.Module, starts: Mapping[str, Any]) -> None:
        """Let a head start from linear models of the frozen streams, by name as in `linear_parts`."""
        if "" in starts:
            head.begin(starts[""])  # type: ignore[operator]

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor: ...

    def row_weights(self, targets: Tensor) -> Tensor:
        """(rows,): what each row counts in a mean of losses over batches."""
        return torch.ones(1).expand(len(targets))

    def kept(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """What of a batch's outputs is kept for metrics and answers; vocabularies are too wide to be.

        Args:
            targets: None where nobody knows them.
        """
        del targets
        return outputs

    def as_head_gives(self, flat: Tensor) -> Tensor:
        """Outputs, or what `kept` made of them, that were flattened, (rows, numbers), in their own shape again."""
        return flat

    def settle(self, outputs: Tensor, targets: Tensor) -> None:
        """Choose what is chosen after training (a threshold), by outputs of validation rows."""
        del outputs, targets

    @abstractmethod
    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        """Per metric, each sample's own score; the metric is its mean, the bootstrap resamples it."""

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        means = {name: float(scores.mean()) for name, scores in self.per_sample(outputs, targets).items()}
        return means | self.aggregates(outputs, targets)

    def aggregates(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Metrics that are no means over samples."""
        del outputs, targets
        return {}

    @abstractmethod
    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, Any]]:
        """Outputs as a user reads them: one dict of columns a sample; None for what is no number.

        Args:
            contents: by modality, a name of each row's content (`content_modalities`): a task that compares rows takes
                the same as one; or how large each row's sample is (`measured_modalities`).
        """

    def row_columns(self) -> list[str]:
        """Columns of `decode` that hold lists of row numbers."""
        return []

    def answers(
        self, outputs: Tensor, names: Sequence[str], contents: Mapping[str, Sequence[str]] | None = None
    ) -> list[dict[str, Any]]:
        """What `decode` says, with the samples' names in place of row numbers."""
        rows = self.decode(outputs, contents)
        for row in rows:
            row |= {column: [names[number] for number in row[column]] for column in self.row_columns()}
        return rows

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
