"""The checks of a manifest: each has a name, a severity, and the value that it found.

A check looks at one column of facts and says which rows fail. Names are the keys of `validate.severity`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from fusetune.config import check, check_keys
from fusetune.manifest.schema import SPLITS, Modality

Fails = Callable[[pd.Series], pd.Series]

EXAMPLES = 5  # of what fails, that are told
LEVELS = ("error", "quarantine", "warn", "off")
# what happens where a check fails: the run stops, the row is set aside, or it is only said
SEVERITIES: dict[str, str] = {
    "manifest.empty": "error",
    "sample_id.missing": "quarantine",
    "sample_id.unique": "quarantine",
    "split.known": "quarantine",
    "split.rows": "error",
    "group.missing": "quarantine",
    "group.leakage": "error",
    "content.leakage": "quarantine",
    "content.duplicate": "warn",
    "label.missing": "quarantine",
    "label.type": "quarantine",
    "label.declared": "quarantine",
    "label.mixed": "warn",
    "label.alike": "warn",
    "label.trained": "quarantine",
    "label.classes": "error",
    "label.every_split": "warn",
    "column.unused": "warn",
    "cell.missing": "quarantine",
    "cell.type": "quarantine",
    "path.inside": "quarantine",
    "path.exists": "quarantine",
    "path.empty": "quarantine",
    "text.empty": "quarantine",
    "text.length": "quarantine",
    "text.truncated": "warn",
    "input.truncated": "warn",
    "text.unknown": "warn",
    "text.mostly_unknown": "error",
    "text.identical": "warn",
    "text.prompt": "error",
    "input.pictures": "error",
    "input.context": "error",
    "image.decodes": "quarantine",
    "image.size": "quarantine",
    "image.mode": "warn",
    "image.constant": "warn",
    "audio.decodes": "quarantine",
    "audio.seconds": "quarantine",
    "audio.rate": "quarantine",
    "audio.finite": "quarantine",
    "audio.silent": "warn",
    "audio.phase": "warn",
    "video.decodes": "quarantine",
    "video.size": "quarantine",
    "numbers.empty": "quarantine",
    "numbers.width": "quarantine",
    "numbers.finite": "quarantine",
    "numbers.tokens": "quarantine",
    "box.shape": "quarantine",
    "box.order": "quarantine",
    "box.outside": "quarantine",
    "box.extent": "quarantine",
    "action.shape": "quarantine",
    "action.width": "quarantine",
    "action.finite": "quarantine",
    "segments.shape": "quarantine",
    "segments.count": "quarantine",
    "span.shape": "quarantine",
    "span.order": "quarantine",
    "span.outside": "quarantine",
    "span.extent": "quarantine",
    "conversation.shape": "quarantine",
    "conversation.role": "quarantine",
    "conversation.order": "quarantine",
    "conversation.content": "quarantine",
    "conversation.answer": "quarantine",
    "conversation.places": "quarantine",
    "conversation.pictures": "quarantine",
    "conversation.system": "quarantine",
}


# what only the base's tokenizer can tell: `features.inputs` looks at it
BY_BASE = ("text.truncated", "input.truncated", "text.unknown", "text.mostly_unknown", "text.identical", "text.prompt",
           "input.pictures", "input.context")  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What is sane.

    Attributes:
        text_characters: at most.
        text_share: of rows that the base's tokenizer cuts or makes the same, and of tokens that it doesn't know; more
            than that is said.
        mostly: share of unknown tokens above which a column is of no use to the base.
        image_side: pixels, least and most.
        audio_seconds: least and most.
        audio_rate: Hz, least and most.
        audio_peak: below it a sound counts as silent; full scale is 1.
        audio_kept: least share of the channels' energy that their mean keeps; less is left of channels in anti-phase.
        tokens: of a sequence, at most.
    """

    text_characters: int = 100_000
    text_share: float = 0.01
    mostly: float = 0.5
    image_side: tuple[int, ...] = (2, 20_000)
    audio_seconds: tuple[float, ...] = (0.01, 3600.0)
    audio_rate: tuple[int, ...] = (1_000, 400_000)
    audio_peak: float = 1e-4
    audio_kept: float = 0.1
    tokens: int = 100_000


@dataclass(frozen=True)
class ValidationSettings:
    """
    Attributes:
        severity: check -> error (the run stops), quarantine (the row is set aside), warn or off; see `SEVERITIES`.
        max_quarantined: share of the rows; with more of them set aside the run stops.
        min_rows_per_split: fewer are an error.
        labels: column -> the labels that there are, or ``{min: ..., max: ...}``.
        decode: whether every picture, sound and video is decoded.
        workers: processes that decode; 0 is one a core.
        limits: what sizes are sane.
    """

    severity: Mapping[str, str] = field(default_factory=dict)
    max_quarantined: float = 0.01
    min_rows_per_split: int = 1
    labels: Mapping[str, Any] = field(default_factory=dict)
    decode: bool = True
    workers: int = 0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check(self.min_rows_per_split > 0, f"min_rows_per_split: expected at least 1, found {self.min_rows_per_split}.")
        check(0 <= self.max_quarantined <= 1, f"max_quarantined: expected a share, found {self.max_quarantined}.")
        check_keys(self.severity, SEVERITIES, "validate.severity")
        for name, level in self.severity.items():
            check(level in LEVELS, f"validate.severity.{name}: expected one of {', '.join(LEVELS)}, found '{level}'.")

    def level(self, name: str) -> str:
        return self.severity.get(name, SEVERITIES[name])


