"""Samples with a change made to each: another content key, and always the same change of the same sample."""

import io

import numpy as np
import pyarrow as pa
import pytest

from fusetune.errors import FusetuneError
from fusetune.features.changed import ChangedSource
from fusetune.features.source import Source
from fusetune.manifest.schema import Modality

MODALITIES = {"image": Modality("image"), "text": Modality("text"), "numbers": Modality("sequence")}
CHANGES = {"image": {"name": "noise", "share": 0.5}, "text": {"name": "misprints", "share": 0.5},
           "numbers": {"name": "noise", "share": 0.5}}  # fmt: skip


def table():
    from PIL import Image

    rng, pictures = np.random.default_rng(0), []
    for _ in range(2):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(buffer, "png")
        pictures.append(buffer.getvalue())
    columns = {
        "image": [pictures[0], pictures[1], pictures[0], None],
        "text": ["Some words, 12 of them", "others", "Some words, 12 of them", None],
        "numbers": [rng.normal(size=(5, 3)).tolist()] * 3 + [None],
    }
    return pa.table({"sample_id": list("abcd"), "split": ["test"] * 4, **columns})


def test_each_sample_is_changed_by_its_own_content_alone():
    plain, changed = Source(table(), MODALITIES), ChangedSource(table(), MODALITIES, CHANGES)
    for name in MODALITIES:
        keys, others = plain.content_keys()[name], changed.content_keys()[name]
        assert others[3] == "" and not set(keys[:3]) & set(others[:3])
        assert others[0] == others[2] and (others[0] != others[1] or name == "numbers")
        before = [None if sample is None else _plain(name, sample) for sample in plain.decoded(name, range(4))]
        after = [None if sample is None else _plain(name, sample) for sample in changed.decoded(name, range(4))]
        assert after[3] is None and after[0] == after[2] == _plain(name, changed.decoded(name, [0])[0])
        assert all(a != b for a, b in zip(after[:3], before[:3], strict=True))
    milder = ChangedSource(table(), MODALITIES, {"image": {"name": "noise", "share": 0.1}})
    assert milder.content_keys()["image"][0] != changed.content_keys()["image"][0]
    assert milder.content_keys()["text"] == plain.content_keys()["text"]


def test_misprints_replace_letters_alone_and_noise_stays_a_picture():
    changed = ChangedSource(table(), MODALITIES, CHANGES)
    before, after = "Some words, 12 of them", changed.decoded("text", [0])[0]
    differing = [(b, a) for b, a in zip(before, after, strict=True) if b != a]
    assert differing and all(b.isalpha() and a in before for b, a in differing)
    (picture,), (was,) = changed.decoded("image", [0])[0], Source(table(), MODALITIES).decoded("image", [0])[0]
    assert picture.mode == was.mode and picture.size == was.size
    spread = (np.asarray(picture, float) - np.asarray(was, float)).std() / np.asarray(was, float).std()
    assert 0.3 < spread < 0.55, "of 0.5 something is clipped at black and white"


def test_a_change_for_another_kind_is_refused_by_name():
    with pytest.raises(FusetuneError, match="evaluate_on.a.changes.text: this one changes image"):
        ChangedSource(table(), MODALITIES, {"text": {"name": "noise"}}, "evaluate_on.a.changes")


def _plain(name, sample):
    return [np.asarray(p).tolist() for p in sample] if name == "image" else np.asarray(sample).tolist()
