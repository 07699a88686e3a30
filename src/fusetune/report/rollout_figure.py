"""Episodes in a world, a strip of pictures each."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from fusetune.report.figures import blank
from fusetune.report.located_figures import FOUND, RIGHT
from fusetune.worlds.world import SUCCESS

FRAMES = 9  # of a strip; of more, evenly spread, the last among them
SHOWN = 12  # strips
CHARACTERS = 24


def strips(shown: Sequence[tuple[str, str, Sequence[Any]]], numbers: Mapping[str, Mapping[str, Any]], title: str):
    """Steps from left to right, framed green behind a success, red behind anything else."""
    shown = shown[:SHOWN]
    figure = blank(1.9 + 1.05 * FRAMES, 1.0 + 1.2 * len(shown))
    grid = figure.subplots(len(shown), FRAMES + 1, squeeze=False, width_ratios=[1.9, *[1] * FRAMES])
    for axes in grid.flat:
        axes.axis("off")
    for line, (words, outcome, frames) in zip(grid, shown, strict=True):
        text = "\n".join(textwrap.wrap(words.replace("$", r"\$"), CHARACTERS))
        colour = RIGHT if outcome == SUCCESS else FOUND
        line[0].text(0, 0.62, text, fontsize=8, va="center", transform=line[0].transAxes)
        line[0].text(0, 0.08, outcome, fontsize=8, va="bottom", color=colour, transform=line[0].transAxes)
        last = len(frames) - 1
        kept = sorted({round(i * last / (FRAMES - 1)) for i in range(FRAMES)}) if last >= FRAMES else range(len(frames))
        for axes, number in zip(line[1:], kept, strict=False):
            axes.axis("on")
            axes.imshow(frames[number], cmap="gray" if frames[number].mode == "L" else None)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{number}", fontsize=7, pad=2)
            for spine in axes.spines.values():
                spine.set(color=colour if number == last else "#bbbbbb", linewidth=2.5 if number == last else 1)
    rates = "; ".join(
        f"{name or 'as trained'} {one[SUCCESS]:.2f} ({one['low']:.2f} to {one['high']:.2f})"
        for name, one in numbers.items()
    )
    figure.suptitle(f"{title}\nsuccess {rates}", fontsize=11)
    return figure
