"""A backbone: towers by modality and, where the model has one, a trunk; saved, loaded and fingerprinted as one."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fusetune.backbones.common_space import Space
from fusetune.backbones.composite.loading import CompositeSource, load_parts, resolved
from fusetune.backbones.on_disk import read, write
from fusetune.backbones.sharing import separate, share, shared
from fusetune.backbones.tower import Tower, fingerprint
from fusetune.config import digest
from fusetune.errors import FusetuneError, SampleError
from fusetune.tokens import Tokens

_TOKENIZERS = threading.Lock()  # a fast tokenizer that two threads ask at once raises 'Already borrowed'


@dataclass(frozen=True)
class Frontier:
    """The deepest depths below which nothing is trainable and nothing random happens.

    Attributes:
        towers: by modality.
        trunk: depth in the trunk; 0 where there is none or where a tower below it isn't done.
    """

    towers: Mapping[str, int]
    trunk: int = 0

    def __str__(self) -> str:
        depths = [f"{name} {depth}" for name, depth in self.towers.items()]
        return ", ".join([*depths, f"trunk {self.trunk}"] if self.trunk else depths)


class Backbone(nn.Module):
    """Frozen, and always in eval mode: dropout and batch statistics stay off even while an adapter trains.

    Args:
        towers: by modality.
        trunk: the fusion blocks on top, if any: a `trunk.Trunk`, or the language blocks of a composite model.
        origin: of a composite model, which is saved by reference as a whole.
        beside: modalities with towers from elsewhere, whose streams pass by the trunk and meet the others behind it: a
            robot's state beside a model of pictures and texts.
    """

    def __init__(
        self,
        towers: Mapping[str, Tower],
        trunk: Any = None,
        origin: CompositeSource | None = None,
        beside: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.origin, self.beside = origin, tuple(beside)
        self.towers = nn.ModuleDict(towers)
        self.trunk = trunk
        self.folder: str | Path | None = None  # or hub id, that it was loaded from
        self._fingerprints: dict[str, str] = {}
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> "Backbone":
        """Towers on the same weights are so on another device too."""
        together = shared(self.parameters())
        super()._apply(fn, recurse)
        share(together)
        return self

    def separate(self, changing: Iterable[nn.Parameter]) -> None:
        """Before some of the parameters change: towers that were on the same weights keep theirs."""
        separate(changing, self.parameters())

    def tower(self, modality: str) -> Tower:
        if modality not in self.towers:
            raise FusetuneError(f"backbone: no tower for '{modality}'; it has {', '.join(self.towers)}.")
        return self.towers[modality]  # type: ignore[return-value]

    def probes(self) -> dict[str, Mapping[str, float]]:
        """What a linear probe said of each tower that `align` fitted, by modality."""
        return {name: tower.probe for name, tower in self.towers.items() if tower.probe}  # type: ignore[misc]

    def sources(self) -> dict[str, str]:
        """The hub ids and folders that towers came from, by modality; of towers that were made here, none."""
        origins = {name: self.origin_of(name) for name in self.towers}
        return {name: origin.source for name, origin in origins.items() if origin}

    def in_trunk(self, streams: Mapping[str, Any]) -> dict[str, Any]:
        """Those that the trunk takes."""
        return {name: stream for name, stream in streams.items() if name not in self.beside}

    def origin_of(self, name: str) -> Any:
        """Where a tower came from; None: it was made here."""
        return self.tower(name).origin or (None if name in self.beside else self.origin)

    def stack(self, name: str) -> nn.Module:
        """A tower by its modality, or the trunk."""
        if name == "trunk" and self.trunk is not None:
            return self.trunk
        return self.tower(name)

    def widths(self, modalities: Sequence[str]) -> dict[str, int]:
        """Floats per token of each stream at the junction."""
        own = getattr(self.trunk, "own_widths", {})  # of what passes through a trunk as it is
        met = {m for m in modalities if self.trunk and m not in self.beside}
        return {m: own.get(m, self.trunk.width) if m in met else self.tower(m).width for m in modalities}

    def spaces(self, modalities: Sequence[str]) -> dict[str, Space]:
        """The common space of each tower that has one; {} where the streams meet in a trunk first."""
        found = {} if self.trunk else {name: self.tower(name).space() for name in modalities}
        return {name: space for name, space in found.items() if space}

    def embed(self, streams: Mapping[str, Tokens], modalities: Sequence[str]) -> dict[str, Tensor]:
        """Some streams at the top of their towers in the towers' common space, (batch, width)."""
        return {name: self.tower(name).embed(streams[name]) for name in modalities}

    def fingerprint(self, modalities: Sequence[str] | None = None) -> str:
        """SHA-256 (hex) of the weights and preprocessing that the given modalities pass through."""
        parts = {name: self.fingerprint_of(name) for name in sorted(modalities or self.towers)}
        if self.trunk:
            parts["trunk"] = self.fingerprint_of("trunk")
        return digest(parts)

    def fingerprint_of(self, name: str) -> str:
        """The same of one tower, or of the trunk."""
        if name in self._fingerprints:
            return self._fingerprints[name]
        stack: Any = self.stack(name)
        return stack.fingerprint() if hasattr(stack, "fingerprint") else fingerprint(stack.state_dict())

    def remember_fingerprints(self) -> None:
        """Keep the fingerprints of the weights as they are now, whatever an adapter does to them afterwards."""
        if any(parameter.is_meta for parameter in self.parameters()):
            return  # no weights, nothing that anybody could load or cache
        for name in [*self.towers, "trunk"] if self.trunk else list(self.towers):
            self._fingerprints[name] = self.fingerprint_of(name)

    def take_answers(self, name: str, most: int) -> "Backbone":
        """With a stream of answers, of at most so many tokens, that the language model's own head learns to give.

        Raises:
            FusetuneError: no model that speaks.
        """
        if not self.origin:
            raise FusetuneError(
                "data.task: answers in words need a model that speaks. Expected backbone.source: the hub id or folder "
                "of a vision-language model (LLaVA, PaliGemma)."
            )
        if self.beside:
            raise FusetuneError(
                f"data.task: answers in words are the model's own, and it never meets {', '.join(self.beside)}. Leave "
                "it out of data.modalities, or expect a task with a head of its own."
            )
        self.towers[name] = self.trunk.take_answers(name, most)
        return self

    def part(self, modalities: Sequence[str], use_trunk: bool = True) -> "Backbone":
        """A backbone of some of the towers, the very modules, with the trunk or without it."""
        trunk = self.trunk if use_trunk else None
        beside = [name for name in self.beside if name in modalities]
        part = Backbone({name: self.tower(name) for name in modalities}, trunk, self.origin, beside)
        part._fingerprints = self._fingerprints
        return part

    def prepare(self, samples: Mapping[str, Sequence[Any]]) -> dict[str, Tokens]:
        """Decoded samples by modality to tokens at depth 0; several threads may ask at once.

        Raises:
            SampleError: a tower can't take a sample.
        """
        found = {}
        for name, column in samples.items():
            tower = self.tower(name)
            with _TOKENIZERS if tower.kind == "text" else nullcontext():
                try:
                    found[name] = tower.prepare(column)
                except FusetuneError:
                    _find_fault(tower, name, column)
                    raise
        return found

    def full_depth(self, modalities: Sequence[str]) -> Frontier:
        """The top of everything: where a method that touches nothing of the backbone starts."""
        return Frontier({m: self.tower(m).depth for m in modalities}, self.trunk.depth if self.trunk else 0)

    def advance(self, streams: Mapping[str, Tokens], start: Frontier, stop: Frontier) -> dict[str, Tokens]:
        """Run towers, then trunk, from one frontier to another; `stop.trunk` > 0 needs every tower at its top."""
        states = self.advance_towers(streams, start.towers, stop.towers)
        return states | self.trunk.advance(self.in_trunk(states), start.trunk, stop.trunk) if self.trunk else states

    def advance_towers(
        self, streams: Mapping[str, Tokens], start: Mapping[str, int], stop: Mapping[str, int]
    ) -> dict[str, Tokens]:
        """Run towers alone, each from its depth in `start` to that in `stop`."""
        return {m: self.tower(m).advance(tokens, start[m], stop[m]) for m, tokens in streams.items()}

    def save_pretrained(self, folder: Path) -> None:
        """Write towers and trunk, each a folder, and the index that names them.

        A tower that was loaded from a hub id or a folder is named in the index, not copied.
        """
        write(self, folder)

    @classmethod
    def from_pretrained(cls, source: str | Path, modalities: Mapping[str, str] | None = None) -> "Backbone":
        """Load a backbone.

        Args:
            source: a folder that `save_pretrained` wrote, an experiment's reference to one (``base.json``), or the hub
                id or folder of a `transformers` model; of a composite model (CLIP) the image and the text tower are
                taken.
            modalities: name -> kind; only these are loaded (default: all that a saved backbone holds).

        Raises:
            FusetuneError: no such tower, or a model that is referenced and has changed since.
        """
        found: Backbone = read(cls, source, modalities)
        found.folder = source
        return found

    def joined(self, others: "Backbone", order: Iterable[str]) -> "Backbone":
        """A composite model with towers from elsewhere beside it, in this order of modalities."""
        towers = {name: self.tower(name) if name in self.towers else others.tower(name) for name in order}
        joined = Backbone(towers, self.trunk, self.origin, list(others.towers))
        joined._fingerprints = {**others._fingerprints, **self._fingerprints}
        return joined

    @classmethod
    def from_composite(cls, chosen: CompositeSource, kinds: Mapping[str, str]) -> "Backbone":
        """A composite model's tower of pictures, tower of words and language blocks; raises as `load_parts` does."""
        chosen = resolved(chosen)
        backbone = cls(*load_parts(chosen, kinds), chosen)
        if chosen.quantise:
            backbone.trunk.quantise(chosen.quantise)
        return backbone


def _find_fault(tower: Tower, name: str, column: Sequence[Any]) -> None:
    """Raise SampleError for the first sample that a tower can't take by itself."""
    for number, sample in enumerate(column):
        try:
            tower.prepare([sample])
        except FusetuneError as error:
            raise SampleError(number, name, str(error)) from None
