"""The figures of one training run: learning curve, confusion matrix, accuracy by group. Matplotlib, no display."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.tasks.metric_names import metric_told
from fusetune.training.evaluation import confusion_counts

INK, ACCENT, MUTED = "#1b2a41", "#2a6f97", "#b8c4d0"
SAID, CHARACTERS = 6, 90  # of what was said of a sample: lines, and characters of each


class Figures:
    """PNG files in a folder; the catalog writes them with `save_pretrained`."""

    def __init__(self, draw: Mapping[str, Callable[[], Any]]) -> None:
        """`draw`: what draws each figure, by name; called when it is first written."""
        self._draw, self._drawn = dict(draw), dict[str, bytes]()

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in self._draw.items():
            if name not in self._drawn:
                self._drawn[name] = _png(draw())
            (folder / f"{name}.png").write_bytes(self._drawn[name])


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    written = BytesIO()
    figure.savefig(written, format="png", dpi=130, metadata={"Software": None})
    return written.getvalue()


def learning_curve(history: Sequence[Mapping[str, Any]], metric: str, title: str):
    """Loss of both splits and the validation metric, by epoch."""
    figure = blank(8.0, 3.4)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["train_loss"] for row in history], color=ACCENT, label="training")
    left.plot(epochs, [row["val_loss"] for row in history], color=INK, linestyle="--", label="validation")
    left.set(xlabel="epoch", ylabel="loss", title="Loss")
    left.legend(frameon=False)
    values = [row["val_metric"] for row in history]
    right.plot(epochs, values, color=INK)
    best = int(np.argmax(values))
    right.plot(epochs[best], values[best], "o", color=ACCENT)
    right.annotate(f"{values[best]:.3f}", (epochs[best], values[best]), (0, 6), textcoords="offset points", ha="center")
    right.margins(y=0.12)
    right.set(xlabel="epoch", ylabel=metric_told(metric), title="Validation")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title)
    return figure


def confusion_matrix(targets: Sequence[str], predictions: Sequence[str], title: str):
    """Row-normalised: how often a label (row) was answered by another (column)."""
    labels, matrix = confusion_counts(targets, predictions)
    side = max(4.0, 1.8 + 0.23 * len(labels))
    figure = blank(side + 0.8, side)
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true label's samples")
    return figure


def compared(values: Mapping[str, float], low: float, high: float, metric: str, title: str):
    """Bars of one metric; the first bar is the model and has the interval (`low`, `high`), the others are its parts."""
    figure = blank(8.0, 0.9 + 0.42 * len(values))
    axes = figure.subplots()
    names = list(values)
    colors = [ACCENT if i == 0 else MUTED for i in range(len(names))]
    axes.barh(names, list(values.values()), color=colors)
    first = values[names[0]]
    axes.errorbar(first, 0, xerr=[[first - low], [high - first]], color=INK, capsize=3)
    for i, value in enumerate(values.values()):
        axes.text((high if i == 0 else value) + 0.01, i, f"{value:.3f}", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.05), xlabel=f"test {metric.replace('_', ' ')}", title=title)
    return figure


def by_set(found: Mapping[str, Mapping[str, Any]], title: str):
    """A group of bars an adapter, a bar a set: the main metric with its interval.

    Args:
        found: by adapter and set, ``{metric: ..., metrics: {...}}``.
    """
    rows = [
        (f"{adapter}, {name}", one, i == 0)
        for adapter, own in found.items()
        for i, (name, one) in enumerate(own.items())
    ]
    figure = blank(8.0, 1.2 + 0.3 * len(rows))
    axes = figure.subplots()
    for place, (_, one, first) in enumerate(rows):
        value, low, high = (one["metrics"][f"{one['metric']}{end}"] for end in ("", "_low", "_high"))
        axes.barh(place, value, color=ACCENT if first else MUTED)
        axes.errorbar(value, place, xerr=[[max(0, value - low)], [max(0, high - value)]], color=INK, capsize=3)
        axes.text(max(value, high) + 0.01, place, f"{value:.3f}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    metrics = dict.fromkeys(metric_told(one["metric"]) for _, one, _ in rows)
    axes.set(xlabel=", ".join(metrics), title=title)
    return figure


def distributions(values: Mapping[str, np.ndarray], title: str):
    """Boxes of values between 0 and 1 over samples, one for each column of each (samples, columns) array."""
    columns = {}
    for name, array in values.items():
        for i in range(array.shape[1]):
            known = array[~np.isnan(array[:, i]), i]  # a sample without the modality has none
            columns[name if array.shape[1] == 1 else f"{name} {i}"] = known
    figure = blank(8.0, 1.2 + 0.3 * len(columns))
    axes = figure.subplots()
    names = [name.replace("_", " ") for name in columns]
    drawn = axes.boxplot(list(columns.values()), orientation="horizontal", widths=0.6, sym="")
    for part in (*drawn["boxes"], *drawn["whiskers"], *drawn["caps"]):
        part.set_color(INK)
    for line in drawn["medians"]:
        line.set(color=ACCENT, linewidth=2)
    axes.set_yticks(range(1, len(names) + 1), names)
    axes.invert_yaxis()
    axes.set(xlim=(-0.02, 1.02), xlabel="weight: median, quartiles, 1.5 times their distance", title=title)
    return figure


def answers(shown: Sequence[Mapping[str, Any]], pictures: Sequence[Any], title: str):
    """A sample a row: its picture, what was asked, what is right, and what was said as epochs went by.

    Args:
        shown: ``{asked, right, said: {epoch: text}}`` each.
        pictures: one each, or None.
    """
    figure = blank(9.0, 0.5 + 1.9 * len(shown))
    grid = figure.subplots(len(shown), 2, width_ratios=[1, 4], squeeze=False)
    for (left, right), one, picture in zip(grid, shown, pictures, strict=True):
        left.axis("off")
        right.axis("off")
        if picture is not None:
            left.imshow(picture, cmap="gray" if picture.mode == "L" else None)
        said = list(_changes(one["said"]))
        said = said if len(said) <= SAID else [*said[: SAID // 2], "...", *said[-SAID // 2 :]]
        lines = [_short(one["asked"]), f"right: {_short(' | '.join(one['right']))}", *said]
        for i, line in enumerate(lines):
            style = {"color": ACCENT if i == 1 else INK, "alpha": 0.6 if 1 < i < len(lines) - 1 else 1.0}
            right.text(0, 1 - i / (SAID + 3), line, va="top", fontsize=9, transform=right.transAxes, **style)
    figure.suptitle(title)
    return figure


def _changes(said: Mapping[str, str]) -> Iterator[str]:
    """What was said, where it isn't what was said the epoch before."""
    before = None
    for epoch, text in said.items():
        if text != before:
            yield f"epoch {epoch}: {_short(text) or '(nothing)'}"
        before = text


def _short(text: str) -> str:
    text = " ".join(text.split()).replace("$", r"\$")  # which would begin a formula
    return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 3]}..."


def blank(width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure
