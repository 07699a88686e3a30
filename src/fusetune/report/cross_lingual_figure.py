"""What a task reaches in languages that it has no labels in."""

from collections.abc import Mapping
from statistics import mean
from typing import Any

from fusetune.report.figures import INK, MUTED, blank
from fusetune.report.located_figures import FOUND, RIGHT
from fusetune.tasks.metric_names import metric_told

COLOURS = ("#7b8794", FOUND, RIGHT)  # without language adapters, with them, with labels of the language itself


def by_language(told: Mapping[str, Any]):
    """A group of points a language: every seed, their mean as a line; the best plain model as a dashed one."""
    languages = told["languages"]
    arms = [arm for arm in next(iter(languages.values())) if arm != "plain"]
    figure = blank(max(7.0, 1.2 + 1.25 * len(languages)), 4.6)
    axes = figure.subplots()
    for place, own in enumerate(languages.values()):
        if own["plain"]:
            best = max(own["plain"].values())
            axes.plot([place - 0.4, place + 0.4], [best, best], "--", color=MUTED, linewidth=1.2, zorder=1)
        for i, (arm, colour) in enumerate(zip(arms, COLOURS, strict=True)):
            values = list(own[arm].values())
            if not values:
                continue
            x = place + (i - 1) * 0.25
            axes.plot([x] * len(values), values, "o", color=colour, markersize=5, alpha=0.7, zorder=3)
            axes.plot([x - 0.1, x + 0.1], [mean(values)] * 2, color=colour, linewidth=2.2, zorder=2)
    for arm, colour in zip(arms, COLOURS, strict=True):
        axes.plot([], [], "o", color=colour, label=arm)
    axes.plot([], [], "--", color=MUTED, label="best plain model (scikit-learn)")
    names = [f"{name}\n(labels)" if name == told["source"] else name for name in languages]
    axes.set_xticks(range(len(languages)), names, color=INK)
    axes.set(ylabel=metric_told(told["metric"]), title=f"Labels in {told['source']} alone, asked in each language")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure
