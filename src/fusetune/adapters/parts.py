"""Finding the parts of a block that an adapter inside it acts on."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from fusetune.adapters.adapter import Block, Stack
from fusetune.errors import FusetuneError


class Instead:
    """One module's forward is another one until `remove()`; hooks on the module see neither's inside."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self.module = module
        module.__dict__["forward"] = forward

    def remove(self) -> None:
        self.module.__dict__.pop("forward", None)


def part(stack: Stack, block: Block, role: str) -> nn.Module:
    """The module of a role (`query`, `mlp_output`, ...) or of a path in the block.

    Raises:
        FusetuneError: there is none; it lists the roles and the linear layers that there are.
    """
    try:
        return block.module.get_submodule(_path(stack, block, role))
    except AttributeError:
        layers = [name for name, module in block.module.named_modules() if isinstance(module, nn.Linear)]
        raise FusetuneError(
            f"block {block.number} of '{stack.name}' has no part '{role}'. Roles: {', '.join(stack.roles) or 'none'}; "
            f"linear layers: {', '.join(layers) or 'none'}."
        ) from None


def linear(stack: Stack, block: Block, role: str) -> Any:
    """The same, for a part that has to be a linear layer (or what `peft` has put in its place)."""
    module = part(stack, block, role)
    if not hasattr(module, "in_features"):
        raise FusetuneError(f"part '{role}' of block {block.number} of '{stack.name}' is no linear layer.")
    return module


def has_parts(stack: Stack, block: Block, roles: Sequence[str]) -> bool:
    """Whether the block has all of these parts."""
    return all(_has(block.module, _path(stack, block, role)) for role in roles)


def fitting(stack: Stack, blocks: Sequence[Block], roles: Sequence[str]) -> tuple[list[Block], frozenset[str]]:
    """The blocks that have all of these parts; and the parts, as missing, where none has."""
    found = [block for block in blocks if has_parts(stack, block, roles)]
    return found, frozenset() if found else frozenset(roles)


def name_in(stack: Stack, module: nn.Module) -> str:
    """The path of a module in its stack."""
    return next(name for name, other in stack.module.named_modules() if other is module)


def _path(stack: Stack, block: Block, role: str) -> str:
    """Where a role is in a block.

    It is one of several paths where a stack has blocks of several kinds (T5), and that of cross-attention in a block
    that has no other attention (Mllama).
    """
    crossing = stack.roles.get("cross_output" if role == "attention_output" else f"cross_{role}")
    known = [*stack.roles.get(role, role).split("|"), *(crossing.split("|") if crossing else ())]
    return next((path for path in known if _has(block.module, path)), known[0])


def _has(module: nn.Module, path: str) -> bool:
    """Whether a module is there."""
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True
