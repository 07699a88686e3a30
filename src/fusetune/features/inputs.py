"""What of the samples reaches the base, and how long they are there."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fusetune.features.source import Source
from fusetune.features.texts import EXAMPLES, distinct_texts, failed_check, text_checks, text_facts

SHOWN = 3  # samples whose prompt and answer are printed

if TYPE_CHECKING:  # its room needs pandas, which a bare GPU machine may lack
    from fusetune.manifest.checks import ValidationSettings


def input_report(source: Source, backbone: Any, settings: "ValidationSettings") -> dict[str, Any]:
    """JSON-ready: the longest input of each modality in tokens at depth 0, shares of its texts, and failed checks.

    `stopped_by` lists why the run must stop, as that of the validation report does.
    """
    facts = {
        name: text_facts(backbone.tower(name), source.column(name))
        for name, modality in source.modalities.items()
        if modality.kind == "text" and hasattr(backbone.tower(name), "read")  # a third party's may not tell
    }
    lengths = input_lengths(source, backbone, {name: own.longest for name, own in facts.items()})
    checks = [check for name, own in facts.items() for check in text_checks(source, name, own, settings)]
    for name in source.modalities:
        checks += _cut(source, name, backbone.tower(name), settings)
        checks += _pictures(source, name, backbone.tower(name), settings)
    checks += _context(source, backbone, facts, settings)
    stopped = [f"{c['check']} ({c['column']}): {c['share']:.0%}" for c in checks if c["severity"] == "error"]
    shares = {name: own.shares() for name, own in facts.items()}
    report = {"lengths": lengths, "texts": shares, "checks": checks, "stopped_by": stopped}
    answer = getattr(backbone.trunk, "answer", "")
    if answer in facts and not any(own.problems for own in facts.values()):
        report["supervised"] = _supervised(source, backbone, answer)
    return report


def input_lengths(source: Source, backbone: Any, known: Mapping[str, int] | None = None) -> dict[str, int]:
    """By modality, the most tokens that a sample has at depth 0.

    Args:
        known: of texts; others are tokenised, some at a time.
    """
    items = source.most_items()
    for name, modality in source.modalities.items():
        tower = backbone.tower(name)
        if name in (known or {}):
            items[name] = max(1, known[name])  # type: ignore[index]
        elif modality.kind == "text":
            lengths = (tower.prepare(part).values.shape[1] for part in distinct_texts(source.column(name)))
            items[name] = max(lengths, default=1)
        elif modality.kind == "audio":
            longest = source.decoded(name, [source.longest_sound(name)])
            items[name] = tower.prepare(longest).values.shape[1]
        elif _by_frames(source, name, tower):
            items[name] *= modality.frames
    return items


def _by_frames(source: Source, name: str, tower: Any) -> bool:
    """Whether the frames of a video are several pictures to a tower."""
    return source.modalities[name].kind == "video" and hasattr(tower, "most")


def _shown(source: Source, name: str, tower: Any) -> np.ndarray:
    """(samples,): pictures of each."""
    return source.items(name) * (source.modalities[name].frames if _by_frames(source, name, tower) else 1)


def told(report: Mapping[str, Any]) -> list[str]:
    """The report's checks as sentences."""
    return [
        f"{check['column']}: {check['share']:.1%} {check['says']} ({check['check']}), e.g. row "
        f"{check['examples'][0]['row']}: {check['examples'][0]['value']}"
        for check in report["checks"]
    ]


def _pictures(source: Source, name: str, tower: Any, settings: "ValidationSettings") -> Iterator[dict[str, Any]]:
    """Samples with more pictures than the model takes."""
    most = getattr(tower, "most", None)
    if source.modalities[name].kind in ("image", "video") and most is not None:
        says = "of the rows have more pictures than the model and its prompt take"
        counts = _shown(source, name, tower)
        told = lambda count: f"{count} pictures, {most} are taken"  # noqa: E731
        yield from _above(source, name, "input.pictures", settings, counts, most, says, told)


def _context(
    source: Source, backbone: Any, facts: Mapping[str, Any], settings: "ValidationSettings"
) -> Iterator[dict[str, Any]]:
    """Samples whose prompt, pictures and answer are more tokens than the language model has places for."""
    most = getattr(backbone.trunk, "most_tokens", None)
    if most is None:
        return
    lengths = np.zeros(len(source), dtype=np.int64)
    for name, own in facts.items():
        lengths[own.rows] += own.kept - (name == backbone.trunk.answer)  # behind an answer's last token nothing is said
    seen = [name for name in backbone.trunk.told_apart if source.modalities[name].kind != "text"]
    for name in seen:
        tower = backbone.tower(name)
        lengths += _shown(source, name, tower) * tower.places
    at, says = (seen or list(facts))[0], "of the rows are longer than the language model takes"
    told = lambda length: f"{length} tokens, the language model takes {most}"  # noqa: E731
    yield from _above(source, at, "input.context", settings, lengths, most, says, told)


def _supervised(source: Source, backbone: Any, answer: str) -> list[dict[str, str]]:
    """What of some samples the model is shown, and what it learns to say."""
    prompted = next(name for name, modality in source.modalities.items() if modality.kind == "text" and name != answer)
    words, said = backbone.tower(prompted), backbone.tower(answer)
    texts, answers = source.column(prompted), source.column(answer)
    rows = [row for row in range(len(source)) if texts[row].is_valid and answers[row].is_valid][:SHOWN]
    return [
        {
            "row": str(row),
            "prompt": words.processor.decode(list(words.read([texts[row].as_py()])[0].ids)),
            "answer": said.processor.decode(list(said.read([answers[row].as_py()])[0].ids)),
        }
        for row in rows
    ]


def _cut(source: Source, name: str, tower: Any, settings: "ValidationSettings") -> Iterator[dict[str, Any]]:
    """Sounds and sequences that are longer than the tower takes."""
    kind = source.modalities[name].kind
    if kind == "audio" and getattr(tower, "most_seconds", None):
        lengths, most, unit = np.array(source.seconds(name)), tower.most_seconds, "s"
    elif kind == "sequence" and getattr(tower, "max_tokens", None):
        lengths = source.items(name)
        most, unit = tower.max_tokens, "tokens"
    else:
        return
    told = lambda length: f"{length:g} {unit}, {most:g} are read"  # noqa: E731
    yield from _above(source, name, "input.truncated", settings, lengths, most, "of the rows are cut", told)


def _above(
    source: Source,
    name: str,
    check: str,
    settings: "ValidationSettings",
    sizes: np.ndarray,
    most: float,
    says: str,
    told: Callable[[Any], str],
) -> Iterator[dict[str, Any]]:
    """The check fails for rows whose size is above `most`; `told` is what to say of such a size."""
    level, places = settings.level(check), np.flatnonzero(sizes > most)
    if len(places) and level != "off":
        shown = [(int(row), told(sizes[row])) for row in places[:EXAMPLES]]
        yield failed_check(source, name, check, level, len(places), len(places) / len(sizes), says, shown)
