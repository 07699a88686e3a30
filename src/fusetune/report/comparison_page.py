"""A comparison as one page of HTML that works offline: Plotly's code is in it once, nothing is fetched."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from fusetune.comparison.record import Compared
from fusetune.comparison.statistics import STEEPEST, PowerLaw
from fusetune.comparison.summary import Summary
from fusetune.report import charts, comparison_charts, inside_charts
from fusetune.report.charts import Chart, Look
from fusetune.report.in_turn_section import in_turn_section
from fusetune.report.second_section import second_section
from fusetune.tasks.metric_names import metric_told

Cell = tuple[str, float | None]  # as it is shown, and what it is sorted by
SKELETON = "comparison.html"
NO_SCALING = """ Error over size and training samples was not measured: <code>compare.scaling</code> names no method (an
environment that sets <code>compare</code> sets all of it)."""
NOTHING = "<div class='grid'></div>"
LAST = 16  # column of the table, of text as the first


def comparison_page(
    summary: Summary,
    found: Sequence[Compared],
    title: str,
    size_label: str = "size",
    samples: Callable[[Sequence[Compared], Look], str] = lambda found, look: "",
) -> str:
    """
    Args:
        found: all variants, those of the scaling too.
        size_label: what the scaling's size is called.
        samples: what shows test samples with the answers of variants, the best first.
    """
    from plotly.offline import get_plotlyjs

    drawn: list[Chart] = []

    def shown(several: Iterable[Chart | None]) -> str:
        parts = []
        for chart in several:
            if chart is not None:
                drawn.append(chart)
                parts.append(_figure(len(drawn) - 1, chart))
        return f"<div class='grid'>{''.join(parts)}</div>"

    compared = {one.name: one for one in found if one.compared and one.cells}
    best_first = [compared[name] for name in summary.rows]
    look = Look(list(summary.rows))
    sections = [
        ("Verdict", "Verdict", _verdict(summary) + shown([comparison_charts.means(summary, look)])),
        ("Costs", "What it costs", shown(comparison_charts.costs(summary, look))),
        ("Table", "Table", _table(summary)),
        ("Pairs", "Who is better than whom", shown([charts.differences(summary)] if summary.differences else [])),
        ("Samples", "Samples and answers", samples(best_first, look)),
        ("Elsewhere", "On other data", second_section(summary.elsewhere, summary.rows)),
        ("In-turn", "One task after another", in_turn_section(summary.rows)),
        ("Modalities", "Modalities and groups", shown(comparison_charts.modalities(summary))),
        ("Robustness", "Missing modalities, noise, calibration", shown(comparison_charts.robustness(summary, look))),
        ("Classes", "Classes", shown(comparison_charts.classes(summary))),
        ("Curves", "Learning curves", shown([comparison_charts.curves(summary, best_first, look)])),
        (
            "Scaling",
            "Size and data",
            shown(comparison_charts.scaling(summary, size_label)) + _law(summary.law, size_label),
        ),
        ("Confusion", "Confusion", _chosen(best_first, lambda one: [inside_charts.confusion(one)], shown)),
        ("Inside", "Gates and attention", _chosen(best_first, inside_charts.inside, shown)),
        ("Failed", "What failed", _errors(summary)),
        ("Method", "How this was measured", _method(summary)),
    ]
    sections = [(name, heading, body) for name, heading, body in sections if body not in ("", NOTHING)]
    data = [{"data": c.traces, "layout": dict(c.layout) | {"height": c.height}} for c in drawn]
    page = (files("fusetune.report") / SKELETON).read_text()
    parts: dict[str, str] = {
        "TITLE": escape(title),
        "NAV": "".join(f"<a href='#{name.lower()}'>{name}</a>" for name, _, _ in sections),
        "BODY": "".join(f"<section id='{n.lower()}'><h2>{escape(h)}</h2>{body}</section>" for n, h, body in sections),
        "FIGURES": json.dumps(data, separators=(",", ":")).replace("</", "<\\/"),
        "PLOTLY": get_plotlyjs(),
    }
    for key, text in parts.items():
        page = page.replace(f"@@{key}@@", text)
    return page


def _figure(number: int, chart: Chart) -> str:
    wide = " wide" if chart.wide else ""
    return (
        f"<figure class='card{wide}'><h3>{escape(chart.title)}</h3>"
        f"<div class='plot' data-figure='{number}' style='min-height:{chart.height}px'></div>"
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
    )


def _verdict(summary: Summary) -> str:
    first, *others = summary.sentences
    return f"<p class='lead'>{escape(first)}</p><ul>{''.join(f'<li>{escape(s)}</li>' for s in others)}</ul>"


def _law(law: PowerLaw | None, label: str) -> str:
    if law is None:
        return ""
    text = f"error = {law.floor:.3f} + {law.a:.3g} / {label}^{law.alpha:.2f} + {law.b:.3g} / samples^{law.beta:.2f}"
    note = ""
    if max(law.alpha, law.beta) > 0.99 * STEEPEST:
        note = f" An exponent at {STEEPEST:g}, its bound: the step from the smallest value is all that there is to see."
    note += " Five parameters on few points: a description, no forecast far outside of them." if law.points < 30 else ""
    return (
        f"<p>Least squares on {law.points} points: <code>{escape(text)}</code>, which explains "
        f"{law.determination:.0%} of their variance.{note}</p>"
    )


def _chosen(
    found: Sequence[Compared], drawn: Callable[[Compared], Sequence[Chart | None]], shown: Callable[..., str]
) -> str:
    """One variant's charts at a time, by a list to choose from."""
    parts = [(one.name, charts_) for one in found if (charts_ := [c for c in drawn(one) if c is not None])]
    if not parts:
        return ""
    options = "".join(f"<option>{escape(name)}</option>" for name, _ in parts)
    bodies = "".join(
        f"<div class='choice' data-name='{escape(name, quote=True)}'{'' if i == 0 else ' hidden'}>{shown(of_one)}</div>"
        for i, (name, of_one) in enumerate(parts)
    )
    return f"<div class='chooser'><label>Method <select>{options}</select></label>{bodies}</div>"


