"""What tasks share that ask where or when: a region of a picture or of a stretch of time, by what is asked of it."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.tasks.locating_head import NOWHERE, LocatingHead
from fusetune.tasks.regions import brought, brought_back, centres, generalised_iou, iou, sizes
from fusetune.tasks.task import HeadMaker, Task, extent_column
from fusetune.tasks.token_times import WHOLE
from fusetune.tokens import Lattice

L1_WEIGHT, GIOU_WEIGHT = 5.0, 2.0  # of the loss, as in DETR (Carion et al., ECCV 2020)
BEYOND = 2.0  # shares of what is seen: no token stands there
TOLERANCE = 0.01  # share of its extent by which a region may reach beyond a sample: annotators round


class Locating(Task):
    """Each token of one stream scores whether the answer is there, and says what it spans; the best one is taken.

    The loss is the likelihood of a token whose middle is inside a right region (the nearest one where none is), and of
    those tokens the L1 distance and 1 - GIoU of their regions. Targets are (rows, most regions, 2d), in shares of what
    the encoder sees, filled up with NaN; where there are several, any is right and the best one counts.

    Attributes:
        dims: d, the directions of a region.
        noun: what a region is called, in checks and answers.
        unit: of its numbers.
        thresholds: of IoU, from which on an answer counts as right; name of the metric -> threshold.
        usual: by `fit`, the mean size of a region in shares.
    """

    plain = "regions"
    dims: ClassVar[int]
    noun: ClassVar[str]
    unit: ClassVar[str]
    thresholds: ClassVar[Mapping[str, float]]

    def __init__(self, config: Any) -> None:
        self.config, self.metric = config, config.metric
        self.usual: list[float] = []
        self._tower: Any = None

    @property
    def region_column(self) -> str:
        """The column of the manifest with what is right."""
        return getattr(self.config, self.noun)

    def corners(self, region: Sequence[float]) -> list[float]:
        """A region as the manifest has it, as where it begins and where it ends."""
        return list(region)

    def meet_towers(self, towers: Mapping[str, Any]) -> None:
        self._tower = towers.get(self.config.target)

    def answers_from(self, kinds: Mapping[str, str]) -> bool:
        return self.config.target in kinds

    def measured_modalities(self) -> list[str]:
        return [self.config.target]

    def columns(self) -> list[str]:
        return [n for n in (self.region_column, getattr(self.config, "question_type", None)) if n]

    def extents(self, columns: Mapping[str, Sequence[Any]]) -> list[Any]:
        """Of each row, how large its sample is in each direction; None where that is unknown."""
        return list(columns.get(extent_column(self.config.target)) or [None] * len(columns[self.region_column]))

    def faults(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[str | None]]:
        extents, cells = self.extents(columns), columns[self.region_column]
        found = [self._fault(cell, extent) for cell, extent in zip(cells, extents, strict=True)]
        names = (f"{self.noun}.shape", f"{self.noun}.order", f"{self.noun}.outside", f"{self.noun}.extent")
        told = {name: [fault[1] if fault and fault[0] == name else None for fault in found] for name in names}
        return {"label.missing": [f"no {self.noun}" if cell is None else None for cell in cells], **told}

    def known(self, columns: Mapping[str, Sequence[Any]]) -> list[bool]:
        rows = zip(columns[self.region_column], self.extents(columns), strict=True)
        return [cell is not None and self._fault(cell, extent) is None for cell, extent in rows]

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        targets = self.targets(columns)
        self.usual = sizes(targets[:, 0]).double().mean(0).tolist()

    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        rows, views, extents = [], [], self.extents(columns)
        for row, (cell, extent) in enumerate(zip(columns[self.region_column], extents, strict=True)):
            fault = self._fault(cell, extent)
            if fault or cell is None:
                problem = fault[1] if fault else f"no {self.noun}"
                raise FusetuneError(f"column '{self.region_column}', row {row}: {problem}. {self._expected()}")
            rows.append([self.corners(region) for region in regions_of(cell)])
            views.append(self._view(extent))
        regions = torch.full((len(rows), max(map(len, rows), default=1), 2 * self.dims), torch.nan, dtype=torch.float64)
        for row, own in enumerate(rows):
            regions[row, : len(own)] = torch.tensor(own, dtype=torch.float64)
        return brought(regions, torch.tensor(views, dtype=torch.float64).view(len(rows), -1)).float()

    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        target = self.config.target
        check(target in widths, f"data.task.target: no modality '{target}'. Known: {', '.join(widths)}.")
        check(self._tower is not None, "data.task: the encoder that is looked through isn't known yet (`meet_towers`).")
        check(
            self._tower.kind not in WHOLE,
            f"data.task.target: '{target}' is a {self._tower.kind}, in which there are no places. Expected a picture, "
            "a sound, a video or a sequence.",
        )
        return LocatingHead(target, self._lattice(), self.usual, widths, make)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        scores, regions, places = outputs.float().split([1, 2 * self.dims, self.dims], -1)
        scores, targets = scores.squeeze(-1), targets.to(regions).nan_to_num(BEYOND)
        right, own = _matched(places, scores > NOWHERE / 2, targets)
        likelihood = scores.logsumexp(1) - scores.masked_fill(~right, -torch.inf).logsumexp(1)
        wanted = targets.gather(1, own[..., None].expand(*own.shape, targets.shape[-1]))
        away = L1_WEIGHT * (regions - wanted).abs().mean(-1) + GIOU_WEIGHT * (1 - generalised_iou(regions, wanted))
        apart = (away * right).sum(1) / right.sum(1)
        present = (scores > NOWHERE / 2).any(1)
        return ((likelihood + apart) * present).sum() / len(outputs)

    def kept(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """(rows, 2d): the region of the best token; all that is seen where nothing was given to look through."""
        del targets
        if outputs.ndim == 2:
            return outputs
        scores, best = outputs[..., 0].max(1)
        chosen = outputs[torch.arange(len(outputs), device=outputs.device), best, 1 : 1 + 2 * self.dims]
        whole = torch.cat([torch.zeros_like(chosen[:, : self.dims]), torch.ones_like(chosen[:, : self.dims])], -1)
        return torch.where((scores > NOWHERE / 2)[:, None], chosen, whole)

    @property
    def token_outputs(self) -> int:  # type: ignore[override]
        return 1 + 3 * self.dims

    def as_head_gives(self, flat: Tensor) -> Tensor:
        return flat if flat.shape[1] == 2 * self.dims else flat.unflatten(1, (-1, self.token_outputs))

    def standardised(self, targets: Tensor) -> Tensor:
        """The first right region of each row, as outputs are."""
        return targets[:, 0]

    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        found = iou(self.kept(outputs, targets).cpu().double()[:, None], targets.cpu().double()).nan_to_num(0).amax(1)
        right = {name: (found >= least).double().numpy() for name, least in self.thresholds.items()}
        return {**right, "mean_iou": found.numpy()}

    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[Any]] | None = None) -> list[dict[str, Any]]:
        """Regions in the sample's own units, within it; None where how large it is is unknown."""
        regions = self.kept(outputs, None).double()
        extents = list((contents or {}).get(self.config.target) or [None] * len(regions))
        return [
            self.answer(None if extent is None or not math.isfinite(row.sum()) else self._within(row, extent))
            for row, extent in zip(regions.cpu(), extents, strict=True)
        ]

    def answer(self, region: list[float] | None) -> dict[str, Any]:
        """A region as a user reads it."""
        return {self.noun: region}

    def state(self) -> dict[str, Any]:
        return {"usual": self.usual}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.usual = list(state["usual"])

    def _within(self, region: Tensor, extent: Any) -> list[float]:
        view = torch.tensor([self._view(extent)], dtype=torch.float64)
        low, high = brought_back(region[None], view)[0].chunk(2)
        most = torch.tensor(extent_numbers(extent), dtype=torch.float64)
        return torch.cat([low.clamp(min=0).minimum(most), high.clamp(min=0).minimum(most)]).tolist()

    def _view(self, extent: Any) -> list[float]:
        numbers = extent_numbers(extent)
        return list(self._tower.view(numbers)) if self._tower is not None else [*[0.0] * self.dims, *numbers]

    def _fault(self, cell: Any, extent: Any) -> tuple[str, str] | None:
        """The check that a cell fails, and what was found."""
        if cell is None:
            return None
        try:
            regions = [[float(value) for value in region] for region in regions_of(cell)]
        except (TypeError, ValueError):
            return f"{self.noun}.shape", f"{str(cell)[:60]!r} is no list of numbers"
        for region in regions or [[]]:
            if len(region) != 2 * self.dims or not all(map(math.isfinite, region)):
                return f"{self.noun}.shape", f"{region}: expected {2 * self.dims} finite numbers"
            corners = self.corners(region)
            if any(high <= low for low, high in zip(corners[: self.dims], corners[self.dims :], strict=True)):
                return f"{self.noun}.order", f"{region}: it ends where it begins, or before"
            if extent is None:
                return f"{self.noun}.extent", f"how large the sample in '{self.config.target}' is can't be read"
            for low, high, most in zip(corners[: self.dims], corners[self.dims :], extent_numbers(extent), strict=True):
                if low < -TOLERANCE * most or high > (1 + TOLERANCE) * most:
                    whole = " x ".join(f"{number:g}" for number in extent_numbers(extent))
                    return f"{self.noun}.outside", f"{region}: not within {whole} {self.unit}"
        return None

    @abstractmethod
    def _expected(self) -> str:
        """What a cell is expected to hold, in words."""

    def _lattice(self) -> Lattice | None:
        try:
            return self._tower.lattice()
        except FusetuneError as error:
            raise FusetuneError(f"data.task.target '{self.config.target}': {error}") from None


def _matched(places: Tensor, real: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens are right, (batch, tokens), and the number of the region that each of them is to give.

    Args:
        places: of the tokens, (batch, tokens, d).
        real: whether a token stands for a place.
        targets: (batch, regions, 2d).
    """
    low, high = (corner[:, None] for corner in targets.chunk(2, -1))
    inside = ((places[:, :, None] >= low) & (places[:, :, None] <= high)).all(-1) & real[..., None]
    away = (places - centres(targets[:, :1])).square().sum(-1).masked_fill(~real, torch.inf)
    nearest = F.one_hot(away.argmin(1), away.shape[1]).bool()
    right = torch.where(inside.any(-1).any(1, keepdim=True), inside.any(-1), nearest)
    smallest = sizes(targets).prod(-1)[:, None].expand(inside.shape).masked_fill(~inside, torch.inf)
    return right, smallest.argmin(-1)


def regions_of(cell: Any) -> list[Any]:
    """The regions of a cell: it holds one, or a list of them."""
    return list(cell) if len(cell) and hasattr(cell[0], "__len__") and not isinstance(cell[0], str) else [cell]


def extent_numbers(extent: Any) -> list[float]:
    return [float(value) for value in (extent if hasattr(extent, "__len__") else [extent])]
