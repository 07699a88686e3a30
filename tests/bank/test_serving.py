"""The served model as requests reach it: every kind of modality, other adapters, a thousand requests of nonsense."""

import base64
import io
import math
import pickle
import random
import threading
from types import SimpleNamespace

import encoders
import pandas as pd
import pytest
import torch
from artifacts import model_of
from methods import SMALL, placement

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.bank.artifact import Artifact
from fusetune.config import build
from fusetune.manifest.decoders import decode
from fusetune.training.data import DataSettings

mlflow = pytest.importorskip("mlflow")
KINDS = {"image": "image", "text": "text", "sound": "audio", "points": "sequence", "numbers": "vector"}


def png(size=(40, 30)) -> bytes:
    buffer = io.BytesIO()
    encoders.picture(torch.Generator().manual_seed(3)).resize(size).save(buffer, "png")
    return buffer.getvalue()


def wav(samples=1600) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, encoders.sounds(samples)[0].waveform, 16_000, format="WAV")
    return buffer.getvalue()


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def row():
    points = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).tolist()
    return {
        "image": [text_of(png()), text_of(png((20, 20)))],
        "text": "the first of several",
        "sound": text_of(wav()),
        "points": points,
        "numbers": points[0] + [0.5],
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The model as MLflow loads it, over towers of five kinds; and the artifact's folder."""
    from fusetune.bank.mlflow_model import AdapterModel

    folder = tmp_path_factory.mktemp("served")
    torch.manual_seed(0)
    makers = {"image": encoders.clip_vision, "text": encoders.bert, "sound": encoders.FAMILIES["wav2vec2"][0],
              "points": encoders.sequence, "numbers": encoders.vector}  # fmt: skip
    Backbone({name: make() for name, make in makers.items()}).save_pretrained(folder / "base")
    task = {"name": "classification", "label": "label"}
    data = build(DataSettings, {"modalities": {n: {"kind": k} for n, k in KINDS.items()}, "task": task}, "data")
    backbone = Backbone.from_pretrained(folder / "base")
    samples = {n: [decode(KINDS[n], _raw(n), "here")] for n in KINDS}
    made, found = model_of(backbone, data, placement("towers", "lora", rank=2), SMALL, samples=samples)
    Artifact.of(made, data, "mixed", "", found).save_pretrained(folder / "adapter")
    model = AdapterModel()
    context = SimpleNamespace(
        artifacts={"adapter": str(folder / "adapter")}, model_config={"base": str(folder / "base")}
    )
    model.load_context(context)
    return model, folder


def _raw(name):
    cell = row()[name]
    if KINDS[name] == "image":
        return [base64.b64decode(item) for item in cell]
    return base64.b64decode(cell) if KINDS[name] == "audio" else cell


def ask(model, *rows, **params):
    return model.predict(None, pd.DataFrame(list(rows)), params or None)


def test_every_kind_of_modality_is_answered_as_the_model_would(served):
    model, folder = served
    alone = Artifact.from_pretrained(folder / "adapter").build(folder / "base")
    streams = alone.backbone.prepare({n: [decode(KINDS[n], _raw(n), "here")] for n in KINDS})
    with torch.no_grad():
        expected = alone.task.decode(alone(streams, Frontier(dict.fromkeys(KINDS, 0))))[0]
    answer = ask(model, row()).iloc[0]
    assert answer["prediction"] == expected["prediction"]
    assert answer["probability"] == pytest.approx(expected["probability"], abs=1e-5)


@pytest.mark.parametrize("missing", KINDS)
def test_any_modality_may_be_missing(served, missing):
    rest = {name: cell for name, cell in row().items() if name != missing}
    left_out, none = ask(served[0], rest), ask(served[0], {**rest, missing: None})
    assert left_out["probability"].tolist() == none["probability"].tolist()
    both = ask(served[0], row(), {**rest, missing: None})
    assert both["probability"][1] == pytest.approx(none["probability"][0], abs=1e-5)
    assert ask(served[0], {missing: row()[missing]})["prediction"][0] in "abc"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"picture": 1}, "unknown columns \\['picture'\\]; expected 1 to 1024 rows of image, text"),
        ({"image": "not base64!"}, "row 1, column 'image': media are expected as base64"),
        ({"image": text_of(b"no picture")}, "row 1, column 'image': 10 bytes are no readable image"),
        ({"image": text_of(wav())}, "column 'image': .* no readable image"),
        ({"image": []}, "an empty list of pictures"),
        ({"sound": text_of(png())}, "row 1, column 'sound': .* no readable sound"),
        ({"text": 7}, "row 1, column 'text': expected text, found int"),
        ({"points": [[1.0, math.nan, 0, 0, 0]]}, "row 1, column 'points': NaN or infinity"),
        ({"points": [[1.0, 2.0], [1.0]]}, "expected 2-dimensional floats of one width"),
        ({"points": [[1.0] * 4]}, "request 1, 'points': expected at most 16 .* found \\(1, 4\\)"),
        ({"points": [[1.0] * 5] * 17}, "expected at most 16 tokens"),
        ({"points": "1,2,3"}, "expected a list of floats, found str"),
        ({"numbers": [1e39] * 6}, "NaN or infinity"),
        ({"numbers": [["1"]]}, "column 'numbers': expected 1-dimensional floats"),
        (dict.fromkeys(KINDS), "row 1: no modality is given"),
    ],
)
def test_a_bad_request_is_named_and_the_next_is_answered(served, change, message):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=message) as caught:
        ask(served[0], row(), {**row(), **change})
    assert caught.value.get_http_status_code() == 400
    assert ask(served[0], row())["prediction"][0] in "abc"