def _table(summary: Summary) -> str:
    headings = (
        "method",
        "validation",
        f"test {metric_told(summary.metric)}",
        "95% CI",
        "± seeds",
        "seeds",
        "parameters",
        "% of base",
        "train s",
        "epochs",
        "peak MB",
        "joules",
        "cache MB",
        "answer ms",
        "overhead",
        "ECE",
        "frontier",
    )
    rows = []
    for name, row in summary.rows.items():
        cells = _cells(name, row)
        rows.append("".join(_td(text, key, i) for i, (text, key) in enumerate(cells)))
    head = "".join(
        f"<th tabindex='0'{'' if i in (0, LAST) else ' class=n'}>{escape(h)}</th>" for i, h in enumerate(headings)
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f"<div class='scroll'><table class='sortable'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        "<p class='note'>A click on a heading sorts. Seconds and epochs are of one seed; a dash: the machine doesn't "
        "tell; an answer is one sample of a batch, from preprocessed inputs.</p>"
    )


def _cells(name: str, row: Mapping[str, Any]) -> list[Cell]:
    joules, overhead, ece, share = row["joules"], row["overhead"], row["ece"], row["percent_of_base"]
    return [
        (name if row["chosen"] else f"{name} (not chosen)", None),
        (f"{row['validation']:.3f}", row["validation"]),
        (f"{row['mean']:.3f}", row["mean"]),
        (f"{row['low']:.3f} to {row['high']:.3f}", row["low"]),
        (f"{row['deviation']:.3f}", row["deviation"]),
        (str(row["seeds"]), row["seeds"]),
        (f"{row['trainable_parameters']:,}", row["trainable_parameters"]),
        ("-" if share is None else f"{share:.2f}", share or 0.0),
        (f"{row['train_seconds']:.1f}", row["train_seconds"]),
        (f"{row['epochs']:.0f}", row["epochs"]),
        (f"{row['peak_bytes'] / 1e6:.0f}", row["peak_bytes"]),
        ("–" if joules is None else f"{joules:.0f}", joules),
        (f"{row['cache_bytes'] / 1e6:.1f}", row["cache_bytes"]),
        (f"{1000 * row['seconds_per_answer']:.2f}", row["seconds_per_answer"]),
        (f"{100 * overhead:+.1f}%", overhead),
        ("–" if ece is None else f"{ece:.3f}", ece),
        (row["frontier"], None),
    ]


def _td(text: str, key: float | None, column: int) -> str:
    if column in (0, LAST):
        return f"<td>{escape(text)}</td>"
    return f"<td class='n' data-key='{'' if key is None else key}'>{escape(text)}</td>"


def _errors(summary: Summary) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td><td>{', '.join(map(str, seeds))}</td><td>{escape(text)}</td></tr>"
        for name, own in summary.errors.items()
        for text, seeds in _by_text(own).items()
    ]
    head = "<tr><th>method</th><th>seeds</th><th>error</th></tr>"
    return f"<div class='scroll'><table>{head}{''.join(rows)}</table></div>" if rows else ""


def _by_text(errors: Mapping[int, str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for seed, text in errors.items():
        found.setdefault(text, []).append(seed)
    return found


def _method(summary: Summary) -> str:
    unscaled = "" if summary.points else NO_SCALING
    return f"""<p>All methods were trained on the same frozen base, the same cached features and the same training
rows, and judged on the same {summary.samples:,} test samples; the epoch that a seed keeps, the settings of a
method that was given several, and the winner were chosen on the validation split. Intervals of a mean are percentile
bootstraps in which seeds and (groups of) samples are drawn anew. A difference
is tested by a paired test over samples whose variance also holds that between seeds; its degrees of freedom are
Satterthwaite's, and p values are corrected for the number of pairs after Holm. An interval in a sentence is of that one
difference.</p>
<p>Times are of this machine while several methods trained side by side. Energy is that of the whole machine, divided
by the number of methods that trained at the same time.{unscaled}</p>"""
