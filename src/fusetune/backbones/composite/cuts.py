"""Where a pass of a composite model may end or begin, and what is known there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

ENCODER, CONNECTOR, PLACES, LANGUAGE, TOP = "encoder", "connector", "places", "language", "top"
QUESTION, MEMORY = "question", "memory"
FINAL = "final"


class Cut(NamedTuple):
    """In front of which block a pass ends, or begins.

    Attributes:
        part: encoder; connector: in front of it; places: behind it, what stands at the picture's places in the text;
            question: blocks that read it with the picture, where others answer;
            memory: behind the module that makes what cross-attention reads;
            language; top: behind the last language block; final: behind the module there (a norm), where a pass may
            only end.
        block: of the encoder, of the question's blocks or of the language blocks.
    """

    part: str
    block: int = 0

    def __str__(self) -> str:
        return f"{self.part} block {self.block}" if self.part in (ENCODER, QUESTION, LANGUAGE) else self.part


@dataclass(frozen=True)
class Carried:
    """What is known at a cut.

    Attributes:
        states: what the block gets, as the model lays it out: (rows, tokens, width), and (pictures, tokens, width) or
            (patches, width) in front of a connector.
        memory: what cross-attention reads, (rows, tokens, width), from the first language block on, and in the
            question's blocks; None: the model has no cross-attention there, or the cut lies below.
    """

    states: Tensor
    memory: Tensor | None = None


def ranges(cuts: Sequence[Cut]) -> Iterator[tuple[str, int, int]]:
    """By part, its first and its last block among them."""
    by_part: dict[str, list[int]] = {}
    for cut in cuts:
        by_part.setdefault(cut.part, []).append(cut.block)
    for part, blocks in by_part.items():
        yield part, blocks[0], blocks[-1]
