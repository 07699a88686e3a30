"""Plans that a search draws, site by site, as methods."""

from collections.abc import Callable, Mapping
from typing import Any

from fusetune.adapters import adapters

NOTHING = "none"
INF = float("inf")


def drawn(trial: Any, stacks: Mapping[str, int], fuses: bool, settings: Any) -> dict[str, Any]:
    """A method, as its file would have it."""
    placements: list[dict[str, Any]] = []
    for name, depth in stacks.items():
        kind = trial.suggest_categorical(f"{name}: adapter", [NOTHING, *settings.inside])
        if kind != NOTHING:
            count = trial.suggest_int(f"{name}: blocks", 1, depth)
            blocks = {"take": "top", "count": count} | ({"modalities": [name]} if name != "trunk" else {})
            where = "trunk" if name == "trunk" else "towers"
            config = _sized(kind, trial.suggest_categorical(f"{name}: rank", list(settings.ranks)))
            placements.append({"where": where, "adapter": kind, "blocks": blocks, "config": config})
    if fuses and settings.junction:
        kind = trial.suggest_categorical("junction: adapter", [NOTHING, *settings.junction])
        if kind != NOTHING:
            config = _sized(kind, trial.suggest_categorical("junction: rank", list(settings.ranks)))
            placements.append({"where": "junction", "adapter": kind, "config": config})
    placements.append({"where": "head", "adapter": trial.suggest_categorical("head", list(settings.heads))})
    return {"placements": placements}


def _sized(adapter: str, rank: int) -> dict[str, int]:
    key = adapters.get(adapter).rank_key
    return {key: rank} if key else {}


def tried_first(
    stacks: Mapping[str, int],
    fuses: bool,
    settings: Any,
    cost: Callable[[Mapping[str, Any]], float],
    budget: float,
    counts: Mapping[str, int],
) -> list[dict[str, Any]]:
    """What is tried first: each kind of adapter by itself, as large as the budget allows, where it allows it at all.

    Then what a guide says: each kind inside of the most sensitive stack, and of all of them.

    Args:
        cost: of a method; infinite where it doesn't fit the data.
        counts: of each stack the upper blocks that matter, the most sensitive stack first; {}: there is no guide.
    """
    ranks = sorted(settings.ranks, reverse=True)

    def price(chosen: Mapping[str, Any]) -> float:
        return cost(_drawn(chosen, stacks, fuses, settings))

    several = []
    for kind in settings.inside:
        fitting = {n: depth for n, depth in stacks.items() if price(_inside(kind, {n: depth}, ranks[-1], stacks)) < INF}
        several += [[_inside(kind, fitting, rank, stacks) for rank in ranks]] if fitting else []
    for kind in settings.junction if fuses else ():
        several.append([_nothing(stacks) | {"junction: adapter": kind, "junction: rank": rank} for rank in ranks])
    first = dict(list(counts.items())[:1])
    for kind in settings.inside if counts else ():
        for chosen in [first, counts] if len(counts) > 1 else [first]:
            several.append([_inside(kind, chosen, rank, stacks) for rank in ranks])
    found = [next((one for one in sizes if price(one) <= budget), None) for sizes in several]
    return [one for one in found if one is not None]


def _nothing(stacks: Mapping[str, int]) -> dict[str, Any]:
    return {f"{name}: adapter": NOTHING for name in stacks} | {"junction: adapter": NOTHING, "head": "linear"}


def _inside(kind: str, counts: Mapping[str, int], rank: int, stacks: Mapping[str, int]) -> dict[str, Any]:
    """One kind in so many upper blocks of some stacks, and nothing elsewhere."""
    own = {name: {"adapter": kind, "blocks": count, "rank": rank} for name, count in counts.items()}
    return _nothing(stacks) | {f"{name}: {key}": value for name, one in own.items() for key, value in one.items()}


def _drawn(chosen: Mapping[str, Any], stacks: Mapping[str, int], fuses: bool, settings: Any) -> dict[str, Any]:
    from optuna.trial import FixedTrial

    return drawn(FixedTrial(dict(chosen)), stacks, fuses, settings)
