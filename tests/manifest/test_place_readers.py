"""Readers of data that ask where or when: published layouts as they are, the embedded scenes by their own pixels."""

import csv
import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.features.source import Source
from fusetune.manifest.checks import ValidationSettings
from fusetune.manifest.readers import readers
from fusetune.manifest.readers.glyph_boxes import Laid, phrases
from fusetune.manifest.readers.glyph_faces import glyphs
from fusetune.manifest.validation import validate
from fusetune.training.data import DataSettings, faults_of, make_task

FACES = ["DejaVuSerif", "STIXGeneral"]


def read(name: str, **settings):
    return readers.get(name)(settings, "ingest.settings")


def refcoco(folder):
    (folder / "refcoco").mkdir()
    refs = []
    for number, part in enumerate(["train", "train", "val", "testA", "testB"]):
        sentences = [{"sent_id": 10 * number + i, "sent": f"man {i}", "raw": "Man", "tokens": ["man"]} for i in (0, 1)]
        refs.append(
            {"ref_id": number, "ann_id": 900 + number, "image_id": 500 + number // 2, "split": part, "category_id": 1,
             "file_name": f"COCO_train2014_{500 + number // 2:012d}_{number}.jpg", "sentences": sentences,
             "sent_ids": [s["sent_id"] for s in sentences]}
        )  # fmt: skip
    (folder / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    instances = {
        "images": [
            {"id": 500 + i, "file_name": f"COCO_train2014_{500 + i:012d}.jpg", "width": 640, "height": 480}
            for i in range(3)
        ],
        "annotations": [
            {"id": 900 + i, "image_id": 500 + i // 2, "bbox": [10.5, 20, 100, 50.25], "category_id": 1, "iscrowd": 0}
            for i in range(5)
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    (folder / "refcoco" / "instances.json").write_text(json.dumps(instances))


def test_refcoco(tmp_path):
    refcoco(tmp_path)
    found = read("refcoco", folder=str(tmp_path)).to_pylist()
    assert [row["split"] for row in found[::2]] == ["train", "train", "val", "test", "test"]
    assert found[6] == {
        "sample_id": "30", "split": "test", "group_id": "501", "image": "train2014/COCO_train2014_000000000501.jpg",
        "text": "man 0", "box": [10.5, 20, 110.5, 70.25], "part": "testA",
    }  # fmt: skip
    (tmp_path / "refcoco" / "instances.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(FusetuneError, match=r"refs\(unc\)\.p, ref 0: .* has no annotation 900"):
        read("refcoco", folder=str(tmp_path))


def test_charades_sta(tmp_path):
    for part, names in (("train", [f"V{i:03d}" for i in range(40)]), ("test", ["T0"])):
        with (tmp_path / f"Charades_v1_{part}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["id", "subject", "scene", "script", "descriptions", "actions", "length"])
            table.writerows([name, "A", "Kitchen", "He, then", "", "c092 11.9 21.2", "30.96"] for name in names)
        lines = [f"{name} 24.3 30.4##person turn a light on." for name in names]
        (tmp_path / f"charades_sta_{part}.txt").write_text("\n".join(lines) + "\n")
    found = read("charades_sta", folder=str(tmp_path), val_share=0.2).to_pylist()
    splits = [row["split"] for row in found]
    assert splits.count("test") == 1 and 3 <= splits.count("val") <= 16
    assert found[-1]["video"] == "Charades_v1_480/T0.mp4" and found[-1]["text"] == "person turn a light on."
    assert found[-1]["span"] == [24.3, 30.4] and found[-1]["duration"] == 30.96
    with (tmp_path / "charades_sta_test.txt").open("a") as file:
        file.write("T9 1 2##nobody knows how long\n")
    with pytest.raises(FusetuneError, match=r"charades_sta_test.txt, line 2: expected VIDEO START END##SENTENCE"):
        read("charades_sta", folder=str(tmp_path))


def test_qvhighlights(tmp_path):
    (tmp_path / "clip_features").mkdir()
    for part, count in (("train", 30), ("val", 2)):
        lines = []
        for i in range(count):
            video = f"{part}_x{i:02d}_60.0_210.0"
            windows = [[82, 150]] if i % 2 else [[0, 10], [52, 82]]
            lines.append(
                {"qid": i + (1000 if part == "val" else 0), "query": "Chef makes pizza", "duration": 150, "vid": video,
                 "relevant_clip_ids": [0, 1], "saliency_scores": [[4, 1, 1]], "relevant_windows": windows}
            )  # fmt: skip
            np.savez(tmp_path / "clip_features" / f"{video}.npz", features=np.ones((75, 4), np.float16) * i)
        file = tmp_path / f"highlight_{part}_release.jsonl"
        file.write_text("\n".join(json.dumps(line) for line in lines))
    found = read("qvhighlights", folder=str(tmp_path), features={"clip": "clip_features", "slow": "none"}).to_pylist()
    assert [row["split"] for row in found].count("test") == 2 and "val" in {row["split"] for row in found}
    assert found[0]["span"] == [[0, 10], [52, 82]] and found[1]["span"] == [[82, 150]]
    assert found[0]["group_id"] == "train_x00" and found[0]["duration"] == 150
    assert len(found[1]["clip"]) == 75 and found[1]["clip"][0] == [1] * 4 and found[1]["slow"] is None
    with (tmp_path / "highlight_val_release.jsonl").open("a") as opened:
        opened.write('\n{"qid": 7, "query": "x", "vid": "a_0_1"}')
    with pytest.raises(FusetuneError, match=r"val_release.jsonl, line 3: expected a key 'relevant_windows'"):
        read("qvhighlights", folder=str(tmp_path))


def test_boxes_of_scenes_hold_the_ink_of_what_the_phrase_means():
    samples = {"train": 60, "val": 6, "test": 6}
    table = read("glyph_boxes", faces=FACES, samples=samples)
    found = table.to_pylist()
    assert [row["split"] for row in found].count("train") == 60 and len({row["text"] for row in found}) > 15
    assert {row["question_type"] for row in found} == {"fact", "order", "place"}
    for row in found:
        pixels = np.asarray(Image.open(io.BytesIO(row["image"][0])))
        left, top, right, bottom = map(int, row["box"])
        inside = pixels[top:bottom, left:right]
        for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
            assert edge.max() > 30  # it is tight
        assert pixels.shape == (64, 64) and left // 32 == (right - 1) // 32 and top // 32 == (bottom - 1) // 32
        if row["text"] == "the character at the bottom left":
            assert right <= 32 and top >= 32
    by_split = {s: {row["group_id"] for row in found if row["split"] == s} for s in ("train", "test")}
    assert not by_split["train"] & by_split["test"]
    assert table.equals(read("glyph_boxes", faces=FACES, samples=samples))


def test_a_phrase_means_one_character():
    by_char = {glyph.char: glyph for glyph in glyphs("DejaVuSerif")}
    laid = [Laid(by_char[char], (0, 0, 4 + i, 10)) for i, char in enumerate("aBc1")]
    assert dict(phrases(laid, "fact")) | {"the letter b": 1, "the digit": 3} == dict(phrases(laid, "fact"))
    assert "the small letter" not in dict(phrases(laid, "fact"))
    order = dict(phrases(laid, "order"))
    assert order["the second small letter"] == order["the last small letter"] == 2
    assert order["the second latin letter"] == 1 and "the first capital letter" not in order
    assert "the largest character" not in dict(phrases(laid, "place"))  # 70 against 60: not clearly


BAD = {
    "grounding": {
        "box.order": [[20.0, 5.0, 10.0, 9.0], [3.0, 3.0, 3.0, 9.0]],  # swapped, without an area
        "box.outside": [[40.0, 5.0, 90.0, 9.0]],
        "box.shape": [[1.0, 2.0, 3.0], [float("nan")] * 4],
        "label.missing": [None],
    },
    "moments": {
        "span.order": [[5.0, 2.0], [4.0, 4.0]],
        "span.outside": [[0.0, 99.0], [-2.0, 3.0]],
        "span.shape": [[1.0]],
        "span.extent": [],
        "label.missing": [None],
    },
    "segments": {
        "segments.shape": [[None, "1"] + ["2"] * 8, []],
        "segments.count": [["1", "2"]],
        "label.missing": [None],
    },
    "actions": {
        "action.shape": [[[1.0, 2.0], [1.0]], []],
        "action.width": [[[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], [[1.0, 2.0]]],
        "action.finite": [[[1.0, float("nan")], [1.0, 2.0]]],
        "label.missing": [None],
    },
}


def of_task(name):
    """A sound manifest, and how it is asked."""
    small = {"train": 24, "val": 6, "test": 6}
    if name == "segments":
        rows = [{"sample_id": f"s{i}", "split": ["train", "val", "test"][i % 3], "group_id": f"g{i}",
                 "sound": [[float(i + 1)]] * 4, "segments": [str(i % 3)] * 10} for i in range(36)]  # fmt: skip
        return pa.Table.from_pylist(rows), {"sound": {"kind": "sequence"}}, "segments", {}
    if name == "moments":
        asked = {"target": "frames", "duration": "duration"}
        return read("glyph_moments", faces=FACES, samples=small), {"frames": {"kind": "image"}}, "span", asked
    if name == "actions":
        table = read("glyph_reaching", faces=FACES, samples=small, chunk=2)
        return table, {"image": {"kind": "image"}, "state": {"kind": "vector"}}, "action", {}
    return read("glyph_boxes", faces=FACES, samples=small), {"image": {"kind": "image"}}, "box", {}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_place_and_no_time_is_named_by_check_row_and_column(name):
    table, modalities, column, settings = of_task(name)
    data = build(DataSettings, {"modalities": modalities, "task": {"name": name, **settings}}, "data")
    task = make_task(data.task)

    def checked(table):
        rules = build(ValidationSettings, {"max_quarantined": 1.0, "workers": 1}, "validate")
        return validate(
            table,
            data.modalities,
            [],
            rules,
            needed=task.columns(),
            faults=lambda some: faults_of(task, Source(some, data.modalities)),
        )

    assert not set(BAD[name]) & {c["check"] for c in checked(table).report["checks"]}
    expected, cells = {}, table[column].to_pylist()
    for check, bad in BAD[name].items():
        for cell in bad:
            row = 2 * sum(map(len, expected.values())) + 1
            cells[row] = cell
            expected.setdefault(check, []).append(row)
    broken = table.set_column(table.column_names.index(column), column, pa.array(cells, table[column].type))
    outcome = checked(broken)
    found: dict[str, list[int]] = {}
    for row in outcome.quarantine.to_pylist():
        assert row["column"] == column
        found.setdefault(row["check"], []).append(row["row"])
    assert found == {check: rows for check, rows in expected.items() if rows}
    assert outcome.sound.num_rows == table.num_rows - sum(map(len, expected.values()))


def test_a_picture_that_can_not_be_read_has_no_size():
    table, modalities, column, _ = of_task("grounding")
    pictures = table["image"].to_pylist()
    pictures[4] = [b"no picture"]
    broken = table.set_column(table.column_names.index("image"), "image", pa.array(pictures, table["image"].type))
    data = build(DataSettings, {"modalities": modalities, "task": {"name": "grounding"}}, "data")
    told = faults_of(make_task(data.task), Source(broken, data.modalities))[column, "box.extent"]
    assert [row for row, text in enumerate(told) if text] == [4] and "'image' is can't be read" in told[4]


def test_sizes_and_lengths_are_those_that_a_viewer_tells(tmp_path):
    """By headers alone, of files and of bytes; a picture that its EXIF tag turns has its sides changed."""
    from media import clip, jpeg, tone, wav

    turned = Image.new("RGB", (60, 40))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "plain.jpg").write_bytes(jpeg(1))
    (tmp_path / "clip.mp4").write_bytes(clip(1))
    plain = Image.open(tmp_path / "plain.jpg").size
    data = build(
        DataSettings,
        {"modalities": {"image": {"kind": "image", "root": str(tmp_path)}, "sound": {"kind": "audio"},
                        "clip": {"kind": "video", "root": str(tmp_path)}}, "task": {"name": "grounding"}},
        "data",
    )  # fmt: skip
    table = pa.table(
        {"image": ["plain.jpg", "turned.jpg", "gone.jpg"], "sound": [wav(tone(1)), None, b"noise"],
         "clip": ["clip.mp4", None, "gone.mp4"]}
    )  # fmt: skip
    source = Source(table, data.modalities)
    assert source.extents("image") == [plain, (40, 60), None]
    seconds = len(tone(1)) / 8000
    assert source.extents("sound") == [(pytest.approx(seconds),), None, None]
    found = source.extents("clip")
    assert found[1:] == [None, None] and found[0][0] == pytest.approx(6 / 8)
    assert source.decoded("image", [1])[0][0].size == (40, 60), "as it is decoded"
