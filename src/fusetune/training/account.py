"""What a method costs, before it is run: parameters, the cache's bytes, and the arithmetic of an epoch.

An epoch over N samples from the frontier costs N times forward and backward of what lies above it; from the raw inputs
it would also run the frozen blocks below. The ratio of the two, in FLOPs, is the most that caching can win.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fusetune.backbones.backbone import Frontier
from fusetune.features.codecs import bytes_per_value
from fusetune.features.index import CacheSettings, stored_dtype
from fusetune.training.experiment import Experiment

MEASURED = 8  # samples


@dataclass(frozen=True)
class Account:
    """
    Attributes:
        frontier: where the cache lies.
        trainable_parameters, base_parameters: of the adapter and head; of the backbone's parts that are used.
        cache_bytes: of all samples' features, at the lengths of the first training samples.
        flops: of one training sample, forward and backward, from the frontier.
        flops_uncached: the same from the raw inputs.
    """

    frontier: Frontier
    trainable_parameters: int
    base_parameters: int
    cache_bytes: int
    flops: int
    flops_uncached: int

    @property
    def flop_ratio(self) -> float:
        """How many times less arithmetic an epoch needs from the cache."""
        return self.flops_uncached / max(self.flops, 1)

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "frontier": str(self.frontier),
            "trainable_parameters": self.trainable_parameters,
            "base_parameters": self.base_parameters,
            "cache_bytes": self.cache_bytes,
            "flops_per_sample": self.flops,
            "flops_per_sample_uncached": self.flops_uncached,
            "flop_ratio": round(self.flop_ratio, 3),
        }


def account(experiment: Experiment, cache: CacheSettings) -> Account:
    """Measured on the first training samples, on the CPU; nothing is trained or written."""
    model, frontier = experiment.model, experiment.frontier
    rows = experiment.example_rows(MEASURED)
    inputs, targets = experiment.example(MEASURED), experiment.targets(rows)
    ground = Frontier(dict.fromkeys(inputs, 0))
    with torch.no_grad():
        states = model.backbone.advance(inputs, ground, frontier)
    size, count = 0, len(experiment.source)
    content = {} if frontier.trunk else experiment.source.content_keys()
    for name, tokens in states.items():
        dtype = stored_dtype(frontier, name, cache)
        width = tokens.values.element_size() if dtype == "as prepared" else bytes_per_value(dtype)
        distinct = len(set(content[name])) if content else count
        size += int(tokens.mask.sum() / len(rows) * tokens.width * width * distinct)

    def flops(start: Frontier, given: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            model.task.loss(model(given, start), targets).backward()
        model.zero_grad(set_to_none=True)
        return counter.get_total_flops() // len(rows)

    was_training = model.training
    model.train()
    try:
        counted = flops(frontier, states), flops(ground, inputs)
    finally:
        model.train(was_training)
    return Account(frontier, model.trainable_count(), model.base_count(), size, *counted)
