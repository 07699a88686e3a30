"""An epoch's steps: forward, backward, one clipped step of the optimizer; alone, among several ranks, or replayed."""

import math
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from fusetune.device import training_dtype
from fusetune.errors import FusetuneError
from fusetune.features.dataset import FeatureSet
from fusetune.features.orders import batches
from fusetune.plan.adapted import AdaptedModel
from fusetune.schedule import warmup_cosine
from fusetune.tokens import Tokens
from fusetune.training.data import ANSWER
from fusetune.training.distributed import ALONE, Group
from fusetune.training.epochs import Reporter
from fusetune.training.graphed import Recorded, graphed
from fusetune.training.losses import batch_losses
from fusetune.training.missing import with_dropped_modalities
from fusetune.training.optimizer import clipped, set_rates
from fusetune.training.predicting import Split
from fusetune.training.settings import TrainSettings

LOOKED_AT = {"cuda": 20}  # steps after which losses are read, which waits for the device; a CPU has nothing to wait for


class Steps:
    """The steps of a run.

    Args:
        steps: of the whole run, for the learning rate.
        group: the ranks that share each batch.
    """

    def __init__(
        self,
        model: AdaptedModel,
        split: Split,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        settings: TrainSettings,
        steps: int,
        reporter: Reporter,
        group: Group = ALONE,
    ) -> None:
        self.model, self.split, self.optimizer, self.scaler = model, split, optimizer, scaler
        self.settings, self.steps, self.reporter, self.group = settings, steps, reporter, group
        self.device = split.features.device
        self.targets, self.weights = split.targets.to(self.device), model.task.row_weights(split.targets)
        self._graph: Recorded | None = None
        self._of: FeatureSet | None = None  # whose batches the graph has

    def epoch(self, number: int, step: int) -> tuple[float, dict[str, float]]:
        """Mean loss of a sample (of a token, where the model answers in words), and mean norms of the gradient by site.

        On a GPU nothing is waited for within `LOOKED_AT` steps: losses and norms stay there until they are read
        together.

        Args:
            number: of the epoch, from 0.
            step: the first one's number in the run.
        """
        model, settings, several = self.model, self.settings, self.settings.accumulate
        features = self.split.at(number + 1)
        graph = self._replayed(features)
        torch.manual_seed(epoch_seed(settings, number) + 7919 * self.group.rank)
        order = torch.Generator().manual_seed(epoch_seed(settings, number))
        model.train()
        lengths = features.ragged_lengths() if settings.length_buckets else None
        blocks = features.blocks() if settings.shuffle == "blocks" else None
        whole = list(batches(len(self.targets), settings.batch_size, order, lengths, blocks))
        own = [self.group.part(index) for index in whole]
        shared = self.group.shares_outputs(model)
        asked = [self.group.asked(part, index, shared) for part, index in zip(own, whole, strict=True)]
        shares = [self.weights[index].sum().item() for index in whole]  # of rows: 1, or their tokens
        of_step = [sum(shares[i : i + several]) for i in range(0, len(shares), several)]  # what is behind each step
        losses, sums, first = _Losses(number, step, settings), dict[str, Tensor](), step
        self.group.begin_epoch()
        self.optimizer.zero_grad(set_to_none=True)
        for part, (index, states) in enumerate(self._coming(features, asked, number, graph)):
            if states is None and graph:
                losses.add(graph.step(index, number, warmup_cosine(step, self.steps, settings.warmup)), shares[part])
            else:
                share = self.weights[own[part]].sum().item() if self.group.size > 1 else shares[part]
                if states is not None and len(index):
                    of_whole = (whole[part], share / shares[part]) if shared else None
                    scale = (shares[part] if shared else share) / of_step[part // several]
                    losses.add(self._backward(features, index, states, scale, of_whole), share)
                if (part + 1) % several and part + 1 < len(shares):
                    continue
                set_rates(self.optimizer, warmup_cosine(step, self.steps, settings.warmup))
                add_norms(sums, self._step())
            step += 1
            for adapter in model.adapters():
                adapter.on_step(step)
            self.optimizer.zero_grad(set_to_none=True)
            if (step - first) % LOOKED_AT.get(self.device.type, 1) == 0 or part + 1 == len(shares):
                self.reporter.step(step, self.steps, losses.read())
        if graph:
            add_norms(sums, graph.taken())
        return losses.mean(self.group), {site: (total / (step - first)).item() for site, total in sums.items()}

    def _coming(
        self, features: FeatureSet, indices: list[Tensor], view: int, graph: Recorded | None
    ) -> Iterator[tuple[Tensor, dict[str, Tokens] | None]]:
        """Each index with its batch; without one where the graph gathers it, or no row is this rank's."""
        if graph is not None:
            for index in indices:
                yield index, None if len(index) == self.settings.batch_size else features.batch(index, view)
            return
        filled = features.batches((index for index in indices if len(index)), view, by_parts=True)
        for index in indices:
            yield next(filled) if len(index) else (index, None)

    def _backward(
        self,
        features: FeatureSet,
        index: Tensor,
        states: dict[str, Tokens],
        share: float,
        of_whole: tuple[Tensor, float] | None,
    ) -> Tensor:
        """The mean loss of a batch; gradients of it and of the penalties, times `share`, are added up.

        Args:
            of_whole: where the loss is that of all ranks' rows, these, and this rank's share of them.
        """
        dtype = training_dtype(self.device, self.settings.autocast)
        if self.settings.modality_dropout:
            states = with_dropped_modalities(states, self.settings.modality_dropout, always=(ANSWER,))
        rows, part = (index, 1.0) if of_whole is None else of_whole
        targets = self.targets[rows.to(self.device, non_blocking=True)]
        gather = None if of_whole is None else partial(self.group.whole, size=len(rows))
        loss, whole = batch_losses(
            self.model, states, features.frontier, targets, dtype, whole=gather, penalty_share=part
        )
        self.scaler.scale(whole * share).backward()
        return loss.detach()

    def _step(self) -> dict[str, Tensor]:
        """One clipped step; returns the gradient's norms before clipping, by site and in all, on the device.

        With a scaled loss a step whose gradients overflow is left out, and the scale gets smaller.
        """
        self.group.add_gradients([p for group in self.optimizer.param_groups for p in group["params"]])
        self.scaler.unscale_(self.optimizer)
        norms = clipped(self.optimizer, self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled():
            return {site: norm.nan_to_num(0.0, 0.0) for site, norm in norms.items()}
        return norms

    def _replayed(self, features: FeatureSet) -> Recorded | None:
        """The steps on these features as one graph, where that can be."""
        if self._of is not features:
            self._of = features
            self._graph = graphed(self.model, features, self.targets, self.optimizer, self.settings, self.group)
        return self._graph


def add_norms(sums: dict[str, Tensor], norms: Mapping[str, Tensor]) -> None:
    """Norms of a step to the sums of those before."""
    for site, norm in norms.items():
        sums[site] = sums[site] + norm if site in sums else norm


class _Losses:
    """Losses by batch, on the device until they are read."""

    def __init__(self, number: int, step: int, settings: TrainSettings) -> None:
        self.number, self.step, self.settings = number, step, settings
        self._waiting: list[Tensor] = []
        self._shares: list[float] = []
        self._read: list[float] = []

    def add(self, loss: Tensor, share: float) -> None:
        self._waiting.append(loss)
        self._shares.append(share)

    def read(self) -> float:
        """The last one; raises FusetuneError for one that is no number."""
        found = torch.stack(self._waiting).tolist() if self._waiting else []
        self._waiting.clear()
        for i, value in enumerate(found, start=len(self._read)):
            if not math.isfinite(value):
                at = self.step + i // self.settings.accumulate
                raise FusetuneError(not_finite(value, self.number, at, self.settings))
        self._read += found
        return self._read[-1] if self._read else math.nan

    def mean(self, group: Group) -> float:
        """Of a sample, or of a token of its answer, whichever rank had it."""
        total, share = group.added(
            [sum(v * n for v, n in zip(self._read, self._shares, strict=True)), sum(self._shares)]
        )
        return total / share


def not_finite(loss: float, number: int, step: int, settings: TrainSettings) -> str:
    """What to say of a loss that is no number, in an epoch and step from 0."""
    return (
        f"training: the loss is {loss} in epoch {number + 1}, step {step + 1}. The best epoch so far is kept "
        f"in the checkpoint; lower train.learning_rate (now {settings.learning_rate}) and run again."
    )


def epoch_seed(settings: TrainSettings, number: int) -> int:
    """Of order and random numbers in an epoch, from 0."""
    return settings.seed * 100_003 + number
