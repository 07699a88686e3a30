"""What a method costs, before it is run: parameters, the cache's bytes, the arithmetic of an epoch, memory.

An epoch over N samples from the frontier costs N times forward and backward of what lies above it; from the raw inputs
it would also run the frozen blocks below. The ratio of the two, in FLOPs, is the most that caching can win.

Memory of training: all weights, for each trained one its gradient and AdamW's two moments, what the backward pass of a
batch needs (the tensors that autograd keeps, each once), and what the loss keeps of the outputs, which is a vocabulary
a token where the model answers in words. What a step holds for a moment only is not counted. Measured in float32; in
another precision frozen weights are counted at its size and activations at two bytes a number.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fusetune.backbones.backbone import Frontier
from fusetune.config import check
from fusetune.features.index import CacheSettings
from fusetune.plan.adapted import AdaptedModel
from fusetune.plan.cost import Choice, Launches, choose, sample_bytes, weigh
from fusetune.plan.frontier import frontier
from fusetune.plan.plan import Plan
from fusetune.runs.experiment import Experiment
from fusetune.runs.scale import Fleet
from fusetune.tasks.classification import Classification, ClassificationConfig
from fusetune.tasks.generation import Generation, GenerationConfig
from fusetune.tasks.task import Task
from fusetune.tokens import Tokens
from fusetune.training.data import ANSWER

MEASURED = 8  # samples
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "nf4": 0.516}  # nf4: with doubly quantised scales, 4.127 bits
ADAM = 3  # values beside each trained one: its gradient and two moments


@dataclass(frozen=True)
class Account:
    """
    Attributes:
        frontier: where the cache lies, in the last stage of the plan.
        trainable: parameters by site: a modality's name, trunk, connector, junction, head.
        base_parameters: of the backbone's parts that are used.
        cache_bytes: of all samples' features, at the lengths of the first training samples.
        flops: of one training sample, forward and backward, from the frontier.
        flops_below: forward, up to the frontier: spent once a sample, to fill the cache.
        flops_uncached: of one training sample from the raw inputs.
        launches: operations of a step from the frontier, forward and backward, whatever the size of its batch.
        launches_uncached: the same from the raw inputs.
        memory: of training at the given batch size, bytes: weights, optimizer (gradients and moments), activations,
            and outputs (logits, and what the loss keeps of them).
        resolved: what each placement came to mean.
        cut: where features are cached, at or below the frontier, and why.
    """

    frontier: Frontier
    trainable: Mapping[str, int]
    base_parameters: int
    cache_bytes: int
    flops: int
    flops_below: int
    flops_uncached: int
    launches: int
    launches_uncached: int
    memory: Mapping[str, int]
    resolved: Sequence[str]
    cut: Choice

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def flop_ratio(self) -> float:
        """How many times less arithmetic an epoch needs from the cache."""
        return self.flops_uncached / max(self.flops, 1)

    @property
    def trainable_parameters(self) -> int:
        return sum(self.trainable.values())

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "frontier": str(self.frontier),
            "placements": list(self.resolved),
            "trainable_parameters": self.trainable_parameters,
            "trainable_by_site": dict(self.trainable),
            "base_parameters": self.base_parameters,
            "percent_of_base": percent(self.trainable_parameters, self.base_parameters),
            "percent_of_base_without_head": percent(
                self.trainable_parameters - self.trainable.get("head", 0), self.base_parameters
            ),
            "cache_bytes": self.cache_bytes,
            "flops_per_sample": self.flops,
            "flops_per_sample_below": self.flops_below,
            "flops_per_sample_uncached": self.flops_uncached,
            "flop_ratio": round(self.flop_ratio, 3),
            "launches_per_step": self.launches,
            "launches_per_step_uncached": self.launches_uncached,
            "memory_bytes": self.memory_bytes,
            "memory": dict(self.memory),
            "cut": str(self.cut),
        }


def percent(parameters: int, of_base: int) -> float | None:
    """Of a base's parameters; None where it has none (features that are passed through)."""
    return round(100 * parameters / of_base, 4) if of_base else None


def account(experiment: Experiment, cache: CacheSettings, batch_size: int = 64, free: int | None = None) -> Account:
    """Measured on the first training samples, on the CPU; nothing is trained or written.

    Args:
        free: bytes on the disk; None: nobody knows.
    """
    rows = experiment.example_rows(MEASURED)
    experiment.model.to("cpu").set_epoch(max(experiment.frontiers))
    inputs, targets = experiment.example(MEASURED), experiment.targets(rows)
    counts = len(experiment.source), experiment.distinct()
    return _measured(experiment.model, experiment.frontier, inputs, targets, *counts, cache, batch_size, free=free)


@dataclass(frozen=True)
class EstimateSettings:
    """
    Attributes:
        model: a config.json or its folder, a hub id, or a model type (clip, blip, llava, bert, ...), which stands for
            the sizes that its configuration has by default.
        text_tokens: of a sample.
        answer_tokens: of an answer in words, by the model's own head; 0: a head chooses from labels.
        samples: in all splits.
        labels: that the head chooses from.
        batch_size: of training.
        precision: float32, bfloat16, int8 or nf4: of the base's frozen linear layers; the rest of it is bfloat16 then.
        fleet: of devices, on which the same is to run.
    """

    model: str = "clip"
    text_tokens: int = 32
    answer_tokens: int = 0
    samples: int = 100_000
    labels: int = 1000
    batch_size: int = 64
    precision: str = "float32"
    fleet: Fleet = field(default_factory=Fleet)

    def __post_init__(self) -> None:
        for name in ("text_tokens", "samples", "batch_size"):
            check(getattr(self, name) > 0, f"estimate.{name}: expected at least 1, found {getattr(self, name)}.")
        check(self.labels > 1, f"estimate.labels: expected at least 2, found {self.labels}.")
        check(self.answer_tokens >= 0, f"estimate.answer_tokens: expected 0 or more, found {self.answer_tokens}.")
        known = ", ".join(BYTES)
        check(self.precision in BYTES, f"estimate.precision: expected one of {known}, found '{self.precision}'.")


