"""Cells: a variant trained with one seed. What is known of one lies in a folder under the digest of all it depends on.

cell.json             results, the same whenever they are computed again
cost.json             times, memory, joules: of this machine and hour
predictions.parquet   one row a test sample
adapter/              the artifact
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusetune.bank.artifact import Artifact
from fusetune.scratch import scratch

CELL, COST, PREDICTIONS, ADAPTER = "cell.json", "cost.json", "predictions.parquet", "adapter"


@dataclass(frozen=True)
class Cell:
    """A cell that is there.

    Attributes:
        results: metrics, curve, calibration, conditions, attention; see `work`.
        cost: likewise.
    """

    folder: Path
    results: Mapping[str, Any]
    cost: Mapping[str, Any]

    def predictions(self) -> Any:
        """A pyarrow table."""
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / PREDICTIONS)

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER


def read_cell(folder: Path) -> Cell | None:
    """The cell in a folder; None where there is none, or none that is whole."""
    try:
        results, cost = (json.loads((folder / name).read_text()) for name in (CELL, COST))
    except (OSError, ValueError):
        return None
    return Cell(folder, results, cost)


def write_cell(
    folder: Path, results: Mapping[str, Any], cost: Mapping[str, Any], predictions: Any, artifact: Artifact
) -> None:
    """Write all of it, or nothing: a kill leaves no half of a cell."""
    import pyarrow.parquet as pq

    temporary = scratch(folder.with_name(f".{folder.name}"))
    temporary.mkdir(parents=True)
    try:
        (temporary / CELL).write_text(json.dumps(results, indent=1) + "\n")
        (temporary / COST).write_text(json.dumps(cost, indent=1) + "\n")
        pq.write_table(predictions, temporary / PREDICTIONS, compression="zstd")
        artifact.save_pretrained(temporary / ADAPTER)
        shutil.rmtree(folder, ignore_errors=True)  # one that wasn't whole
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
