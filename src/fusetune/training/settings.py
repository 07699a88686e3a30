"""Settings of the loop."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusetune.config import build, check

SITES = ("vision", "language", "other", "cross_modal", "connector", "language_model", "head")


@dataclass(frozen=True)
class TrainSettings:
    """
    Attributes:
        epochs: at most.
        batch_size: samples per step.
        learning_rate: AdamW, for adapters and head.
        base_learning_rate: AdamW, for weights of the backbone itself, where a method opens them.
        rate_factors: of both rates by site: vision, language, other (towers), cross_modal (trunk, connectors,
            junction), head; of a model that speaks: vision, connector (its own) and language_model (its blocks). A
            site that isn't named has 1.
        weight_decay: not applied to biases, norms, gates, scales and other vectors.
        warmup: share of all steps in which the rate rises; it falls by a cosine afterwards.
        clip: largest norm of the gradient.
        accumulate: batches whose gradients are averaged into one step, every sample alike.
        modality_dropout: share of (sample, modality) that is hidden in training; one modality always stays.
        gradient_checkpointing: blocks above the frontier keep their inputs alone and run again in the backward pass.
        shuffle: rows, or blocks: rows of 16 shards at a time, drawn at random, are shuffled among themselves. For
            features that no memory holds: the disk reads a shard once.
        length_buckets: batches of samples of about one length: less padding where lengths vary much.
        patience: epochs without a better validation metric after which training stops.
        seed: of initial weights and order.
        device: auto, cpu, cuda or cuda:N.
        autocast: bfloat16 in forward and backward on a GPU, float16 with a scaled loss where it has none; a CPU trains
            in float32.
        devices: processes that train together, each on its own GPU (or a share of the cores) with its rows of every
            batch.
        fsdp: each of these devices holds a part of the frozen blocks alone: for a base that none of them holds whole.
        graph: on a GPU, steps whose features lie in its memory are recorded once and replayed.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 3e-3
    base_learning_rate: float = 5e-4
    rate_factors: Mapping[str, float] = field(
        default_factory=lambda: {
            "vision": 1.0,
            "language": 2.0,
            "other": 1.0,
            "cross_modal": 0.5,
            "connector": 1.0,
            "language_model": 0.5,
            "head": 1.0,
        }
    )
    weight_decay: float = 0.02
    warmup: float = 0.1
    clip: float = 1.0
    accumulate: int = 1
    modality_dropout: float = 0.0
    gradient_checkpointing: bool = False
    shuffle: str = "rows"
    length_buckets: bool = False
    patience: int = 6
    seed: int = 0
    device: str = "auto"
    autocast: bool = True
    devices: int = 1
    fsdp: bool = False
    graph: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "accumulate", "devices"):
            value = getattr(self, name)
            check(value > 0, f"train.{name}: expected a whole number of at least 1, found {value}.")
        for name in ("learning_rate", "base_learning_rate", "clip"):
            value = getattr(self, name)
            check(value > 0, f"train.{name}: expected a positive number, found {value}.")
        for site, factor in self.rate_factors.items():
            check(site in SITES, f"train.rate_factors: unknown site '{site}'. Known: {', '.join(SITES)}.")
            check(factor >= 0, f"train.rate_factors.{site}: expected 0 or more, found {factor}.")
        check(self.shuffle in ("rows", "blocks"), f"train.shuffle: expected rows or blocks, found '{self.shuffle}'.")
        both = self.length_buckets and self.shuffle == "blocks"
        check(not both, "train.length_buckets: expected false where train.shuffle is blocks; it mixes rows of all.")
        share = self.modality_dropout
        check(0 <= share < 1, f"train.modality_dropout: expected a share from 0 to below 1, found {share}.")
        check(0 <= self.warmup < 1, f"train.warmup: expected a share from 0 to below 1, found {self.warmup}.")


def of_method(train: Mapping[str, Any], method: Mapping[str, Any], name: str) -> TrainSettings:
    """The common settings, and before them what the method says under its own `train`."""
    return build(TrainSettings, {**train, **method.get("train", {})}, f"{name}.train")
