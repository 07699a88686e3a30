"""What a model has said of a table's rows, as a table, and how much of it is right.

Rows are decoded some at a time, where what is said of a row depends on that row alone; the table is on disk where it is
large.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune import on_disk
from fusetune.bank.scoring import Scored
from fusetune.config import digest
from fusetune.features.source import Source
from fusetune.on_disk import Cells
from fusetune.tasks.task import Task
from fusetune.training.data import columns_of_rows, targets_by_parts, told_of_rows
from fusetune.training.evaluation import EvaluationSettings, evaluate, main_metric

logger = logging.getLogger(__name__)


def predictions(
    task: Task,
    source: Source,
    keys: Mapping[str, Sequence[Any]],
    told: Mapping[str, Sequence[Any]],
    rows: np.ndarray,
    scored: Scored,
) -> pa.Table:
    """A line for each of `rows`; those that could not be read have an error and nothing else.

    Args:
        keys: of contents, by modality.
        told: what `sample_columns` says.
        rows: those that were asked for, in ascending order.
    """
    return joined_lines(task, len(rows), lambda some: _lines(task, source, keys, told, rows[some], scored))


def joined_lines(task: Task, count: int, lines: Callable[[slice], pa.Table]) -> pa.Table:
    """Lines of so many rows as one table, on disk where it is large; in some of them a column may lack, or be empty.

    Args:
        lines: of some rows; of all at once where what the task says of a row depends on others.
    """
    parts = list[on_disk.Growing]()
    for some in on_disk.slices(count, on_disk.AT_ONCE if task.by_row else count):
        block = lines(some)
        if not parts or block.schema != parts[-1].schema:
            parts.append(on_disk.Growing(block.schema))
        for batch in block.to_batches():
            parts[-1].write(batch)
    return pa.concat_tables([part.table() for part in parts], promote_options="permissive")


def _lines(
    task: Task,
    source: Source,
    keys: Mapping[str, Sequence[Any]],
    told: Mapping[str, Sequence[Any]],
    rows: np.ndarray,
    scored: Scored,
) -> pa.Table:
    """Lines of some rows, as `predictions` has it."""
    begin, stop = np.searchsorted(scored.rows, (rows[0], rows[-1] + 1))
    known, outputs = scored.rows[begin:stop], scored.outputs[begin:stop]
    columns: dict[str, Any] = {
        "sample_id": _ids(source, rows),
        "content_sha256": [digest({name: column[row] for name, column in keys.items()}) for row in rows.tolist()],
    }
    if len(known):
        names = [str(name) for name in _ids(source, known).to_pylist()]
        there = [name for name in task.columns() if name in source.table.column_names]
        decoded = task.answers(outputs, names, task.contents(columns_of_rows(there, source.table, known, told)))
        at = {row: place for place, row in enumerate(known.tolist())}
        places = [at.get(row) for row in rows.tolist()]
        for name in decoded[0]:
            columns[name] = [None if place is None else decoded[place][name] for place in places]
        for name, (_, shares) in task.probabilities(outputs).items():
            values = shares.tolist()
            columns[name] = [None if place is None else values[place] for place in places]
    columns["error"] = pa.array([scored.errors.get(row) for row in rows.tolist()], pa.string())
    return pa.table(columns)


def _ids(source: Source, rows: np.ndarray) -> pa.ChunkedArray | pa.Array:
    if "sample_id" in source.table.column_names:
        return on_disk.taken(source.table["sample_id"], rows)
    return pa.array(map(str, rows.tolist()), pa.string())


def score_answers(
    task: Task, source: Source, told: Mapping[str, Sequence[Any]], scored: Scored, settings: EvaluationSettings
) -> dict[str, Any]:
    """Metrics of the rows whose targets are there and known; says what was left out.

    Args:
        told: what `sample_columns` says.
    """
    lacking = [name for name in task.columns() if name not in source.table.column_names]
    if lacking:
        return {"evaluated_rows": 0, "why": f"the samples have no column {', '.join(map(repr, lacking))}"}
    told = told_of_rows(task, source.table, told)

    def columns_of(some: np.ndarray) -> dict[str, Sequence[Any]]:
        return columns_of_rows(task.columns(), source.table, some, told)

    columns = columns_of(scored.rows)
    known = np.fromiter(task.known(columns), bool, len(scored.rows))
    left_out = np.flatnonzero(~known)
    if len(left_out):
        i = int(left_out[0])
        found = ", ".join(f"{name} {columns[name][i]!r}" for name in task.columns())
        logger.warning(
            "%d of %d rows are left out of the metrics: no target, or none that the training knew (row %d: %s)",
            len(left_out), len(scored.rows), scored.rows[i], found,
        )  # fmt: skip
    if not known.any():
        return {"evaluated_rows": 0, "why": "no row has a target that the training knew"}
    places = np.flatnonzero(known)
    rows = scored.rows[places]
    kind = getattr(task.config, "question_type", None)
    groups = Cells(source.table["group_id"], rows) if "group_id" in source.table.column_names else None
    kinds = list(Cells(source.table[kind], rows)) if kind else None
    outputs = scored.outputs[places] if len(left_out) else scored.outputs
    truths = targets_by_parts(task, rows, lambda some: task.truths(columns_of(some)))
    metrics = evaluate(task, outputs, truths, settings, kinds, groups)
    name = main_metric(task, metrics)
    logger.info(
        "%s %.3f (%.3f to %.3f) on %d rows", name, metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"],
        len(rows),
    )  # fmt: skip
    return {"metric": name, "evaluated_rows": len(rows), "rows_left_out": len(left_out), "metrics": metrics}
