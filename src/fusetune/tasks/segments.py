"""A label for each segment of time: which event is seen and heard in a second, or none (audio-visual event
localisation, Tian et al., ECCV 2018)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.manifest.labels import label_text
from fusetune.tasks.class_metrics import macro_f1
from fusetune.tasks.task import HeadMaker, Task
from fusetune.tasks.token_times import WHOLE, in_segments
from fusetune.tokens import Lattice, Tokens

METRICS = ("segment_accuracy", "event_accuracy")


@dataclass(frozen=True)
class SegmentsConfig:
    """
    Attributes:
        labels: the column with a list of labels, one for each segment; as many for every sample.
        background: the label of segments in which there is nothing; None: there is no such label.
        metric: segment_accuracy, or event_accuracy: of the segments alone that are no background.
        question_type: the column that reports split results by; None: none.
    """

    labels: str = "segments"
    background: str | None = "background"
    metric: str = "segment_accuracy"
    question_type: str | None = None

    def __post_init__(self) -> None:
        check(self.metric in METRICS, f"metric: expected one of {', '.join(METRICS)}, found '{self.metric}'.")


class SegmentsHead(nn.Module):
    """Outputs (batch, segments, labels): all streams of a segment side by side, into the head that is trained.

    A stream without a time of its own (a text, a vector) is the same in every segment.

    Attributes:
        takes_tokens: it is given streams token by token.
    """

    takes_tokens = True

    def __init__(
        self,
        segments: int,
        labels: int,
        lattices: Mapping[str, Lattice | None],
        widths: Mapping[str, int],
        make: HeadMaker,
    ) -> None:
        super().__init__()
        self.segments, self.lattices, self.widths = segments, dict(lattices), dict(widths)
        self.norm = nn.LayerNorm(sum(widths.values()), elementwise_affine=False)
        self.head: Any = make(sum(widths.values()), labels)

    def forward(self, streams: Mapping[str, Tokens], pooled: Mapping[str, Tensor]) -> Tensor:
        parts, like = [], next(iter(pooled.values()))
        for name, width in self.widths.items():
            if name in streams and name in self.lattices:
                parts.append(in_segments(streams[name], self.lattices[name], self.segments))
            else:
                one = pooled[name] if name in pooled else like.new_zeros(len(like), width)
                parts.append(one[:, None].expand(-1, self.segments, -1))
        return self.head(self.norm(torch.cat(parts, -1)))


class Segments(Task):
    """Cross-entropy of every segment; `segment_accuracy` is the share of all segments that are right."""

    Config = SegmentsConfig
    plain = "segments"

    def __init__(self, config: SegmentsConfig) -> None:
        self.config, self.metric = config, config.metric
        self.labels: list[str] = []
        self.count = 0
        self._towers: Mapping[str, Any] = {}

    @property
    def region_column(self) -> str:
        """The column of the manifest that `faults` are about."""
        return self.config.labels

    def meet_towers(self, towers: Mapping[str, Any]) -> None:
        self._towers = towers

    def answers_from(self, kinds: Mapping[str, str]) -> bool:
        return any(kind not in WHOLE for kind in kinds.values())

    def columns(self) -> list[str]:
        return [name for name in (self.config.labels, self.config.question_type) if name]

    def faults(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[str | None]]:
        cells = columns[self.config.labels]
        shapes = [None if cell is None else _problem(cell) for cell in cells]
        lengths = [0 if cell is None or shape else len(cell) for cell, shape in zip(cells, shapes, strict=True)]
        usual = Counter(length for length in lengths if length).most_common(1)
        count = usual[0][0] if usual else 0
        others = [length > 0 and length != count for length in lengths]
        return {
            "label.missing": ["no labels" if cell is None else None for cell in cells],
            "segments.shape": shapes,
            "segments.count": [
                f"{length} labels where others have {count}" if other else None
                for length, other in zip(lengths, others, strict=True)
            ],
        }

    def known(self, columns: Mapping[str, Sequence[Any]]) -> list[bool]:
        labels = set(self.labels)
        return [
            cell is not None and _problem(cell) is None and len(cell) == self.count and set(_texts(cell)) <= labels
            for cell in columns[self.config.labels]
        ]

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        cells = columns[self.config.labels]
        self.count = len(cells[0])
        self.labels = sorted({label for cell in cells for label in _texts(cell)})
        check(
            len(self.labels) > 1,
            f"column '{self.config.labels}': expected two labels or more in training rows, found {self.labels}.",
        )

    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """(rows, segments), numbers of labels."""
        index, rows = {label: i for i, label in enumerate(self.labels)}, []
        for row, cell in enumerate(columns[self.config.labels]):
            problem = "no labels" if cell is None else _problem(cell)
            unknown = [] if problem else [label for label in _texts(cell) if label not in index]
            if not problem and len(cell) != self.count:
                problem = f"{len(cell)} labels where others have {self.count}"
            if unknown:
                problem = f"label '{unknown[0]}' is in no training row"
            if problem:
                raise FusetuneError(f"column '{self.config.labels}', row {row}: {problem}. Expected a label a segment.")
            rows.append([index[label] for label in _texts(cell)])
        return torch.tensor(rows)

    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        timed = {n: t for n, t in self._towers.items() if n in widths and t.kind not in WHOLE}
        check(
            bool(timed), f"data.task: none of {', '.join(widths)} has a time. Expected a sound, a video or a sequence."
        )
        lattices = {name: tower.lattice() for name, tower in timed.items()}
        return SegmentsHead(self.count, len(self.labels), lattices, widths, make)

    @property
    def head_times(self) -> int:  # type: ignore[override]
        return self.count

    def as_head_gives(self, flat: Tensor) -> Tensor:
        return flat.unflatten(1, (self.count, -1))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        right = (outputs.argmax(-1) == targets).double()
        events = self._events(targets)
        found = {"segment_accuracy": right.mean(1)}
        if self.metric == "event_accuracy":  # weighted so that the mean over samples is that over events
            found[self.metric] = (right * events).sum(1) * len(targets) / events.sum().clamp(min=1)
        return {name: values.cpu().numpy() for name, values in found.items()}

    def aggregates(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        right, events = outputs.argmax(-1) == targets, self._events(targets)
        found = {"macro_f1": macro_f1(outputs.flatten(0, 1), targets.flatten())}
        if self.metric != "event_accuracy":
            found["event_accuracy"] = float(right[events].double().mean()) if events.any() else 0.0
        return found

    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[Any]] | None = None) -> list[dict[str, Any]]:
        return [{"prediction": [self.labels[i] for i in row]} for row in outputs.argmax(-1).tolist()]

    def state(self) -> dict[str, Any]:
        return {"labels": self.labels, "count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.labels, self.count = list(state["labels"]), int(state["count"])

    def _events(self, targets: Tensor) -> Tensor:
        none = self.labels.index(self.config.background) if self.config.background in self.labels else -1
        return targets != none


def _texts(cell: Sequence[Any]) -> list[str]:
    return [str(label_text(value)) for value in cell]


def _problem(cell: Any) -> str | None:
    if not isinstance(cell, list) or not cell:
        return f"{str(cell)[:60]!r} is no list of labels"
    return "a segment has no label" if any(value is None for value in cell) else None
