"""Settings of the loop."""

from dataclasses import dataclass

from fusetune.config import check


@dataclass(frozen=True)
class TrainSettings:
    """
    Attributes:
        epochs: at most.
        batch_size: samples per step.
        learning_rate: AdamW, for adapters and head.
        base_learning_rate: AdamW, for weights of the backbone itself, where a method opens them.
        weight_decay: not applied to biases, norms, scales and other vectors.
        warmup: share of all steps in which the rate rises; it falls by a cosine afterwards.
        clip: largest norm of the gradient.
        length_buckets: batches of samples of about one length: less padding where lengths vary much.
        patience: epochs without a better validation metric after which training stops.
        seed: of initial weights and order.
        device: auto, cpu, cuda or cuda:N.
        autocast: bfloat16 in forward and backward on a GPU; a CPU trains in float32.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 3e-3
    base_learning_rate: float = 5e-4
    weight_decay: float = 0.02
    warmup: float = 0.1
    clip: float = 1.0
    length_buckets: bool = False
    patience: int = 6
    seed: int = 0
    device: str = "auto"
    autocast: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            check(value > 0, f"train.{name}: expected a whole number of at least 1, found {value}.")
        for name in ("learning_rate", "base_learning_rate", "clip"):
            value = getattr(self, name)
            check(value > 0, f"train.{name}: expected a positive number, found {value}.")
        check(0 <= self.warmup < 1, f"train.warmup: expected a share from 0 to below 1, found {self.warmup}.")
