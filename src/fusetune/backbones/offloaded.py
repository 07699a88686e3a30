"""A backbone on a device that can't hold it: its blocks come out of main memory one after another, and go again.

Cost, for blocks of W bytes: W over the bus for each batch, whatever its size. 14 GB at 25 GB/s are 0.6 s; through these
7 B parameters a GPU of 400 TFLOP/s takes 128 samples of 600 tokens in 2.7 s.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.replay import fetched
from fusetune.device import free_memory

logger = logging.getLogger(__name__)
SHARE = 0.8  # of the memory that is free: the rest is for activations


@contextmanager
def placed(backbone: Backbone, device: torch.device) -> Iterator[None]:
    """While this lasts, a backbone can answer on a device, without gradients: whole where it fits, and then it stays.

    Else block by block, and then it is where it was before.
    """
    coming = {p.data_ptr(): p.numel() * p.element_size() for p in backbone.parameters() if p.device != device}
    needed = sum(coming.values())
    if needed <= free(device):
        backbone.to(device)
        yield
        return
    logger.warning(
        "the base needs %.2f GB of %s, which has %.2f GB to spare: its blocks lie in main memory and come one by one",
        needed / 1e9,
        device,
        free(device) / 1e9,
    )
    with by_block(backbone, device):
        yield


def free(device: torch.device) -> float:
    """Bytes of a GPU that a model may take; of main memory, which needs no copy, any number."""
    return SHARE * free_memory(device) if device.type == "cuda" else float("inf")


@contextmanager
def by_block(backbone: Backbone, device: torch.device) -> Iterator[None]:
    """While this lasts, blocks are on the device while they run, and all else throughout."""
    stacks: list[Any] = [*backbone.towers.values(), *([backbone.trunk] if backbone.trunk else [])]
    blocks = {block: list(block.parameters()) for stack in stacks for block in stack.blocks()}
    moving = {p for several in blocks.values() for p in several}
    tensors: list[Tensor] = [*(p for p in backbone.parameters() if p not in moving), *backbone.buffers()]
    home = {tensor: tensor.data for tensor in (*moving, *tensors)}
    hooks = []
    for block, own in blocks.items():
        with fetched(block):
            hooks.append(block.register_forward_pre_hook(lambda *_, own=own: _put(own, home, device), prepend=True))
            hooks.append(block.register_forward_hook(lambda *_, own=own: _put(own, home, None), always_call=True))
    try:
        _put(tensors, home, device)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _put(list(home), home, None)


def _put(tensors: list[Tensor], home: dict[Tensor, Tensor], device: torch.device | None) -> None:
    """Tensors on a device; None: where they were."""
    for tensor in tensors:
        tensor.data = home[tensor] if device is None else home[tensor].to(device, copy=True)
