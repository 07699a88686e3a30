"""Validation of a manifest with Pandera: what the rest of the program relies on, checked once and reported by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.manifest.schema import REQUIRED, SPLITS, Modality

EXAMPLES = 5


@dataclass(frozen=True)
class ValidationSettings:
    """
    Attributes:
        leakage: whether a `group_id` may stand in one split alone.
        min_rows_per_split: fewer are an error.
    """

    leakage: bool = True
    min_rows_per_split: int = 1

    def __post_init__(self) -> None:
        check(self.min_rows_per_split > 0, f"min_rows_per_split: expected at least 1, found {self.min_rows_per_split}.")


def validate(
    table: pa.Table, modalities: Mapping[str, Modality], labels: list[str], settings: ValidationSettings
) -> dict[str, Any]:
    """Check the manifest.

    Args:
        labels: the columns that the task reads.

    Returns:
        The report: rows per split, label counts, and every check with the number of rows that failed it (0).

    Raises:
        FusetuneError: some check failed; names each check, how many rows failed it, and the first of them.
    """
    columns = [modality.column_of(name) for name, modality in modalities.items()]
    missing = [name for name in [*REQUIRED, *columns, *labels] if name not in table.column_names]
    if missing:
        raise FusetuneError(
            f"manifest: column {', '.join(map(repr, missing))} is missing. It has {', '.join(table.column_names)}."
        )
    frame = _frame(table, modalities, labels)
    schema, checks = _schema(modalities, labels, settings)
    failures = _failures(schema, frame)
    if failures:
        lines = [f"{name}: {len(rows)} rows, e.g. {'; '.join(rows[:EXAMPLES])}" for name, rows in failures.items()]
        raise FusetuneError("manifest: validation failed. " + " | ".join(lines))
    return {
        "rows": len(frame),
        "rows_per_split": {split: int((frame["split"] == split).sum()) for split in SPLITS},
        "checks": dict.fromkeys(checks, 0),
        "labels": {
            label: frame[label].value_counts().sort_index().to_dict() for label in labels if label != "group_id"
        },
    }


def _frame(table: pa.Table, modalities: Mapping[str, Modality], labels: list[str]) -> pd.DataFrame:
    """The light columns, and for each modality whether it is there and how long it is; no media is copied."""
    import pyarrow.compute as pc

    frame = table.select([*REQUIRED, *(label for label in labels if label not in REQUIRED)]).to_pandas()
    for name, modality in modalities.items():
        column = table[modality.column_of(name)]
        if pa.types.is_list(column.type):
            lengths = pc.list_value_length(column)
        elif pa.types.is_binary(column.type) or pa.types.is_string(column.type):
            lengths = pc.binary_length(column)
        else:
            raise FusetuneError(
                f"manifest: column '{modality.column_of(name)}' is {column.type}; modality '{name}' ({modality.kind}) "
                "expects bytes, text or a list."
            )
        frame[f"length of {name}"] = lengths.to_pandas().astype("Float64").array
    return frame


def _schema(modalities: Mapping[str, Modality], labels: list[str], settings: ValidationSettings):
    import pandera.pandas as pandera

    def named(function: Any, name: str) -> Any:
        return pandera.Check(function, name=name, error=name)

    columns = {
        "sample_id": pandera.Column(str, named(lambda s: ~s.duplicated(), "sample_id is unique")),
        "split": pandera.Column(
            str,
            [
                named(lambda s: s.isin(SPLITS), f"split is one of {', '.join(SPLITS)}"),
                named(
                    lambda s: set(SPLITS) <= set(s[s.map(s.value_counts()) >= settings.min_rows_per_split]),
                    f"every split has at least {settings.min_rows_per_split} rows",
                ),
            ],
        ),
        "group_id": pandera.Column(str),
    }
    for name, modality in modalities.items():
        columns[f"length of {name}"] = pandera.Column(
            "Float64", named(lambda s: s > 0, f"{name} is not empty"), nullable=modality.optional
        )
    for label in labels:
        if label not in columns:
            columns[label] = pandera.Column(object, coerce=True, nullable=False)
    whole = []
    if settings.leakage:
        name = "no group stands in two splits"
        whole.append(named(lambda f: f.groupby("group_id")["split"].transform("nunique") == 1, name))
    schema = pandera.DataFrameSchema(columns, checks=whole)
    names = [check.name for column in columns.values() for check in column.checks] + [check.name for check in whole]
    return schema, names


def _failures(schema: Any, frame: pd.DataFrame) -> dict[str, list[str]]:
    from pandera.errors import SchemaErrors

    try:
        schema.validate(frame, lazy=True)
    except SchemaErrors as error:
        found: dict[str, list[str]] = {}
        for case in error.failure_cases.itertuples():
            row = f"row {int(case.index)}" if pd.notna(case.index) else "the whole column"
            rows = found.setdefault(f"{case.column}: {case.check}", [])
            if row not in rows:
                rows.append(row)
        return found
    return {}
