"""A frozen base in parts, one on each device (FSDP2: Zhao et al. 2023, arXiv 2304.11277): for one that no device holds.

Each block's frozen weights are divided among the ranks. A block is put together where it runs, forward and backward,
and taken apart behind it: N devices hold 1/N of all blocks and one of them whole. What is trained (adapters, opened
weights) and what is no block's (embeddings, norms, heads) lies whole on each, so gradients, checkpoints and adapters
are those of a base that isn't divided, and so are the numbers, bit by bit.

Cost, for blocks above the cut of W bytes: W (N - 1) / N received by each rank in a forward pass, as much again in a
backward pass. Blocks below the cut stay where they are.
"""

import logging
from collections.abc import Iterator

import torch
from torch import nn

from fusetune.backbones.replay import fetched
from fusetune.config import check
from fusetune.plan.adapted import AdaptedModel
from fusetune.training.distributed import Group

logger = logging.getLogger(__name__)


def shard(model: AdaptedModel, group: Group, device: torch.device) -> None:
    """Divide the base's blocks among the ranks; from now on each of them takes part in every pass (`Group.together`).

    Blocks that are divided already stay so.

    Args:
        device: this rank's, to which its parts are moved, one block after another.

    Raises:
        FusetuneError: weights that can't be divided, or ranks that share a GPU.
    """
    if group.size == 1:
        logger.warning("train.fsdp: there is one process, which holds the whole base")
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    check(
        device.type == "cpu" or "nccl" in torch.distributed.get_backend_config(),
        f"train.fsdp: expected a GPU for each of {group.size} ranks, found {torch.cuda.device_count()}.",
    )
    todo, divided = list(_undivided(model)), 0
    mesh = init_device_mesh(device.type, (group.size,))
    for block, frozen in todo:
        kept = set(block.parameters()) - set(frozen.values())
        with fetched(block):
            fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
        model.exchange_base({old: block.get_parameter(name) for name, old in frozen.items()})
        divided += sum(_bytes(p) for p in frozen.values())
    group.together = True
    if divided and not group.rank:
        whole = sum(_bytes(p) for p in model.parameters() if not isinstance(p, DTensor))
        told = "train.fsdp: %.3f GB of blocks lie in %d parts, %.3f GB of all else whole on each device"
        logger.info(told, divided / 1e9, group.size, whole / 1e9)


def _undivided(model: AdaptedModel) -> Iterator[tuple[nn.Module, dict[str, nn.Parameter]]]:
    """The blocks that the streams pass through, each once, with what is to be divided; raises as `shard` does.

    An encoder that is one block stays whole.
    """
    from torch.distributed.fsdp import FSDPModule

    seen = set[nn.Module]()
    for name in model.stacks():
        blocks: nn.ModuleList = model.backbone.stack(name).blocks()  # type: ignore[operator]
        for i, block in enumerate(blocks if len(blocks) > 1 else ()):
            own = {n: p for n, p in block.named_parameters() if model.is_base(p) and not p.requires_grad and p.ndim}
            if block in seen or isinstance(block, FSDPModule) or not own:
                continue
            seen.add(block)
            odd = next((n for n, p in own.items() if not p.is_floating_point()), None)
            check(
                odd is None,
                f"train.fsdp: '{name}', block {i}, '{odd}' is quantised, and such weights can't be divided. Expected a "
                "base without `quantise`, or fsdp: false.",
            )
            yield block, own


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
