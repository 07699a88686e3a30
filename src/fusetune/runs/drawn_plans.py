"""Plans that a search draws, site by site, as methods."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fusetune.adapters import adapters

NOTHING = "none"


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


def alone(
    stacks: Mapping[str, int],
    fuses: bool,
    settings: Any,
    cost: Callable[[Mapping[str, Any]], float],
    budget: float,
) -> list[dict[str, Any]]:
    """What is tried first: each kind of adapter by itself, as large as the budget allows, where it allows it at all.

    Args:
        cost: of a method; infinite where it doesn't fit the data.
    """
    nothing: dict[str, Any] = {f"{name}: adapter": NOTHING for name in stacks}
    nothing |= {"junction: adapter": NOTHING, "head": "linear"}
    ranks = sorted(settings.ranks, reverse=True)

    def price(chosen: Mapping[str, Any]) -> float:
        return cost(_drawn(chosen, stacks, fuses, settings))

    def inside(kind: str, names: Sequence[str], rank: int) -> dict[str, Any]:
        own = {name: {"adapter": kind, "blocks": stacks[name], "rank": rank} for name in names}
        return nothing | {f"{name}: {key}": value for name, one in own.items() for key, value in one.items()}

    several = []
    for kind in settings.inside:
        fitting = [name for name in stacks if price(inside(kind, [name], ranks[-1])) < float("inf")]
        several += [[inside(kind, fitting, rank) for rank in ranks]] if fitting else []
    for kind in settings.junction if fuses else ():
        several.append([nothing | {"junction: adapter": kind, "junction: rank": rank} for rank in ranks])
    found = [next((one for one in sizes if price(one) <= budget), None) for sizes in several]
    return [one for one in found if one is not None]


def guided(
    counts: Mapping[str, int],
    stacks: Mapping[str, int],
    fuses: bool,
    settings: Any,
    cost: Callable[[Mapping[str, Any]], float],
    budget: float,
) -> list[dict[str, Any]]:
    """What a guide says: each kind inside of the most sensitive stack, and of all of them, as large as fits.

    Args:
        counts: of each stack the upper blocks that matter, the most sensitive stack first.
        cost: of a method; infinite where it doesn't fit the data.
    """
    nothing: dict[str, Any] = {f"{name}: adapter": NOTHING for name in stacks}
    nothing |= {"junction: adapter": NOTHING, "head": "linear"}
    found = []
    for kind in settings.inside:
        for names in dict.fromkeys((tuple(counts)[:1], tuple(counts))):
            for rank in sorted(settings.ranks, reverse=True):
                chosen = dict(nothing)
                for name in names:
                    chosen |= {f"{name}: adapter": kind, f"{name}: blocks": counts[name], f"{name}: rank": rank}
                if cost(_drawn(chosen, stacks, fuses, settings)) <= budget:
                    found.append(chosen)
                    break
    return found


def _drawn(chosen: Mapping[str, Any], stacks: Mapping[str, int], fuses: bool, settings: Any) -> dict[str, Any]:
    from optuna.trial import FixedTrial

    return drawn(FixedTrial(dict(chosen)), stacks, fuses, settings)
