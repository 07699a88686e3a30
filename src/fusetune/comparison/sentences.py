"""The sentences that a reader takes home from a comparison: the verdict first, each of them true as it stands."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusetune.comparison.statistics import Difference
from fusetune.tasks.metric_names import metric_told

LEVEL = 0.05  # of the adjusted p values below which a difference is called one
Numbers = Mapping[str, Any]


def sentences(
    metric: str,
    rows: Mapping[str, Numbers],
    pairs: Sequence[Difference],
    unimodal: Numbers,
    plain: Numbers,
    confidence: float,
) -> list[str]:
    """What a reader takes home; points are hundredths of the metric.

    Args:
        rows: of the variants, the best on the validation split first.
        pairs: differences on the test split, the better one first.
        unimodal: the metric of each modality alone.
        plain: that of what scikit-learn reaches on raw inputs.
    """
    best = next(iter(rows))
    row = rows[best]
    strongest = max(plain, key=lambda key: plain[key]) if plain else ""
    found = []
    if plain and plain[strongest] > row["mean"]:
        found.append(
            f"{strongest} (scikit-learn on the raw inputs) reaches {plain[strongest]:.3f}, MORE than {best} with "
            f"{row['mean']:.3f}: look for another base."
        )
    found += [verdict(metric_told(metric), rows, pairs, confidence)]
    found += [f"On the test split {beats(pair, rows, confidence)}" for pair in _won_against(best, pairs)]
    beaten = [pair for pair in pairs if pair.first == best and pair.adjusted < LEVEL]
    if beaten:
        pair = max(beaten, key=lambda p: rows[p.second]["mean"])
        found.append(beats(pair, rows, confidence))
        others = [p.second for p in beaten if p is not pair]
        if others:
            found.append(f"It also beats {listed(others)}.")
    if plain and plain[strongest] <= row["mean"]:
        inside = ", inside the interval" if row["low"] <= plain[strongest] else ""
        found.append(
            f"Without any of this, {strongest} reaches {plain[strongest]:.3f} (scikit-learn on the raw inputs){inside}."
        )
    if unimodal:
        modality = max(unimodal, key=lambda key: unimodal[key])
        told = _gain("fusion", row["mean"] - unimodal[modality])
        told += " (inside the interval)" if row["low"] <= unimodal[modality] <= row["high"] else ""
        found.append(f"The best modality alone, {modality}, reaches {unimodal[modality]:.3f}: {told}.")
    if row["before_training"] is not None:
        told = _gain(best, row["mean"] - row["before_training"])
        found.append(f"Before any training the base has {row['before_training']:.3f}: {told}.")
    without = row["conditions"].get("without", {})
    if without:
        modality = min(without, key=lambda key: without[key])
        lost = row["conditions"]["whole"] - without[modality]
        found.append(
            f"{best} leans most on {modality}: without it, it loses {100 * lost:.1f} points."
            if round(100 * lost, 1) > 0
            else f"{best} loses nothing when any one modality is taken away."
        )
    return found


def verdict(name: str, rows: Mapping[str, Numbers], pairs: Sequence[Difference], confidence: float) -> str:
    """One sentence: who wins, or who ties with whom and which of these is the smallest."""
    best = next(iter(rows))
    row = rows[best]
    alike = tied(best, pairs)
    if not pairs:
        return f"{best} reaches {_reached(name, row, confidence)}."
    if _won_against(best, pairs):
        ahead = listed([pair.first for pair in _won_against(best, pairs)])
        return (
            f"No clear winner: {best} is best on validation, with {_reached(name, row, confidence)}, and {ahead} ahead."
        )
    if not alike:
        second = max(
            (other for other in rows if rows[other]["chosen"] and other != best), key=lambda o: rows[o]["mean"]
        )
        return f"{best} wins: {_reached(name, row, confidence)}; next is {second}, {rows[second]['mean']:.3f}."
    means = [rows[other]["mean"] for other in (best, *alike)]
    small = min((best, *alike), key=lambda other: rows[other]["trainable_parameters"])
    told = (
        f"A tie: {best} is best on validation, and {listed(alike)} {'is' if len(alike) == 1 else 'are'} not "
        f"distinguishable from it (test {name} {min(means):.3f} to {max(means):.3f}); the smallest of these is {small}"
    )
    share = "" if small == best else f", {_share(rows[small], row)} those of {best}"
    return f"{told}: {_reached(name, rows[small], confidence)}{share}."


def tied(best: str, pairs: Sequence[Difference]) -> list[str]:
    """Those that the test split can't tell from `best`."""
    return [
        pair.second if pair.first == best else pair.first
        for pair in pairs
        if best in (pair.first, pair.second) and pair.adjusted >= LEVEL
    ]


def beats(pair: Difference, rows: Mapping[str, Numbers], confidence: float) -> str:
    """'Wander beats LoRA by 1.9 points (95% CI 0.7 to 3.1) with 40% of its parameters.'"""
    points, low, high = (f"{100 * value:.1f}" for value in (pair.value, pair.low, pair.high))
    return (
        f"{pair.first} beats {pair.second} by {points} points ({confidence:.0%} CI {low} to {high}) with "
        f"{_share(rows[pair.first], rows[pair.second])} its parameters."
    )


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _won_against(best: str, pairs: Sequence[Difference]) -> list[Difference]:
    return [pair for pair in pairs if pair.second == best and pair.adjusted < LEVEL]


def _reached(name: str, row: Numbers, confidence: float) -> str:
    """'test accuracy 0.565 (95% CI 0.520 to 0.604, 3 seeds) with 64,432 trained parameters'"""
    several = f"{row['seeds']} seeds" if row["seeds"] > 1 else "one seed"
    return (
        f"test {name} {row['mean']:.3f} ({confidence:.0%} CI {row['low']:.3f} to {row['high']:.3f}, {several}) with "
        f"{row['trainable_parameters']:,} trained parameters"
    )


def _gain(who: str, difference: float) -> str:
    """'fusion brings 3.1 points', 'fusion costs 0.1 points'."""
    points = round(100 * difference, 1)
    if points == 0:
        return f"{who} changes nothing"
    return f"{who} {'brings' if points > 0 else 'costs'} {abs(points):.1f} points"


def _share(row: Numbers, other: Numbers) -> str:
    ratio = row["trainable_parameters"] / max(1, other["trainable_parameters"])
    if ratio < 0.01:
        return f"{ratio:.1%} of" if ratio >= 0.0005 else "under 0.1% of"
    return f"{ratio:.0%} of" if ratio < 2 else f"{ratio:.1f} times"
