"""A bank: one backbone in memory and many adapters on it, each request answered by its own.

What no adapter changes is run once for all requests together. Requests of adapters that act at the junction, or add
low-rank products to linear layers, go through the backbone in one pass; the others share the pass up to the deepest
point below which none of them acts, and go on from there one adapter after the other.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.bank.artifact import Artifact, check_base, skeleton
from fusetune.bank.held import Held, check_request, lowest, shared
from fusetune.bank.low_rank import LowRankTables
from fusetune.config import check, digest
from fusetune.errors import FusetuneError, SampleError
from fusetune.manifest.extents import extent_of_sample
from fusetune.plan.adapted import AdaptedModel
from fusetune.plan.speaking import answered
from fusetune.tasks.task import finite_rows
from fusetune.tokens import Tokens
from fusetune.training.data import DataSettings, answering

DEFAULT_BYTES = 2**30


class Bank:
    """Adapters of one base; safe to use from several threads, which take turns.

    Args:
        base: the backbone's folder or hub id; towers are loaded when an adapter first needs them.
        most_bytes: of adapters in memory. The least recently used go first, and come back from their folders.
    """

    def __init__(self, base: str | Path, most_bytes: int = DEFAULT_BYTES, device: str | torch.device = "cpu") -> None:
        self.base, self.most_bytes, self.device = base, most_bytes, torch.device(device)
        self._whole: Backbone | None = None
        self._sources: dict[str, str | Path] = {}
        self._held: OrderedDict[str, Held] = OrderedDict()  # the least recently used first
        self._tables: dict[tuple[str, ...], LowRankTables] = {}
        self._skeletons: dict[tuple[Any, ...], Backbone] = {}
        self._lock, self._fitting = threading.RLock(), threading.Lock()

    def load(self, name: str, source: str | Path) -> None:
        """Make an adapter known under a name, and load it; the same name again replaces it.

        Args:
            source: an artifact's folder, or its id on a hub.

        Raises:
            FusetuneError: an artifact that is broken, of another base, or larger than the bank; the bank is as before.
        """
        artifact = Artifact.from_pretrained(source)
        self._check_size(name, artifact)
        bones = self._bones(artifact)
        with self._fitting:  # requests go on while it is looked at
            artifact.fits(bones)
        with self._lock:
            self._hold(name, artifact, fitted=True)
            self._sources[name] = source

    def unload(self, name: str) -> None:
        """Forget an adapter; raises FusetuneError if there is none of that name."""
        with self._lock:
            self._known(name)
            del self._sources[name]
            self._dropped(name)

    def names(self) -> list[str]:
        """All adapters, in memory or not."""
        return list(self._sources)

    def in_memory(self) -> list[str]:
        """The least recently used first."""
        return list(self._held)

    @property
    def bytes(self) -> int:
        return sum(held.bytes for held in self._held.values())

    def data(self, name: str) -> DataSettings:
        """Modalities and task of an adapter."""
        with self._lock:
            return self._get(name).data

    def model(self, name: str) -> AdaptedModel:
        """The adapter's model, off the backbone: for its task and its parts."""
        with self._lock:
            return self._get(name).model

    def answers(self, names: Sequence[str], samples: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
        """What each request's task decodes from its outputs; see `outputs`.

        Raises:
            FusetuneError: also for a task that compares the rows of a batch, in a batch of several adapters.
        """
        with self._lock:
            outputs = self.outputs(names, samples)
            found: list[dict[str, Any]] = [{} for _ in names]
            for name, rows in _rows_by(names).items():
                task = self._get(name).model.task
                check(
                    task.by_row or len(rows) == len(names),
                    f"adapter '{name}': its task compares the rows of a request with one another, so they can't be "
                    "mixed with another adapter's. Send them on their own.",
                )
                extents = self.extents(name, {m: [column[row] for row in rows] for m, column in samples.items()})
                for row, answer in zip(rows, self.decoded(name, [outputs[row] for row in rows], extents), strict=True):
                    found[row] = answer
            return found

    def decoded(
        self, name: str, outputs: Sequence[Tensor], extents: Mapping[str, Sequence[Any]] | None = None
    ) -> list[dict[str, Any]]:
        """What the task of one adapter says of outputs of its own, a request each.

        Args:
            extents: of the requests' samples, where it asks for them; see `extents`.
        """
        return self.model(name).task.decode(torch.stack(list(outputs)), extents or None)

    def extents(self, name: str, samples: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """How large decoded samples are, by modality, as far as the task of one adapter has to know."""
        measured = [m for m in self.model(name).task.measured_modalities() if m in samples]
        return {m: [extent_of_sample(sample) for sample in samples[m]] for m in measured}

    @torch.no_grad()
    def outputs(
        self,
        names: Sequence[str],
        samples: Mapping[str, Sequence[Any]],
        decoding: Mapping[str, Any] | None = None,
        first: int = 0,
    ) -> list[Tensor]:
        """The task's outputs, one tensor a request, on the CPU; what a request alone would give, up to rounding.

        Args:
            names: the adapter of each request.
            samples: by modality, one decoded sample a request (`manifest.decoders.decode`), None where it has none.
            decoding: of answers in words, what is otherwise than the adapter says; see `tasks.decoding.Decoding`.
            first: number of the first request, where there were others before.

        Raises:
            FusetuneError: names the request: an unknown adapter, a modality that its adapter doesn't take, or none.
        """
        with self._lock:
            held = {name: self._get(name) for name in dict.fromkeys(names)}
            for row, name in enumerate(names):
                check_request(row, held[name], samples, first)
            found: dict[int, Tensor] = {}
            for rows in _rows_by([held[name].path for name in names]).values():
                try:
                    found |= self._pass(rows, [held[names[row]] for row in rows], samples, decoding)
                except SampleError as error:
                    where = f"request {first + rows[error.number]}, '{error.modality}'"
                    raise FusetuneError(f"{where}: {error.fault}") from None
            for row, outputs in found.items():
                check(
                    bool(finite_rows(outputs[None])),
                    f"request {first + row}: adapter '{names[row]}' answers with NaN or infinity; that is no answer.",
                )
            return [found[row] for row in range(len(names))]

    def _pass(
        self, rows: Sequence[int], owners: Sequence[Held], samples: Mapping[str, Sequence[Any]], decoding: Any
    ) -> dict[int, Tensor]:
        """Outputs by row of requests that pass through the same towers."""
        part = owners[0].part
        none = [None] * (max(rows) + 1)
        prepared = part.prepare({m: [samples.get(m, none)[row] for row in rows] for m in owners[0].data.modalities})
        streams = {name: tokens.to(self.device) for name, tokens in prepared.items()}
        bottom = Frontier(dict.fromkeys(streams, 0))
        found: dict[int, Tensor] = {}
        together = [i for i, held in enumerate(owners) if held.shared and not decoding]
        if together:
            several = list({owners[i].name: owners[i] for i in together}.values())
            numbers = {held.name: number for number, held in enumerate(several)}
            owner = torch.tensor([numbers[owners[i].name] for i in together], device=self.device)
            top = part.full_depth(list(streams))
            with self._low_rank(several).rows(part, owner):
                met = part.advance(_of(streams, together), bottom, top)
            for held in several:
                own = [k for k, i in enumerate(together) if owners[i] is held]
                outputs = held.model.task.kept(held.model(_of(met, own), top).float(), None).cpu()
                found |= {rows[together[k]]: out for k, out in zip(own, outputs, strict=True)}
        alone = [i for i, held in enumerate(owners) if not held.shared]
        if alone:
            start = lowest([owners[i].frontier for i in alone])
            states = part.advance(_of(streams, alone), bottom, start)
            for held in {owners[i].name: owners[i] for i in alone}.values():
                own = [k for k, i in enumerate(alone) if owners[i] is held]
                held.model.attach()
                try:
                    outputs = answered(held.model, _of(states, own), start, decoding)
                finally:
                    held.model.detach()
                found |= {rows[alone[k]]: out for k, out in zip(own, outputs, strict=True)}
        return found

    def _low_rank(self, several: Sequence[Held]) -> LowRankTables:
        key = tuple(held.name for held in several)
        if key not in self._tables:
            self._tables = {key: LowRankTables([held.model for held in several])}
        return self._tables[key]

    def _get(self, name: str) -> Held:
        self._known(name)
        if name not in self._held:
            self._hold(name, Artifact.from_pretrained(self._sources[name]))
        self._held.move_to_end(name)
        return self._held[name]

    def _known(self, name: str) -> None:
        known = ", ".join(self._sources) or "none"
        check(name in self._sources, f"adapter '{name}' is not in the bank. It has {known}.")

    def _check_size(self, name: str, artifact: Artifact) -> None:
        check(
            artifact.bytes <= self.most_bytes,
            f"adapter '{name}': {artifact.bytes:,} bytes, but the bank holds at most {self.most_bytes:,}.",
        )

    def _bones(self, artifact: Artifact) -> Backbone:
        """The skeleton of the backbone as the adapter's modalities see it; raises FusetuneError if it has another."""
        data = artifact.data()
        key = (*data.modalities, data.use_trunk, digest(data.task))
        with self._lock:
            part = self._part(data)
            check_base(part, data, artifact.config["base_fingerprint"], self.base)
            if key not in self._skeletons:
                self._skeletons[key] = skeleton(part)
            return self._skeletons[key]

    def _hold(self, name: str, artifact: Artifact, fitted: bool = False) -> None:
        self._check_size(name, artifact)
        data = artifact.data()
        part = self._part(data)
        model = artifact.onto(part, self.base, fitted)
        model.requires_grad_(False)
        model.detach()
        model.to(self.device)
        self._dropped(name)
        while self._held and self.bytes + artifact.bytes > self.most_bytes:
            self._dropped(next(iter(self._held)))
        self._held[name] = Held(name, data, model, part, artifact.frontier, shared(model), artifact.bytes)

    def _dropped(self, name: str) -> None:
        self._held.pop(name, None)
        self._tables.clear()

    def _part(self, data: DataSettings) -> Backbone:
        have: dict[str, Any] = dict(self._whole.towers) if self._whole else {}
        missing = {name: modality.kind for name, modality in data.modalities.items() if name not in have}
        if missing:
            more = Backbone.from_pretrained(self.base, missing)
            trunk, origin, beside = more.trunk, more.origin, more.beside
            if self._whole:
                trunk, origin = self._whole.trunk or trunk, self._whole.origin or origin
                beside = (*self._whole.beside, *beside)
            self._whole = Backbone(have | dict(more.towers), trunk, origin, beside).to(self.device)
        assert self._whole
        return answering(self._whole.part(list(data.modalities), data.use_trunk), data)


def _rows_by(keys: Sequence[Any]) -> dict[Any, list[int]]:
    rows: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return rows


def _of(streams: Mapping[str, Tokens], rows: Sequence[int]) -> dict[str, Tokens]:
    if len(rows) == len(next(iter(streams.values())).values):
        return dict(streams)
    return {name: Tokens(tokens.values[rows], tokens.mask[rows]) for name, tokens in streams.items()}
