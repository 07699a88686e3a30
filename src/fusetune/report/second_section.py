"""The section of a comparison's page on second sets."""

from collections.abc import Mapping
from html import escape
from typing import Any


def second_section(
    elsewhere: Mapping[str, Mapping[str, Mapping[str, Any]]], rows: Mapping[str, Mapping[str, Any]]
) -> str:
    """A table: a row a variant, a column a set beside the test split; '' where there are no sets."""
    if not elsewhere:
        return ""
    head = "".join(f"<th class=n>{escape(name)}</th>" for name in ("test", *elsewhere))
    body = ""
    for variant, row in rows.items():
        cells = [row, *(own[variant] for own in elsewhere.values())]
        shown = "".join(
            f"<td class='n' data-key='{one['mean']}'>{one['mean']:.3f} ({one['low']:.3f} to {one['high']:.3f})</td>"
            for one in cells
        )
        body += f"<tr><td>{escape(variant)}</td>{shown}</tr>"
    counts = "; ".join(_counted(name, next(iter(own.values()))) for name, own in elsewhere.items())
    too_long = "; ".join(
        f"{variant} on {name}: {one['rows_too_long']:,}"
        for name, own in elsewhere.items()
        for variant, one in own.items()
        if one["rows_too_long"]
    )
    counts += f". Without rows that have more tokens than the adapter was made for, {too_long}" if too_long else ""
    return (
        f"<div class='scroll'><table class='sortable'><thead><tr><th>method</th>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div><p class='note'>{escape(counts)}. Nothing was chosen by them.</p>"
    )


def _counted(name: str, one: Mapping[str, Any]) -> str:
    text = f"{name}: {one['rows'] + one['rows_too_long']:,} rows"
    if one["rows_left_out"]:
        text += f", {one['rows_left_out']:,} left out (no target that the training knew)"
    return text + (f", {one['set_aside']:,} set aside (they fail a check)" if one["set_aside"] else "")
