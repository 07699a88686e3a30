"""A backbone: towers by modality and, where the model has one, a trunk; saved, loaded and fingerprinted as one."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fusetune.backbones import towers as tower_registry
from fusetune.backbones.bases import FORMAT, INDEX, opened, read_index
from fusetune.backbones.common_space import Space
from fusetune.backbones.composite.loading import CompositeSource, load_parts, resolved
from fusetune.backbones.sharing import separate, share, shared, twin
from fusetune.backbones.sources import TowerSource, registered_tower, towers_from
from fusetune.backbones.tower import Tower, fingerprint
from fusetune.backbones.trunk import Trunk
from fusetune.config import digest, to_plain
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens

COMPOSITE = "composite"  # in an index: what the whole base is loaded from


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
    """

    def __init__(self, towers: Mapping[str, Tower], trunk: Any = None, origin: CompositeSource | None = None) -> None:
        super().__init__()
        self.origin = origin
        self.towers = nn.ModuleDict(towers)
        self.trunk = trunk
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
        origins: dict[str, Any] = {name: tower.origin or self.origin for name, tower in self.towers.items()}
        return {name: origin.source for name, origin in origins.items() if origin}

    def stack(self, name: str) -> nn.Module:
        """A tower by its modality, or the trunk."""
        if name == "trunk" and self.trunk is not None:
            return self.trunk
        return self.tower(name)

    def widths(self, modalities: Sequence[str]) -> dict[str, int]:
        """Floats per token of each stream at the junction."""
        own = getattr(self.trunk, "own_widths", {})  # of what passes through a trunk as it is
        return {m: own.get(m, self.trunk.width) if self.trunk else self.tower(m).width for m in modalities}

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
        self.towers[name] = self.trunk.take_answers(name, most)
        return self

    def part(self, modalities: Sequence[str], use_trunk: bool = True) -> "Backbone":
        """A backbone of some of the towers, the very modules, with the trunk or without it."""
        trunk = self.trunk if use_trunk else None
        part = Backbone({name: self.tower(name) for name in modalities}, trunk, self.origin)
        part._fingerprints = self._fingerprints
        return part

    def prepare(self, samples: Mapping[str, Sequence[Any]]) -> dict[str, Tokens]:
        """Decoded samples by modality to tokens at depth 0."""
        return {name: self.tower(name).prepare(column) for name, column in samples.items()}

    def full_depth(self, modalities: Sequence[str]) -> Frontier:
        """The top of everything: where a method that touches nothing of the backbone starts."""
        return Frontier({m: self.tower(m).depth for m in modalities}, self.trunk.depth if self.trunk else 0)

    def advance(self, streams: Mapping[str, Tokens], start: Frontier, stop: Frontier) -> dict[str, Tokens]:
        """Run towers, then trunk, from one frontier to another; `stop.trunk` > 0 needs every tower at its top."""
        states = self.advance_towers(streams, start.towers, stop.towers)
        return self.trunk.advance(states, start.trunk, stop.trunk) if self.trunk else states

    def advance_towers(
        self, streams: Mapping[str, Tokens], start: Mapping[str, int], stop: Mapping[str, int]
    ) -> dict[str, Tokens]:
        """Run towers alone, each from its depth in `start` to that in `stop`."""
        return {m: self.tower(m).advance(tokens, start[m], stop[m]) for m, tokens in streams.items()}

    def save_pretrained(self, folder: Path) -> None:
        """Write towers and trunk, each a folder, and the index that names them.

        A tower that was loaded from a hub id or a folder is named in the index, not copied.
        """
        folder.mkdir(parents=True, exist_ok=True)
        index: dict[str, Any] = {"format": FORMAT, "towers": {}, "trunk": None}
        if self.origin:
            kinds = {name: tower.kind for name, tower in self.towers.items()}
            index[COMPOSITE] = {
                **to_plain(self.origin),
                "source": _seen_from(folder, self.origin.source),
                "kinds": kinds,
            }
        for name, tower in self.towers.items():
            origin: Any = tower.origin or self.origin
            if not origin:
                tower.save_pretrained(folder / _own(name))  # type: ignore[operator]
            index["towers"][name] = {
                "tower": getattr(tower, "registered", tower.kind),
                "source": _seen_from(folder, origin.source) if origin else _own(name),
                "options": tower.origin.options() if tower.origin else {},  # type: ignore[union-attr, operator]
                "fingerprint": self.fingerprint_of(name),
            }
            if tower.probe:
                index["towers"][name]["probe"] = tower.probe
        if self.trunk:
            if not self.origin:
                self.trunk.save_pretrained(folder / "trunk")
            index["trunk"], index["trunk_fingerprint"] = "trunk", self.fingerprint_of("trunk")
        index["fingerprint"] = self.fingerprint()
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

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
        source = opened(source)
        if not (Path(source) / INDEX).is_file():
            kinds, chosen = modalities or {"image": "image", "text": "text"}, TowerSource(str(source))
            return cls(towers_from(dict.fromkeys(kinds, chosen), kinds))
        index = read_index(Path(source))
        unknown = sorted(set(modalities or ()) - set(index["towers"]))
        if unknown:
            raise FusetuneError(f"{Path(source, INDEX)}: no tower for {unknown}; it holds {sorted(index['towers'])}.")
        if COMPOSITE in index:
            return cls._composite(index, modalities, Path(source, INDEX))
        entries = {n: entry for n, entry in index["towers"].items() if modalities is None or n in modalities}
        loaded: dict[str, Tower] = {}
        first: dict[str, str] = {}  # modalities on the same weights, by what they say of them
        for name, entry in entries.items():
            own = entry["source"] == _own(name)
            parts = [entry["tower"], entry["fingerprint"], None if own else entry["source"], entry.get("options")]
            same = first.setdefault(digest(parts), name)
            if same != name:
                loaded[name] = twin(loaded[same])
            elif own:
                loaded[name] = tower_registry.get(entry["tower"]).from_pretrained(Path(source) / entry["source"])
            else:
                named = _found_from(Path(source), entry["source"])
                loaded[name] = registered_tower(entry["tower"], named, entry.get("options", {}))
            loaded[name].probe = entry.get("probe")
        trunk = Trunk.from_pretrained(Path(source, index["trunk"])) if index["trunk"] else None
        backbone = cls(loaded, trunk)
        known: dict[str, str] = {}
        for name in backbone.sources():
            expected = entries[name]["fingerprint"]
            found = known[expected] if expected in known else backbone.fingerprint_of(name)
            backbone._fingerprints[name] = known[expected] = found
            if found != expected:
                raise FusetuneError(
                    f"{Path(source, INDEX)}: '{entries[name]['source']}' has changed since; run `pretrain` again."
                )
        return backbone

    @classmethod
    def _composite(cls, index: Mapping[str, Any], modalities: Mapping[str, str] | None, file: Path) -> "Backbone":
        options = dict(index[COMPOSITE])
        kinds = {n: kind for n, kind in options.pop("kinds").items() if modalities is None or n in modalities}
        options["source"] = _found_from(file.parent, options["source"])
        backbone = cls.from_composite(CompositeSource(**options), kinds)
        backbone.remember_fingerprints()
        expected = {name: index["towers"][name]["fingerprint"] for name in kinds} | {
            "trunk": index["trunk_fingerprint"]
        }
        if backbone._fingerprints != expected:
            raise FusetuneError(f"{file}: '{options['source']}' has changed since; run `pretrain` again.")
        return backbone

    @classmethod
    def from_composite(cls, chosen: CompositeSource, kinds: Mapping[str, str]) -> "Backbone":
        """A composite model's tower of pictures, tower of words and language blocks; raises as `load_parts` does."""
        chosen = resolved(chosen)
        backbone = cls(*load_parts(chosen, kinds), chosen)
        if chosen.quantise:
            backbone.trunk.quantise(chosen.quantise)
        return backbone


def _seen_from(folder: Path, source: str) -> str:
    """A source that lies beside a base's folder by its relative path, so that both can move; any other as it is."""
    beside = Path(source).is_dir() and Path(source).resolve().parent == folder.resolve().parent
    return f"../{Path(source).name}" if beside else source


def _found_from(folder: Path, source: str) -> str:
    """Inverse of `_seen_from`."""
    return os.path.normpath(folder / source) if source.startswith("../") else source


def _own(name: str) -> str:
    """Where in a base's folder a tower of its own lies."""
    return f"towers/{name}"
