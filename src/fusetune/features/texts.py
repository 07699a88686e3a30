"""What of the texts reaches the base: how much is cut, unknown, or no longer told apart once it is tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fusetune.backbones.text_tower import Reading
from fusetune.features.source import Source
from fusetune.keys import Keys
from fusetune.on_disk import Cells, array, filled, full, part, picked, slices, taken

if TYPE_CHECKING:  # its room needs pandas, which a bare GPU machine may lack
    from fusetune.manifest.checks import ValidationSettings

CHUNK = 1024  # texts that are tokenised at once
EXAMPLES = 5


@dataclass(frozen=True)
class TextFacts:
    """By row, of the rows that have a text.

    Attributes:
        rows: of the manifest.
        tokens, unknown: before cutting, without special ones.
        cut: whether tokens were cut.
        like: the first row with another text and the same tokens, -1 for none.
        longest: tokens of the longest text after cutting.
        kept: after cutting, special ones included.
        problems: why texts can't be read at all, by the place of their row in `rows`.
    """

    rows: np.ndarray
    tokens: np.ndarray
    unknown: np.ndarray
    cut: np.ndarray
    like: np.ndarray
    longest: int
    kept: np.ndarray
    problems: Mapping[int, str]

    def shares(self) -> dict[str, float]:
        """Of rows that are cut, of tokens that are unknown, of rows that read like another text's."""
        return {
            "truncated": float(self.cut.mean()) if len(self.rows) else 0.0,
            "unknown": float(self.unknown.sum() / max(1, self.tokens.sum())),
            "identical": float((self.like >= 0).mean()) if len(self.rows) else 0.0,
        }


def text_facts(tower: Any, column: pa.ChunkedArray) -> TextFacts:
    """Every distinct text is tokenised once, `CHUNK` of them at a time; what is known of a row is a few numbers."""
    number, first = Keys.of_texts(Cells(column)).numbered()  # no text is one of them, too
    there = [np.flatnonzero(part(column, s).is_valid()) + s.start for s in slices(len(column))]
    rows = filled(there, sum(map(len, there)), np.int64)
    tokens, unknown, cut, kept = (full(len(first), 0, kind) for kind in (np.int64, np.int64, bool, np.int64))
    problems: dict[int, str] = {}

    def read() -> Iterator[bytes]:
        """A name of the tokens of each distinct text, which others with the same tokens share."""
        for i, reading in enumerate(_readings(tower, column, first)):
            own = reading is None or bool(reading.problem)  # what is no text, or can't be read, is like no other
            if reading is not None:
                tokens[i], unknown[i], cut[i], kept[i] = reading.tokens, reading.unknown, reading.cut, len(reading.ids)
                if reading.problem:
                    problems[i] = reading.problem
            yield sha256(repr((own, i if own or reading is None else reading.ids)).encode()).digest()

    same, begun = Keys.of_bytes(read()).numbered()
    second = full(len(begun), len(first), np.int64)
    for some in slices(len(first)):  # distinct texts are numbered as they appear
        later = np.flatnonzero(begun[same[some]] != np.arange(some.start, some.stop)) + some.start
        np.minimum.at(second, same[later], later)
    like = array(len(rows), np.int64)
    of_row = picked(number, rows)
    for some in slices(len(rows)):
        text = of_row[some]
        group = same[text]
        other = np.where(begun[group] != text, begun[group], second[group])
        like[some] = np.where(second[group] < len(first), first[np.minimum(other, len(first) - 1)], -1)
    told = {place: problems[text] for place, text in enumerate(of_row.tolist()) if text in problems} if problems else {}
    by_row = {"tokens": tokens, "unknown": unknown, "cut": cut, "kept": kept}
    return TextFacts(
        rows, like=like, longest=int(kept.max(initial=0)), problems=told,
        **{name: picked(of_text, of_row) for name, of_text in by_row.items()},
    )  # fmt: skip


def text_checks(
    source: Source, name: str, facts: TextFacts, settings: "ValidationSettings"
) -> Iterator[dict[str, Any]]:
    shares, limits = facts.shares(), settings.limits
    texts = source.column(name)

    def short(i: int) -> str:
        return repr(texts[int(facts.rows[i])].as_py()[:60])

    mostly = shares["unknown"] > limits.mostly
    found = {
        "text.truncated": (shares["truncated"], "of the rows are cut", facts.cut,
                           lambda i: f"{facts.tokens[i]} tokens, {facts.longest} are read: {short(i)}"),
        "text.mostly_unknown" if mostly else "text.unknown": (
            shares["unknown"], "of the tokens are unknown to the base", facts.unknown > 0,
            lambda i: f"{facts.unknown[i]} of {facts.tokens[i]} tokens: {short(i)}"),
        "text.identical": (shares["identical"], "of the rows are the same to the base as another text", facts.like >= 0,
                           lambda i: f"reads like row {facts.like[i]}: {short(i)}"),
    }  # fmt: skip
    if facts.problems and settings.level("text.prompt") != "off":
        shown = [(int(facts.rows[i]), told) for i, told in list(facts.problems.items())[:EXAMPLES]]
        share = len(facts.problems) / len(facts.rows)
        says = "of the rows can't be put into the prompt"
        yield failed_check(
            source, name, "text.prompt", settings.level("text.prompt"), len(facts.problems), share, says, shown
        )
    for check, (share, says, fails, value) in found.items():
        level = settings.level(check)
        if share <= limits.text_share or level == "off":
            continue
        places = np.flatnonzero(fails)
        shown = [(int(facts.rows[i]), value(i)) for i in places[:EXAMPLES]]
        yield failed_check(source, name, check, level, len(places), share, says, shown)


def failed_check(
    source: Source,
    name: str,
    check: str,
    level: str,
    rows: int,
    share: float,
    says: str,
    shown: Sequence[tuple[int, str]],
) -> dict[str, Any]:
    """A check of modality `name` that fails, as the report holds one; `shown`: some rows, and what of them."""
    ids = source.table["sample_id"] if "sample_id" in source.table.column_names else None
    examples = [{"row": row, "sample_id": str(ids[row]) if ids else None, "value": value} for row, value in shown]
    return {"check": check, "severity": level, "column": source.modalities[name].column_of(name),
            "rows": rows, "share": share, "says": says, "examples": examples}  # fmt: skip


def distinct_texts(column: pa.ChunkedArray) -> Iterator[list[str]]:
    """Each text of a column once, `CHUNK` of them at a time."""
    for texts in _chunks(column, Keys.of_texts(Cells(column)).numbered()[1]):
        if there := [text for text in texts if text is not None]:
            yield there


def _chunks(column: pa.ChunkedArray, rows: np.ndarray) -> Iterator[list[str | None]]:
    return (taken(column, rows[some]).to_pylist() for some in slices(len(rows), CHUNK))


def _readings(tower: Any, column: pa.ChunkedArray, rows: np.ndarray) -> Iterator[Reading | None]:
    for texts in _chunks(column, rows):
        there = [text for text in texts if text is not None]
        read = iter(tower.read(there) if there else ())
        yield from (None if text is None else next(read) for text in texts)
