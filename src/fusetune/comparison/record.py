"""A comparison as a JSON file holds it, and back: what was compared, and where its cells lie."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusetune.comparison.cells import Cell, read_cell
from fusetune.comparison.compare import Comparison
from fusetune.comparison.jobs import Shared
from fusetune.config import check, to_plain


@dataclass(frozen=True)
class Compared:
    """A variant and its cells, as the statistics and the report see them.

    Attributes:
        changed: path -> value, of a grid, a search or the scaling.
        cells: by seed.
        errors: by seed.
        account: what `plan` says of it; {} where it doesn't fit.
        trials: of its search.
    """

    name: str
    method: str
    changed: Mapping[str, Any]
    share: float
    compared: bool
    account: Mapping[str, Any]
    cells: Mapping[int, Cell] = field(default_factory=dict)
    errors: Mapping[int, str] = field(default_factory=dict)
    trials: list[Mapping[str, Any]] = field(default_factory=list)


def record(shared: Shared, comparison: Comparison) -> dict[str, Any]:
    """JSON-ready; cells are named by their folders below the comparison's own."""
    rows = []
    for row in comparison.rows:
        variant = row.variant
        rows.append(
            {
                "name": variant.name,
                "method": variant.method,
                "changed": to_plain(variant.changed),
                "share": variant.share,
                "compared": variant.compared,
                "account": dict(row.account),
                "cells": {str(s): c.folder.relative_to(shared.folder).as_posix() for s, c in sorted(row.cells.items())},
                "errors": {str(seed): text for seed, text in sorted(row.errors.items())},
                "trials": list((row.search or {}).get("trials", [])),
            }
        )
    scaling = shared.settings.scaling
    return {"scaling": {"method": scaling.method, "path": scaling.path}, "rows": rows}


def opened(found: Mapping[str, Any], folder: Path) -> list[Compared]:
    """Inverse of `record`; raises FusetuneError for a cell that isn't there any more."""
    rows = []
    for row in found["rows"]:
        cells = {}
        for seed, place in row["cells"].items():
            cell = read_cell(folder / place)
            check(
                cell is not None,
                f"{folder / place}: this cell of {row['name']} is gone; `kedro run --pipelines compare`.",
            )
            cells[int(seed)] = cell
        errors = {int(seed): text for seed, text in row["errors"].items()}
        rows.append(Compared(**{**row, "cells": cells, "errors": errors}))
    return rows
