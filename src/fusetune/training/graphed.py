"""Training steps on a GPU as one CUDA graph that is replayed: a step at the junction is a hundred small kernels, and
what it costs otherwise is Python and the launching of each."""

import logging

import torch
from torch import Tensor

from fusetune.adapters.adapter import Adapter
from fusetune.device import training_dtype
from fusetune.features.dataset import FeatureSet
from fusetune.plan.adapted import AdaptedModel
from fusetune.training.distributed import Group
from fusetune.training.optimizer import TOTAL, clip, gradient_norms
from fusetune.training.settings import TrainSettings

logger = logging.getLogger(__name__)
WARM = 3  # steps before a capture, in which libraries choose their kernels and the optimizer makes its state
PADDED = 2.0  # times the tokens of an average batch that batches of one fixed length may have


class Graphed:
    """
    Args:
        features: resident on the GPU; every batch is padded to the longest row of all.
        optimizer: with rates that are tensors there, and `capturable`.
    """

    def __init__(
        self,
        model: AdaptedModel,
        features: FeatureSet,
        targets: Tensor,
        optimizer: torch.optim.Optimizer,
        settings: TrainSettings,
    ) -> None:
        self.model, self.features, self.targets = model, features, targets
        self.optimizer, self.settings = optimizer, settings
        device = targets.device
        self.index = torch.zeros(settings.batch_size, dtype=torch.long, device=device)
        self.view, self.share = torch.zeros((), dtype=torch.long, device=device), torch.zeros((), device=device)
        self._captured(device)

    def step(self, index: Tensor, view: int, share: float) -> Tensor:
        """The loss of a batch of `batch_size` rows (a CPU index), and one step at `share` of the peak rates."""
        self.index.copy_(index, non_blocking=True)
        self.view.fill_(view)
        self.share.fill_(share)
        self.graph.replay()
        return self.loss.clone()

    def taken(self) -> dict[str, Tensor]:
        """The sums of the gradient's norms before clipping, by site, of the steps since they were last taken."""
        found = dict(zip(self.sites, self.sums.clone(), strict=True))
        self.sums.zero_()
        return found

    def _captured(self, device: torch.device) -> None:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        before = {p: {k: v.clone() for k, v in self.optimizer.state[p].items()} for p in parameters}
        self.model.train()
        with torch.cuda.stream(stream):
            for _ in range(WARM):  # at a rate of 0: no weight changes, and what the optimizer has noted is undone
                _, norms = self._one()
                self.optimizer.zero_grad(set_to_none=True)
        self.sites, self.sums = list(norms), torch.zeros(len(norms), device=device)
        torch.cuda.current_stream(device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss, norms = self._one()
            self.sums += torch.stack(list(norms.values()))
        with torch.no_grad():
            for parameter, known in before.items():
                for key, value in self.optimizer.state[parameter].items():
                    value.copy_(known[key]) if key in known else value.zero_()

    def _one(self) -> tuple[Tensor, dict[str, Tensor]]:
        dtype = training_dtype(self.index.device, self.settings.autocast)
        states = self.features.fixed_batch(self.index, self.view)
        with torch.autocast("cuda", dtype, enabled=dtype is not None, cache_enabled=False):
            out = self.model(states, self.features.frontier)
        loss = self.model.task.loss(out.float(), self.targets[self.index])
        penalty = self.model.penalty()
        (loss if penalty is None else loss + penalty).backward()
        for group in self.optimizer.param_groups:
            group["lr"].copy_(self.share * group["peak"])
        norms = gradient_norms(self.optimizer)
        norms[TOTAL] = clip(self.optimizer, norms, self.settings.clip)
        self.optimizer.step()
        return loss.detach(), norms


def graphed(
    model: AdaptedModel,
    features: FeatureSet,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    group: Group,
) -> Graphed | None:
    """The steps as a graph; None where they can't be one, which the log says on a GPU."""
    if targets.device.type != "cuda":
        return None
    why = _refusal(model, features, targets, settings, group)
    if why is None:
        try:
            return Graphed(model, features, targets, optimizer, settings)
        except RuntimeError as error:  # what a capture can't hold, it says
            why = str(error).strip().splitlines()[0]
    logger.info("training: steps are launched one by one, not replayed: %s", why)
    return None


def _refusal(
    model: AdaptedModel, features: FeatureSet, targets: Tensor, settings: TrainSettings, group: Group
) -> str | None:
    if not settings.graph:
        return "train.graph is false"
    if not features.resident:
        return "the features don't lie in the GPU's memory"
    if len(targets) < settings.batch_size:
        return "there is no whole batch"
    if group.size > 1 or settings.accumulate > 1:
        return "a step has several parts"
    if settings.modality_dropout or settings.length_buckets or settings.gradient_checkpointing:
        return "batches are cut or hidden one by one"
    if training_dtype(targets.device, settings.autocast) == torch.float16:
        return "float16 needs a scale of the loss"
    if model.task.speaks:
        return "answers in words have a length of their own"
    for adapter in model.adapters():
        if type(adapter).on_step is not Adapter.on_step:
            return f"{type(adapter).__name__} changes itself from step to step"
    times = features.fixed_length_costs(settings.batch_size)
    return f"batches of one length would have {times:.1f} times the tokens" if times > PADDED else None
