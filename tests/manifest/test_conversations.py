"""Conversations as people have them, and a corpus of broken ones: each is named by check, row and turn."""

import json
import re

import pytest
from PIL import Image

from fusetune.errors import FusetuneError
from fusetune.manifest.checks import SEVERITIES, ValidationSettings
from fusetune.manifest.readers.conversations import TURN, read
from fusetune.manifest.schema import CONVERSATION, Modality
from fusetune.manifest.split_settings import SplitSettings
from fusetune.manifest.splits import with_splits
from fusetune.manifest.validation import validate
from fusetune.tasks.generation import Generation, GenerationConfig

USER, GPT = {"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}
GOOD = {"image": "a.png", "messages": [USER, GPT]}
LLAVA = {
    "id": "7",
    "image": "a.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Which colour?"},
        {"from": "gpt", "value": "Grey."},
    ],
}
SHAREGPT = {
    "images": ["a.png", "b.png"],
    "messages": [
        {"role": "user", "content": "<image><image>Which is older?"},
        {"role": "assistant", "content": "The first."},
    ],
}
OPENAI = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "a.png"}},
                {"type": "text", "text": "What is it?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
    ]
}


def told(**changes):
    """The good one with other turns."""
    return GOOD | changes


def written(folder, *items, name="data.json"):
    text = (
        json.dumps(items)
        if name.endswith(".json")
        else "\n".join(i if isinstance(i, str) else json.dumps(i) for i in items)
    )
    (folder / name).write_text(text)
    return {"file": str(folder / name)}


def rows(folder, *items, **settings):
    return read(written(folder, *items) | settings, "ingest.settings").to_pylist()


def test_three_layouts_are_one_manifest(tmp_path):
    found = rows(tmp_path, LLAVA, SHAREGPT, OPENAI)
    told_ = [(row["sample_id"], row["image"], row["text"], row["answer"]) for row in found]
    assert told_ == [
        ("7-0", ["a.png"], "What is it?", "A cat."),
        ("7-1", ["a.png"], f"What is it?{TURN}A cat.{TURN}Which colour?", "Grey."),
        ("00000001", ["a.png", "b.png"], "Which is older?", "The first."),
        ("00000002", ["a.png"], "What is it?", "A dog."),
    ]
    assert all(row[CONVERSATION] is None for row in found)
    assert len({row["group_id"] for row in found}) == 1, "what shares a picture is in one split"


def test_what_hangs_together_by_pictures_is_in_one_split(tmp_path):
    shown = [["a.png"], ["b.png", "c.png"], ["d.png"], ["c.png", "a.png"], [], []]
    items = [{"images": pictures, "messages": [USER | {"content": "What is it?"}, GPT]} for pictures in shown]
    groups = [row["group_id"] for row in rows(tmp_path, *items)]
    assert groups[0] == groups[1] == groups[3] and len(set(groups)) == 4


def test_the_last_answer_alone_lines_and_boxes(tmp_path):
    settings = written(tmp_path, LLAVA | {"objects": [{"box": [0, 0, 1, 1]}]}, OPENAI, name="data.jsonl")
    found = read(settings | {"answers": "last"}, "ingest.settings").to_pylist()
    assert [row["answer"] for row in found] == ["Grey.", "A dog."]
    assert json.loads(found[0]["objects"]) == [{"box": [0, 0, 1, 1]}] and found[1]["objects"] is None


def test_a_system_message_is_that_of_the_settings(tmp_path):
    one = told(messages=[{"role": "system", "content": "Be brief."}, USER, GPT])
    assert rows(tmp_path, one, system="Be brief.")[0][CONVERSATION] is None
    assert (
        "expected the system message 'Be long.', found 'Be brief.'"
        in rows(tmp_path, one, system="Be long.")[0][CONVERSATION]
    )
    assert "found none" in rows(tmp_path, GOOD, system="Be brief.")[0][CONVERSATION]


def test_a_picture_behind_words_is_said(tmp_path, caplog):
    with caplog.at_level("INFO"):
        rows(tmp_path, told(messages=[{"role": "user", "content": "What is it? <image>"}, GPT]), GOOD)
    assert "in 1 conversations a picture is named behind words; prompts have it in front" in caplog.text


