"""What a comparison's page shows, section by section: the charts of `charts` with the comparison's numbers in them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusetune.comparison import details
from fusetune.comparison.record import Compared
from fusetune.comparison.summary import Summary
from fusetune.report import charts
from fusetune.report.charts import Chart, Look, axis
from fusetune.training.evaluation import MOST_LABELS


def costs(summary: Summary, look: Look) -> list[Chart]:
    told = [
        charts.pareto(summary, look, "trainable_parameters", "trained parameters", ""),
        charts.pareto(summary, look, "train_seconds", "time of training", "seconds a seed"),
    ]
    rows = summary.rows.values()
    if all(row["overhead"] is not None for row in rows):
        values = {name: {"overhead": round(100 * row["overhead"], 1)} for name, row in summary.rows.items()}
        caption = (
            "Time of an answer of the adapted model, head included, over that of the plain backbone, both from "
            "preprocessed inputs; median of pairs that were timed in turn. Below zero is the machine's noise."
        )
        layout = {"xaxis": axis("", tickangle=-40), "yaxis": axis("overhead (%)"), "showlegend": False}
        told.append(charts.bars(summary, values, Chart("Cost of an answer", caption, (), layout)))
    memory = {n: {"MB": round(row["peak_bytes"] / 1e6)} for n, row in summary.rows.items()}
    caption = "The most that the process of a method's seeds has held, the libraries (some 400 MB) included."
    layout = {"xaxis": axis("", tickangle=-40), "yaxis": axis("peak memory (MB)"), "showlegend": False}
    told.append(charts.bars(summary, memory, Chart("Memory", caption, (), layout)))
    return told


def modalities(summary: Summary) -> list[Chart]:
    told, name = [], summary.metric.replace("_", " ")
    without = {
        n: {"all": r["conditions"]["whole"], **{f"without {m}": v for m, v in r["conditions"]["without"].items()}}
        for n, r in summary.rows.items()
        if "without" in r["conditions"]
    }
    layout = {"xaxis": axis("", tickangle=-40), "yaxis": axis(f"test {name}")}
    if without:
        samples = round(next(iter(summary.rows.values()))["conditions"]["samples"])
        caption = f"Each modality taken away in turn, on the same {samples} test samples; nothing was trained for that."
        told.append(charts.bars(summary, without, Chart("What each modality brings", caption, (), layout)))
    groups = {n: r["by_group"] for n, r in summary.rows.items() if r["by_group"]}
    if groups:
        caption = "By the kind of question, mean over seeds, all test samples."
        told.append(charts.bars(summary, groups, Chart("Groups of samples", caption, (), layout)))
    return told


def robustness(summary: Summary, look: Look) -> list[Chart]:
    name = summary.metric.replace("_", " ")
    told: list[Chart] = []
    layout: dict[str, Any]
    samples = round(next(iter(summary.rows.values()))["conditions"]["samples"])
    kinds = {
        "missing": (
            "Missing modalities",
            "share of (sample, modality) taken away",
            f"{samples} test samples; one modality of each always stays.",
        ),
        "noise": (
            "Noise on the inputs",
            "standard deviation, in units of the inputs' own",
            f"{samples} test samples; Gaussian noise on preprocessed inputs; of words that share is replaced.",
        ),
    }
    for kind, (title, label, caption) in kinds.items():
        series = {}
        for variant, row in summary.rows.items():
            values = row["conditions"].get(kind, {})
            if values:
                series[variant] = [0.0, *map(float, values)], [row["conditions"]["whole"], *values.values()]
        if series:
            layout = {"xaxis": axis(label, rangemode="tozero"), "yaxis": axis(f"test {name}")}
            told.append(charts.lines(look, series, Chart(title, caption, (), layout, 460)))
    bins = {
        n: ([b["confidence"] for b in r["calibration"]], [b["accuracy"] for b in r["calibration"]])
        for n, r in summary.rows.items()
        if r["calibration"]
    }
    if bins:
        layout = {
            "xaxis": axis("confidence (probability of the answer)", range=[0, 1]),
            "yaxis": axis("share that is right", range=[0, 1]),
            "shapes": [{"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "line": {"color": "#8888", "dash": "dot"}}],
        }
        caption = "Test samples in 15 bins of confidence; on the dotted line confidence and truth agree."
        told.append(charts.lines(look, bins, Chart("Calibration", caption, (), layout, 460)))
        values = {n: {"ECE": round(r["ece"], 4)} for n, r in summary.rows.items() if r["ece"] is not None}
        layout = {"xaxis": axis("", tickangle=-40), "yaxis": axis("expected calibration error"), "showlegend": False}
        caption = "Mean distance of confidence from the share that is right, 15 bins, mean over seeds; less is better."
        told.append(charts.bars(summary, values, Chart("Calibration error", caption, (), layout, 460)))
    return told


def classes(summary: Summary) -> list[Chart]:
    labels = list(next(iter(summary.rows.values()))["by_class"])[:MOST_LABELS]
    if not labels:
        return []
    values = np.array([[row["by_class"].get(label, np.nan) for label in labels] for row in summary.rows.values()])
    caption = "Share of the label's test samples that were answered right, all seeds" + (
        f"; the first {MOST_LABELS} labels." if len(labels) == MOST_LABELS else "."
    )
    chart = charts.heatmap("By class", caption, values, ("label", "method"), (labels, list(summary.rows)), "share")
    return [Chart(chart.title, chart.caption, chart.traces, chart.layout, max(340, chart.height), wide=True)]


def curves(summary: Summary, found: Sequence[Compared], look: Look) -> Chart:
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": one.name,
            "legendgroup": one.name,
            "showlegend": i == 0,
            "x": epochs,
            "y": [round(value, 4) for value in values],
            "line": {**look.line(one.name), "width": 1.6},
            "opacity": 0.8,
            "hovertemplate": f"{one.name}, seed {seed}, epoch %{{x}}: %{{y:.3f}}<extra></extra>",
        }
        for one in found
        for i, (seed, (epochs, values)) in enumerate(details.curves(one).items())
    ]
    told = summary.metric.replace("_", " ")
    caption = "One line a seed; a click in the legend hides a method. Lines end where validation had stopped rising."
    longest = max(epoch for one in found for epochs, _ in details.curves(one).values() for epoch in epochs)
    layout = {"xaxis": axis("epoch", dtick=max(1, longest // 10)), "yaxis": axis(f"validation {told}")}
    return Chart("Validation by epoch", caption, traces, layout, 480, wide=True)


def scaling(summary: Summary, label: str) -> list[Chart]:
    if not summary.points:
        return []
    counts = sorted({point["samples"] for point in summary.points})
    traces: list[dict[str, Any]] = []
    for i, count in enumerate(counts):
        color = charts.PALETTE[i % len(charts.PALETTE)]
        own = [p for p in summary.points if p["samples"] == count]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"{count:,} samples",
                "legendgroup": str(count),
                "x": [p["size"] for p in own],
                "y": [round(p["error"], 4) for p in own],
                "marker": {"color": color, "size": 9},
            }
        )
        if summary.law:
            sizes = sorted({p["size"] for p in own})
            steps = [sizes[0] * (sizes[-1] / sizes[0]) ** (k / 30) for k in range(31)]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "showlegend": False,
                    "legendgroup": str(count),
                    "x": [round(s, 4) for s in steps],
                    "y": [round(summary.law.error(s, count), 4) for s in steps],
                    "line": {"color": color, "width": 1.5},
                    "hoverinfo": "skip",
                }
            )
    caption = "A point a seed; lines: the fitted law. Both axes are logarithmic."
    layout = {
        "xaxis": axis(label, type="log", tickvals=sorted({p["size"] for p in summary.points})),
        "yaxis": axis(f"error (1 - test {summary.metric.replace('_', ' ')})", type="log", nticks=6, tickformat=".3"),
    }
    return [Chart(f"Error over {label} and training samples", caption, traces, layout, 460, wide=True)]
