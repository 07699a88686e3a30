"""What a dual encoder knows before any training: its own space, as it is."""

from torch import Tensor

from fusetune.plan.adapted import AdaptedModel
from fusetune.training.predicting import Split, predict


def starts_trained(model: AdaptedModel) -> bool:
    """Whether the head begins in the towers' own space."""
    return hasattr(model.head, "embeds")


def zero_shot(model: AdaptedModel, split: Split, batch_size: int) -> Tensor:
    """Outputs of the frozen towers alone, whatever has been trained; needs a head that `starts_trained`."""
    active = [adapter.active for adapter in model.adapters()]
    learned = {name: value.detach().clone() for name, value in model.head.state_dict().items()}
    model.detach()
    model.head.forget()  # type: ignore[operator]
    for adapter in model.adapters():
        adapter.set_active(False)
    try:
        return predict(model, split, batch_size, 1)[0]
    finally:
        model.head.load_state_dict(learned)
        model.attach()
        for adapter, was in zip(model.adapters(), active, strict=True):
            adapter.set_active(was)


def zero_shot_metric(model: AdaptedModel, split: Split, batch_size: int) -> float | None:
    """The task's main metric of it; None for a model that knows nothing before training."""
    if not starts_trained(model):
        return None
    return float(model.task.metrics(zero_shot(model, split, batch_size), split.targets)[model.task.metric])


def before_training(
    model: AdaptedModel, val: Split, test: Split, reached: float, batch_size: int
) -> dict[str, float | int]:
    """For the metrics of a trained model: `before_training` on the test split; {} where it knew nothing.

    Args:
        reached: the validation metric of the best epoch; one that is no better is not kept, the best epoch is 0.
    """
    known = zero_shot_metric(model, val, batch_size)
    if known is None:
        return {}
    found: dict[str, float | int] = {"before_training": zero_shot_metric(model, test, batch_size) or 0.0}
    return found if reached > known else {**found, "best_epoch": 0}
