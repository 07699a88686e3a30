"""Running a trained model over a table, raw samples in, outputs out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusetune.backbones.backbone import Frontier
from fusetune.errors import FusetuneError
from fusetune.features.source import Source
from fusetune.plan.adapted import AdaptedModel
from fusetune.plan.speaking import answered
from fusetune.tasks.task import finite_rows


@dataclass(frozen=True)
class Scored:
    """
    Attributes:
        rows: those that could be read, in order.
        outputs: the task's, one for each of `rows`, float32 on the CPU.
        errors: what is wrong with the others, by row.
    """

    rows: list[int]
    outputs: Tensor
    errors: dict[int, str]


def score(
    model: AdaptedModel,
    source: Source,
    rows: Sequence[int],
    batch_size: int,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Scored:
    """Outputs of the given rows; a row that can't be read costs itself alone.

    Args:
        progress: called with the rows done and their number after each batch.

    Raises:
        FusetuneError: no row at all can be read; the first one's fault.
    """
    model.to(device)
    parts: list[Tensor] = []
    good: list[int] = []
    errors: dict[int, str] = {}
    for start in range(0, len(rows), batch_size):
        several = [rows[start : start + batch_size]]
        while several:
            batch = several.pop(0)
            try:
                outputs = _outputs(model, source, batch, device)
                finite = finite_rows(outputs)
                for row in (row for row, sound in zip(batch, finite.tolist(), strict=True) if not sound):
                    errors[row] = f"row {row}: the model's outputs are NaN or infinite; that is no answer."
                parts.append(outputs[finite])
                good += [row for row, sound in zip(batch, finite.tolist(), strict=True) if sound]
            except FusetuneError as error:
                if len(batch) == 1:
                    errors[batch[0]] = str(error)
                else:
                    several[:0] = [[row] for row in batch]
        progress(min(start + batch_size, len(rows)), len(rows))
    if not good:
        raise FusetuneError(f"no row could be read: {next(iter(errors.values()), 'there is none')}")
    return Scored(good, torch.cat(parts), errors)


@torch.no_grad()
def _outputs(model: AdaptedModel, source: Source, rows: Sequence[int], device: torch.device) -> Tensor:
    own = [name for name, modality in source.modalities.items() if modality.constant is None]
    samples = {name: source.decoded(name, rows) for name in source.modalities}
    for i, row in enumerate(rows):
        if all(samples[name][i] is None for name in own):
            raise FusetuneError(f"row {row}: no modality is given; expected some of {', '.join(own)}.")
    streams = {name: tokens.to(device) for name, tokens in model.backbone.prepare(samples).items()}
    return answered(model, streams, Frontier(dict.fromkeys(streams, 0)))
