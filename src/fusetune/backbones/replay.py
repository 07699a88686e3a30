"""Entering and leaving a model's stack of blocks at any depth, exactly.

Leaving: a hook in front of block `stop` keeps its input and stops the forward pass. Entering: the model's own forward
runs (so masks, position codes and the final norm are its own), but what stands before the blocks, and the blocks before
`start`, do nothing, and a hook puts the given states in front of block `start`. In eval mode and float32 the outputs
equal those of an undivided run bit by bit.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from fusetune.backbones.families import Family

HOOKS = ("_forward_pre_hooks", "_forward_hooks")
STATES = "hidden_states"  # what blocks of `transformers` call their input where it is given by name


class Left(Exception):
    """Carries the hidden states out of a forward pass that stops early."""

    def __init__(self, hidden_states: Tensor) -> None:
        self.hidden_states = hidden_states


@contextmanager
def entered(model: nn.Module, family: Family, states: Tensor, start: int) -> Iterator[None]:
    """While this lasts, a forward pass of `model` starts at block `start`, with `states` (rows, tokens, width)."""
    blocks = model.get_submodule(family.blocks)
    with ExitStack() as stack:
        for path, stub in family.stubs.items():
            stack.enter_context(forward_of(model.get_submodule(path), lambda *_, stub=stub, **__: stub(states)))
        stack.enter_context(skipped(list(blocks.children())[:start]))
        stack.enter_context(put_at(blocks.get_submodule(str(start)), states))
        yield


@contextmanager
def skipped(blocks: Iterable[nn.Module], through: Callable[..., Any] | None = None) -> Iterator[None]:
    """While this lasts, these blocks hand on what they are given; weights that lie elsewhere stay there.

    Args:
        through: their forward then; None: the states as they are.
    """

    def same(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(forward_of(block, through or same))
            stack.enter_context(_unfetched(block))
        yield


@contextmanager
def fetched(block: nn.Module) -> Iterator[None]:
    """What is hooked into a block while this lasts fetches its weights, and rests where the block is `skipped`."""
    before = {name: set(getattr(block, name)) for name in HOOKS}
    yield
    block.__dict__["fetching"] = {name: [n for n in getattr(block, name) if n not in before[name]] for name in HOOKS}


@contextmanager
def _unfetched(block: nn.Module) -> Iterator[None]:
    taken = {n: {i: getattr(block, n).pop(i) for i in own} for n, own in block.__dict__.get("fetching", {}).items()}
    try:
        yield
    finally:
        for name, hooks in taken.items():
            for number, hook in hooks.items():
                getattr(block, name)[number] = hook
                getattr(block, name).move_to_end(number, last=name == HOOKS[1])  # in front of others, then behind them


@contextmanager
def put_at(module: nn.Module, states: Tensor, argument: str = STATES) -> Iterator[None]:
    """While this lasts, a module gets `states` as its argument of this name, or as its first where none has it."""

    def put(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if argument in kwargs:
            return args, {**kwargs, argument: states}
        return (states, *args[1:]), kwargs

    hook = module.register_forward_pre_hook(put, with_kwargs=True, prepend=True)  # in front of what adapters do there
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def left_at(module: nn.Module, argument: str = STATES) -> Iterator[None]:
    """While this lasts, a forward pass ends in front of a module, by raising `Left` with what `put_at` would put."""

    def leave(_: nn.Module, args: Any, kwargs: Any) -> None:
        raise Left(kwargs[argument] if argument in kwargs else args[0])

    hook = module.register_forward_pre_hook(leave, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def left_behind(module: nn.Module) -> Iterator[None]:
    """The same behind a module, with what it gives."""

    def leave(_: nn.Module, args: Any, out: Tensor) -> None:
        raise Left(out)

    hook = module.register_forward_hook(leave)
    try:
        yield
    finally:
        hook.remove()


def forward_of(module: nn.Module, function: Callable[..., Any]) -> AbstractContextManager[None]:
    """Give one module another forward for a while; parameters, hooks and names stay as they are."""
    return method_of(module, "forward", function)


@contextmanager
def method_of(module: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """The same of any method."""
    before = module.__dict__.get(name)
    module.__dict__[name] = function
    try:
        yield
    finally:
        if before is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = before
