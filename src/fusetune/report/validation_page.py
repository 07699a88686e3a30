"""The validation report as one page of HTML that works offline."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from fusetune.report.figures import ACCENT, blank

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
td, th { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.error { color: #c0392b; } .quarantine { color: #b9770e; } .warn { color: #7f8c8d; }
.said { color: #888; white-space: pre-wrap; } .said b, b.said { color: #1e8449; font-weight: normal; }
figure { display: inline-block; margin: 0 1rem 1rem 0; background: #fff; border-radius: 6px; padding: .4rem; }
"""


def validation_page(report: Mapping[str, Any], title: str) -> str:
    """HTML of `manifest.validation_report.make_report`'s report."""
    verdict = "Stopped by " + "; ".join(report["stopped_by"]) if report["stopped_by"] else "Sound enough to go on"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p><strong class='{'error' if report['stopped_by'] else ''}'>{escape(verdict)}.</strong> "
        f"{report['rows']:,} rows, {report['sound_rows']:,} sound, {report['quarantined_rows']:,} set aside.</p>",
        "<h2>What failed</h2>",
        _failures(report["checks"]) if report["checks"] else "<p>Nothing.</p>",
        "<h2>Rows</h2>",
        _table(["split", "sound rows"], [[name, f"{n:,}"] for name, n in report["rows_per_split"].items()]),
    ]
    missing = {name: count for name, count in report["missing"].items() if count}
    if missing:
        rows = [[name, f"{count:,}"] for name, count in missing.items()]
        parts += ["<h2>Missing modalities</h2>", _table(["modality", "rows without it"], rows)]
    for label, counts in report["labels"].items():
        splits = list(report["rows_per_split"])
        rows = [[name, *(f"{by[s]:,}" for s in splits)] for name, by in sorted(counts.items(), key=_most)]
        parts += [f"<h2>Labels: {escape(label)}</h2>", _table([label, *splits], rows)]
    if report.get("supervised"):
        told = [f"<p class='said'>{escape(s['prompt'])}<b>{escape(s['answer'])}</b></p>" for s in report["supervised"]]
        parts += ["<h2>What is shown, and <b class='said'>what is learned</b></h2>", *told]
    drawn = [_histogram(name, size) for name, size in report["sizes"].items() if size]
    if drawn:
        parts += ["<h2>Sizes of the sound rows</h2>", *drawn]
    head = f"<!doctype html><meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>"
    return f"{head}\n" + "\n".join(parts) + "\n"


def _failures(checks: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for check in checks:
        examples = "<br>".join(
            escape(f"row {e['row']} ({e['sample_id']}): {e['value']}" if e["row"] >= 0 else e["value"])
            for e in check["examples"]
        )
        level = check["severity"]
        rows.append(
            f"<tr><td class='{level}'>{level}</td><td>{escape(check['check'])}</td><td>{escape(check['column'])}</td>"
            f"<td class='n'>{check['rows']:,}</td><td>{examples}</td></tr>"
        )
    head = "<tr><th>severity</th><th>check</th><th>column</th><th class='n'>rows</th><th>for example</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th{' class=n' if i else ''}>{escape(h)}</th>" for i, h in enumerate(headings))
    lines = ["".join(f"<td{' class=n' if i else ''}>{escape(c)}</td>" for i, c in enumerate(row)) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _histogram(name: str, size: Mapping[str, Any]) -> str:
    if size["edges"][-1] - size["edges"][0] <= 1 and len(size["counts"]) == 1:
        value = (size["edges"][0] + size["edges"][-1]) / 2
        return f"<p>{escape(name)}: all {value:g} {escape(size['unit'])}.</p>"
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = blank(3.9, 2.4)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    edges = size["edges"]
    widths = [b - a for a, b in pairwise(edges)]
    axes.bar(edges[:-1], size["counts"], widths, align="edge", color=ACCENT)
    axes.set(xlabel=size["unit"], ylabel="rows", title=name)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<figure><img alt='{escape(name)}: {escape(size['unit'])}' src='data:image/png;base64,{data}'></figure>"


def _most(item: tuple[str, Mapping[str, int]]) -> tuple[int, str]:
    return -sum(item[1].values()), item[0]
