"""What a comparison's page shows, section by section: the charts of `charts` with the comparison's numbers in them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fusetune.comparison import details
from fusetune.comparison.record import Compared
from fusetune.comparison.summary import Summary
from fusetune.report import charts
from fusetune.report.beside import bounds, colour, reference_lines
from fusetune.report.charts import Chart, Look, axis
from fusetune.tasks.metric_names import metric_told
from fusetune.training.evaluation import MOST_LABELS


def means(summary: Summary, look: Look) -> Chart:
    """A line a variant: mean, interval and each seed; below them what needs no method."""
    traces: list[dict[str, Any]] = []
    for name, row in summary.rows.items():
        own = {"type": "scatter", "name": name, "showlegend": False}
        error = {"type": "data", "symmetric": False, "array": [row["high"] - row["mean"]],
                 "arrayminus": [row["mean"] - row["low"]], "color": look.color(name), "thickness": 2}  # fmt: skip
        hover = f"{name}<br>%{{x:.3f}} ({row['low']:.3f} to {row['high']:.3f})<extra></extra>"
        traces.append({**own, "mode": "markers", "x": [row["mean"]], "y": [name], "error_x": error,
                       "marker": look.marker(name, size=11), "hovertemplate": hover})  # fmt: skip
        if row["seeds"] > 1:
            marker = {"symbol": "line-ns", "size": 9, "line": {"color": look.color(name), "width": 1.5}}
            traces.append({**own, "mode": "markers", "x": row["by_seed"], "y": [name] * row["seeds"],
                           "marker": marker, "hovertemplate": f"{name}, one: %{{x:.3f}}<extra></extra>"})  # fmt: skip
    others = bounds(summary)
    for name, value in others.items():
        traces.append({"type": "scatter", "mode": "markers", "name": name, "showlegend": False, "x": [round(value, 4)],
                       "y": [name], "marker": {"color": colour(name), "symbol": "diamond", "size": 10},
                       "hovertemplate": f"{name}: %{{x:.3f}}<extra></extra>"})  # fmt: skip
    told = metric_told(summary.metric)
    caption = (
        f"Discs: mean over seeds on {summary.samples:,} test samples; bars: interval over seeds and samples; strokes: "
        "seeds. By the validation split, the best first"
        + ("; diamonds: what needs no method, on the same samples." if others else ".")
    )
    layout = {"xaxis": axis(f"test {told}"), "yaxis": axis("method", autorange="reversed", type="category")}
    height = 130 + 26 * (len(summary.rows) + len(others))
    return Chart("Which method wins", caption, traces, layout, height, wide=True)


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
    told, name = [], metric_told(summary.metric)
    without = {
        n: {"all": r["conditions"]["whole"], **{f"without {m}": v for m, v in r["conditions"]["without"].items()}}
        for n, r in summary.rows.items()
        if "without" in r["conditions"]
    }
    layout = {"xaxis": axis("", tickangle=-40), "yaxis": axis(f"test {name}")}
    if without:
        samples = round(next(iter(summary.rows.values()))["conditions"]["samples"])
        caption = f"Each modality taken away in turn, on the same {samples} test samples; nothing was trained for that."
        chart = charts.bars(summary, without, Chart("What each modality brings", caption, (), layout))
        told.append(replace(chart, traces=[*chart.traces, *reference_lines(summary, list(without))]))
    groups = {n: r["by_group"] for n, r in summary.rows.items() if r["by_group"]}
    if groups:
        caption = "By the kind of question, mean over seeds, all test samples."
        told.append(charts.bars(summary, groups, Chart("Groups of samples", caption, (), layout)))
    return told


def robustness(summary: Summary, look: Look) -> list[Chart]:
    name = metric_told(summary.metric)
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
            chart = charts.lines(look, series, Chart(title, caption, (), layout, 460))
            levels = next(iter(series.values()))[0]
            beside = reference_lines(summary, [levels[0], levels[-1]])
            told.append(replace(chart, traces=[*chart.traces, *beside]))
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
    told = metric_told(summary.metric)
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
    error = f"error (1 - test {metric_told(summary.metric)})"
    layout = {
        "xaxis": axis(label, type="log", tickvals=sorted({p["size"] for p in summary.points})),
        "yaxis": charts.log_axis(error, [p["error"] for p in summary.points if p["error"] > 0] or [0.1, 1.0]),
    }
    return [Chart(f"Error over {label} and training samples", caption, traces, layout, 460, wide=True)]
