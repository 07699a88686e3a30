"""Charts of one variant: its confusion, and what is seen inside of its adapter."""

from dataclasses import replace

from fusetune.comparison import details
from fusetune.comparison.record import Compared
from fusetune.report.charts import PALETTE, Chart, axis, heatmap
from fusetune.training.evaluation import MOST_LABELS

BOXED = 400  # samples in a box: its quartiles are the same to a percent, the page is smaller


def confusion(one: Compared) -> Chart | None:
    found = details.confusion(one)
    if found is None:
        return None
    labels, matrix = found
    chart = heatmap(
        f"Confusion: {one.name}",
        "Share of a label's test samples (row) that were answered by another (column), all seeds"
        + (f"; the {MOST_LABELS} most frequent labels." if len(labels) == MOST_LABELS else "."),
        matrix,
        ("predicted", "true"),
        (labels, labels),
        "share",
    )
    return replace(chart, wide=True)


def gates(one: Compared) -> Chart | None:
    found = details.gates(one)
    if not found:
        return None
    traces = [
        {
            "type": "box",
            "name": name.replace("_", " "),
            "x": [round(value, 4) for value in values[:: max(1, len(values) // BOXED)]],
            "boxpoints": False,
            "marker": {"color": PALETTE[i % len(PALETTE)]},
        }
        for i, (name, values) in enumerate(found.items())
    ]
    return Chart(
        f"Gates: {one.name}",
        "What the adapter let through, over test samples of the first seed: median, quartiles, 1.5 of their distance.",
        traces,
        {"xaxis": axis("weight (0 to 1)", range=[-0.02, 1.02]), "yaxis": axis("gate"), "showlegend": False},
        max(240, 110 + 34 * len(traces)),
    )


def inside(one: Compared) -> list[Chart | None]:
    """Gates, attention and products of tokens: what there is."""
    return [gates(one), *attention(one), *interactions(one)]


def interactions(one: Compared) -> list[Chart]:
    charts = []
    for name, strength in details.interactions(one).items():
        labels = [[f"{i + 1}" for i in range(size)] for size in strength.shape]
        rows, _, columns = name.rpartition(": ")[2].partition(" with ")
        charts.append(
            heatmap(
                f"Tokens that act together: {one.name}, {name}",
                "Norm of what a pair of tokens adds to the fused stream that neither adds alone, mean over samples.",
                strength,
                (f"token of {columns}", f"token of {rows}"),
                (labels[1], labels[0]),
                "norm",
                max(300, 130 + 24 * len(labels[0])),
            )
        )
    return charts


def attention(one: Compared) -> list[Chart]:
    charts = []
    for name, weights in details.attention(one).items():
        labels = [[f"{i + 1}" for i in range(size)] for size in weights.shape]
        charts.append(
            heatmap(
                f"Attention: {one.name}, {name}",
                "Mean weight over heads and test samples, first seed; a row reads, a column is read.",
                weights,
                ("token that is read", "token that reads"),
                (labels[1], labels[0]),
                "weight",
                max(300, 130 + 16 * len(labels[0])),
            )
        )
    return charts
