"""What a trained model is worth beside its test metric: calibration, missing modalities, noise, time of an answer."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.backbones.backbone import Frontier
from fusetune.comparison.settings import RobustnessSettings
from fusetune.plan.adapted import AdaptedModel
from fusetune.runs.experiment import Experiment
from fusetune.tasks.task import Task
from fusetune.tokens import Tokens
from fusetune.training.missing import with_dropped_modalities

BINS = 15  # of confidence, of equal width
PAIRS, TIMED = 15, 64  # answers are timed so often, on so many samples
Streams = Mapping[str, Tokens]


def calibration(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
    """Expected calibration error (Guo et al., ICML 2017, equation 3) and its bins; {} for tasks without probabilities.

    Of a task with several answers: the mean error, and the bins of all answers together.
    """
    columns = list(task.probabilities(outputs).values())
    wanted = targets.reshape(len(targets), -1)
    if not columns or wanted.shape[1] != len(columns):
        return {}
    confidences, hits = [], []
    for i, (_, probabilities) in enumerate(columns):
        best = probabilities.max(-1)
        confidences.append(best.values.double().numpy())
        hits.append((best.indices == wanted[:, i]).double().numpy())
    errors = [calibration_error(c, h)[0] for c, h in zip(confidences, hits, strict=True)]
    bins = calibration_error(np.concatenate(confidences), np.concatenate(hits))[1]
    return {"ece": float(np.mean(errors)), "bins": bins}


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> tuple[float, list[dict[str, float]]]:
    """The error, and of each bin that holds a sample its mean confidence, its accuracy and its share."""
    which = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # bins are open below
    error, bins = 0.0, []
    for i in range(BINS):
        inside = which == i
        if inside.any():
            sure, right, share = confidence[inside].mean(), correct[inside].mean(), inside.mean()
            error += share * abs(sure - right)
            bins.append({"confidence": float(sure), "accuracy": float(right), "share": float(share)})
    return float(error), bins


@dataclass(frozen=True)
class Condition:
    """Test samples under a condition, at the frontier.

    Attributes:
        kind: whole, without (a modality), missing or noise.
        value: the modality, the share or the level; '' of whole.
    """

    kind: str
    value: str | float
    states: Streams


class Conditions:
    """The same test samples under each condition: what lies below the frontier is frozen, and computed once.

    Args:
        experiment: any seed's.
    """

    @torch.no_grad()
    def __init__(self, experiment: Experiment, settings: RobustnessSettings, device: torch.device) -> None:
        rows = experiment.rows["test"].tolist()
        generator = np.random.default_rng(settings.seed)
        picked = sorted(generator.permutation(len(rows))[: settings.samples].tolist())
        self.rows, self.start = [rows[i] for i in picked], experiment.frontier
        self.targets = experiment.targets(self.rows)
        backbone = experiment.model.backbone
        inputs = backbone.prepare({n: experiment.source.decoded(n, self.rows) for n in experiment.source.modalities})
        self.inputs = {name: tokens.to(device) for name, tokens in inputs.items()}
        self.ground = Frontier(dict.fromkeys(inputs, 0))
        self.all = []
        asked = {name: self.inputs[name] for name in experiment.data.modalities}  # true answers stay as they are
        for kind, value, streams in _conditions(asked, settings, experiment.task.fuses):
            whole = _batches({**self.inputs, **streams}, len(self.rows), TIMED)
            parts = [backbone.advance(part, self.ground, self.start) for part in whole]
            self.all.append(Condition(kind, value, _joined(parts)))

    @torch.no_grad()
    def metrics(self, model: AdaptedModel) -> dict[str, Any]:
        """The main metric under each condition, on `samples` test samples."""
        model.eval()
        found: dict[str, Any] = {"samples": len(self.rows)}
        for condition in self.all:
            parts, targets = [], iter(self.targets.split(256))
            for states in _batches(condition.states, len(self.rows), 256):
                parts.append(model.task.kept(model(states, self.start).float().cpu(), next(targets)))
            value = model.task.metrics(torch.cat(parts), self.targets)[model.task.metric]
            if condition.kind == "whole":
                found["whole"] = value
            else:
                found.setdefault(condition.kind, {})[str(condition.value)] = value
        return found

    @torch.no_grad()
    def answer_times(self, model: AdaptedModel) -> dict[str, float]:
        """Seconds for a sample from its preprocessed inputs, in batches: of the model, and of the plain backbone.

        `overhead` is the median of the ratios of pairs, less 1: pairs are timed in turn, so noise is in both.
        """
        model.eval()
        batch = next(_batches(self.inputs, len(self.rows), TIMED))
        names, count = list(batch), len(next(iter(batch.values())).mask)
        full, times = model.backbone.full_depth(names), []

        for _ in range(PAIRS + 1):
            adapted = _seconds(lambda: model(batch, self.ground), batch) / count
            model.detach()
            try:
                times.append(
                    (_seconds(lambda: model.backbone.advance(batch, self.ground, full), batch) / count, adapted)
                )
            finally:
                model.attach()
        times = times[1:]  # the first warms up
        return {
            "seconds_per_answer": median(adapted for _, adapted in times),
            "seconds_plain": median(bare for bare, _ in times),
            "overhead": median(adapted / bare for bare, adapted in times) - 1,
        }


def _seconds(work: Callable[[], Any], streams: Streams) -> float:
    device = next(iter(streams.values())).mask.device
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def _conditions(
    inputs: Streams, settings: RobustnessSettings, fuses: bool
) -> Iterator[tuple[str, str | float, Streams]]:
    yield "whole", "", inputs
    if fuses and len(inputs) > 1:  # what compares two modalities needs both
        for name, tokens in inputs.items():
            others = torch.stack([t.mask.any(1) for n, t in inputs.items() if n != name]).any(0)
            yield "without", name, {**inputs, name: Tokens(tokens.values, tokens.mask & ~others[:, None])}
        for share in settings.missing:
            generator = torch.Generator().manual_seed(settings.seed)
            yield "missing", share, with_dropped_modalities(inputs, share, generator)
    for level in settings.noise:
        generator = torch.Generator().manual_seed(settings.seed)
        yield "noise", level, {name: _noisy(tokens, level, generator) for name, tokens in inputs.items()}


def _noisy(tokens: Tokens, level: float, generator: torch.Generator) -> Tokens:
    values, real = tokens.values, tokens.values[tokens.mask]
    if not len(real):
        return tokens
    if values.is_floating_point():
        noise = torch.randn(values.shape, generator=generator).to(values.device)
        return Tokens(values + level * real.std() * noise * tokens.mask.unsqueeze(-1), tokens.mask)
    others = real.cpu()[torch.randint(len(real), values.shape[:2], generator=generator)].to(values.device)
    replaced = (torch.rand(values.shape[:2], generator=generator).to(values.device) < level) & tokens.mask
    return Tokens(torch.where(replaced.unsqueeze(-1), others, values), tokens.mask)


def _batches(streams: Streams, count: int, size: int) -> Iterator[dict[str, Tokens]]:
    for start in range(0, count, size):
        yield {n: Tokens(t.values[start : start + size], t.mask[start : start + size]) for n, t in streams.items()}


def _joined(parts: list[dict[str, Tokens]]) -> dict[str, Tokens]:
    return {
        name: Tokens(torch.cat([p[name].values for p in parts]), torch.cat([p[name].mask for p in parts]))
        for name in parts[0]
    }
