"""Mappings from YAML become frozen dataclasses; a key that nobody knows is an error, not a silence."""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from fusetune.errors import FusetuneError

T = TypeVar("T")
PLAIN = frozenset((str, int, float, bool, type(None)))  # what JSON holds as it is


def build(cls: type[T], values: Mapping[str, Any] | None, where: str) -> T:
    """Make the dataclass `cls` of `values`; nested dataclasses are built too.

    Args:
        where: what the values are called for the user, e.g. ``train`` or ``wander.placements[0]``.

    Raises:
        FusetuneError: names the key, what was expected, and the keys that are known.
    """
    if isinstance(values, cls):
        return values
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise FusetuneError(f"{where}: expected a mapping of settings, found {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    check_keys(values, fields, where)
    hints = typing.get_type_hints(cls)
    made = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in made and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise FusetuneError(f"{where}: the required key '{missing[0]}' is not there.")
    return cls(**made)


def check_keys(values: Mapping[str, Any], known: typing.Iterable[str], where: str) -> None:
    """Raise for the first key of `values` that is not in `known`, and suggest the nearest."""
    known = sorted(known)
    for key in values:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise FusetuneError(f"{where}: unknown key '{key}'.{hint} Known keys: {', '.join(known)}.")


def check(condition: bool, message: str) -> None:
    """Raise `message` for the user unless `condition` holds."""
    if not condition:
        raise FusetuneError(message)


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        plain = all(type(item) in PLAIN for item in value)
        return list(value) if plain else [to_plain(item) for item in value]
    return value


def digest(value: Any) -> str:
    """SHA-256 (hex) of a value's canonical JSON: the same settings give the same digest, in any key order."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def canonical(value: Any) -> str:
    """A value as JSON, in one way whatever the order of its keys."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"))


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        hint = next(a for a in arguments if a is not type(None))
        return _convert(hint, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where)
    if origin is tuple and not isinstance(value, list | tuple):
        raise FusetuneError(f"{where}: expected a list, found {value!r} ({type(value).__name__}).")
    if origin is tuple:
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
    if is_mapping and not isinstance(value, Mapping):
        raise FusetuneError(f"{where}: expected a mapping, found {value!r} ({type(value).__name__}).")
    if is_mapping:
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, str):
        value = _number(value, where)  # YAML 1.1 reads 1e-3 (no dot) as text
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise FusetuneError(f"{where}: expected {hint.__name__}, found {value!r} ({type(value).__name__}).")
    return value


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise FusetuneError(f"{where}: expected float, found {text!r} (str).") from None
