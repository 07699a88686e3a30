"""Places that a method of the model packs from several tiles of a picture, behind the connector (LLaVA-NeXT)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fusetune.backbones.replay import Left, method_of


@contextmanager
def left_packed(model: Any, path: str) -> Iterator[None]:
    """While this lasts, a pass ends behind the method at this path, with (pictures, places, width)."""
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    own = getattr(module, name)

    def leave(*args: Any, **kwargs: Any) -> None:
        pictures, _ = own(*args, **kwargs)
        raise Left(torch.stack([*pictures]))

    with method_of(module, name, leave):
        yield


@contextmanager
def given_packed(model: Any, path: str, states: Tensor) -> Iterator[None]:
    """While this lasts, the method gives these states, (pictures, places, width)."""
    owner, _, name = path.rpartition(".")

    def give(*_: Any, **__: Any) -> tuple[list[Tensor], Tensor]:
        return [*states], torch.full((len(states),), states.shape[1], device=states.device)

    with method_of(model.get_submodule(owner), name, give):
        yield