BROKEN = {  # what is wrong -> the conversation, the check, and what it says
    "no_object": (["a"], "shape", r"expected an object, found \['a'\]"),
    "no_turns": ({"image": "a.png"}, "shape", "expected a list of turns .*, found None"),
    "empty": (told(messages=[]), "shape", r"found \[\]"),
    "turn_is_text": (told(messages=["What is it?", GPT]), "shape", "turn 0: expected an object with 'role'"),
    "no_role": (told(messages=[{"content": "What?"}, GPT]), "shape", "turn 0: .*'role' \\(or 'from'\\)"),
    "unknown_role": (told(messages=[USER, {"role": "tool", "content": "7"}]), "role", "turn 1: .*found 'tool'"),
    "two_questions": (told(messages=[USER, USER, GPT]), "order", "turn 1: expected assistant, found user"),
    "answer_first": (told(messages=[GPT, USER]), "order", "turn 0: expected user, found assistant"),
    "system_later": (told(messages=[USER, GPT, {"role": "system", "content": "Be brief."}]), "order", "turn 2"),
    "no_content": (told(messages=[{"role": "user"}, GPT]), "content", "a list of parts, found None"),
    "number": (told(messages=[{"role": "user", "content": 7}, GPT]), "content", "turn 0: .*found 7"),
    "unknown_part": (
        told(messages=[{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}, GPT]), "content",
        "expected parts of type text, image or image_url",
    ),
    "empty_question": (told(messages=[{"role": "user", "content": "<image> "}, GPT]), "content", "expected a question"),
    "between_turns": (told(messages=[{"role": "user", "content": f"a{TURN}b"}, GPT]), "content", "U\\+001E"),
    "empty_answer": (told(messages=[USER, {"role": "assistant", "content": " "}]), "answer", "turn 1: expected an"),
    "no_answer": (told(messages=[USER]), "answer", "turn 0: expected an answer of the assistant at the end"),
    "last_question_open": (told(messages=[USER, GPT, {"role": "user", "content": "Why?"}]), "answer", "turn 2"),
    "more_places": (
        told(messages=[{"role": "user", "content": "<image><image>Why?"}, GPT]), "places", "2 times .* 1 pictures",
    ),
    "fewer_places": (told(images=["a.png", "b.png"]), "places", "1 times <image> .* 2 pictures"),
    "place_without_picture": ({"messages": [USER, GPT]}, "places", "1 times <image> .* 0 pictures"),
    "place_in_answer": (told(messages=[USER, {"role": "assistant", "content": "<image>"}]), "places", "assistant says"),
    "picture_later": (
        {"messages": [{"role": "user", "content": "Hi"}, GPT, *OPENAI["messages"]]}, "places", "turn 2: .*one later",
    ),
    "address": (told(image="https://example.com/a.png"), "pictures", "nothing is fetched"),
    "no_path": (told(image=[None]), "pictures", "expected the path of a picture, found None"),
    "named_twice": (OPENAI | {"image": "a.png"}, "pictures", "in the turns and beside them"),
    "system_unasked": (
        told(messages=[{"role": "system", "content": "Be brief."}, USER, GPT]), "system", "the system message none",
    ),
}  # fmt: skip


def test_the_corpus_of_broken_conversations(tmp_path):
    """Each is set aside by name, row and place, and the sound ones go on."""
    for name in ("a.png", "b.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    sound = [
        GOOD | {"id": f"good {i}", "messages": [{"role": "user", "content": f"Question {i}?"}, GPT]} for i in range(30)
    ]
    items = [{**wrong, "id": name} if isinstance(wrong, dict) else wrong for name, (wrong, _, _) in BROKEN.items()]
    table = with_splits(read(written(tmp_path, *sound, *items), "ingest.settings"), SplitSettings())
    modalities = {"image": Modality("image", root=str(tmp_path), optional=True), "text": Modality("text")}
    task = Generation(GenerationConfig("answer"))
    found = validate(
        table, modalities, [], ValidationSettings(max_quarantined=1.0), needed=["answer"], problems=task.problems()
    )
    assert len(BROKEN) >= 25 and found.sound.num_rows == 30
    aside = found.quarantine.to_pylist()
    for number, (name, (_, check, says)) in enumerate(BROKEN.items(), len(sound)):
        [own] = [row for row in aside if row["row"] == number and row["check"].startswith("conversation.")]
        assert own["check"] == f"conversation.{check}" and own["value"].startswith(f"item {number}, "), (name, own)
        assert re.search(says, own["value"]), (name, own["value"])


def test_every_check_of_conversations_has_a_broken_one():
    checks = {name for name in SEVERITIES if name.startswith("conversation.")}
    assert checks == {f"conversation.{check}" for _, check, _ in BROKEN.values()}


def test_files_that_are_none(tmp_path):
    with pytest.raises(FusetuneError, match="expected a list of conversations, found a dict"):
        (tmp_path / "a.json").write_text("{}")
        read({"file": str(tmp_path / "a.json")}, "ingest.settings")
    with pytest.raises(FusetuneError, match="a.json: no JSON"):
        (tmp_path / "a.json").write_text("[{")
        read({"file": str(tmp_path / "a.json")}, "ingest.settings")
    with pytest.raises(FusetuneError, match="is not there"):
        read({"file": str(tmp_path / "b.jsonl")}, "ingest.settings")
    with pytest.raises(FusetuneError, match="answers: expected each or last, found 'all'"):
        read({"file": "x", "answers": "all"}, "ingest.settings")
    lines = read(written(tmp_path, GOOD, "{not json", name="c.jsonl"), "ingest.settings").to_pylist()
    assert [row[CONVERSATION] is None for row in lines] == [True, False]
    assert "item 1, line 2 is no JSON" in lines[1][CONVERSATION]


def test_paths_of_several_pictures_are_checked_and_a_changed_file_is_noticed(tmp_path):
    from fusetune.features.source import Source
    from fusetune.manifest.contents import with_digests

    for name, grey in (("a.png", 10), ("b.png", 200)):
        Image.new("L", (8, 8), grey).save(tmp_path / name)
    missing = SHAREGPT | {"images": ["a.png", "nowhere.png"], "id": "missing"}
    table = with_splits(read(written(tmp_path, *[SHAREGPT] * 8, missing), "ingest.settings"), SplitSettings())
    modalities = {"image": Modality("image", root=str(tmp_path)), "text": Modality("text")}
    found = validate(
        table,
        modalities,
        [],
        ValidationSettings(max_quarantined=1.0, severity={"split.rows": "warn", "content.leakage": "off"}),
    )
    [aside] = found.quarantine.to_pylist()
    assert aside["check"] == "path.exists" and "nowhere.png" in aside["value"]
    source = Source(with_digests(found.sound, modalities), modalities)
    assert [picture.getpixel((0, 0)) for picture in source.decoded("image", [0])[0]] == [10, 200]
    before = source.content_keys()["image"][0]
    Image.new("L", (8, 8), 99).save(tmp_path / "b.png")
    assert Source(with_digests(found.sound, modalities), modalities).content_keys()["image"][0] != before
    with pytest.raises(FusetuneError, match="row 0, column 'image': the file has changed since validation"):
        source.decoded("image", [0])
