"""What an adapter's JSON must look like before anything is made of it: a stranger may have written it."""

from collections.abc import Iterator, Mapping
from typing import Any

from fusetune.adapters.adapter import Stream
from fusetune.adapters.trained import folders_in
from fusetune.backbones.backbone import Frontier
from fusetune.config import build, check
from fusetune.errors import FusetuneError
from fusetune.plan.plan import Plan
from fusetune.training.data import DataSettings

KINDS: dict[str, type] = {
    "method": str,
    "base_fingerprint": str,
    "plan": Mapping,
    "data": Mapping,
    "task_state": Mapping,
    "streams": Mapping,
    "frontier": Mapping,
}
DRAWN = ("seed",)  # numbers that are no sizes


def checked_config(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The config; raises FusetuneError for a key that is missing or of another kind, and for a path of this machine."""
    for key, kind in KINDS.items():
        found = config.get(key)
        said = "settings by name" if kind is Mapping else "text"
        check(isinstance(found, kind), f"{where}: '{key}' is expected to be {said}, found {str(found)[:60]!r}.")
    paths = folders_in(config["plan"])
    check(
        not paths,
        f"{where}: it names the local folder '{''.join(map(str, paths[:1]))}'. An adapter holds all that it is made "
        "of; this one was not written by `save_pretrained`.",
    )
    build(DataSettings, config["data"], f"{where}, data")
    build(Plan, config["plan"], f"{where}, plan")
    build(Frontier, config["frontier"], f"{where}, frontier")
    for name, stream in config["streams"].items():
        made = build(Stream, stream, f"{where}, streams.{name}")
        for size in (made.width, made.max_tokens):
            check(size > 0, f"{where}, streams.{name}: expected sizes of at least 1, found {size}.")
    return config


def check_sizes(config: Mapping[str, Any], values: int, where: str) -> None:
    """Raise FusetuneError for a size in the plan that no file of so many values can hold: nothing is built of it."""
    for place, size in _whole_numbers(config["plan"].get("placements"), "placements"):
        if size > max(values, 1024):
            raise FusetuneError(
                f"{where}: {place} is {size:,}, but the tensors hold {values:,} values. The two don't belong together."
            )


def _whole_numbers(value: Any, place: str) -> Iterator[tuple[str, int]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in DRAWN:
                yield from _whole_numbers(item, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _whole_numbers(item, f"{place}.{i}")
    elif isinstance(value, int) and not isinstance(value, bool):
        yield place, value
