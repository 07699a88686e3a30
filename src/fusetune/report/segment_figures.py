"""Labels of segments on a line of time, beside what is right."""

from collections.abc import Sequence

from fusetune.report.figures import INK, blank
from fusetune.report.located_figures import FOUND, RIGHT

SHOWN = 10
CHARACTERS = 10  # of a label


def labels_on_a_line(ids: Sequence[str], right: Sequence[Sequence[str]], found: Sequence[Sequence[str]], title: str):
    """A sample a row, evenly spread: the labels that are right above, those that were answered below."""
    rows = range(0, len(ids), max(1, len(ids) // SHOWN))[:SHOWN]
    segments = max(len(right[row]) for row in rows)
    figure = blank(max(8.0, 0.75 * segments), 1.0 + 0.62 * len(rows))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        for i, (true, said) in enumerate(zip(right[row], found[row], strict=True)):
            colour = RIGHT if true == said else FOUND
            axes.barh(place + 0.19, 0.96, left=i, height=0.36, color=colour, alpha=0.35)
            axes.text(i + 0.48, place - 0.19, true[:CHARACTERS], ha="center", va="center", fontsize=7, color=INK)
            axes.text(i + 0.48, place + 0.19, said[:CHARACTERS], ha="center", va="center", fontsize=7, color=INK)
    axes.set_yticks(range(len(rows)), [ids[row] for row in rows], fontsize=8)
    axes.set(xlim=(0, segments), xlabel="segment", title=f"{title}\nabove what is right, below what was answered")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return figure
