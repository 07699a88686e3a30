"""What a robot does next: an instruction, what is seen and where it is -> an action, or several steps of them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.tasks.action_head import ActionHead
from fusetune.tasks.joined_head import JoinedHead
from fusetune.tasks.task import HeadMaker, LinearPart, Task, finite_rows

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mae": F.l1_loss, "mse": F.mse_loss, "huber": F.huber_loss}
METRICS = ("negative_l1", "within_tolerance")
OUTLYING = 0.01  # share of the training actions beyond either bound
PREDICTED = "predicted_action"


@dataclass(frozen=True)
class ActionsConfig:
    """
    Attributes:
        action: the column: a list of numbers, or a list of steps of them, as many in all rows.
        camera: the modality of pictures whose places count; None: streams are pooled as in any other task.
        bins: of tokens, into which each number's range is cut (RT-1 has 256, Brohan et al., RSS 2023); 0: numbers are
            predicted as they are.
        loss: mae, mse or huber, of numbers; tokens have cross-entropy.
        metric: negative_l1, or within_tolerance: the share of rows of whose first step all numbers are.
        tolerance: in the range of -1 to 1 that actions are brought to.
        question_type: the column that reports split results by; None: none.
    """

    action: str = "action"
    camera: str | None = "image"
    bins: int = 0
    loss: str = "mae"
    metric: str = "negative_l1"
    tolerance: float = 0.1
    question_type: str | None = None

    def __post_init__(self) -> None:
        check(self.loss in LOSSES, f"loss: expected one of {', '.join(LOSSES)}, found '{self.loss}'.")
        check(self.metric in METRICS, f"metric: expected one of {', '.join(METRICS)}, found '{self.metric}'.")
        check(self.bins == 0 or self.bins > 1, f"bins: expected 0 or at least 2, found {self.bins}.")
        check(self.tolerance > 0, f"tolerance: expected more than 0, found {self.tolerance}.")


class Actions(Task):
    """Each number is brought to -1 to 1 by the 1st and 99th percentile of training, as in Octo and OpenVLA.

    Targets are (rows, steps * numbers) in the data's own units; metrics are of brought ones; answers in own units.

    Attributes:
        low, high: of each number.
        steps: of a row.
    """

    Config = ActionsConfig
    plain = "numbers"

    def __init__(self, config: ActionsConfig) -> None:
        self.config, self.metric = config, config.metric
        self.low: list[float] = []
        self.high: list[float] = []
        self.steps = 0
        self._towers: Mapping[str, Any] = {}

    @property
    def region_column(self) -> str:
        """The column of the manifest that `faults` are about."""
        return self.config.action

    @property
    def numbers(self) -> int:
        """Of a row, all steps."""
        return self.steps * len(self.low)

    def columns(self) -> list[str]:
        return [name for name in (self.config.action, self.config.question_type) if name]

    def meet_towers(self, towers: Mapping[str, Any]) -> None:
        self._towers = towers

    def answers_from(self, kinds: Mapping[str, str]) -> bool:
        return self.config.camera is None or self.config.camera in kinds

    def places_in(self) -> list[str]:
        return [self.config.camera] if self.config.camera else []

    def faults(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[str | None]]:
        cells = columns[self.config.action]
        shapes = [None if cell is None else _shape(cell) for cell in cells]
        usual = Counter(shape for shape in shapes if shape).most_common(1)
        expected = usual[0][0] if usual else None
        return {
            "label.missing": ["no action" if cell is None else None for cell in cells],
            "action.shape": [
                f"{str(cell)[:60]}: no list of numbers, nor of steps of them"
                if cell is not None and not shape
                else None
                for cell, shape in zip(cells, shapes, strict=True)
            ],
            "action.width": [
                f"{_told(shape)} where others have {_told(expected)}" if shape and shape != expected else None
                for shape in shapes
            ],
            "action.finite": [
                f"{str(cell)[:60]}: not finite" if shape and not np.isfinite(_numbers(cell)).all() else None
                for cell, shape in zip(cells, shapes, strict=True)
            ],
        }

    def known(self, columns: Mapping[str, Sequence[Any]]) -> list[bool]:
        wanted = (self.steps, len(self.low))
        return [
            cell is not None and _shape(cell) == wanted and bool(np.isfinite(_numbers(cell)).all())
            for cell in columns[self.config.action]
        ]

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        first = _shape(columns[self.config.action][0])
        check(first is not None, f"column '{self.config.action}': no list of numbers, nor of steps of them.")
        self.steps, width = first  # type: ignore[misc]
        self.low = [0.0] * width
        values = self.targets(columns).double().view(-1, width)
        bounds = torch.quantile(values, torch.tensor([OUTLYING, 1 - OUTLYING], dtype=torch.float64), dim=0)
        rare = bounds[0] == bounds[1]  # a gripper that closes once in hundreds of steps
        self.low = torch.where(rare, values.amin(0), bounds[0]).tolist()
        self.high = torch.where(rare, values.amax(0), bounds[1]).tolist()
        for number, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            check(
                low < high,
                f"column '{self.config.action}', number {number}: {low:g} in all training rows; there is nothing to "
                "learn. Leave it out of the actions.",
            )

    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        wanted = (self.steps, len(self.low))
        for row, cell in enumerate(columns[self.config.action]):
            shape = None if cell is None else _shape(cell)
            if shape != wanted or not np.isfinite(_numbers(cell)).all():
                raise FusetuneError(
                    f"column '{self.config.action}', row {row}: {str(cell)[:60]}. Expected finite numbers, "
                    f"{_told(wanted)}, as in the first training row."
                )
        rows = [_numbers(cell).reshape(-1) for cell in columns[self.config.action]]
        return torch.from_numpy(np.stack(rows)).float() if rows else torch.zeros(0, self.numbers)

    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        outputs, camera = self.numbers * (self.config.bins or 1), self.config.camera
        if camera is None:
            return JoinedHead(widths, outputs, make)
        check(
            camera in widths and camera in self._towers,
            f"data.task.camera: no modality '{camera}'. Known: {', '.join(widths)}; null: pictures have no places.",
        )
        lattice = self._towers[camera].lattice()
        plain = [name for name, tower in self._towers.items() if tower.kind == "vector"]
        return ActionHead(camera, lattice, plain, widths, outputs, make)

    def linear_parts(self) -> dict[str, LinearPart]:
        pooled = self.config.camera is None and not self.config.bins
        return {"": LinearPart(self, self.numbers)} if pooled else {}

    def standardised(self, targets: Tensor) -> Tensor:
        """Targets as outputs are: -1 to 1, and beyond for what is rare."""
        low, high = self._bounds(targets)
        return 2 * (targets - low) / (high - low) - 1

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = self.standardised(targets.to(outputs.device))
        if not self.config.bins:
            return LOSSES[self.config.loss](outputs, wanted.to(outputs))
        scores = outputs.unflatten(-1, (self.numbers, self.config.bins))
        return F.cross_entropy(scores.flatten(0, 1), self._tokens(wanted).flatten())

    def values(self, outputs: Tensor) -> Tensor:
        """(rows, numbers) from -1 to 1, of outputs or of numbers that somebody else predicted."""
        if outputs.shape[-1] == self.numbers:
            return outputs
        tokens = outputs.unflatten(-1, (self.numbers, self.config.bins)).argmax(-1)
        return (2 * tokens + 1) / self.config.bins - 1  # the middle of a bin

    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        away = (self.values(outputs.cpu().double()) - self.standardised(targets.cpu().double())).abs()
        first = away[:, : len(self.low)]
        return {
            "negative_l1": -away.mean(1).numpy(),
            "within_tolerance": (first <= self.config.tolerance).all(1).double().numpy(),
        }

    def aggregates(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Mean distance of each number, in its own units."""
        low, high = self._bounds(targets.double().cpu())
        found = (self.values(outputs.cpu().double()) + 1) / 2 * (high - low) + low
        away = (found - targets.double().cpu()).abs().view(-1, len(self.low)).mean(0)
        return {f"mae_{number}": value for number, value in enumerate(away.tolist())}

    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, Any]]:
        """Steps of numbers in the data's own units."""
        low, high = self._bounds(outputs.double())
        values = (self.values(outputs.double()) + 1) / 2 * (high - low) + low
        steps = values.cpu().view(len(outputs), self.steps, len(self.low)).tolist()
        finite = finite_rows(outputs).tolist()
        return [{PREDICTED: row if sound else None} for row, sound in zip(steps, finite, strict=True)]

    def state(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "steps": self.steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.low, self.high, self.steps = list(state["low"]), list(state["high"]), int(state["steps"])

    def _tokens(self, brought: Tensor) -> Tensor:
        """The number of each one's bin; what is beyond the bounds is in the outermost."""
        return ((brought + 1) / 2 * self.config.bins).floor().long().clamp(0, self.config.bins - 1)

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Of all numbers of a row, (numbers,) each."""
        return like.new_tensor(self.low * self.steps), like.new_tensor(self.high * self.steps)


def _numbers(cell: Any) -> np.ndarray:
    return np.asarray(cell, np.float64)


def _shape(cell: Any) -> tuple[int, int] | None:
    """Steps, and numbers of each; None for what is neither."""
    try:
        values = _numbers(cell)
    except (TypeError, ValueError):
        return None
    if values.ndim not in (1, 2) or not values.size:
        return None
    return (1, len(values)) if values.ndim == 1 else (values.shape[0], values.shape[1])


def _told(shape: tuple[int, int] | None) -> str:
    return "none" if shape is None else f"{shape[0]} step{'s' if shape[0] != 1 else ''} of {shape[1]} numbers"
