"""What is compared, spelled out: each variant is a method with its settings, trained once a seed."""

import itertools
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from fusetune.comparison.settings import CompareSettings, MethodSettings, SearchSpace
from fusetune.errors import FusetuneError


@dataclass(frozen=True)
class Variant:
    """
    Attributes:
        name: as tables and figures call it.
        method: whose file it comes from.
        settings: what that file holds, as changed for this variant.
        changed: path -> value, of a grid, a search or the scaling.
        share: of the training samples.
        seeds: that it is trained with.
        compared: whether it stands in the comparison, or in the scaling alone.
        search: spaces by path: settings that are still to be found.
    """

    name: str
    method: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    changed: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0
    compared: bool = True
    search: Mapping[str, SearchSpace] = field(default_factory=dict)

    def found(self, changes: Mapping[str, Any]) -> "Variant":
        """This variant with what a search has found."""
        settings = changed(self.settings, changes, self.method)
        return Variant(self.name, self.method, settings, self.seeds, changes, self.share, self.compared)


def variants(settings: CompareSettings, methods: Mapping[str, Mapping[str, Any]]) -> list[Variant]:
    """
    Args:
        methods: what the methods' files hold, by name.

    Raises:
        FusetuneError: an unknown method, or a path that isn't in its file.
    """
    seeds, found = tuple(settings.seeds), []
    for name, chosen in settings.methods.items():
        own = _of_method(name, chosen, settings, methods)
        if chosen.search:
            for path in chosen.search:
                place(own, path, name)
            found.append(Variant(f"{name}, searched", name, own, seeds, search=chosen.search))
            continue
        for values in itertools.product(*chosen.grid.values()):
            changes = dict(zip(chosen.grid, values, strict=True))
            told = ", ".join([name, *(f"{path.split('.')[-1]} {value}" for path, value in changes.items())])
            found.append(Variant(told, name, changed(own, changes, name), seeds, changes))
    scaling = settings.scaling
    if scaling.method:
        own = _of_method(scaling.method, settings.methods[scaling.method], settings, methods)
        for value, share in itertools.product(scaling.values, scaling.shares):
            told = f"{scaling.method}, {scaling.path.split('.')[-1]} {value}, {share:.0%} of the samples"
            own_settings = changed(own, {scaling.path: value}, scaling.method)
            changes = {scaling.path: value}
            found.append(
                Variant(told, scaling.method, own_settings, tuple(scaling.seeds), changes, share, compared=False)
            )
    return found


def _of_method(
    name: str, chosen: MethodSettings, settings: CompareSettings, methods: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    if name not in methods:
        raise FusetuneError(f"compare.methods: unknown method '{name}'. Known: {', '.join(sorted(methods))}.")
    own = dict(methods[name])
    return changed({**own, "train": {**settings.train, **own.get("train", {})}}, chosen.set, name)


def changed(settings: Mapping[str, Any], changes: Mapping[str, Any], method: str) -> dict[str, Any]:
    """A copy with other values at dotted paths; numbers are places in a list."""
    made = deepcopy(dict(settings))
    for path, value in changes.items():
        holder, last = place(made, path, method)
        holder[last] = value
    return made


def place(settings: Any, path: str, method: str) -> tuple[Any, Any]:
    """Where a dotted path ends: the mapping or list, and the key in it; what a mapping lacks at the end may be new."""
    *parents, last = path.split(".")
    holder = settings
    for i, part in enumerate([*parents, last]):
        where = f"compare.methods.{method}, '{path}'"
        if isinstance(holder, list):
            known = part.isdigit() and int(part) < len(holder)
            if not known:
                raise FusetuneError(f"{where}: '{part}' is none of {len(holder)} entries, counted from 0.")
            part = int(part)  # type: ignore[assignment]
        elif not isinstance(holder, dict):
            raise FusetuneError(f"{where}: '{part}' stands below {holder!r}, which holds nothing.")
        elif part not in holder and i < len(parents) and part not in ("train", "config"):
            raise FusetuneError(f"{where}: there is no '{part}'. There is {', '.join(map(str, holder))}.")
        if i == len(parents):
            return holder, part
        holder = holder.setdefault(part, {}) if isinstance(holder, dict) else holder[part]
    raise AssertionError("a path has at least one part")
