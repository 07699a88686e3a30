"""The contract of a world."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

SUCCESS = "success"


class Episode(ABC):
    """One attempt at one instruction, from its beginning to its end.

    Attributes:
        kind: of instruction; results are told by it.
        outcome: `SUCCESS`, or in words what went wrong; '' while it goes on.
        steps: actions that were carried out.
    """

    kind: str = ""
    outcome: str = ""
    steps: int = 0

    @abstractmethod
    def observation(self) -> dict[str, Any]:
        """What is seen now, as a manifest's cells by column: pictures as bytes, instruction, proprioception."""

    @abstractmethod
    def act(self, action: NDArray[np.float64]) -> None:
        """Carry out one action, (numbers,), in the data's own units."""

    @abstractmethod
    def picture(self) -> Any:
        """What a person would see of it, a PIL image."""


Policy = Callable[[Any, random.Random], NDArray[np.float64]]  # of an episode of its own world


class World(ABC):
    """Where episodes come from: the same seed gives the same episode, whoever acts.

    Attributes:
        references: by name, policies that know the world from inside: what can be reached, and what comes by chance.
    """

    Config: ClassVar[type[Any]]
    references: ClassVar[Mapping[str, Policy]] = {}

    @abstractmethod
    def __init__(self, config: Any) -> None: ...

    @abstractmethod
    def episode(self, seed: str) -> Episode: ...
