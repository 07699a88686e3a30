"""Which blocks a placement means: names and presets become block numbers, scaled to the backbone's depth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusetune.config import build, check
from fusetune.errors import FusetuneError

VISION, LANGUAGE = ("image", "video"), ("text",)
REFERENCE_DEPTH = 12  # blocks of the towers that the presets were written for (CLIP ViT-B, BERT-base)


@dataclass(frozen=True)
class AdaptiveRank:
    """A rank by relative depth.

    Attributes:
        until: shares of the depth, rising, at which the next rank begins.
        ranks: one more than shares.
    """

    until: tuple[float, ...] = (0.25, 0.75)
    ranks: tuple[int, ...] = (8, 32, 16)

    def __post_init__(self) -> None:
        check(
            list(self.until) == sorted(self.until), f"adaptive_rank.until: expected rising shares, found {self.until}."
        )
        check(
            len(self.ranks) == len(self.until) + 1,
            f"adaptive_rank.ranks: expected {len(self.until) + 1}, one more than `until`, found {len(self.ranks)}.",
        )

    def at(self, number: int, depth: int) -> int:
        """The rank of block `number` of `depth`."""
        return self.ranks[sum(number >= share * depth for share in self.until)]


@dataclass(frozen=True)
class Selection:
    """
    Attributes:
        take: all, top, bottom, sparse, vision_only, language_only, explicit, or a preset: visual_grounding,
            image_captioning, vqa.
        count: blocks of `top` and `bottom`.
        every: `sparse` takes each n-th block, counted from the top.
        modalities: only these towers; none named: all.
        explicit: block numbers by modality (``trunk`` for the trunk), for `take: explicit`.
        ranks: the adapter's size by modality: one number, or a list with one for each chosen block.
        adaptive_rank: the adapter's size by depth.
    """

    take: str = "all"
    count: int = 2
    every: int = 2
    modalities: tuple[str, ...] = ()
    explicit: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranks: Mapping[str, Any] = field(default_factory=dict)
    adaptive_rank: AdaptiveRank | None = None

    def __post_init__(self) -> None:
        check(self.take in RULES, f"blocks.take: '{self.take}' is unknown. Known: {', '.join(RULES)}.")
        for name in ("count", "every"):
            check(getattr(self, name) > 0, f"blocks.{name}: expected at least 1, found {getattr(self, name)}.")
        check(
            bool(self.explicit) == (self.take == "explicit"),
            "blocks.explicit: goes with `take: explicit`, and `take: explicit` needs block numbers by modality.",
        )
        check(not (self.ranks and self.adaptive_rank), "blocks: expected ranks or adaptive_rank, found both.")


@dataclass(frozen=True)
class Choice:
    """What a stack offers: its name, its modality's kind (``trunk`` for the trunk) and its number of blocks."""

    name: str
    kind: str
    depth: int


def _top(depth: int, count: int) -> list[int]:
    return list(range(max(0, depth - count), depth))


def _scaled(count: int, depth: int) -> int:
    """`count` of twelve blocks, of `depth` blocks."""
    return max(1, round(count * depth / REFERENCE_DEPTH))


Rule = Callable[[Selection, Choice], list[int]]


def _visual_grounding(_: Selection, c: Choice) -> list[int]:
    if c.kind in VISION:
        return list(range(_scaled(6, c.depth)))
    return _top(c.depth, _scaled(2, c.depth)) if c.kind in LANGUAGE else []


def _image_captioning(_: Selection, c: Choice) -> list[int]:
    if c.kind in VISION:
        return _top(c.depth, _scaled(2, c.depth))
    return list(range(c.depth)) if c.kind in LANGUAGE else []


def _sparse(s: Selection, c: Choice) -> list[int]:
    return list(range(c.depth))[::-1][:: s.every][::-1]


RULES: dict[str, Rule] = {
    "all": lambda s, c: list(range(c.depth)),
    "top": lambda s, c: _top(c.depth, s.count),
    "bottom": lambda s, c: list(range(min(s.count, c.depth))),
    "sparse": _sparse,
    "vision_only": lambda s, c: list(range(c.depth)) if c.kind in VISION else [],
    "language_only": lambda s, c: list(range(c.depth)) if c.kind in LANGUAGE else [],
    "explicit": lambda s, c: list(s.explicit.get(c.name, ())),
    "visual_grounding": _visual_grounding,
    "image_captioning": _image_captioning,
    "vqa": lambda s, c: _sparse(s, c) if c.kind in VISION + LANGUAGE else [],
}
PRESET_RANKS = {"visual_grounding": 32, "image_captioning": 16, "vqa": 24}


def choose(blocks: Any, offered: Sequence[Choice], where: str) -> dict[str, dict[int, int | None]]:
    """Block number -> rank (None: the adapter's own) by stack, for the stacks in which anything was chosen.

    Args:
        blocks: a name (`all`, `top`, ...) or the settings of a `Selection`.
        offered: the stacks that there are.

    Raises:
        FusetuneError: nothing matches, or a block, modality or rank that isn't there; it lists what is.
    """
    selection = build(Selection, {"take": blocks} if isinstance(blocks, str) else blocks, f"{where}.blocks")
    there = ", ".join(f"{c.name} ({c.kind}, blocks 0 to {c.depth - 1})" for c in offered) or "nothing"
    names = [c.name for c in offered]
    for name in (*selection.modalities, *selection.explicit, *selection.ranks):
        if name not in names:
            raise FusetuneError(f"{where}.blocks: there is no '{name}' here. There is {there}.")
    found: dict[str, dict[int, int | None]] = {}
    for choice in offered:
        if selection.modalities and choice.name not in selection.modalities:
            continue
        numbers = RULES[selection.take](selection, choice)
        outside = [number for number in numbers if not 0 <= number < choice.depth]
        if outside:
            raise FusetuneError(f"{where}.blocks: '{choice.name}' has no block {outside[0]}. There is {there}.")
        if numbers:
            found[choice.name] = dict(zip(numbers, _ranks(selection, choice, numbers, where), strict=True))
    if not found:
        raise FusetuneError(f"{where}.blocks: '{selection.take}' matches no block. There is {there}.")
    return found


def _ranks(selection: Selection, choice: Choice, numbers: Sequence[int], where: str) -> list[int | None]:
    if selection.adaptive_rank:
        return [selection.adaptive_rank.at(number, choice.depth) for number in numbers]
    given = selection.ranks.get(choice.name, PRESET_RANKS.get(selection.take))
    ranks = list(given) if isinstance(given, list | tuple) else [given] * len(numbers)
    well = len(ranks) == len(numbers) and all(r is None or (type(r) is int and r > 0) for r in ranks)
    check(
        well,
        f"{where}.blocks.ranks.{choice.name}: expected a positive whole number, or one for each of the "
        f"{len(numbers)} chosen blocks, found {given}.",
    )
    return ranks


def names_ranks(blocks: Any) -> bool:
    """Whether a user asked for ranks himself; an adapter without a size then refuses."""
    return isinstance(blocks, Mapping) and bool(blocks.get("ranks") or blocks.get("adaptive_rank"))
