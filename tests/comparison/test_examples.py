"""Which test samples a report shows, and how: scores that were made up so that the answer is known."""

import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from fusetune.comparison.cells import Cell
from fusetune.comparison.details import by_class, confusion
from fusetune.comparison.examples import examples, told
from fusetune.comparison.record import Compared
from fusetune.features.source import Source
from fusetune.manifest.schema import Modality
from fusetune.report.charts import Look
from fusetune.report.sample_cards import sample_section

COUNT = 20


class Made(Cell):
    def predictions(self):
        return pa.table(self.results["columns"])


def variant(name: str, *seeds: dict, truths=("label",), observed=None) -> Compared:
    ids = [f"s{i}" for i in range(COUNT)]
    metrics = {"target_columns": list(truths), "observed": observed or {}}
    cells = {
        seed: Made(Path("/nowhere"), {"columns": {"sample_id": ids, **columns}, "metrics": metrics}, {})
        for seed, columns in enumerate(seeds)
    }
    return Compared(name, name, {}, 1.0, True, {}, cells)


def answered(right: set[int], **more) -> dict:
    said = ["cat" if i in right else "dog" for i in range(COUNT)]
    return {"label": ["cat"] * COUNT, "prediction": said, "probability": [0.5] * COUNT,
            "score": [float(i in right) for i in range(COUNT)], **more}  # fmt: skip


ALL = set(range(COUNT))
A = variant("a", answered(ALL - {1, 2, 3}), answered(ALL - {1, 2, 3}), observed={"gate": [0.5]})
B = variant("b", answered(ALL - {2, 3, 4}), answered(ALL - {2, 3}))


def test_samples_on_which_methods_disagree_come_first_then_the_worst_and_the_best():
    found = examples([A, B], ["label"], most=10)
    kinds = [(one.kind, one.sample) for one in found.shown]
    assert kinds[:2] == [("disagreed", "s1"), ("disagreed", "s4")], "s4 is wrong in one of two seeds"
    assert {sample for kind, sample in kinds if kind == "nobody"} == {"s2", "s3"}
    assert len([kind for kind, _ in kinds if kind == "everybody"]) == 2 and found.graded and found.samples == COUNT
    first = found.shown[0]
    assert first.truth == "cat" and first.answers["a"].told == "dog" and first.answers["b"].told == "cat"
    assert found.shown[1].answers["b"].score == 0.5, "of two seeds one is right"
    assert [one.sample for one in examples([A, B], ["label"], most=10).shown] == [sample for _, sample in kinds]


def test_what_shows_how_an_answer_came_about_is_no_answer():
    gated = variant("a", answered(ALL, gate=[0.1] * COUNT), observed={"gate": [0.5]})
    assert examples([gated], ["label"]).shown[0].answers["a"].told == "cat"


def test_numbers_lists_and_several_answers_are_told():
    score = [0.25] * COUNT
    several = variant(
        "a",
        {"x": ["l"] * COUNT, "y": [1.0] * COUNT, "x_prediction": ["k"] * COUNT, "y_value": [0.12345] * COUNT,
         "score": score},
        truths=("x", "y"),
    )  # fmt: skip
    found = examples([several], ["x", "y"])
    assert not found.graded, "a score between right and wrong"
    assert found.shown[0].truth == "x: l; y: 1"
    assert found.shown[0].answers["a"].told == "x prediction: k; y value: 0.1235"
    assert told(list(range(12))) == "0, 1, 2, 3, ... (12)" and told(None) == told([]) == "nothing"
    assert told([[1.0, 2.0]]) == "[1, 2]"


def manifest(**columns) -> pa.Table:
    return pa.table({"sample_id": [f"s{i}" for i in range(COUNT)], **columns})


def picture(width: int = 40, height: int = 30) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height), 90).save(buffer, "PNG")
    return buffer.getvalue()


def test_cards_show_the_sample_its_truth_and_each_answer_with_its_grade():
    table = manifest(
        image=[picture()] * COUNT, text=["<b> & so on"] * (COUNT - 1) + [None], points=[[1.0, 2.0]] * COUNT
    )
    kinds = {"image": "image", "text": "text", "points": "vector"}
    source = Source(table, {name: Modality(kind) for name, kind in kinds.items()})
    page = sample_section(examples([A, B], ["label"], most=COUNT), source, Look(["a", "b"]))
    cards = page.split("<article")[1:]
    assert len(cards) == page.count("data:image/webp;base64,") and 8 <= len(cards) <= COUNT
    assert "data-right='|-a|+b|'" in cards[0] and "<b>cat</b>" in cards[0] and "s1" in cards[0]
    assert re.search(r"class='no'><td><i [^>]*></i>a</td><td>dog</td><td>wrong", cards[0])
    assert "50% of seeds" in cards[1]
    assert "&lt;b&gt; &amp; so on" in page and "<b> &" not in page and "points: 1 x 2 numbers" in page
    assert "<option value='-a'>a is wrong</option>" in page and f"of {COUNT} test samples" in page


