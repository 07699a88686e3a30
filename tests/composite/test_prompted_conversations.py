"""Several turns in a checkpoint's own chat template, and what can't be put into it, told before anything is trained."""

import re

import pyarrow as pa
import pytest
from encoders import pictures
from speaking import TEXTS, saved_llava

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.composite.loading import CompositeSource
from fusetune.backbones.composite.prompt import TURN
from fusetune.errors import FusetuneError
from fusetune.features.inputs import input_report, told
from fusetune.features.source import Source
from fusetune.manifest.checks import ValidationSettings
from fusetune.manifest.readers import conversations
from fusetune.manifest.schema import Modality
from fusetune.training.data import ANSWER

KINDS = {"image": "image", "text": "text"}
SYSTEM = (
    "{% for m in messages %}{{ '<s>' if loop.first else '' }}{% if m['role'] == 'system' %}"
    "[{{ m['content'][0]['text'] }}] {% else %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}"
    "{{ '</s>' if m['role'] == 'assistant' else ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def parts(text):
    return [{"type": "text", "text": text}]


def messages(turns, system=None):
    told_ = [{"role": "system", "content": parts(system)}] if system else []
    for i, text in enumerate(turns):
        seen = [{"type": "image"}] if i == 0 else []
        told_.append({"role": ("user", "assistant")[i % 2], "content": [*seen, *parts(text)]})
    return told_


def listening(folder, **settings):
    return Backbone.from_composite(CompositeSource(str(folder), **settings), KINDS).take_answers(ANSWER, 16)


@pytest.mark.parametrize("template", [None, SYSTEM], ids=["lines", "ends"])
@pytest.mark.parametrize("turns", [1, 3, 5])
def test_turns_are_those_of_the_chat_template(tmp_path, template, turns):
    _, processor = saved_llava(tmp_path, **({"template": template} if template else {}))
    said = ["which one is it", "dark", "is it light", "it is", "why is it so"][:turns]
    system = "user of this" if template else None
    backbone = listening(tmp_path, system=system)
    whole = processor.apply_chat_template(messages(said, system), add_generation_prompt=True, tokenize=False)
    expected = processor(text=[whole], images=[pictures(1)[0][0].convert("RGB")], add_special_tokens=False)[
        "input_ids"
    ][0]
    place = backbone.trunk.composite.image_id
    ids = backbone.tower("text").prepare([TURN.join(said)]).values[0, :, 0].tolist()
    assert ids == [i for i in expected if i != place] and expected.count(place) == 16
    assert backbone.tower("text").offset == expected.index(place)
    with pytest.raises(FusetuneError, match="expected a question behind the last answer"):
        backbone.tower("text").prepare([TURN.join([*said, "dark"])])


def test_the_first_turns_go_where_there_is_no_room(tmp_path):
    saved_llava(tmp_path)
    words = listening(tmp_path, max_tokens=24).tower("text")
    long = TURN.join(["which one is it, and why is it so, and what is it", "dark", "is it light", "it is", "why"])
    short = TURN.join(["is it light", "it is", "why"])
    [reading] = words.read([long])
    assert reading.cut and list(reading.ids) == words.prepare([short]).values[0, :, 0].tolist()


def test_no_template_no_turns_and_no_system(tmp_path):
    saved_llava(tmp_path)
    words = listening(tmp_path, prompt="{image} say {} now: {answer}").tower("text")
    with pytest.raises(FusetuneError, match="several turns of a conversation, but no chat template"):
        words.prepare([TURN.join(["a", "b", "c"])])
    with pytest.raises(FusetuneError, match="backbone.system: there is no chat template here"):
        listening(tmp_path, prompt="{image} say {} now: {answer}", system="be brief")
    saved_llava(tmp_path / "deaf", template=SYSTEM.replace("[{{ m['content'][0]['text'] }}]", ""))
    with pytest.raises(FusetuneError, match="backbone.system: this checkpoint's chat template leaves it out"):
        listening(tmp_path / "deaf", system="be brief")


def report(folder, rows, most=16, **settings):
    columns = {name: pa.array([row[i] for row in rows]) for i, name in enumerate(("text", "said"))}
    shown = [[b"x"] * row[2] for row in rows]
    table = pa.table({**columns, "image": pa.array(shown), "sample_id": pa.array([f"s{i}" for i in range(len(rows))])})
    modalities = {"image": Modality("image"), "text": Modality("text"), ANSWER: Modality("text", "said")}
    found = input_report(Source(table, modalities), listening(folder, **settings), ValidationSettings())
    return found, {check["check"]: check for check in found["checks"]}


SOUND = (TEXTS[1], "dark", 1)


@pytest.mark.parametrize(
    ("row", "check", "column", "says"),
    [
        (("which <image> is it", "dark", 1), "text.prompt", "text", "holds the token that stands for a picture"),
        ((f"one{TURN}dark", "dark", 1), "text.prompt", "text", "a question behind the last answer"),
        ((TEXTS[0], "it is <image>", 1), "text.prompt", "said", "holds the token that stands for a picture"),
        ((TEXTS[0], "it is so " * 20, 1), "text.truncated", "said", "16 are read"),
        ((TEXTS[0] * 30, "dark", 1), "text.truncated", "text", "tokens, .* are read"),
        ((TEXTS[0], "dark", 7), "input.pictures", "image", "7 pictures, 6 are taken"),
        ((TEXTS[0] * 30, "dark", 6), "input.context", "image", "tokens, the language model takes 256"),
    ],
)
def test_what_cannot_be_put_into_the_prompt_is_named_by_row(tmp_path, row, check, column, says):
    saved_llava(tmp_path, template=SYSTEM)
    found, checks = report(tmp_path, [SOUND, SOUND, row])
    own = checks[check]
    assert own["column"] == column and [example["row"] for example in own["examples"]] == [2], own
    assert re.search(says, own["examples"][0]["value"]), own
    assert bool(found["stopped_by"]) == (check != "text.truncated"), found["stopped_by"]
    assert any(f"row 2: {own['examples'][0]['value']}" in sentence for sentence in told(found))


def test_what_is_learned_is_shown(tmp_path):
    saved_llava(tmp_path, template=SYSTEM)
    found, checks = report(tmp_path, [SOUND, (TURN.join(["which one", "dark", "why"]), "it is", 1)])
    assert not checks and [sample["answer"] for sample in found["supervised"]] == ["dark</s>", "it is</s>"]
    assert found["supervised"][1]["prompt"] == "<s>user: which one assistant: dark</s>user: why assistant: "


def test_the_reader_and_the_prompt_divide_turns_alike():
    assert conversations.TURN == TURN