def picture(side):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "png", compress_level=9)
    return buffer.getvalue()


def flac(seconds):
    import numpy as np
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(16_000 * seconds, dtype="int16"), 16_000, format="FLAC")
    return buffer.getvalue()


LARGE = {
    "eight large pictures": (
        lambda: [{"image": [text_of(picture(4000))]}] * 8,
        "112,000,000 pixels, at most 100,000,000",
    ),
    "an hour of silence": (lambda: [{"sound": text_of(flac(3600))}], "57,600,000 samples, at most 30,000,000"),
    "many bytes": (lambda: [{"image": text_of(b"0" * (16 * 2**20 + 9))}], "bytes of media; at most 16,777,216"),
    "a long text": (lambda: [{"text": "a" * 6_000_000}] * 2, "12,000,000 characters, at most 10,000,000"),
    "many numbers": (lambda: [{"numbers": [0.0] * 10_000_001}], "10,000,001 values, at most 10,000,000"),
    "many rows": (lambda: [{"text": "a"}] * 1025, "1025 rows; at most 1024"),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_request_of_more_than_its_budget_is_refused_before_anything_is_decoded(served, name, monkeypatch):
    from mlflow.exceptions import MlflowException

    rows, message = LARGE[name][0](), LARGE[name][1]
    decoded = []
    monkeypatch.setattr("fusetune.manifest.decoders.decoded", lambda *_: decoded.append(1))
    with pytest.raises(MlflowException, match=message) as caught:
        ask(served[0], *rows)
    assert caught.value.get_http_status_code() == 413 and not decoded
    monkeypatch.undo()
    assert ask(served[0], row())["prediction"][0] in "abc"


def test_rows_are_answered_in_slices_and_the_same(served, monkeypatch):
    from dataclasses import replace

    texts = ["the first", "several words", "one", "a much longer text", "words of text", "much", "the text"]
    rows = [{**row(), "text": text} for text in texts]
    whole, sizes = ask(served[0], *rows), []
    outputs = served[0].bank.outputs
    monkeypatch.setattr(served[0], "limits", replace(served[0].limits, slice_rows=3))
    monkeypatch.setattr(
        served[0].bank, "outputs", lambda names, *more: sizes.append(len(names)) or outputs(names, *more)
    )
    parts = ask(served[0], *rows)
    assert sizes == [3, 3, 1] and parts["prediction"].tolist() == whole["prediction"].tolist()
    assert parts["probability"].tolist() == pytest.approx(whole["probability"].tolist(), abs=1e-5)
    assert len(set(whole["probability"])) > 1


def test_a_request_that_takes_too_long_ends_between_slices(served, monkeypatch):
    from dataclasses import replace
    from types import SimpleNamespace

    from mlflow.exceptions import MlflowException

    import fusetune.bank.mlflow_model as module

    now = iter(range(0, 10_000, 100))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(served[0], "limits", replace(served[0].limits, slice_rows=1, seconds=150))
    with pytest.raises(MlflowException, match="request: 1 of 3 rows were answered in 150 s") as caught:
        ask(served[0], row(), row(), row())
    assert caught.value.get_http_status_code() == 413


def test_a_video_is_counted_by_its_header():
    from media import clip

    from fusetune.bank.budget import Budget, RequestLimits, TooLarge
    from fusetune.manifest.schema import Modality

    Budget(RequestLimits()).take_cell(Modality("video"), clip(1, frames=30), "here")
    with pytest.raises(TooLarge, match="here: with this the request has 30 frames, at most 20"):
        Budget(RequestLimits(frames=20)).take_cell(Modality("video"), clip(1, frames=30), "here")
    with pytest.raises(TooLarge, match="pixels"):
        Budget(RequestLimits(pixels=16 * 32 * 32 - 1)).take_cell(Modality("video"), clip(1, frames=30), "here")


def test_columns_are_taken_too_but_never_repeated(served):
    from mlflow.exceptions import MlflowException

    expected = ask(served[0], row(), row())
    columns = {name: [cell, cell] for name, cell in row().items()}
    pd.testing.assert_frame_equal(served[0].predict(None, columns), expected)
    pd.testing.assert_frame_equal(served[0].predict(None, [row(), row()]), expected)
    for bad in (row(), {**columns, "text": ["one"]}, {**columns, "text": "one"}, [[1, 2], [3]], "text", 7, {}, []):
        with pytest.raises(MlflowException, match="request: ") as caught:
            served[0].predict(None, bad)
        assert caught.value.get_http_status_code() == 400


def test_no_rows_and_too_many_rows(served):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="0 rows"):
        served[0].predict(None, pd.DataFrame({"text": []}))
    with pytest.raises(MlflowException, match="1025 rows"):
        served[0].predict(None, pd.DataFrame({"text": ["a"] * 1025}))


