"""What was found in pictures and stretches of time, beside what is right."""

import textwrap
from collections.abc import Sequence
from typing import Any

from fusetune.report.figures import INK, MUTED, blank
from fusetune.runs.located import Located

COLUMNS = 4
RIGHT, FOUND = "#2a9d43", "#d1495b"
CHARACTERS = 34  # of a line of what was asked


def on_pictures(shown: Sequence[Located], title: str):
    """A picture a sample: what is right in green, what was answered in red, and their overlap."""
    from matplotlib.patches import Rectangle

    lines = -(-len(shown) // COLUMNS)
    figure = blank(10.0, 0.6 + 3.0 * lines)
    grid = figure.subplots(lines, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, one in zip(grid.flat, shown, strict=False):
        axes.imshow(one.picture, cmap="gray" if one.picture.mode == "L" else None)
        for colour, style, regions in ((RIGHT, "-", one.right), (FOUND, "--", [one.answer])):
            for left, top, right, bottom in regions:
                # a pixel's middle is a whole number here
                corner, size = (left - 0.5, top - 0.5), (right - left, bottom - top)
                axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linestyle=style, linewidth=2))
        axes.set_title(f"{_words(one.asked)}\nIoU {one.overlap:.2f}", fontsize=8)
    figure.suptitle(f"{title}\nright: green; answered: red, dashed", fontsize=11)
    return figure


def on_a_line(shown: Sequence[Located], title: str):
    """A line of time a sample: what is right above, what was answered below."""
    figure = blank(9.0, 1.2 + 0.62 * len(shown))
    axes = figure.subplots()
    for place, one in enumerate(shown):
        axes.barh(place, one.extent[0], height=0.7, color=MUTED, alpha=0.35)
        for begin, end in one.right:
            axes.barh(place - 0.17, end - begin, left=begin, height=0.3, color=RIGHT)
        begin, end = one.answer
        axes.barh(place + 0.17, end - begin, left=begin, height=0.3, color=FOUND)
        axes.text(one.extent[0], place, f"  IoU {one.overlap:.2f}", va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(shown)), [_words(one.asked) for one in shown], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="seconds", title=f"{title}\nright: green, above; answered: red, below")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def figure_of(shown: Sequence[Located], title: str) -> Any:
    """By what was looked through."""
    return on_pictures(shown, title) if shown[0].picture is not None else on_a_line(shown, title)


def _words(text: str) -> str:
    short = textwrap.shorten(text.replace("$", r"\$"), 2 * CHARACTERS, placeholder="...")
    return "\n".join(textwrap.wrap(short, CHARACTERS))
