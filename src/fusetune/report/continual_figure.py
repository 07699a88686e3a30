"""What is left of each task as others are learned."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusetune.report.figures import ACCENT, INK, MUTED, blank

COLOURS = (INK, ACCENT, "#d1495b", "#edae49")


def over_tasks(found: Mapping[str, Any]):
    """A panel a task: its test metric after each task, by way, mean and range of the seeds."""
    tasks = found["tasks"]
    figure = blank(3.2 * len(tasks) + 1.0, 3.6)
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for j, (axes, task) in enumerate(zip(panels, tasks, strict=True)):
        for way, colour in zip(found["ways"], COLOURS, strict=False):
            values = np.array([[row[j] for row in one["after"][j:]] for one in found["ways"][way].values()], float)
            places = range(j, len(tasks))
            axes.fill_between(places, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
            axes.plot(places, values.mean(0), color=colour, marker="o", label=way)
        axes.axvline(j, color=MUTED, linewidth=1, zorder=0)
        axes.set_xticks(range(len(tasks)), tasks)
        axes.set(xlabel="after learning", title=f"{task}")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test metric")
    panels[-1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{found['method']}: task after task")
    return figure