@pytest.mark.parametrize(
    "name", ["nobody@champion", "nobody/1", "nobody", "../../etc/passwd", "models:/", "@", "a/b/c"]
)
def test_an_adapter_that_nobody_has_registered(served, name, tmp_path, monkeypatch):
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(MlflowException, match=f"adapter '{name}'") as caught:
        ask(served[0], row(), adapter=name)
    assert caught.value.get_http_status_code() == 400


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def nonsense(rng: random.Random, good: dict) -> dict:
    """One row with something in it that may be anything."""
    changed = dict(good)
    name = rng.choice([*KINDS, "stranger"])
    picture, sound = bytearray(png()), bytearray(wav())
    for data in (picture, sound):
        for _ in range(rng.choice([1, 3, 30])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    bomb = text_of(pickle.dumps(_Bomb()))
    values = [None, math.nan, math.inf, -1, 0, 2**80, True, "", "\x00", "a" * rng.randrange(5000), {}, {"a": 1}]
    lists = [[], [[]], [[[]]], [None], [None, 1.0], [[None]], [["x"] * 5], [True] * 6, ["not base64"] * 3]
    floats = [[1.0] * rng.randrange(9), [[1.0] * rng.randrange(7)] * rng.randrange(20), [[1e308] * 5], [[math.inf] * 5]]
    floats += [[1e308] * 6, [good["points"]], good["numbers"][:-1]]
    raw = [b"", b"\xff" * 50, rng.randbytes(rng.randrange(300)), bytes(picture), bytes(sound)]
    raw += [png()[: rng.randrange(200)], wav()[: rng.randrange(200)], b"GIF89a" + rng.randbytes(30)]
    coded = [text_of(data) for data in raw] + [[text_of(picture)] * rng.randrange(4), bomb, [bomb]]
    changed[name] = rng.choice(rng.choice([values, lists, floats, raw, coded]))
    return changed


def test_a_thousand_requests_of_nonsense(served):
    """Each gets an answer that is one, or an error of the client's; in between and at the end all is as it was."""
    from mlflow.exceptions import MlflowException

    model, good, rng = served[0], row(), random.Random(0)
    expected = ask(model, good)
    answered = refused = 0
    for number in range(1000):
        rows = [nonsense(rng, good) for _ in range(rng.choice([1, 1, 3]))]
        try:
            answer = model.predict(None, pd.DataFrame(rows))
            answered += 1
            assert len(answer) == len(rows) and answer["prediction"].isin(list("abc")).all()
            assert answer["probability"].between(0, 1).all()
        except MlflowException as error:
            refused += 1
            assert error.get_http_status_code() == 400 and len(str(error)) < 1000, error
        if number % 100 == 0:
            pd.testing.assert_frame_equal(ask(model, good), expected)
    assert refused > 300 and answered > 50
    pd.testing.assert_frame_equal(ask(model, good), expected)


def test_many_clients_at_once(served):
    expected, wrong = ask(served[0], row()), []

    def client():
        for _ in range(8):
            if not ask(served[0], row()).equals(expected):
                wrong.append(1)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
