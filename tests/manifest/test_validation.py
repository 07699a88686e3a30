"""A corpus of broken inputs: each is named by check, row and column, and the sound rows come out whole."""

import io
import json
import struct
import time
import zlib

import numpy as np
import pyarrow as pa
import pytest
from media import ROWS, clip, jpeg, manifest, png, tone, wav
from PIL import Image

from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.manifest.checks import BY_BASE, SEVERITIES, ValidationSettings
from fusetune.manifest.schema import Modality
from fusetune.manifest.validation import validate

BAD = 7  # the row that is broken, a training row


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    table, modalities = manifest(root)
    return root, table, modalities


def run(table, modalities, **settings):
    chosen = build(ValidationSettings, {"max_quarantined": 1.0, "workers": 1, **settings}, "validate")
    return validate(table, modalities, ["label"], chosen)


def with_cell(table: pa.Table, column: str, cell, row: int = BAD) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = cell
    kind = None if cell is None or isinstance(cell, type(values[0])) else pa.array([cell]).type
    array = pa.array(values) if kind is None else _mixed(values)
    return table.set_column(table.column_names.index(column), column, array)


def _mixed(values):
    return pa.array([None if value is None else str(value) for value in values])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    """A PNG of a few kB that says that it is 40,000 x 40,000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(40_001) * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def file_cell(name: str, content: bytes):
    def make(root, table):
        (root / "media" / name).write_bytes(content)
        return f"media/{name}"

    return make


def folder_cell(root, table):
    (root / "media" / "folder.png").mkdir(exist_ok=True)
    return "media/folder.png"


def link_out(root, table):
    outside = root.parent / "outside.png"
    outside.write_bytes(png(3))
    link = root / "media" / "link.png"
    link.unlink(missing_ok=True)
    link.symlink_to(outside)
    return "media/link.png"


def link_to_nothing(root, table):
    link = root / "media" / "dangling.png"
    link.unlink(missing_ok=True)
    link.symlink_to(root / "media" / "never.png")
    return "media/dangling.png"


def link_to_itself(root, table):
    link = root / "media" / "loop.png"
    link.unlink(missing_ok=True)
    link.symlink_to(link)
    return "media/loop.png"


def zero_rate() -> bytes:
    data = bytearray(wav(tone(1)))
    data[24:28] = b"\0\0\0\0"
    return bytes(data)


def with_rate(rate: int) -> bytes:
    return wav(tone(1), rate)


def flat(mode, size, colour) -> bytes:
    return encoded(Image.new(mode, size, colour))


def clear() -> bytes:
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    return encoded(image)


def encoded(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


# name: (column, cell or a maker of one, the check that names it)
CELLS = {
    "truncated JPEG": ("image", file_cell("cut.jpg", jpeg(1)[:900]), "image.decodes"),
    "PNG bomb": ("image", file_cell("bomb.png", bomb()), "image.decodes"),
    "zero bytes": ("image", file_cell("empty.png", b""), "path.empty"),
    "text called png": ("image", file_cell("text.png", b"no picture at all"), "image.decodes"),
    "flipped PNG": ("image", file_cell("flip.png", png(1)[:40] + b"\xff\xff\xff" + png(1)[43:]), "image.decodes"),
    "a picture of one pixel": ("image", file_cell("dot.png", png(1, (1, 1))), "image.size"),
    "a picture too wide": ("image", file_cell("wide.png", png(1, (20_001, 2))), "image.size"),
    "a sound called png": ("image", file_cell("sound.png", wav(tone(2))), "image.decodes"),
    "a folder": ("image", folder_cell, "path.exists"),
    "no such file": ("image", "media/nowhere.png", "path.exists"),
    "an empty path": ("image", " ", "path.exists"),
    "a path with a zero byte": ("image", "media/a\0.png", "path.exists"),
    "an absolute path": ("image", "/etc/hostname", "path.inside"),
    "a path of Windows": ("image", "C:\\pictures\\1.png", "path.inside"),
    "dots out of the root": ("image", "../outside.png", "path.inside"),
    "dots out and in again": ("image", "media/../media/1.png", "path.inside"),
    "a link out of the root": ("image", link_out, "path.inside"),
    "a link to nothing": ("image", link_to_nothing, "path.exists"),
    "a link to itself": ("image", link_to_itself, "path.exists"),
    "a name of 5,000 letters": ("image", "m" * 5000, "path.exists"),
    "no picture": ("image", None, "cell.missing"),
    "a blank picture": ("image", file_cell("blank.png", flat("RGB", (8, 8), (7, 7, 7))), "image.constant"),
    "a picture that is transparent": ("image", file_cell("clear.png", clear()), "image.mode"),
    "0 Hz": ("sound", file_cell("zero.wav", zero_rate()), "audio.decodes"),
    "100 Hz": ("sound", file_cell("slow.wav", with_rate(100)), "audio.rate"),
    "one sample": ("sound", file_cell("click.wav", wav(np.array([0.5]))), "audio.seconds"),
    "no sample": ("sound", file_cell("none.wav", wav(np.zeros(0))), "audio.decodes"),
    "silence": ("sound", file_cell("silent.wav", wav(np.zeros(800))), "audio.silent"),
    "stereo in anti-phase": ("sound", file_cell("anti.wav", wav(np.stack([tone(1), -tone(1)], 1))), "audio.phase"),
    "NaN in a sound": ("sound", file_cell("nan.wav", wav(np.full(800, np.nan))), "audio.finite"),
    "a cut sound": ("sound", file_cell("cut.wav", wav(tone(1))[:30]), "audio.decodes"),
    "a picture called wav": ("sound", file_cell("picture.wav", png(1)), "audio.decodes"),
    "a cut video": ("clip", file_cell("cut.mp4", clip(1)[:200]), "video.decodes"),
    "text called mp4": ("clip", file_cell("text.mp4", b"no video" * 50), "video.decodes"),
    "a sound called mp4": ("clip", file_cell("sound.mp4", wav(tone(1))), "video.decodes"),
    "empty text": ("text", "", "text.empty"),
    "white space": ("text", " \n\t ", "text.empty"),
    "text of 1 MB": ("text", "word " * 200_000, "text.length"),
    "no text": ("text", None, "cell.missing"),
    "NaN in a sequence": ("points", [[1.0, 2.0], [float("nan"), 2.0]], "numbers.finite"),
    "infinity in a vector": ("numbers", [1.0, float("inf"), 2.0], "numbers.finite"),
    "a ragged sequence": ("points", [[1.0, 2.0], [1.0]], "numbers.width"),
    "a sequence of another width": ("points", [[1.0, 2.0, 3.0]], "numbers.width"),
    "a sequence without tokens": ("points", [], "numbers.empty"),
    "a vector of another width": ("numbers", [1.0], "numbers.width"),
    "an empty vector": ("numbers", [], "numbers.empty"),
    "no vector": ("numbers", None, "cell.missing"),
    "no label": ("label", None, "label.missing"),
    "a label in other letters": ("label", "Dog ", "label.alike"),
    "an unknown label": ("label", "bird", "label.declared"),
    "a split of its own": ("split", "dev", "split.known"),
    "no split": ("split", None, "split.known"),
    "no sample_id": ("sample_id", None, "sample_id.missing"),
    "an empty sample_id": ("sample_id", "", "sample_id.missing"),
    "a sample_id twice": ("sample_id", "s3", "sample_id.unique"),
    "no group": ("group_id", None, "group.missing"),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_broken_cell_is_named_and_the_sound_rows_come_out_whole(sound, name):
    root, table, modalities = sound
    column, cell, expected = CELLS[name]
    broken = with_cell(table, column, cell(root, table) if callable(cell) else cell)
    outcome = run(broken, modalities, labels={"label": ["cat", "dog", "Dog"]})
    found = {c["check"]: c for c in outcome.report["checks"] if c["column"] == column}
    assert expected in found, outcome.report["checks"]
    assert found[expected]["rows"] == 1 and found[expected]["examples"][0]["row"] == BAD
    assert not [c for c in outcome.report["checks"] if c["column"] not in (column, "") and c["rows"]]
    if SEVERITIES[expected] == "quarantine":
        assert outcome.quarantine["row"].to_pylist()[0] == BAD
        assert {"sample_id", "column", "check", "value"} <= set(outcome.quarantine.column_names)
        rows = [row for row in range(ROWS) if row != BAD]
        assert outcome.sound.equals(broken.take(pa.array(rows)))
    else:
        assert outcome.sound.equals(broken)
    assert not outcome.report["stopped_by"]
    json.dumps(outcome.report)


def test_there_are_at_least_forty_kinds_and_every_check_has_one():
    assert len(CELLS) >= 40
    elsewhere = {*BY_BASE, "manifest.empty", "split.rows", "group.leakage", "content.leakage", "content.duplicate",
                 "label.type", "label.trained", "label.classes", "label.every_split", "column.unused", "cell.type",
                 "video.size", "numbers.tokens", "label.mixed"}  # fmt: skip
    elsewhere |= {name for name in SEVERITIES if name.startswith("conversation.")}  # test_conversations
    elsewhere |= {
        name for name in SEVERITIES if name.split(".")[0] in ("box", "span", "segments", "action")
    }  # test_place_readers
    assert set(SEVERITIES) - elsewhere <= {check for _, _, check in CELLS.values()}


def test_a_sound_manifest_is_counted_and_nothing_is_set_aside(sound):
    _, table, modalities = sound
    outcome = run(table, modalities, max_quarantined=0.0)
    report = outcome.report
    assert outcome.sound.equals(table) and outcome.quarantine.num_rows == 0 and not report["checks"]
    assert report["rows_per_split"] == {"train": 12, "val": 6, "test": 6}
    assert report["labels"]["label"]["cat"] == {"train": 6, "val": 3, "test": 3}
    assert report["sizes"]["sound"]["unit"] == "seconds" and sum(report["sizes"]["image"]["counts"]) == ROWS


def column(table, name, values):
    return table.set_column(table.column_names.index(name), name, pa.array(values))


WHOLE = {
    "a group in two splits": (lambda t: with_cell(t, "group_id", "g9"), "group.leakage", 3, True),
    "an empty manifest": (lambda t: t.slice(0, 0), "manifest.empty", 1, True),
    "one class only": (lambda t: column(t, "label", ["cat"] * ROWS), "label.classes", 1, True),
    "no test rows": (lambda t: column(t, "split", ["train"] * 18 + ["val"] * 6), "split.rows", 1, True),
    "a label only in test": (lambda t: with_cell(t, "label", "bird", 20), "label.trained", 1, False),
    "a label as float": (lambda t: column(t, "label", [0.5, 1.0] * (ROWS // 2)), "label.type", 12, True),
    "a label out of range": (lambda t: column(t, "label", [0, 9] * (ROWS // 2)), "label.declared", 12, True),
    "a label that validation lacks": (
        lambda t: column(t, "label", ["bird"] + t["label"].to_pylist()[1:]),
        "label.every_split",
        1,
        False,
    ),
    "a column that nobody reads": (
        lambda t: t.append_column("note", pa.array(["x"] * ROWS)),
        "column.unused",
        1,
        False,
    ),
    "a column of another kind": (lambda t: column(t, "image", list(range(ROWS))), "cell.type", ROWS, True),
    "words for numbers": (lambda t: column(t, "numbers", [["a", "b"]] * ROWS), "cell.type", ROWS, True),
    "vectors for sequences": (lambda t: column(t, "points", [[1.0]] * ROWS), "cell.type", ROWS, True),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_manifest_that_is_broken_as_a_whole_is_named(sound, name):
    _, table, modalities = sound
    change, expected, rows, stops = WHOLE[name]
    span = {"label": {"min": 0, "max": 5}} if "range" in name else {}
    outcome = run(change(table), modalities, labels=span, max_quarantined=0.2)
    found = {c["check"]: c for c in outcome.report["checks"]}
    assert found[expected]["rows"] == rows, outcome.report["checks"]
    assert bool(outcome.report["stopped_by"]) == stops


def test_the_same_content_in_two_splits_leaves_the_later_one(sound):
    _, table, modalities = sound
    names = [name for name in table.column_names if name in modalities]
    for row, expected in ((20, "content.leakage"), (BAD, "content.duplicate")):
        copied = table
        for name in names:
            copied = with_cell(copied, name, table[name][2].as_py(), row)
        outcome = run(copied, modalities)
        (found,) = outcome.report["checks"]
        assert found["check"] == expected and found["examples"][0]["row"] == row
        assert found["examples"][0]["value"] == "the same as row 2 of train"
        assert outcome.sound.num_rows == ROWS - (expected == "content.leakage")
    changed = with_cell(copied, "text", "another text")
    assert not run(changed, modalities).report["checks"], "one modality that differs is another sample"


def test_a_missing_modality_is_data_where_it_is_optional(sound):
    root, table, modalities = sound
    optional = {**modalities, "sound": Modality("audio", root=str(root), optional=True)}
    gone = with_cell(table, "sound", None)
    outcome = run(gone, optional)
    assert outcome.sound.equals(gone) and outcome.report["missing"]["sound"] == 1
    assert run(gone, modalities).report["checks"][0]["check"] == "cell.missing"


def test_rows_that_the_user_lets_through_and_large_strings_of_pandas_crash_nothing(sound):
    from fusetune.manifest.contents import digest_column, with_digests

    _, table, modalities = sound
    large = pa.table({n: c.cast(pa.large_string()) if c.type == pa.string() else c for n, c in
                      zip(table.column_names, table.columns, strict=True)})  # fmt: skip
    assert not run(large, modalities).report["checks"]
    assert with_digests(large, modalities)[digest_column("image")].null_count == 0
    broken = with_cell(with_cell(with_cell(table, "image", "nowhere.png"), "split", "dev", 8), "text", None, 9)
    lenient = dict.fromkeys(("path.exists", "split.known", "cell.missing", "label.trained", "group.leakage"), "warn")
    outcome = run(broken, modalities, severity=lenient)
    assert outcome.sound.num_rows == ROWS and {c["severity"] for c in outcome.report["checks"]} == {"warn"}
    assert with_digests(outcome.sound, modalities)[digest_column("image")].null_count == 1


def test_severities_are_the_users(sound):
    _, table, modalities = sound
    broken = with_cell(table, "text", "")
    assert run(broken, modalities, severity={"text.empty": "warn"}).sound.num_rows == ROWS
    assert not run(broken, modalities, severity={"text.empty": "off"}).report["checks"]
    assert run(broken, modalities, severity={"text.empty": "error"}).report["stopped_by"] == ["text.empty (text)"]
    stopped = run(broken, modalities, max_quarantined=0.01).report["stopped_by"]
    assert stopped == ["max_quarantined: 1 of 24 rows, more than 1.0%"]
    with pytest.raises(FusetuneError, match="validate.severity: unknown key 'text.emty'. Did you mean 'text.empty'"):
        run(table, modalities, severity={"text.emty": "warn"})
    with pytest.raises(FusetuneError, match="text.empty: expected one of error, quarantine, warn, off, found 'fatal'"):
        run(table, modalities, severity={"text.empty": "fatal"})


def test_a_missing_column_is_named_with_those_that_are_there(sound):
    _, table, modalities = sound
    with pytest.raises(FusetuneError, match="column 'text' is missing. It has sample_id"):
        run(table.drop_columns(["text"]), modalities)


def test_processes_find_what_one_finds(sound, monkeypatch):
    root, table, modalities = sound
    monkeypatch.setattr("fusetune.manifest.probing.ALONE", 0)
    broken = with_cell(table, "image", file_cell("cut.jpg", jpeg(1)[:900])(root, table))
    seen = []
    settings = ValidationSettings(max_quarantined=1.0, workers=2)
    two = validate(broken, modalities, ["label"], settings, lambda name, done, total: seen.append((name, done, total)))
    one = run(broken, modalities)
    assert two.report == one.report and two.quarantine.equals(one.quarantine)
    assert ("image", ROWS, ROWS) in seen


def test_a_hundred_thousand_rows_take_seconds():
    count = 100_000
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "sample_id": [f"s{i}" for i in range(count)],
            "split": rng.choice(["train", "val", "test"], count),
            "group_id": [f"g{i}" for i in range(count)],
            "label": rng.choice(["a", "b", "c"], count),
            "text": [f"number {i}" for i in range(count)],
            "numbers": pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(count * 8)), 8).cast(
                pa.list_(pa.float64())
            ),
        }
    )
    modalities = {"text": Modality("text"), "numbers": Modality("vector")}
    began = time.perf_counter()
    outcome = run(with_cell(table, "text", "", 99_999), modalities)
    print(f"{count / (time.perf_counter() - began):,.0f} rows/s")
    assert outcome.sound.num_rows == count - 1 and outcome.quarantine["row"].to_pylist() == [99_999]


def test_a_frame_of_a_video_is_where_it_belongs():
    from fusetune.manifest.decoders import decode

    shades = [int(np.asarray(frame).mean()) for frame in decode("video", clip(0, frames=8), "x", frames=4)]
    assert np.abs(np.array(shades) - [0, 60, 150, 210]).max() <= 12, "frames 0, 2, 5 and 7 of eight"
    assert len(decode("video", clip(0, frames=2), "x", frames=5)) == 5


def test_decoders_say_what_they_found_where():
    from fusetune.manifest.decoders import decode

    for kind, cell, message in (
        ("image", b"nonsense", "row 3: 8 bytes are no readable image"),
        ("image", "path.png", "row 3: expected the bytes of an image, found str"),
        ("audio", b"nonsense", "row 3: 8 bytes are no readable sound"),
        ("video", b"nonsense", "row 3: 8 bytes are no readable video"),
        ("vector", [1.0, float("nan")], "row 3: NaN or infinity"),
        ("vector", ["a"], "row 3: expected 1-dimensional floats"),
        ("sequence", [[1.0], [1.0, 2.0]], "row 3: expected 2-dimensional floats of one width"),
        ("text", 5, "row 3: expected text, found int"),
    ):
        with pytest.raises(FusetuneError, match=message):
            decode(kind, cell, "row 3")


def test_the_page_holds_what_failed_and_works_offline(sound):
    from fusetune.report.validation_page import validation_page

    _, table, modalities = sound
    broken = with_cell(table, "text", "")
    page = validation_page(run(with_cell(broken, "label", "<b>", 20), modalities).report, "Validation of <mine>")
    assert "text.empty" in page and "row 7 (s7)" in page and "&lt;b&gt; is in no training row" in page
    assert (
        "Validation of &lt;mine&gt;" in page
        and "http" not in page
        and page.count("data:image/png") == 2
        and "image: all 12 pixels" in page
    )
