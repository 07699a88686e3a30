"""What of the texts reaches the base: how much is cut, unknown, or no longer told apart once it is tokens."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fusetune.backbones.text_tower import Reading
from fusetune.features.source import Source

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


def text_facts(tower: Any, texts: Sequence[str | None]) -> TextFacts:
    """Every distinct text is tokenised once, `CHUNK` of them at a time; what stays in memory is a few numbers a row."""
    rows = np.array([row for row, text in enumerate(texts) if text is not None], dtype=np.int64)
    distinct = sorted({texts[row] for row in rows})
    place = {text: i for i, text in enumerate(distinct)}
    of_row = np.array([place[texts[row]] for row in rows], dtype=np.int64)
    tokens, unknown, cut, same, kept = (np.zeros(len(distinct), dtype=np.int64) for _ in range(5))
    problems: dict[int, str] = {}
    seen: dict[int, int] = {}
    for i, reading in enumerate(_readings(tower, distinct)):
        tokens[i], unknown[i], cut[i], kept[i] = reading.tokens, reading.unknown, reading.cut, len(reading.ids)
        same[i] = seen.setdefault(hash(reading.ids), i) if not reading.problem else i
        if reading.problem:
            problems[i] = reading.problem
    alike = np.bincount(same, minlength=len(distinct))[same] > 1  # distinct texts with the same tokens
    first: dict[int, int] = {}
    for row, text in zip(rows.tolist(), of_row.tolist(), strict=True):
        first.setdefault(text, row)
    like = np.full(len(rows), -1, dtype=np.int64)
    groups: dict[int, list[int]] = {}
    for text in np.flatnonzero(alike).tolist():
        groups.setdefault(int(same[text]), []).append(text)
    two = {number: sorted(members, key=lambda text: first[text])[:2] for number, members in groups.items()}
    for i, text in enumerate(of_row.tolist()):
        if alike[text]:
            earliest, next_one = two[int(same[text])]
            like[i] = first[earliest if earliest != text else next_one]
    told = {place: problems[text] for place, text in enumerate(of_row.tolist()) if text in problems}
    longest = int(kept.max(initial=0))
    return TextFacts(rows, tokens[of_row], unknown[of_row], cut[of_row].astype(bool), like, longest, kept[of_row], told)


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


def _readings(tower: Any, texts: Sequence[str]) -> Iterator[Reading]:
    for part in chunks(texts):
        yield from tower.read(part)


def chunks(texts: Sequence[str]) -> Iterable[list[str]]:
    return (list(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK))
