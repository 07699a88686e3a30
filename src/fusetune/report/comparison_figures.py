"""The main pictures of a comparison as PNGs: for MLflow, slides and papers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fusetune.comparison import details
from fusetune.comparison.record import Compared
from fusetune.comparison.summary import Summary
from fusetune.report.beside import bounds, colour, strongest
from fusetune.report.charts import PALETTE, pareto_front
from fusetune.report.figures import ACCENT, INK, MUTED, Figures, blank
from fusetune.tasks.metric_names import metric_told


def comparison_figures(summary: Summary, found: Sequence[Compared], size_label: str) -> Figures:
    """Means with intervals, the Pareto front, robustness, learning curves, and the scaling where there is one."""
    compared = [one for one in found if one.compared and one.cells]
    draw: dict[str, Any] = {
        "means": partial(means, summary),
        "pareto_parameters": partial(pareto, summary, "trainable_parameters", "trained parameters"),
        "pareto_time": partial(pareto, summary, "train_seconds", "seconds of training, one seed"),
        "robustness": partial(robustness, summary),
        "learning_curves": partial(learning_curves, summary, compared),
    }
    if summary.points:
        draw["scaling"] = partial(scaling, summary, size_label)
    return Figures(draw)


def means(summary: Summary):
    """One line a variant: mean, interval, and each seed."""
    rows, others = summary.rows, bounds(summary)
    figure = blank(8.0, 1.3 + 0.36 * (len(rows) + len(others)))
    axes = figure.subplots()
    for i, row in enumerate(rows.values()):
        axes.plot([row["low"], row["high"]], [i, i], color=MUTED, linewidth=4, solid_capstyle="round")
        axes.plot(row["by_seed"], [i] * len(row["by_seed"]), "|", color=INK, markersize=9)
        axes.plot(row["mean"], i, "o", color=ACCENT)
    for i, (name, value) in enumerate(others.items(), start=len(rows)):
        axes.plot(value, i, "D", color=colour(name), markersize=6)
    axes.set_yticks(range(len(rows) + len(others)), [*rows, *others])
    axes.invert_yaxis()
    axes.grid(axis="x", color=MUTED, alpha=0.4)
    axes.set(xlabel=f"test {_told(summary)}: mean, interval over seeds and samples, seeds", title="Which method wins")
    return figure


def pareto(summary: Summary, key: str, label: str):
    """The metric over a cost, logarithmic, and the front."""
    rows = {name: row for name, row in summary.rows.items() if row.get(key)}
    figure = blank(8.0, 4.8)
    axes = figure.subplots()
    front = pareto_front({name: (row[key], row["mean"]) for name, row in rows.items()})
    axes.plot([rows[n][key] for n in front], [rows[n]["mean"] for n in front], color=MUTED, drawstyle="steps-post")
    for i, (name, row) in enumerate(rows.items()):
        error = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        color, marker = PALETTE[i % len(PALETTE)], "o" if name in front else "x"
        axes.errorbar(row[key], row["mean"], yerr=error, fmt=marker, color=color, capsize=2, label=name)
    _beside(axes, summary)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_xscale("log")
    axes.set(xlabel=label, ylabel=f"test {_told(summary)}", title="Discs: nothing is better at that cost")
    return figure


def robustness(summary: Summary):
    """The metric over missing modalities and over noise, the best variants in colour."""
    figure = blank(9.0, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    kinds = (("missing", "share of (sample, modality) missing"), ("noise", "noise, standard deviations of the input"))
    for panel, (kind, label) in zip(axes, kinds, strict=True):
        for i, (name, row) in enumerate(summary.rows.items()):
            values = row["conditions"].get(kind, {})
            levels = [0.0, *map(float, values)]
            color = PALETTE[i] if i < 6 else MUTED
            heights = [row["conditions"]["whole"], *values.values()]
            panel.plot(levels, heights, color=color, marker="o", markersize=3, label=name if i < 6 else None)
        _beside(panel, summary)
        panel.set(xlabel=label)
    axes[0].set(ylabel=f"test {_told(summary)}")
    axes[1].legend(frameon=False, fontsize=8)
    figure.suptitle("Robustness; the six best in colour")
    return figure


def learning_curves(summary: Summary, found: Sequence[Compared]):
    """Validation by epoch, a line a seed, the best variants in colour."""
    figure = blank(8.0, 4.4)
    axes = figure.subplots()
    place = {name: i for i, name in enumerate(summary.rows)}
    for one in sorted(found, key=lambda one: -place[one.name]):
        i = place[one.name]
        for number, (epochs, values) in enumerate(details.curves(one).values()):
            label = one.name if i < 6 and number == 0 else None
            axes.plot(epochs, values, color=PALETTE[i] if i < 6 else MUTED, linewidth=1, label=label)
    axes.legend(frameon=False, fontsize=8)
    axes.set(xlabel="epoch", ylabel=f"validation {_told(summary)}", title="Learning; the six best in colour")
    return figure


def scaling(summary: Summary, label: str):
    """Error over size, a colour for each number of samples, and the law."""
    figure = blank(7.0, 4.4)
    axes = figure.subplots()
    for i, count in enumerate(sorted({point["samples"] for point in summary.points})):
        own = [point for point in summary.points if point["samples"] == count]
        sizes = sorted({point["size"] for point in own})
        axes.plot(
            [p["size"] for p in own], [p["error"] for p in own], "o", color=PALETTE[i], label=f"{count:,} samples"
        )
        if summary.law:
            steps = [sizes[0] * (sizes[-1] / sizes[0]) ** (k / 40) for k in range(41)]
            axes.plot(steps, [summary.law.error(size, count) for size in steps], color=PALETTE[i])
    axes.set_xscale("log")
    axes.set_xticks(
        sorted({p["size"] for p in summary.points}), [f"{s:g}" for s in sorted({p["size"] for p in summary.points})]
    )
    axes.minorticks_off()
    axes.legend(frameon=False)
    axes.set(xlabel=label, ylabel=f"error (1 - test {_told(summary)})", title="Size and data; lines: fitted power law")
    return figure


def _beside(axes: Any, summary: Summary) -> None:
    for name, value in strongest(summary).items():
        axes.axhline(value, color=colour(name), linestyle=":", linewidth=1.2, label=name)


def _told(summary: Summary) -> str:
    return metric_told(summary.metric)