def estimate(plan: Plan, where: str, settings: EstimateSettings, cache: CacheSettings) -> Account:
    """The account of a plan on a model that is known by its configuration alone; no weights, no data.

    Raises:
        FusetuneError: the plan doesn't fit the model.
    """
    from fusetune.backbones.from_config import shape_of
    from fusetune.backbones.valueless import Presumed

    words = settings.answer_tokens
    with Presumed():
        shape = shape_of(settings.model, settings.text_tokens, (ANSWER, words) if words else None)
    with Presumed() if shape.backbone.origin else nullcontext():
        return _estimated(shape, plan, where, settings, cache)


def _estimated(shape: Any, plan: Plan, where: str, settings: EstimateSettings, cache: CacheSettings) -> Account:
    from fusetune.adapters.adapter import Stream

    words = settings.answer_tokens
    task: Task = Generation(GenerationConfig("answer", max(1, words)))
    if not words:
        task = Classification(ClassificationConfig("label"))
        task.restore({"labels": [str(i) for i in range(settings.labels)]})
    widths = shape.backbone.widths(list(shape.most_tokens))
    streams = {name: Stream(widths[name], most) for name, most in shape.most_tokens.items()}
    model = AdaptedModel(shape.backbone, plan, task, streams, where).to("meta")
    model.set_epoch(model.stages()[-1])
    depths = frontier(model, shape.inputs)
    targets = torch.zeros((1, words) if words else 1, dtype=torch.long, device="meta")
    counts = settings.samples, dict.fromkeys(shape.inputs, settings.samples)
    return _measured(model, depths, shape.inputs, targets, *counts, cache, settings.batch_size, settings.precision)


def _measured(
    model: AdaptedModel,
    depths: Frontier,
    inputs: Mapping[str, Tokens],
    targets: Tensor,
    rows: int,
    distinct: Mapping[str, int],
    cache: CacheSettings,
    batch_size: int,
    precision: str = "float32",
    free: int | None = None,
) -> Account:
    samples = len(targets)
    costs, states = weigh(model.backbone, model, depths, inputs, rows, distinct, cache)
    stored = dict.fromkeys(states, rows) if depths.trunk else distinct
    size = sum(int(sample_bytes(tokens, depths, n, cache) * stored[n]) for n, tokens in states.items())

    def forward(times: int) -> tuple[Tensor, int, int]:
        """The loss, and what is kept of that many examples inside the model and behind it."""
        kept, batch = _Kept(model), {name: _repeated(tokens, times) for name, tokens in states.items()}
        with kept:
            out = model(batch, depths)
            inside = kept.bytes
            loss = model.task.loss(out, torch.cat([targets] * times))
        return loss, inside, kept.bytes - inside + 4 * out.numel()

    was_training = model.training
    model.train()
    try:
        with Launches() as launches, FlopCounterMode(display=False) as counter:
            loss, once, said = forward(1)
            loss.backward()
        model.zero_grad(set_to_none=True)
        _, twice, said_twice = forward(2)
    finally:
        model.train(was_training)
    flops = counter.get_total_flops() // samples
    sites, trained = model.sites(), model.trainable()
    by_site: dict[str, int] = {}
    for parameter in trained.values():
        by_site[sites[parameter]] = by_site.get(sites[parameter], 0) + parameter.numel()

    def of_batch(once: int, twice: int) -> int:
        return once + (twice - once) * (batch_size - samples) // samples  # some are kept once, whatever its size

    activations = of_batch(once, twice)
    memory = {
        "weights": _weight_bytes(model, precision),
        "optimizer": 4 * ADAM * sum(by_site.values()),
        "activations": activations if precision == "float32" else activations // 2,
        "outputs": of_batch(said, said_twice),
    }
    return Account(
        depths,
        by_site,
        model.base_count(),
        size,
        flops,
        costs[-1].below,
        flops + costs[-1].below,  # nothing below the frontier is gone through a second time
        launches.count,
        launches.count + costs[-1].launches,
        memory,
        model.resolved,
        choose(costs, cache.cut, rows, free),
    )


def _weight_bytes(model: AdaptedModel, precision: str) -> int:
    """Trained weights in float32, frozen linear layers but the head at the precision, the rest of the base between."""
    trained, own = set(model.trainable().values()), 4 if precision == "float32" else 2
    head = getattr(model.backbone.trunk, "head", None)
    linear = {m.weight for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head} - trained
    total = 0.0
    for parameter in {*model.parameters()}:
        size = 4 if parameter in trained else BYTES[precision] if parameter in linear else own
        total += parameter.numel() * size
    return int(total)


def _repeated(tokens: Tokens, times: int) -> Tokens:
    return Tokens(torch.cat([tokens.values] * times), torch.cat([tokens.mask] * times))


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a forward pass keeps for its backward pass, weights aside, each storage once."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.bytes = 0
        self._seen: dict[int, Any] = {id_of(p): p for p in model.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            if id_of(tensor) not in self._seen:
                self._seen[id_of(tensor)] = tensor  # held, so that no other storage gets its number
                self.bytes += tensor.untyped_storage().nbytes()
            return tensor

        super().__init__(pack, lambda tensor: tensor)


def id_of(tensor: Tensor) -> int:
    """The identity of a tensor's storage, on the meta device too."""
    return tensor.untyped_storage()._cdata
