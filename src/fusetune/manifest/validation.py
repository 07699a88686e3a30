"""Validation of a manifest with Pandera: what is wrong is named by check, row and column, and what is sound goes on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from fusetune import on_disk
from fusetune.errors import FusetuneError
from fusetune.manifest.checks import (
    Check,
    Failure,
    ValidationSettings,
    conversation_checks,
    fault_checks,
    row_checks,
    target_checks,
)
from fusetune.manifest.label_checks import label_checks
from fusetune.manifest.labels import label_problem
from fusetune.manifest.probing import column_facts, decode_facts
from fusetune.manifest.schema import CONVERSATION, MEDIA, REQUIRED, Modality
from fusetune.manifest.validation_report import Judged, Sizes, make_report
from fusetune.manifest.whole import Whole, class_text, distinct

Progress = Callable[[str, int, int], None]  # modality, cells decoded, cells
Faults = Callable[[pa.Table], Mapping[tuple[str, str], Sequence[str | None]]]
BLOCK = 2**16  # rows whose facts are in memory at once


@dataclass(frozen=True)
class Outcome:
    """
    Attributes:
        sound: the rows that failed nothing of severity `quarantine`.
        quarantine: sample_id, row, column, check and value of those that did, a line a failure.
        report: JSON-ready; `stopped_by` lists why the run must stop, empty where it may go on.
    """

    sound: pa.Table
    quarantine: pa.Table
    report: dict[str, Any]


def validate(
    table: pa.Table,
    modalities: Mapping[str, Modality],
    labels: list[str],
    settings: ValidationSettings,
    progress: Progress = lambda *_: None,
    needed: Iterable[str] = (),
    problems: Mapping[str, Callable[[Any], str | None]] | None = None,
    faults: Faults | None = None,
) -> Outcome:
    """Check the manifest and everything it points to.

    Args:
        labels: the columns with the task's answers.
        needed: further columns that the task reads.
        problems: by column with targets that are no classes: why a cell is none, in words.
        faults: of some rows, by column and check why each of them fails.

    Raises:
        FusetuneError: a column is missing; nothing can be said about the rest.
    """
    columns = [modality.column_of(name) for name, modality in modalities.items()]
    missing = [name for name in [*REQUIRED, *columns, *labels, *needed] if name not in table.column_names]
    if missing:
        raise FusetuneError(
            f"manifest: column {', '.join(map(repr, missing))} is missing. It has {', '.join(table.column_names)}."
        )
    if not table.num_rows:
        found = Judged(table, settings, on_disk.array(0, bool))
        found.add([Failure(-1, "", "manifest.empty", "0 rows")])
        return Outcome(
            table, found.aside(), make_report(None, found, Sizes(0, modalities), labels, modalities, settings)
        )
    whole = Whole(table, modalities, labels)
    found, sizes = Judged(table, settings, whole.kept), Sizes(table.num_rows, modalities)
    rules = [
        *row_checks(modalities, settings.limits, whole.repeated, whole.widths),
        *label_checks(whole.label_counts(), settings.labels),
    ]
    others = problems or {}
    # numbers are copied, media only looked at: of them a pool of processes takes many at once
    copied = sum(table[m.column_of(name)].nbytes for name, m in modalities.items() if m.kind not in MEDIA)
    for some in on_disk.slices(table.num_rows, on_disk.at_once(copied, table.num_rows, BLOCK)):
        part = on_disk.part(table, some)
        facts = _facts(part, modalities, labels, settings, _later(progress, some.start, table.num_rows))
        for name, problem in others.items():
            facts[name] = pd.Series(part[name].to_pylist(), dtype=object)
            facts[f"{name}: type"] = facts[name].map(problem, na_action="ignore")
        told = faults(part) if faults else {}
        for (column, name), of_rows in told.items():
            facts[f"{column}: {name}"] = pd.Series(of_rows, dtype=object)
        facts.index += some.start
        found.add(_run(rules, facts))
        found.add(_run([*target_checks(others), *conversation_checks(), *fault_checks(told)], facts))
        sizes.add(facts, some)
    found.add(whole.same_contents())
    for label in labels:
        found.add(whole.untrained(label))
    found.add(whole.leaking_groups())
    found.add(whole.totals(settings.min_rows_per_split))
    unused = sorted(set(table.column_names) - {*REQUIRED, CONVERSATION, *columns, *labels, *needed})
    found.add(Failure(-1, name, "column.unused", "neither a modality nor read by the task") for name in unused)
    report = make_report(whole, found, sizes, labels, modalities, settings)
    sound = table if not report["quarantined_rows"] else on_disk.filtered(table, whole.kept)
    return Outcome(sound, found.aside(), report)


def _later(progress: Progress, before: int, rows: int) -> Progress:
    """The same for a part of the rows."""
    return lambda name, done, total: progress(name, before + done, max(before + total, rows if before else 0))


def _facts(
    table: pa.Table, modalities: Mapping[str, Modality], labels: list[str], settings: ValidationSettings, progress: Any
) -> pd.DataFrame:
    light = list(dict.fromkeys([*REQUIRED, *labels]))
    facts = pd.DataFrame({name: pd.Series(table[name].to_pylist(), dtype=object) for name in light})
    for label in labels:
        values, index = distinct(table[label])
        for name, asked in ((f"{label}: type", label_problem), (label, class_text)):
            facts[name] = pd.Series(_objects(map(asked, values))[index], dtype=object)
    if CONVERSATION in table.column_names:
        told = [(text or "").partition(": ") for text in table[CONVERSATION].to_pylist()]
        for name in {name for name, _, _ in told if name}:
            facts[f"conversation: {name}"] = [value if own == name else None for own, _, value in told]
    for name, modality in modalities.items():
        column = table[modality.column_of(name)]
        found = column_facts(modality, column)
        if modality.kind in MEDIA and settings.decode and len(facts):
            problems = [c for c in found.columns if c.startswith("path.") or c == "type"]
            rows = found.index[found["present"] & found[problems].isna().all(axis=1) & (found["length"] > 0)]
            report = lambda done, total, name=name: progress(name, done, total)  # noqa: E731
            found = found.join(decode_facts(modality, column, rows.tolist(), settings.workers, report))
        facts = facts.join(found.add_prefix(f"{name}: "))
    return facts


def _run(checks: Iterable[Check], facts: pd.DataFrame) -> list[Failure]:
    """What fails, by Pandera; a check whose column of facts is not there has nothing to judge."""
    import pandera.pandas as pandera
    from pandera.errors import SchemaErrors

    by_column: dict[str, list[Any]] = {}
    for one in checks:
        passes = lambda s, one=one: ~one.fails(s).astype(bool)  # noqa: E731
        rule = pandera.Check(passes, name=one.name, error=one.name, ignore_na=False)
        by_column.setdefault(one.column, []).append(rule)
    columns = {n: pandera.Column(checks=rules, nullable=True, required=False) for n, rules in by_column.items()}
    try:
        pandera.DataFrameSchema(columns).validate(facts, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases
        return [
            Failure(-1 if pd.isna(row) else int(row), str(column).split(": ")[0], str(name), _shown(value))
            for row, column, name, value in zip(
                cases["index"], cases["column"], cases["check"], cases["failure_case"], strict=True
            )
        ]
    return []


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)[:200]


def _objects(values: Iterable[Any]) -> np.ndarray:
    several = list(values)
    found = np.empty(len(several), object)
    found[:] = several
    return found
