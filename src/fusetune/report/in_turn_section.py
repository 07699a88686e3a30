"""The section of a comparison's page on tasks that are learned in turn."""

from collections.abc import Mapping
from html import escape
from typing import Any

SHOWN = ("average", "forgetting", "backward", "forward")
NOTHING = "<td data-key=''></td>"
NOTE = """Average: over all tasks when the last is learned. Forgetting: what a task has lost since it was at its best.
Backward: what it has lost or gained since it was learned. Forward: what it has more than adapters of its own."""


def in_turn_section(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A table: a row a variant and way; '' where no tasks were learned in turn."""
    body = "".join(_row(name, way, one) for name, row in rows.items() for way, one in row["continual"].items())
    if not body:
        return ""
    head = "".join(f"<th class=n>{name}</th>" for name in (*SHOWN, "bytes"))
    return (
        f"<div class='scroll'><table class='sortable'><thead><tr><th>method</th><th>way</th>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div><p class='note'>{NOTE}</p>"
    )


def _row(name: str, way: str, one: Mapping[str, Any]) -> str:
    start = f"<tr><td>{escape(name)}</td><td>{escape(way)}</td>"
    if "refused" in one:
        return f"{start}<td data-key=''>{escape(one['refused'])}</td>{NOTHING * len(SHOWN)}</tr>"
    texts = {key: f"{one[key]:.3f}" for key in SHOWN} | {"bytes": f"{one['bytes']:,}"}
    texts["forgetting"] += f" ± {one['forgetting_deviation']:.3f}"
    return start + "".join(f"<td class='n' data-key='{one[k]}'>{text}</td>" for k, text in texts.items()) + "</tr>"
