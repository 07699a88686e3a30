"""Adapters that were trained before, as parts of new plans: read from their folders.

Nothing heavy is imported here: whether a node is up to date depends on these folders.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusetune.config import to_plain
from fusetune.errors import FusetuneError

if TYPE_CHECKING:
    from torch import Tensor

    from fusetune.adapters.adapter import Stream

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def load_trained(folder: str, streams: "Mapping[str, Stream]") -> "tuple[str, Mapping[str, Any], dict[str, Tensor]]":
    """Name, config and tensors of the first adapter at the junction of a trained adapter's folder.

    Raises:
        FusetuneError: no such folder, nothing at the junction, or streams of another shape.
    """
    config, tensors = read_folder(folder)
    placement = _first_at_junction(folder, config)
    if config["streams"] != to_plain(streams):
        raise FusetuneError(
            f"{folder}: trained on streams {config['streams']}, here they are {to_plain(streams)}. "
            "Take an adapter of the same data and base."
        )
    prefix = "junction.0."
    found = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    return placement["adapter"], placement["config"], found


def _first_at_junction(folder: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    placements = [p for p in config["plan"]["placements"] if p["where"] == "junction" and not p.get("task")]
    if not placements:
        raise FusetuneError(f"{folder}: '{config['method']}' has no adapter at the junction that could be taken.")
    return placements[0]


def read_folder(
    folder: str | Path, expected: str = "the folder of a trained adapter", todo: str = "Train it first."
) -> "tuple[dict[str, Any], dict[str, Tensor]]":
    """The config and the tensors of a trained adapter's folder; raises FusetuneError if it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return json.loads(Path(folder, CONFIG).read_text()), load_file(Path(folder, WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        raise FusetuneError(f"{folder}: expected {expected} ({error}). {todo}") from None


def self_contained(plan: Any) -> Any:
    """The plan without folders: a `trained` member by its name and config, what was `pretrained` as it is now.

    Their tensors go with the artifact.
    """
    if isinstance(plan, Mapping):
        if isinstance((plan.get("config") or {}).get("trained"), str):  # a placement that takes one as it is
            return {**plan, "config": {**plan["config"], "trained": None, "frozen": True}}
        if isinstance(plan.get("trained"), str):
            placement = _first_at_junction(plan["trained"], read_folder(plan["trained"])[0])
            return {"adapter": placement["adapter"], "config": self_contained(placement["config"]), "frozen": True}
        return {key: self_contained(value) for key, value in plan.items() if key not in ("orthogonal", "pretrained")}
    return [self_contained(value) for value in plan] if isinstance(plan, list | tuple) else plan


def folders_in(plan: Any) -> list[str]:
    """The folders of trained adapters that a plan names, anywhere in it."""
    if isinstance(plan, Mapping):
        named = [plan["trained"]] if isinstance(plan.get("trained"), str) else []
        against = plan.get("orthogonal")
        named += list(against.get("to", ())) if isinstance(against, Mapping) else []
        named += [plan["pretrained"]] if isinstance(plan.get("pretrained"), str) else []
        return named + [folder for value in plan.values() for folder in folders_in(value)]
    if isinstance(plan, list | tuple):
        return [folder for value in plan for folder in folders_in(value)]
    return []
