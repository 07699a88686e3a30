"""A checkpoint is one safetensors file: weights, optimizer state and, in its header, where training stood."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = "checkpoint.safetensors"


def save(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write atomically: a kill leaves the checkpoint before, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FILE}.tmp"
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, {"state": json.dumps(state)})
    with temporary.open("rb+") as handle:
        os.fsync(handle.fileno())
    temporary.replace(folder / FILE)


def load(folder: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of a run with the same `key`; None where there is none."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            state = json.loads(opened.metadata()["state"])
            if state["key"] != key:
                return None
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}, state
    except (SafetensorError, KeyError, ValueError):
        return None  # not ours or not whole: training starts anew


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> dict[str, Tensor]:
    """AdamW's state by parameter name."""
    return {f"optimizer.{name}.{key}": value for p, name in names.items() for key, value in optimizer.state[p].items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str], tensors: dict[str, Tensor]
) -> None:
    """Inverse of `optimizer_tensors`."""
    for parameter, name in names.items():
        prefix = f"optimizer.{name}."
        held = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        if held:
            optimizer.state[parameter] = {
                key: value.to(parameter.device) if parameter.is_cuda or key != "step" else value
                for key, value in held.items()
            }
