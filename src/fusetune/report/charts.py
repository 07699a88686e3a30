"""The charts of a comparison, as Plotly reads them: each with axes, units and a caption. Colours go by variant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusetune.comparison.sentences import LEVEL
from fusetune.comparison.statistics import Difference
from fusetune.comparison.summary import Summary
from fusetune.report.beside import reference_lines
from fusetune.tasks.metric_names import metric_titled, metric_told

# readable on white and on near-black; variants beyond them come with another line and marker
PALETTE = (
    "#3b82c4", "#e07b39", "#3fa66b", "#c8504f", "#8f6cc4", "#a0795c", "#d46fb0",
    "#7d8a99", "#b5a63a", "#35a7b5", "#5a62d8", "#86b953", "#b3506e", "#4f8f86",
)  # fmt: skip
# from next to nothing to the first colour, and from worse over nothing to better: both on white and on near-black
MORE = [[0, "rgba(59,130,196,0.04)"], [1, "#2563a8"]]
BETTER = [[0, "#c8504f"], [0.5, "rgba(128,128,128,0.06)"], [1, "#3b82c4"]]
DASHES, MARKERS = ("solid", "dash", "dot"), ("circle", "diamond", "square")


@dataclass(frozen=True)
class Chart:
    """
    Attributes:
        traces, layout: of Plotly.
        caption: what it shows, and how it was measured.
        height: pixels.
        wide: takes the whole width of the page.
    """

    title: str
    caption: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 420
    wide: bool = False


@dataclass
class Look:
    """Each variant's colour, line and marker."""

    names: Sequence[str]
    place: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.place = {name: i for i, name in enumerate(sorted(self.names))}

    def color(self, name: str) -> str:
        return PALETTE[self.place[name] % len(PALETTE)]

    def line(self, name: str) -> dict[str, Any]:
        return {"color": self.color(name), "dash": DASHES[self.place[name] // len(PALETTE) % 3], "width": 2}

    def marker(self, name: str, **more: Any) -> dict[str, Any]:
        return {"color": self.color(name), "symbol": MARKERS[self.place[name] // len(PALETTE) % 3], **more}


def axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title, "standoff": 12}, "automargin": True, **more}


def log_axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis whose ticks are round numbers, few enough to be read: '500', '1k', '2k', '5k'."""
    low, high = min(values), max(values)
    decades = np.log10(high / low)
    if decades < 0.7:  # too few powers for a tick each: even steps
        rough = max(high - low, 0.6 * high) / 4
        power = 10.0 ** np.floor(np.log10(rough))
        step = power * next(round_ for round_ in (1, 2, 5, 10) if round_ * power >= rough)
        ticks = [step * i for i in range(1, int(1.6 * high / step) + 1)]
    else:
        steps = (1, 2, 5) if decades < 2 else (1, 3) if decades < 3.5 else (1,)
        powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
    shown = [float(f"{tick:.4g}") for tick in ticks if low / 1.6 <= tick <= high * 1.6]
    return axis(title, type="log", tickvals=shown, ticktext=[short(tick) for tick in shown])


def short(number: float) -> str:
    """'0.5', '20', '3k', '1M', '2G'"""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def pareto(summary: Summary, look: Look, key: str, label: str, unit: str) -> Chart:
    """The metric over one cost, on a logarithmic axis, with the front of what nothing beats in both."""
    rows = {name: row for name, row in summary.rows.items() if row.get(key)}
    traces: list[dict[str, Any]] = []
    front = pareto_front({name: (row[key], row["mean"]) for name, row in rows.items()})
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "front",
            "x": [rows[name][key] for name in front],
            "y": [rows[name]["mean"] for name in front],
            "line": {"color": "#8888", "width": 2, "shape": "hv"},
            "hoverinfo": "skip",
        }
    )
    costs = [row[key] for row in rows.values()] or [1.0]  # nothing costs anything
    traces += reference_lines(summary, [min(costs), max(costs)])
    longest = max((row["train_seconds"] or 0 for row in rows.values()), default=1) or 1
    for name, row in rows.items():
        size = 9 + 22 * ((row["train_seconds"] or 0) / longest) ** 0.5
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [row[key]],
                "y": [row["mean"]],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [row["high"] - row["mean"]],
                    "arrayminus": [row["mean"] - row["low"]],
                    "color": look.color(name),
                    "thickness": 1.2,
                },
                "marker": look.marker(name, size=size, opacity=0.85),
                "hovertemplate": f"{name}<br>%{{y:.3f}}<br>%{{x:,.4g}} {unit}<br>{row['train_seconds'] or 0:.0f} s a "
                f"seed<br>{row['trainable_parameters']:,} parameters<extra></extra>",
            }
        )
    told = metric_told(summary.metric)
    return Chart(
        f"{metric_titled(summary.metric)} against {label}",
        f"Mean over seeds on {summary.samples:,} test samples; bars: bootstrap interval over seeds and samples; area "
        "of a disc: seconds of training a seed; grey steps: nothing is better at that cost; dotted: what needs no "
        "method, on the same samples. Logarithmic axis.",
        traces,
        {
            "xaxis": log_axis(f"{label} ({unit})" if unit else label, costs),
            "yaxis": axis(f"test {told}"),
            "legend": {"orientation": "h", "y": -0.25, "itemsizing": "constant"},
        },
        520,
    )


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other beats in both cost (less is better) and score, by cost."""
    front: list[str] = []
    for name in sorted(points, key=lambda n: (points[n][0], -points[n][1])):
        if not front or points[name][1] > points[front[-1]][1]:
            front.append(name)
    return front


def differences(summary: Summary) -> Chart:
    """All pairs: how many points the row is better than the column."""
    names = [name for name, row in summary.rows.items() if row["chosen"]]
    place = {name: i for i, name in enumerate(names)}
    values = np.full((len(names), len(names)), np.nan)
    texts = [["" for _ in names] for _ in names]
    for pair in summary.differences:
        for a, b, sign in ((pair.first, pair.second, 1), (pair.second, pair.first, -1)):
            values[place[a], place[b]] = 100 * sign * pair.value
            texts[place[a]][place[b]] = _told(pair, sign)
    most = float(np.nanmax(np.abs(values))) if len(names) > 1 else 1.0
    return Chart(
        "Every pair",
        "Points (hundredths) by which the row is better than the column; those in bold differ by the paired test over "
        f"the same test samples and the seeds, after Holm's correction for {len(summary.differences)} pairs.",
        [
            {
                "type": "heatmap",
                "x": names,
                "y": names,
                "z": numbers(values),
                "text": texts,
                "texttemplate": "%{text}",
                "textfont": {"size": 10},
                "colorscale": BETTER,
                "zmin": -most,
                "zmax": most,
                "zmid": 0,
                "colorbar": {"title": {"text": "points"}},
                "hovertemplate": "%{y} less %{x}: %{z:.1f} points<extra></extra>",
            }
        ],
        {
            "xaxis": axis("compared with", tickangle=-40, showgrid=False),
            "yaxis": axis("method", autorange="reversed", showgrid=False),
        },
        max(380, 160 + 34 * len(names)),
        wide=True,
    )


def _told(pair: Difference, sign: int) -> str:
    text = f"{100 * sign * pair.value:+.1f}"
    return f"<b>{text}</b>" if pair.adjusted < LEVEL else text


def bars(summary: Summary, values: Mapping[str, Mapping[str, float]], chart: Chart) -> Chart:
    """Groups of bars: for each variant one for each key."""
    keys = list(dict.fromkeys(key for of_one in values.values() for key in of_one))
    traces = [
        {
            "type": "bar",
            "name": key,
            "x": list(values),
            "y": [of_one.get(key) for of_one in values.values()],
            "marker": {"color": PALETTE[i % len(PALETTE)]},
        }
        for i, key in enumerate(keys)
    ]
    layout = {"barmode": "group", "legend": {"orientation": "h", "y": 1.12}, **chart.layout}
    return Chart(chart.title, chart.caption, traces, layout, chart.height, chart.wide)


def lines(
    look: Look, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], chart: Chart, mode: str = "lines+markers"
) -> Chart:
    """One line a variant."""
    traces = [
        {
            "type": "scatter",
            "mode": mode,
            "name": name,
            "x": list(x),
            "y": list(y),
            "line": look.line(name),
            "marker": look.marker(name, size=6),
        }
        for name, (x, y) in series.items()
    ]
    return Chart(chart.title, chart.caption, traces, chart.layout, chart.height, chart.wide)


def heatmap(
    title: str,
    caption: str,
    values: np.ndarray,
    axes: tuple[str, str],
    labels: tuple[Sequence[str], Sequence[str]],
    unit: str,
    height: int | None = None,
) -> Chart:
    """Values from 0 up, (rows, columns); `axes` and `labels` are of columns and rows."""
    small = {"tickfont": {"size": 9}, "type": "category", "showgrid": False}
    return Chart(
        title,
        caption,
        [
            {
                "type": "heatmap",
                "x": list(labels[0]),
                "y": list(labels[1]),
                "z": numbers(values),
                "colorscale": MORE,
                "zmin": 0,
                "colorbar": {"title": {"text": unit}},
                "hovertemplate": f"%{{y}} / %{{x}}: %{{z:.3f}}<extra>{title}</extra>",
            }
        ],
        {"xaxis": axis(axes[0], **small), "yaxis": axis(axes[1], autorange="reversed", **small)},
        height or max(340, min(760, 160 + 15 * len(labels[1]))),
    )


def numbers(values: np.ndarray) -> list[list[float | None]]:
    """JSON has no NaN."""
    return [[None if np.isnan(value) else round(float(value), 4) for value in row] for row in values]