@dataclass(frozen=True)
class Failure:
    """One row that fails one check; `row` is -1 for the manifest as a whole."""

    row: int
    column: str
    check: str
    value: str


@dataclass(frozen=True)
class Check:
    """
    Attributes:
        name: a key of `SEVERITIES`.
        column: of facts; the report says its first part.
        fails: facts of the rows that have some -> which of them fail.
    """

    name: str
    column: str
    fails: Fails


def conversation_checks() -> Iterator[Check]:
    """Of what a reader of conversations has said of its rows."""
    for name in SEVERITIES:
        if name.startswith("conversation."):
            yield Check(name, f"conversation: {name}", pd.notna)


def fault_checks(names: Iterable[tuple[str, str]]) -> Iterator[Check]:
    """Of what a task has said of its rows, by column and check."""
    for column, name in names:
        yield Check(name, f"{column}: {name}", pd.notna)


def target_checks(columns: Iterable[str]) -> Iterator[Check]:
    """For targets that are no classes."""
    for column in columns:
        yield Check("label.missing", column, lambda s: s.isna())
        yield Check("label.type", f"{column}: type", pd.notna)


def row_checks(
    modalities: Mapping[str, Modality], limits: Limits, repeated: np.ndarray, widths: Mapping[str, float]
) -> Iterator[Check]:
    """Everything about one row.

    Args:
        repeated: of all rows of the manifest, whether an earlier one has this sample_id.
        widths: by modality of numbers, the most common one.
    """
    yield Check("sample_id.missing", "sample_id", lambda s: s.isna() | (s.astype(str).str.strip() == ""))
    yield Check("sample_id.unique", "sample_id", lambda s: pd.Series(repeated[s.index], s.index) & s.notna())
    yield Check("split.known", "split", lambda s: ~s.isin(SPLITS))
    yield Check("group.missing", "group_id", lambda s: s.isna())
    for name, modality in modalities.items():
        at = f"{name}: "
        if not modality.optional:
            yield Check("cell.missing", f"{at}present", lambda s: ~s)
        yield Check("cell.type", f"{at}type", pd.notna)
        kind = modality.kind
        if kind == "text":
            yield Check("text.empty", f"{at}length", lambda s: s == 0)
            yield Check("text.length", f"{at}length", lambda s: s > limits.text_characters)
        elif kind in ("sequence", "vector"):
            yield Check("numbers.empty", f"{at}length", lambda s: s == 0)
            yield Check("numbers.finite", f"{at}finite", lambda s: s == False)  # noqa: E712 (may be missing)
            yield Check("numbers.width", f"{at}width", _other_than(widths.get(name)))
            if kind == "sequence":
                yield Check("numbers.tokens", f"{at}length", lambda s: s > limits.tokens)
        else:
            for check in ("path.inside", "path.exists", "path.empty"):
                yield Check(check, f"{at}{check}", pd.notna)
            yield Check("path.empty", f"{at}length", lambda s: s == 0)
            yield Check(f"{kind}.decodes", f"{at}error", pd.notna)
            yield from _media_checks(kind, at, limits)


def _media_checks(kind: str, at: str, limits: Limits) -> Iterator[Check]:
    if kind == "audio":
        yield Check("audio.seconds", f"{at}seconds", _outside(*limits.audio_seconds))
        yield Check("audio.rate", f"{at}rate", _outside(*limits.audio_rate))
        yield Check("audio.finite", f"{at}finite", lambda s: s == False)  # noqa: E712
        yield Check("audio.silent", f"{at}peak", lambda s: s < limits.audio_peak)
        yield Check("audio.phase", f"{at}kept", lambda s: s < limits.audio_kept)
    else:
        yield Check(f"{kind}.size", f"{at}smallest", lambda s: s < limits.image_side[0])
        yield Check(f"{kind}.size", f"{at}largest", lambda s: s > limits.image_side[1])
        if kind == "image":
            yield Check("image.mode", f"{at}note", pd.notna)
            yield Check("image.constant", f"{at}constant", pd.notna)


def _outside(low: float, high: float) -> Fails:
    return lambda s: s.notna() & ~s.between(low, high)


def _other_than(width: float | None) -> Fails:
    return lambda s: s.notna() & (s != width)
