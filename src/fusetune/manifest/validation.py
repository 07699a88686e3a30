"""Validation of a manifest with Pandera: what is wrong is named by check, row and column, and what is sound goes on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from fusetune.errors import FusetuneError
from fusetune.manifest.checks import (
    Check,
    Failure,
    ValidationSettings,
    conversation_checks,
    fault_checks,
    label_checks,
    row_checks,
    target_checks,
)
from fusetune.manifest.contents import readable_digests
from fusetune.manifest.labels import label_problem, label_text
from fusetune.manifest.probing import column_facts, decode_facts
from fusetune.manifest.schema import CONVERSATION, MEDIA, REQUIRED, SPLITS, Modality
from fusetune.manifest.validation_report import EXAMPLES, make_report

Progress = Callable[[str, int, int], None]  # modality, cells decoded, cells


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
    faults: Mapping[tuple[str, str], Sequence[str | None]] | None = None,
) -> Outcome:
    """Check the manifest and everything it points to.

    Args:
        labels: the columns with the task's answers.
        needed: further columns that the task reads.
        problems: by column with targets that are no classes: why a cell is none, in words.
        faults: by column and check, of each row why it fails.

    Raises:
        FusetuneError: a column is missing; nothing can be said about the rest.
    """
    columns = [modality.column_of(name) for name, modality in modalities.items()]
    missing = [name for name in [*REQUIRED, *columns, *labels, *needed] if name not in table.column_names]
    if missing:
        raise FusetuneError(
            f"manifest: column {', '.join(map(repr, missing))} is missing. It has {', '.join(table.column_names)}."
        )
    facts = _facts(table, modalities, labels, settings, progress)
    others = problems or {}
    for name, problem in others.items():
        facts[name] = pd.Series(table[name].to_pylist(), dtype=object)
        facts[f"{name}: type"] = facts[name].map(problem, na_action="ignore")
    for (column, name), told in (faults or {}).items():
        facts[f"{column}: {name}"] = pd.Series(told, dtype=object)
    failures: list[Failure] = []
    kept = np.ones(len(facts), bool)

    def judge(found: Iterable[Failure]) -> None:
        for failure in found:
            if settings.level(failure.check) != "off":
                failures.append(failure)
                if settings.level(failure.check) == "quarantine" and failure.row >= 0:
                    kept[failure.row] = False

    if not len(facts):
        judge([Failure(-1, "", "manifest.empty", "0 rows")])
    else:
        judge(_run([*row_checks(modalities, settings.limits), *label_checks(labels, settings.labels)], facts))
        judge(_run([*target_checks(others), *conversation_checks(), *fault_checks(faults or ())], facts))
        judge(_contents(table, modalities, facts["split"], kept))
        for label in labels:
            judge(_trained(facts, label, kept))
        judge(_groups(facts[kept]))
        judge(_totals(facts[kept], labels, settings.min_rows_per_split))
        unused = sorted(set(table.column_names) - {*REQUIRED, CONVERSATION, *columns, *labels, *needed})
        judge([Failure(-1, name, "column.unused", "neither a modality nor read by the task") for name in unused])
    report = make_report(facts, kept, failures, labels, modalities, settings)
    ids = facts["sample_id"].tolist()
    aside = [f for f in failures if f.row >= 0 and settings.level(f.check) == "quarantine"]
    quarantine = pa.table(
        {
            "sample_id": pa.array([str(ids[f.row]) for f in aside], pa.string()),
            "row": pa.array([f.row for f in aside], pa.int64()),
            "column": pa.array([f.column for f in aside], pa.string()),
            "check": pa.array([f.check for f in aside], pa.string()),
            "value": pa.array([f.value for f in aside], pa.string()),
        }
    )
    return Outcome(table.filter(pa.array(kept)), quarantine, report)


def _facts(
    table: pa.Table, modalities: Mapping[str, Modality], labels: list[str], settings: ValidationSettings, progress: Any
) -> pd.DataFrame:
    light = list(dict.fromkeys([*REQUIRED, *labels]))
    facts = pd.DataFrame({name: pd.Series(table[name].to_pylist(), dtype=object) for name in light})
    for label in labels:
        problems = facts[label].map(label_problem)
        facts[f"{label}: type"] = problems
        facts[label] = facts[label].where(problems.isna()).map(label_text)
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


def _totals(facts: pd.DataFrame, labels: list[str], least: int) -> list[Failure]:
    """Whether there are rows enough in every split, and labels to tell apart."""
    counts = {split: int((facts["split"] == split).sum()) for split in SPLITS}
    failures = []
    if min(counts.values()) < least:
        text = ", ".join(f"{split} {count}" for split, count in counts.items())
        failures.append(Failure(-1, "split", "split.rows", text))
    for label in labels:
        there = facts.loc[facts["split"] == "train", label].dropna().unique().tolist()
        if len(there) < 2:
            failures.append(Failure(-1, label, "label.classes", f"in training only {there}"))
    return failures


def _groups(facts: pd.DataFrame) -> list[Failure]:
    several = facts.groupby("group_id")["split"].nunique()
    rows = facts[facts["group_id"].isin(several.index[several > 1])]
    leaking = rows.groupby("group_id")["split"].agg(lambda s: ", ".join(sorted(set(s)))).to_dict()
    groups = rows["group_id"]
    return [
        Failure(int(str(row)), "group_id", "group.leakage", f"{group!s}: {leaking[group]}")
        for row, group in groups.items()
    ]


def _contents(table: pa.Table, modalities: Mapping[str, Modality], split: pd.Series, kept: np.ndarray) -> list[Failure]:
    """Samples that are the same in every modality: in two splits a leak, in one a duplicate."""
    whole, unread = np.zeros((table.num_rows, len(modalities), 32), np.uint8), np.zeros(table.num_rows, bool)
    for place, (name, modality) in enumerate(modalities.items()):
        digests = readable_digests(modality, table[modality.column_of(name)])
        unread |= [digest is None for digest in digests]  # where that is no reason to set its row aside
        whole[:, place] = np.frombuffer(b"".join(digest or bytes(32) for digest in digests), np.uint8).reshape(-1, 32)
    turn = split.map({name: place for place, name in enumerate(SPLITS)}).fillna(len(SPLITS)).to_numpy()
    order = np.flatnonzero(kept & ~unread)
    order = order[turn[order].argsort(kind="stable")]
    bytes_ = pa.py_buffer(whole[order].tobytes())
    samples = pa.Array.from_buffers(pa.binary(32 * len(modalities)), len(order), [None, bytes_])
    numbers = samples.dictionary_encode().indices.to_numpy()
    first = order[np.unique(numbers, return_index=True)[1]][numbers] if len(order) else order
    failures = []
    for row, same in zip(order[first != order].tolist(), first[first != order].tolist(), strict=True):
        name = "content.duplicate" if split[same] == split[row] else "content.leakage"
        failures.append(Failure(row, "", name, f"the same as row {same} of {split[same]}"))
    return failures


def _trained(facts: pd.DataFrame, label: str, kept: np.ndarray) -> list[Failure]:
    """Labels of validation and test that no training row has, and training labels that a split lacks."""
    rows = facts[kept]
    in_split = {split: set(rows.loc[rows["split"] == split, label].astype(str)) for split in SPLITS}
    strange = rows.index[~rows[label].astype(str).isin(in_split["train"]) & (rows["split"] != "train")]
    found = facts.loc[strange, label].astype(str).items()
    failures = [
        Failure(int(str(row)), label, "label.trained", f"{value} is in no training row") for row, value in found
    ]
    for split in SPLITS[1:]:
        lacking = sorted(in_split["train"] - in_split[split])
        if lacking:
            text = f"{split} lacks {', '.join(lacking[:EXAMPLES])}{' ...' if len(lacking) > EXAMPLES else ''}"
            failures.append(Failure(-1, label, "label.every_split", text))
    return failures
