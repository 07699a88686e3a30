"""Checks of the columns that a classification reads; what makes a label odd is how often others stand there."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from fusetune.manifest.checks import Check, Fails
from fusetune.manifest.labels import alike, label_text


def label_checks(counts: Mapping[str, Mapping[str, int]], declared: Mapping[str, Any]) -> Iterator[Check]:
    """
    Args:
        counts: by column, how often each label stands in the whole manifest.
        declared: column -> its labels, or ``{min: ..., max: ...}``.
    """
    for label, often in counts.items():
        yield Check("label.missing", label, lambda s: s.isna())
        yield Check("label.type", f"{label}: type", pd.notna)
        yield Check("label.mixed", label, _among(_not_of_the_common_kind(often)))
        yield Check("label.alike", label, _among(_spelled_otherwise(often)))
        if isinstance(declared.get(label), Mapping):
            span = declared[label]
            yield Check(
                "label.declared", label, _not_between(float(span.get("min", "-inf")), float(span.get("max", "inf")))
            )
        elif label in declared:
            yield Check("label.declared", label, _not_among({label_text(value) for value in declared[label]}))


def _among(odd: set[str]) -> Fails:
    return lambda s: s.isin(odd)


def _not_of_the_common_kind(counts: Mapping[str, int]) -> set[str]:
    """Truth values beside numbers: the ones or the others, whichever are fewer."""
    truths = {label for label in counts if label in ("true", "false")}
    numbers = {label for label in counts if _number(label) == _number(label)}
    rows = [sum(counts[label] for label in some) for some in (truths, numbers)]
    if not min(rows):
        return set()
    return truths if rows[0] <= rows[1] else numbers


def _spelled_otherwise(counts: Mapping[str, int]) -> set[str]:
    """Labels that differ from a more frequent one in nothing that a reader sees."""
    first: dict[str, str] = {}
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        first.setdefault(alike(label), label)
    return {label for label in counts if first[alike(label)] != label}


def _not_between(low: float, high: float) -> Fails:
    return lambda s: ~s.map(_number).between(low, high)


def _not_among(known: set[str | None]) -> Fails:
    return lambda s: ~s.astype(str).isin(known)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
