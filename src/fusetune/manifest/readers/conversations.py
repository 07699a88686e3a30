"""Conversations about pictures, as people have them: LLaVA and ShareGPT JSON, or messages in OpenAI's style.

    {"id": "7", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                    {"from": "gpt", "value": "A cat."}]}
    {"images": ["a.png", "b.png"], "messages": [{"role": "user", "content": "<image><image>Which is older?"},
                                                {"role": "assistant", "content": "The first."}]}
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}},
                                               {"type": "text", "text": "What is it?"}]}, ...]}

A file is a JSON list, or JSON Lines. Columns: image (paths below the modality's root), text, answer; an answer of the
assistant is a row each, and its text is all that has been said before (`U+001E` between turns). `system` messages have
to be what `settings.system` says; `backbone.system` has the model told. `objects` (boxes) pass through as JSON.

What is wrong with a conversation is no end of the reading: its row says so, and validation names check, row and turn.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.config import build, check
from fusetune.errors import FusetuneError
from fusetune.manifest.readers.layouts import read_json, there
from fusetune.manifest.schema import CONVERSATION, TURN

logger = logging.getLogger(__name__)
PLACE = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
TURNS, PICTURES = ("messages", "conversations"), ("images", "image")


@dataclass(frozen=True)
class ConversationSettings:
    """
    Attributes:
        file: .json with a list, or .jsonl.
        answers: each: every answer of the assistant is to be given; last: the last one of a conversation alone.
        system: what conversations are told before they begin; one that is told something else is named.
    """

    file: str
    answers: str = "each"
    system: str | None = None

    def __post_init__(self) -> None:
        check(self.answers in ("each", "last"), f"answers: expected each or last, found '{self.answers}'.")


class Broken(Exception):
    """Something is wrong with a conversation: the check that it fails, and what was found where."""

    def __init__(self, name: str, found: str) -> None:
        super().__init__(found)
        self.check = f"conversation.{name}"


def sources(settings: Mapping[str, Any]) -> list[str]:
    return [str(settings.get("file"))]


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """Columns sample_id, group_id, split (where there is one), image, text, answer, and what is wrong with a row."""
    chosen = build(ConversationSettings, settings, where)
    rows: list[dict[str, Any]] = []
    moved = 0
    for number, item in enumerate(_items(Path(chosen.file))):
        known = item if isinstance(item, Mapping) else {}
        own = {"sample_id": str(known.get("id", f"{number:08d}")), "split": known.get("split")}
        own["objects"] = json.dumps(known["objects"]) if "objects" in known else None
        try:
            told = _conversation(item, chosen)
            moved += told.moved
            pictures = told.pictures or None
            for turn, (text, answer) in enumerate(told.answers):
                ending = f"-{turn}" if len(told.answers) > 1 else ""
                rows.append(
                    {**own, "sample_id": f"{own['sample_id']}{ending}", "group_id": own["sample_id"], "image": pictures,
                     "text": text, "answer": answer, CONVERSATION: None}
                )  # fmt: skip
        except Broken as problem:
            found = f"{problem.check}: item {number}, {problem}"
            rows.append({**own, "group_id": own["sample_id"], "image": None, "text": None, "answer": None,
                         CONVERSATION: found})  # fmt: skip
    if not rows:
        raise FusetuneError(f"{where}: no conversation was found in {chosen.file}.")
    if moved:
        logger.info(
            "%s: in %d conversations a picture is named behind words; prompts have it in front", chosen.file, moved
        )
    for row, group in zip(rows, _groups([row["image"] or [] for row in rows]), strict=True):
        row["group_id"] = group or row["group_id"]
    types = {"image": pa.list_(pa.string())}
    columns = {n: pa.array([row[n] for row in rows], types.get(n, pa.string())) for n in rows[0]}
    return pa.table({n: c for n, c in columns.items() if n not in ("split", "objects") or c.null_count < len(c)})


def _groups(shown: Sequence[Sequence[str]]) -> list[str]:
    """Of each row, a picture that names all that hang together by a picture that they share; '' without pictures."""
    first: dict[str, str] = {}

    def root(picture: str) -> str:
        while first.setdefault(picture, picture) != picture:
            picture = first[picture]
        return picture

    for pictures in shown:
        for picture in pictures:
            one, other = root(pictures[0]), root(picture)
            first[max(one, other)] = min(one, other)
    return [root(pictures[0]) if pictures else "" for pictures in shown]


@dataclass(frozen=True)
class Told:
    """
    Attributes:
        pictures: paths, in their order.
        answers: of each that is to be given, what was said before, and the answer.
        moved: whether a picture was named behind words.
    """

    pictures: list[str]
    answers: list[tuple[str, str]]
    moved: bool


def _items(file: Path) -> Iterator[Any]:
    """What the file lists; a line that is no JSON is a row that says so."""
    if file.suffix.lower() != ".jsonl":
        found = read_json(file)
        if not isinstance(found, list):
            raise FusetuneError(f"{file}: expected a list of conversations, found a {type(found).__name__}.")
        yield from found
        return
    for number, line in enumerate(there(file).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                yield Broken("shape", f"line {number} is no JSON ({error})")


def _conversation(item: Any, settings: ConversationSettings) -> Told:
    if isinstance(item, Broken):
        raise item
    if not isinstance(item, Mapping):
        raise Broken("shape", f"expected an object, found {_short(item)}")
    turns = next((item[key] for key in TURNS if key in item), None)
    if not isinstance(turns, list) or not turns:
        raise Broken("shape", f"expected a list of turns as 'messages' or 'conversations', found {_short(turns)}")
    given: Any = next((item[key] for key in PICTURES if item.get(key) is not None), [])
    pictures = [_path(one, "") for one in (given if isinstance(given, list) else [given])]
    said = _said(turns, settings)
    if said.pictures and pictures:
        raise Broken("pictures", "pictures are named in the turns and beside them; expected them in one place")
    if said.places and said.places != len(pictures):
        raise Broken("places", f"{said.places} times {PLACE} in the text, {len(pictures)} pictures beside it")
    texts = said.texts
    ends = range(2, len(texts) + 1, 2) if settings.answers == "each" else [len(texts)]
    answers = [(TURN.join(texts[: end - 1]), texts[end - 1]) for end in ends]
    return Told(pictures + said.pictures, answers, said.moved)


@dataclass
class Said:
    """
    Attributes:
        texts: in turn, the user's first.
        pictures: those that are named in the turns.
        places: how often the text has a place for a picture that is named elsewhere.
        moved: whether there are words in front of one.
    """

    texts: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    places: int = 0
    moved: bool = False


def _said(turns: Sequence[Any], settings: ConversationSettings) -> Said:
    said, told = Said(), ""
    for number, turn in enumerate(turns):
        role, content = _role(turn, number), turn.get("content", turn.get("value"))
        text, pictures, places = _content(content, number)
        expected = ("user", "assistant")[len(said.texts) % 2]
        if role != expected and not (role == "system" and number == 0):
            raise Broken("order", f"turn {number}: expected {expected}, found {role}")
        if (pictures or places) and role != "user":
            raise Broken("places", f"turn {number}: a picture is shown by the user, found one in what the {role} says")
        if (pictures or places) and said.texts:
            raise Broken("places", f"turn {number}: pictures stand in front of the first question, found one later")
        said.pictures += pictures
        said.places += places
        said.moved |= places > 0 and isinstance(content, str) and not content.lstrip().startswith(PLACE)
        if role == "system":
            told = text
        elif not text:
            name, what = ("answer", "an answer") if role == "assistant" else ("content", "a question")
            raise Broken(name, f"turn {number}: expected {what}, found no text")
        else:
            said.texts.append(text)
    if told != (settings.system or ""):
        wanted = repr(settings.system[:60]) if settings.system else "none"
        raise Broken(
            "system",
            f"turn 0: expected the system message {wanted}, found {_short(told) if told else 'none'}. Set "
            "ingest.settings.system, and backbone.system for the model",
        )
    if len(said.texts) < 2 or len(said.texts) % 2:
        raise Broken("answer", f"turn {len(turns) - 1}: expected an answer of the assistant at the end, found none")
    return said


def _role(turn: Any, number: int) -> str:
    if not isinstance(turn, Mapping) or not ("role" in turn or "from" in turn):
        raise Broken("shape", f"turn {number}: expected an object with 'role' (or 'from'), found {_short(turn)}")
    given = turn.get("role", turn.get("from"))
    if given not in ROLES:
        raise Broken("role", f"turn {number}: expected one of {', '.join(ROLES)}, found {_short(given)}")
    return ROLES[given]


def _content(content: Any, number: int) -> tuple[str, list[str], int]:
    """Its text without places of pictures, the pictures named in it, and how many places it has."""
    if isinstance(content, str):
        parts: Sequence[Any] = [{"type": "text", "text": content}]
    elif isinstance(content, list):
        parts = content
    else:
        raise Broken("content", f"turn {number}: expected a text or a list of parts, found {_short(content)}")
    texts, pictures = [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url"):
            given = next((part[key] for key in ("image_url", "image", "url", "path") if key in part), None)
            if given is None:  # a place, for a picture that is named beside the turns
                texts.insert(0, PLACE)
            else:
                pictures.append(_path(given.get("url") if isinstance(given, Mapping) else given, f"turn {number}: "))
        else:
            raise Broken(
                "content", f"turn {number}: expected parts of type text, image or image_url, found {_short(part)}"
            )
    whole = "\n".join(texts)
    if TURN in whole:
        raise Broken("content", f"turn {number}: it holds the character U+001E, which stands between turns")
    return whole.replace(PLACE, "").strip(), pictures, whole.count(PLACE)


def _path(given: Any, at: str) -> str:
    if not isinstance(given, str) or not given.strip():
        raise Broken("pictures", f"{at}expected the path of a picture, found {_short(given)}")
    if given.startswith(("http://", "https://", "data:")):
        raise Broken("pictures", f"{at}expected the path of a file, found {_short(given)}; nothing is fetched")
    return given


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
