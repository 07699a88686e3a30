"""What students reach with fewer labels, alone and taught, beside their teacher."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusetune.report.figures import ACCENT, INK, MUTED, blank
from fusetune.tasks.metric_names import metric_told


def students(told: Mapping[str, Any]):
    """The test metric over the share of labels, mean and range of the seeds; the teacher as a line."""
    figure = blank(7.0, 4.2)
    axes = figure.subplots()
    shares = sorted(told["labels"], key=float)
    places = [told["labels"][share]["rows"] for share in shares]
    for arm, colour, style in (("alone", INK, "--"), ("taught", ACCENT, "-")):
        values = np.array([list(told["labels"][share][arm].values()) for share in shares])
        axes.fill_between(places, values.min(1), values.max(1), color=colour, alpha=0.15, linewidth=0)
        axes.plot(places, values.mean(1), color=colour, linestyle=style, marker="o", label=f"student, {arm}")
    axes.axhline(told["teacher_test"], color=MUTED, linewidth=2, label="teacher, all labels")
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{count:,}\n{float(share):.0%}" for count, share in zip(places, shares, strict=True)])
    axes.minorticks_off()
    axes.set(xlabel="training rows whose label the student knows", ylabel=metric_told(told["metric"]))
    axes.set_title(f"Distilled from {told['teacher']} ({len(next(iter(told['labels'].values()))['taught'])} seeds)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
