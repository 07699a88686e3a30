"""Plans by what they cost and what they reach."""

from collections.abc import Mapping
from typing import Any

from fusetune.report.charts import PALETTE
from fusetune.report.figures import ACCENT, INK, MUTED, blank


def sensitivity(told: Mapping[str, Any]):
    """What share of the loss's gradient each block's adapter has, from the bottom up."""
    figure = blank(7.5, 3.6)
    axes = figure.subplots()
    left, ticks = 0, dict[int, str]()
    for i, (name, shares) in enumerate(told["sensitivity"].items()):
        places = range(left, left + len(shares))
        axes.bar(places, [100 * share for share in shares], color=PALETTE[i % len(PALETTE)], label=name)
        ticks |= {place: str(block) for block, place in enumerate(places)}
        left += len(shares) + 1
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set(
        xlabel="block, from the bottom", ylabel="share of the squared gradient (%)", title="Where a change matters"
    )
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def front(told: Mapping[str, Any]):
    """Every plan that was trained, those that no other beats in both, and the presets (trained whole) beside them."""
    figure = blank(7.5, 4.6)
    axes = figure.subplots()
    trained = [trial for trial in told["trials"] if trial["metric"] is not None]
    best = sorted((t for t in trained if t["number"] in told["front"]), key=lambda trial: trial["cost"])
    axes.scatter([t["cost"] for t in trained], [t["metric"] for t in trained], color=MUTED, label="trials")
    axes.plot([t["cost"] for t in best], [t["metric"] for t in best], color=ACCENT, marker="o", label="beaten by none")
    for name, one in told["presets"].items():
        if "seeds" in one:
            value = sum(s["validation"] for s in one["seeds"].values()) / len(one["seeds"])
            axes.plot(one["cost"], value, "*", color=INK, markersize=10)
            axes.annotate(name, (one["cost"], value), (5, 4), textcoords="offset points", fontsize=8)
    own = sum(s["validation"] for s in told["found"].values()) / len(told["found"])
    axes.plot(told["best"]["cost"], own, "D", color=ACCENT, markersize=8, label="found, trained whole")
    if told["budget"]:
        axes.axvline(told["budget"], color=INK, linestyle=":", label="budget")
    axes.set_xscale("log")
    unit = "trained parameters" if told["cost"] == "parameters" else "FLOPs of a sample in a step"
    axes.set(xlabel=unit, ylabel=f"validation {told['metric'].replace('_', ' ')}", title="What to place where")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
