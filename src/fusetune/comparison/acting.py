"""How the methods of a comparison do in a world, where they act in one."""

from collections.abc import Mapping
from typing import Any

from fusetune.worlds.world import SUCCESS


def told(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence: how often the winner succeeds, and who does most often; none where nobody acts.

    Args:
        rows: of the summary, the winner first.
    """
    rates = {name: row["other_metrics"] for name, row in rows.items() if SUCCESS in row["other_metrics"]}
    winner = next(iter(rows))
    if winner not in rates:
        return []
    own, best = rates[winner], max(rates, key=lambda name: rates[name][SUCCESS])
    text = (
        f"In its world {winner} succeeds in {own[SUCCESS]:.0%} of the episodes (interval of a seed "
        f"{own[f'{SUCCESS}_low']:.0%} to {own[f'{SUCCESS}_high']:.0%})"
    )
    shifts = [name for name in own if name.startswith(f"{SUCCESS}_") and f"{name}_low" in own]
    if shifts:
        text += "; " + ", ".join(f"{name.removeprefix(f'{SUCCESS}_')} {own[name]:.0%}" for name in shifts)
    if best != winner:
        text += f". Most often {best} does, in {rates[best][SUCCESS]:.0%}"
    return [text + "."]
