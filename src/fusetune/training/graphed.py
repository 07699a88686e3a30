"""Training steps on a GPU as one CUDA graph that is replayed: a step at the junction is a hundred small kernels, and
what it costs otherwise is Python and the launching of each."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fusetune.adapters.adapter import Adapter
from fusetune.device import training_dtype
from fusetune.features.dataset import FeatureSet
from fusetune.plan.adapted import AdaptedModel
from fusetune.training.distributed import Group
from fusetune.training.losses import batch_losses
from fusetune.training.optimizer import clipped, set_rates
from fusetune.training.settings import TrainSettings

logger = logging.getLogger(__name__)
WARM = 3  # steps before a recording, in which libraries choose their kernels and the optimizer makes its state
PADDED = 2.0  # times the tokens of an average batch that batches of one fixed length may have
Norms = dict[str, Tensor]


class Recorded:
    """Steps of a fixed number of rows on features that lie in the GPU's memory, recorded once.

    Args:
        rows: of a batch.
        one: takes ``(index, view, share)``, tensors on the device: the rows, the number of their view, and the share
            of the peak rates; makes a whole step and returns what `step` returns, and norms of the gradient by site.
        optimizer: with rates that are tensors there, and `capturable`.
        generators: that `one` draws from, beside the default one.

    Raises:
        RuntimeError: `one` does what a recording can't hold: it waits for a number, or moves one over.
    """

    def __init__(
        self,
        rows: int,
        one: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Norms]],
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self.index = torch.zeros(rows, dtype=torch.long, device=device)
        self.view, self.share = torch.zeros((), dtype=torch.long, device=device), torch.zeros((), device=device)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        before = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for p in parameters}
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM):  # at a rate of 0: no weight changes, and what the optimizer has noted is undone
                _, norms = one(self.index, self.view, self.share)
                optimizer.zero_grad(set_to_none=True)
        torch.cuda.current_stream(device).wait_stream(stream)
        self.sites = list(norms)
        self.sums = torch.zeros(len(norms), *next(iter(norms.values())).shape, device=device)
        self.graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self.graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(self.graph):
                self.result, norms = one(self.index, self.view, self.share)
                self.sums += torch.stack(list(norms.values()))
        finally:
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for parameter, known in before.items():
                    for key, value in optimizer.state[parameter].items():
                        value.copy_(known[key]) if key in known else value.zero_()

    def step(self, index: Tensor, view: int, share: float) -> Tensor:
        """Whatever the step returns, for rows by a CPU index, at `share` of the peak rates."""
        self.index.copy_(index, non_blocking=True)
        self.view.fill_(view)
        self.share.fill_(share)
        self.graph.replay()
        return self.result.clone()

    def taken(self) -> Norms:
        """The sums of the gradient's norms before clipping, by site, of the steps since they were last taken."""
        found = dict(zip(self.sites, self.sums.clone(), strict=True))
        self.sums.zero_()
        return found


def recorded(why: str | None, record: Callable[[], Recorded], device: torch.device) -> Recorded | None:
    """The recording; None on a CPU, and where it can't be made or there is a reason not to, which the log says."""
    if device.type != "cuda":
        return None
    if why is None:
        try:
            return record()
        except RuntimeError as error:  # what a recording can't hold, it says
            why = str(error).strip().splitlines()[0]
    logger.info("training: steps are launched one by one, not replayed: %s", why)
    return None


def graphed(
    model: AdaptedModel,
    features: FeatureSet,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    group: Group,
) -> Recorded | None:
    """One model's steps as a recording, whose result is the loss of the batch; None where that can't be."""
    dtype = training_dtype(targets.device, settings.autocast)

    def one(index: Tensor, view: Tensor, share: Tensor) -> tuple[Tensor, Norms]:
        states = features.fixed_batch(index, view)
        loss, whole = batch_losses(model, states, features.frontier, targets[index], dtype, recording=True)
        whole.backward()
        set_rates(optimizer, share)
        norms = clipped(optimizer, settings.clip)
        optimizer.step()
        return loss.detach(), norms

    def record() -> Recorded:
        model.train()
        return Recorded(settings.batch_size, one, optimizer, targets.device)

    why = _several(settings, group, dtype) or refusal(model, features, len(targets), settings)
    return recorded(why, record, targets.device)


def refusal(model: AdaptedModel, features: FeatureSet, rows: int, settings: TrainSettings) -> str | None:
    """Why steps of a model can't be recorded, in words."""
    if not settings.graph:
        return "train.graph is false"
    if not features.resident:
        return "the features don't lie in the GPU's memory"
    if rows < settings.batch_size:
        return "there is no whole batch"
    if settings.modality_dropout:
        return "modalities are hidden anew in every step"
    if model.task.speaks:
        return "answers in words have a length of their own"
    if features.frontier != model.backbone.full_depth(features.modalities()):
        lacking = [name for name, lengths in features.lengths().items() if not lengths.all()]
        if lacking:
            return f"some samples lack {', '.join(lacking)}, and only the others pass through the encoder"
    for adapter in model.adapters():
        if type(adapter).on_step is not Adapter.on_step:
            return f"{type(adapter).__name__} changes itself from step to step"
    times = features.fixed_length_costs(settings.batch_size)
    return f"batches of one length would have {times:.1f} times the tokens" if times > PADDED else None


def _several(settings: TrainSettings, group: Group, dtype: torch.dtype | None) -> str | None:
    if dtype == torch.float16:
        return "float16 needs a scale of the loss"
    if group.size > 1 or settings.accumulate > 1:
        return "a step has several parts"
    if settings.length_buckets or settings.gradient_checkpointing:
        return "train.length_buckets or train.gradient_checkpointing is on"
    return None
