"""A backbone in its folder: `backbone.json`, which names towers and trunk, and a folder for each that was made here."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusetune.backbones import towers as tower_registry
from fusetune.backbones.bases import FORMAT, INDEX, opened, read_index
from fusetune.backbones.composite.loading import CompositeSource
from fusetune.backbones.sharing import twin
from fusetune.backbones.sources import TowerSource, registered_tower, towers_from
from fusetune.backbones.tower import Tower
from fusetune.backbones.trunk import Trunk
from fusetune.config import digest, to_plain
from fusetune.errors import FusetuneError

COMPOSITE = "composite"  # in an index: what the whole base is loaded from


def write(backbone: Any, folder: Path) -> None:
    """As `Backbone.save_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"format": FORMAT, "towers": {}, "trunk": None}
    if backbone.origin:
        kinds = {name: tower.kind for name, tower in backbone.in_trunk(dict(backbone.towers.items())).items()}
        index[COMPOSITE] = {
            **to_plain(backbone.origin),
            "source": _seen_from(folder, backbone.origin.source),
            "kinds": kinds,
        }
    for name, tower in backbone.towers.items():
        origin = backbone.origin_of(name)
        if not origin:
            tower.save_pretrained(folder / _own(name))
        index["towers"][name] = {
            "tower": getattr(tower, "registered", tower.kind),
            "source": _seen_from(folder, origin.source) if origin else _own(name),
            "options": tower.origin.options() if tower.origin else {},
            "fingerprint": backbone.fingerprint_of(name),
        }
        if tower.probe:
            index["towers"][name]["probe"] = tower.probe
    if backbone.trunk:
        if not backbone.origin:
            backbone.trunk.save_pretrained(folder / "trunk")
        index["trunk"], index["trunk_fingerprint"] = "trunk", backbone.fingerprint_of("trunk")
    index["fingerprint"] = backbone.fingerprint()
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def read(cls: Any, source: str | Path, modalities: Mapping[str, str] | None) -> Any:
    """As `Backbone.from_pretrained`, of whose class the backbone is."""
    source = opened(source)
    if not (Path(source) / INDEX).is_file():
        kinds, chosen = modalities or {"image": "image", "text": "text"}, TowerSource(str(source))
        return cls(towers_from(dict.fromkeys(kinds, chosen), kinds))
    index = read_index(Path(source))
    unknown = sorted(set(modalities or ()) - set(index["towers"]))
    if unknown:
        raise FusetuneError(f"{Path(source, INDEX)}: no tower for {unknown}; it holds {sorted(index['towers'])}.")
    wanted = [name for name in index["towers"] if modalities is None or name in modalities]
    if COMPOSITE not in index:
        return _towers(cls, index, wanted, Path(source))
    others = [name for name in wanted if name not in index[COMPOSITE]["kinds"]]
    beside = _towers(cls, index, others, Path(source))
    beside.beside = tuple(others)
    if others == wanted:
        return beside
    whole = _composite(cls, index, wanted, Path(source, INDEX))
    return whole.joined(beside, wanted) if others else whole


def _towers(cls: Any, index: Mapping[str, Any], wanted: Sequence[str], source: Path) -> Any:
    """Those of a base with a tower a modality, and its trunk."""
    entries = {name: index["towers"][name] for name in wanted}
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
    own_trunk = index["trunk"] and COMPOSITE not in index
    trunk = Trunk.from_pretrained(Path(source, index["trunk"])) if own_trunk else None
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


def _composite(cls: Any, index: Mapping[str, Any], wanted: Sequence[str], file: Path) -> Any:
    options = dict(index[COMPOSITE])
    kinds = {name: kind for name, kind in options.pop("kinds").items() if name in wanted}
    options["source"] = _found_from(file.parent, options["source"])
    backbone = cls.from_composite(CompositeSource(**options), kinds)
    backbone.remember_fingerprints()
    expected = {name: index["towers"][name]["fingerprint"] for name in kinds} | {"trunk": index["trunk_fingerprint"]}
    if backbone._fingerprints != expected:
        raise FusetuneError(f"{file}: '{options['source']}' has changed since; run `pretrain` again.")
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
