"""A split's features and targets, and what a model answers to them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fusetune.errors import FusetuneError
from fusetune.features.dataset import FeatureSet
from fusetune.plan.adapted import AdaptedModel
from fusetune.tasks.task import finite_rows
from fusetune.training.distributed import ALONE, Group


@dataclass(frozen=True)
class Split:
    """Features and targets of one split.

    Attributes:
        stages: features by the epoch from which on they are used: the frontier moves down where more is trained.
        targets: one a row.
        name: train, val or test.
    """

    stages: Mapping[int, FeatureSet]
    targets: Tensor
    name: str = ""

    @property
    def features(self) -> FeatureSet:
        """Those of the last stage, where everything of the plan acts."""
        return self.stages[max(self.stages)]

    def at(self, epoch: int) -> FeatureSet:
        """Those of an epoch, from 1."""
        return self.stages[max(first for first in self.stages if first <= epoch)]


def predict(
    model: AdaptedModel,
    split: Split,
    batch_size: int,
    epoch: int | None = None,
    observed: dict[str, list[Tensor]] | None = None,
    group: Group = ALONE,
) -> tuple[Tensor, float]:
    """Outputs of all rows, as the task keeps them, float32 on the CPU, and the mean loss.

    Args:
        epoch: whose features are used; None: those of the last stage.
        observed: what adapters show of each batch (gates, routes) is appended to it by name; of all rows where this
            process is alone.
        group: the ranks that share the rows; each gets the outputs of all.

    Raises:
        FusetuneError: an output is no number: the training has diverged.
    """
    model.eval()
    outputs, losses, shares, weights = [], [], [], model.task.row_weights(split.targets)
    features = split.features if epoch is None else split.at(epoch)
    rows, shared = torch.arange(len(split.targets)), group.shares_outputs(model)
    wholes = rows.split(4 * batch_size) if shared else ()
    own = [group.part(whole) for whole in wholes] if shared else group.passes(rows, 4 * batch_size)
    with torch.no_grad():
        asked = (group.asked(part, rows, shared) for part in own)
        for i, (index, states) in enumerate(features.batches(asked, by_parts=True)):
            out = model(states, features.frontier).float()
            if shared:
                index = wholes[i]
                out = group.whole(out, len(index))
            elif not len(own[i]):
                continue
            targets = split.targets[index].to(out.device)
            losses.append(model.task.loss(out, targets))
            shares.append(weights[index].sum().item())
            outputs.append(model.task.kept(out, targets).cpu())
            if observed is not None:
                for name, values in model.observed(len(index)).items():
                    observed.setdefault(name, []).append(values.float().cpu())
    read = torch.stack(losses).tolist() if losses else []
    among = ALONE if shared else group  # each has all by then
    [total] = among.added([sum(loss * share for loss, share in zip(read, shares, strict=True))])
    joined = among.joined_rows(torch.cat(outputs) if outputs else None)
    return check_finite(joined, split, epoch), total / weights.sum().item()


def check_finite(outputs: Tensor, split: Split, epoch: int | None = None) -> Tensor:
    """The outputs; raises FusetuneError where some are no numbers."""
    bad = (~finite_rows(outputs)).nonzero()
    if len(bad):
        when = "" if epoch is None else f" in epoch {epoch}"
        raise FusetuneError(
            f"training: {len(bad)} of {len(outputs)} outputs of the split '{split.name}' are NaN or infinite{when} "
            f"(the first: row {int(bad[0])}). The training has diverged, or the features hold such values; lower "
            "train.learning_rate and run again."
        )
    return outputs
