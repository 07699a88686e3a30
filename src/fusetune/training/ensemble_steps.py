"""An epoch of an ensemble: each member on its own batches, with its own random numbers, in one pass for all."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fusetune.adapters.dropout import random_streams
from fusetune.device import training_dtype
from fusetune.features.orders import batches
from fusetune.schedule import warmup_cosine
from fusetune.tokens import Tokens
from fusetune.training.ensemble import Ensemble
from fusetune.training.graphed import Norms, Recorded, recorded, refusal
from fusetune.training.missing import with_dropped_modalities
from fusetune.training.predicting import Split
from fusetune.training.steps import add_norms, epoch_seed


class EnsembleSteps:
    """The steps of a run of these members; other ones need others.

    Args:
        steps: of the whole run, for the learning rate.
    """

    def __init__(self, ensemble: Ensemble, split: Split, steps: int) -> None:
        self.ensemble, self.split, self.steps = ensemble, split, steps
        self.settings, self.features = ensemble.settings[0], split.features
        self.device = self.features.device
        self.targets = split.targets.to(self.device)
        self.drawing = [torch.Generator(self.device) for _ in ensemble.settings]
        why = refusal(ensemble.model, self.features, len(self.targets), self.settings)
        self.graph = recorded(why, self._record, self.device)

    def epoch(self, number: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses (steps, members) and the mean norms of the gradients, (members,) by site.

        Args:
            number: of the epoch, from 0.
            step: the first one's number in the run.
        """
        members, one = len(self.ensemble), self.settings
        seeds = [epoch_seed(settings, number) for settings in self.ensemble.settings]
        count, blocks = len(self.targets), self.features.blocks() if one.shuffle == "blocks" else None
        orders = [batches(count, one.batch_size, torch.Generator().manual_seed(s), blocks=blocks) for s in seeds]
        for generator, seed in zip(self.drawing, seeds, strict=True):
            generator.manual_seed(seed)
        # on a CPU one stream a member where the model draws where modalities are dropped, as `steps.Steps` has it
        on_cpu = self.device.type == "cpu"
        dropping = self.drawing if on_cpu else [torch.Generator().manual_seed(seed) for seed in seeds]
        self.ensemble.model.train()
        losses, sums, first = [], dict[str, Tensor](), step
        together = [torch.cat(parts) for parts in zip(*orders, strict=True)]
        recorded_rows = self.graph.index.numel() if self.graph else 0
        rest = self.features.batches((index for index in together if len(index) != recorded_rows), view=number)
        for index in together:
            share = warmup_cosine(step, self.steps, one.warmup)
            if self.graph and len(index) == recorded_rows:
                losses.append(self.graph.step(index, number, share))
            else:
                _, states = next(rest)
                own = {name: _by_member(tokens, members) for name, tokens in states.items()}
                if one.modality_dropout:
                    own = _with_dropped_modalities(own, one.modality_dropout, dropping)
                loss, norms = self._step(own, index.to(self.device), share)
                losses.append(loss)
                add_norms(sums, norms)
            step += 1
        if self.graph:
            add_norms(sums, self.graph.taken())
        return torch.stack(losses).cpu(), {site: (total / (step - first)).cpu() for site, total in sums.items()}

    def _step(self, states: Mapping[str, Tokens], index: Tensor, share: float | Tensor) -> tuple[Tensor, Norms]:
        """Losses and norms, (members,) each, of a step on each member's own batch; `index` of their rows."""
        dtype, recording = training_dtype(self.device, self.settings.autocast), isinstance(share, Tensor)
        targets = self.targets[index].unflatten(0, (len(self.ensemble), -1))
        cached = torch.autocast(self.device.type, dtype, enabled=dtype is not None, cache_enabled=not recording)
        with random_streams(self.drawing), cached:
            loss, whole = self.ensemble.losses(states, self.features.frontier, targets)
        whole.sum().backward()  # members share nothing that is trained: the sum's gradient is everyone's own
        return loss.detach(), self.ensemble.step(share, self.settings.clip)

    def _record(self) -> Recorded:
        def one(index: Tensor, view: Tensor, share: Tensor) -> tuple[Tensor, Norms]:
            states = self.features.fixed_batch(index, view)
            return self._step({n: _by_member(t, len(self.ensemble)) for n, t in states.items()}, index, share)

        self.ensemble.model.train()
        rows, optimizer = self.settings.batch_size * len(self.ensemble), self.ensemble.optimizer
        return Recorded(rows, one, optimizer, self.device, self.drawing)


def _by_member(tokens: Tokens, count: int) -> Tokens:
    return Tokens(tokens.values.unflatten(0, (count, -1)), tokens.mask.unflatten(0, (count, -1)))


def _with_dropped_modalities(
    states: Mapping[str, Tokens], share: float, generators: Sequence[torch.Generator]
) -> dict[str, Tokens]:
    own = [
        with_dropped_modalities({n: Tokens(t.values[i], t.mask[i]) for n, t in states.items()}, share, generator)
        for i, generator in enumerate(generators)
    ]
    return {n: Tokens(t.values, torch.stack([streams[n].mask for streams in own])) for n, t in states.items()}