def test_scores_that_are_not_right_or_wrong_get_no_grade():
    columns = {"label": [1.0] * COUNT, "value": [0.5] * COUNT, "score": np.linspace(-3, 1, COUNT).tolist()}
    source = Source(manifest(text=["x"] * COUNT), {"text": Modality("text")})
    page = sample_section(examples([variant("a", columns)], ["label"]), source, Look(["a"]))
    assert "data-by='right'" not in page and "wrong" not in page and "0.5" in page


def test_boxes_are_drawn_where_they_are():
    boxes = {"box": [[4.0, 3.0, 12.0, 12.0]] * COUNT, "predicted_box": [[20.0, 15.0, 38.0, 28.0]] * COUNT}
    found = examples([variant("a", {**boxes, "score": [0.0] * COUNT}, truths=("box",))], ["box"], most=5)
    source = Source(manifest(image=[picture()] * COUNT), {"image": Modality("image")})

    def corners(region):  # as xywh
        return [region[0], region[1], region[0] + region[2], region[1] + region[3]]

    import base64

    shown = {}
    for name, asked in (("with", (corners, "image")), ("without", (None, ""))):
        page = sample_section(found, source, Look(["a"]), *asked)
        data = base64.b64decode(page.split("base64,")[1].split("'")[0])
        shown[name] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)
    scale = shown["with"].shape[0] / 30
    changed = np.abs(shown["with"] - shown["without"]).max(-1) > 60
    assert changed.any(), "a box can be seen"
    for x, y in ((4, 7), (16, 7), (10, 3), (10, 15), (20, 20), (38, 20)):
        assert changed[round(y * scale) - 3 : round(y * scale) + 4, round(x * scale) - 3 : round(x * scale) + 4].any()
    assert not changed[round(8 * scale), round(10 * scale)], "inside of it nothing is"


def test_sound_can_be_heard_and_a_file_that_is_gone_is_told(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(4000)), 8000)
    cells = ["a.wav"] * (COUNT - 1) + [None]
    source = Source(manifest(sound=cells), {"sound": Modality("audio", root=str(tmp_path), optional=True)})
    found = examples([A, B], ["label"], most=COUNT)
    page = sample_section(found, source, Look(["a", "b"]))
    assert "data:audio/ogg;base64," in page
    (tmp_path / "a.wav").unlink()
    gone = sample_section(found, source, Look(["a", "b"]))
    assert "data:audio" not in gone and "a.wav" in gone


def test_a_tie_of_all_methods_still_shows_something():
    found = examples([A, variant("c", answered(ALL - {1, 2, 3}))], ["label"])
    assert {one.kind for one in found.shown} == {"nobody", "everybody"}
    assert found.shown[-1].answers["a"].score == 1.0 and found.shown[0].answers["a"].score == 0.0


def test_of_answers_in_words_those_are_shown_that_were_said():
    said = [f"cat {i}" if i % 5 == 0 else None for i in range(COUNT)]
    columns = {"prediction": said, "teacher_forced": ["dog"] * COUNT, "score": np.linspace(0, 1, COUNT).tolist()}
    spoken = variant("a", {**columns, "answer": ["cat 1"] * COUNT}, truths=("answer",))
    told = [one.answers["a"].told for one in examples([spoken], ["answer"]).shown]
    assert told and all(text.startswith("prediction: cat") for text in told)
    assert by_class(spoken) == {} and confusion(spoken) is None, "words are no classes"
    silent = variant("a", {**columns, "prediction": [None] * COUNT, "answer": ["cat 1"] * COUNT}, truths=("answer",))
    assert len(examples([silent], ["answer"], most=COUNT).shown) > len(told), "nobody was let speak: all may be shown"


def test_several_right_answers_in_one_text_stand_apart():
    columns = {"labels": [["animal", "sea"]] * COUNT, "score": [0.5] * COUNT, "tags": ["animal|ocean"] * COUNT}
    several = variant("a", columns, truths=("tags",))
    assert {one.truth for one in examples([several], ["tags"], separator="|").shown} == {"animal, ocean"}
    assert {one.truth for one in examples([several], ["tags"]).shown} == {"animal|ocean"}
