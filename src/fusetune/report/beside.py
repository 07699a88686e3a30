"""What stands beside methods on an axis of the metric: what scikit-learn reaches on raw inputs, each modality alone."""

from collections.abc import Sequence
from typing import Any

from fusetune.comparison.summary import Summary

GREYS = {"scikit-learn": "#9a8f7a", "alone": "#7a8f9a"}  # readable on white and on near-black


def bounds(summary: Summary) -> dict[str, float]:
    """The metric of each, by what it is, the best of a kind first: 'TF-IDF of text (scikit-learn)', 'image alone'."""
    kinds = (("{} (scikit-learn)", summary.baselines), ("{} alone", summary.unimodal))
    return {
        told.format(name): value
        for told, values in kinds
        for name, value in sorted(values.items(), key=lambda item: -item[1])
    }


def strongest(summary: Summary) -> dict[str, float]:
    """The best of each kind."""
    found: dict[str, float] = {}
    for name, value in bounds(summary).items():
        if not any(colour(name) == colour(other) for other in found):
            found[name] = value
    return found


def colour(name: str) -> str:
    return next(value for end, value in GREYS.items() if end in name)


def reference_lines(summary: Summary, x: Sequence[Any]) -> list[dict[str, Any]]:
    """A dotted line each, of the best of each kind, from the first to the last of `x`."""
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"{name}: {value:.3f}",
            "x": list(x),
            "y": [round(value, 4)] * len(x),
            "line": {"color": colour(name), "width": 1.5, "dash": "dot"},
            "hovertemplate": f"{name}: {value:.3f}<extra></extra>",
        }
        for name, value in strongest(summary).items()
    ]
