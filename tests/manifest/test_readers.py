"""Readers of published layouts, each on a tiny data set that is written here in exactly that layout."""

import io
import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pytest
from media import clip, jpeg

from fusetune.errors import FusetuneError
from fusetune.manifest.decoders import decode
from fusetune.manifest.readers import readers
from fusetune.manifest.readers.layouts import read_pickle


def read(name: str, **settings) -> pa.Table:
    return readers.get(name)(settings, "ingest.settings")


def rows(table: pa.Table) -> list[dict]:
    assert {"sample_id", "split", "group_id"} <= set(table.column_names)
    assert len(set(table["sample_id"].to_pylist())) == table.num_rows
    return table.to_pylist()


def test_food101(tmp_path):
    (tmp_path / "texts").mkdir()
    for part, count in (("train", 40), ("test", 4)):
        lines = []
        for number in range(count):
            label = ["apple_pie", "waffles"][number % 2]
            name = f"{label}_{part}_{number}.jpg"
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(jpeg(number))
            lines.append(f'{name},"The best {label}, ever",{label}')
        (tmp_path / "texts" / f"{part}_titles.csv").write_text("\n".join(lines) + "\n")
    found = rows(read("food101", folder=str(tmp_path), val_share=0.25))
    splits = [row["split"] for row in found]
    assert splits.count("test") == 4 and 4 <= splits.count("val") <= 20 and len(found) == 44
    assert found[0]["text"] == "The best apple_pie, ever" and found[0]["label"] == "apple_pie"
    assert all((tmp_path / row["image"]).is_file() for row in found)
    with (tmp_path / "texts" / "test_titles.csv").open("a") as file:
        file.write("only,two\n")
    with pytest.raises(FusetuneError, match=r"test_titles.csv, line 5: expected name,title,class, found 2 fields"):
        read("food101", folder=str(tmp_path))


def mmsa(aligned: bool) -> dict:
    rng = np.random.default_rng(0)
    found = {}
    for part, count in (("train", 3), ("valid", 2), ("test", 2)):
        found[part] = {
            "raw_text": np.array([f"SENTENCE {i}" for i in range(count)]),
            "text": rng.standard_normal((count, 50, 768)).astype(np.float32),
            "audio": rng.standard_normal((count, 50 if aligned else 375, 5)),
            "vision": rng.standard_normal((count, 50 if aligned else 500, 20)),
            "id": [f"{part}vid{i}$_${i}" for i in range(count)],
            "annotations": np.array(["Positive", "Negative", "Neutral"][:count]),
            "regression_labels": np.array([2.4, -1.0, 0.0][:count], dtype=np.float32),
        }
        found[part]["audio"][0, 3, 1] = -np.inf  # as COVAREP leaves it
        if not aligned:
            found[part]["audio_lengths"] = list(range(10, 10 + count))
            found[part]["vision_lengths"] = list(range(20, 20 + count))
    return found


@pytest.mark.parametrize("aligned", [True, False])
def test_mmsa(tmp_path, aligned):
    file = tmp_path / ("aligned_50.pkl" if aligned else "unaligned_50.pkl")
    published = mmsa(aligned)
    file.write_bytes(pickle.dumps(published))
    found = rows(read("mmsa", file=str(file)))
    assert [row["split"] for row in found] == ["train"] * 3 + ["val"] * 2 + ["test"] * 2
    first, second = found[:2]
    assert first["group_id"] == "trainvid0" and first["text"] == "SENTENCE 0" and first["label"] == "Positive"
    assert first["sentiment"] == pytest.approx(2.4) and np.array(first["words"]).shape == (50, 768)
    assert np.array(second["audio"]).shape == ((50, 5) if aligned else (11, 5))
    assert np.isfinite(np.array(first["audio"])).all() and first["audio"][3][1] == 0
    assert np.allclose(second["vision"], published["train"]["vision"][1][: len(second["vision"])], atol=1e-6)


def test_iemocap(tmp_path):
    rng, published = np.random.default_rng(0), {}
    for part, count in (("train", 3), ("valid", 2), ("test", 2)):
        labels = np.zeros((count, 4, 2))
        labels[:, :, 0] = 1
        labels[0, 2] = (0, 1)  # the first is sad
        published[part] = {
            "text": rng.standard_normal((count, 20, 300)),
            "audio": rng.standard_normal((count, 20, 74)),
            "vision": rng.standard_normal((count, 20, 35)),
            "labels": labels,
        }
    (tmp_path / "iemocap_data.pkl").write_bytes(pickle.dumps(published, protocol=2))
    found = rows(read("iemocap", file=str(tmp_path / "iemocap_data.pkl")))
    assert [found[0][name] for name in ("neutral", "happy", "sad", "angry")] == ["no", "no", "yes", "no"]
    assert found[0]["emotions"] == ["sad"] and found[1]["emotions"] == []
    assert found[1]["sad"] == "no" and np.array(found[0]["vision"]).shape == (20, 35) and len(found) == 7


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_pickle_runs_nothing(tmp_path, protocol):
    mark = tmp_path / "mark"

    class Bad:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    published = mmsa(True)
    published["train"]["id"] = Bad()
    file = tmp_path / "aligned_50.pkl"
    file.write_bytes(pickle.dumps(published, protocol=protocol))
    with pytest.raises(FusetuneError, match=r"50.pkl: refused \(UnpicklingError: it asks for (posix|os|nt).system"):
        read("mmsa", file=str(file))
    assert not mark.exists()
    pickle.loads(file.read_bytes())
    assert mark.exists(), "the fixture would have run under the plain unpickler"


@pytest.mark.parametrize(
    "data",
    [b"", b"no pickle", pickle.dumps(eval), pickle.dumps(np.testing.assert_allclose), b"cbuiltins\nexec\n(S'1'\ntR.",
     b"cnumpy\nload\n(S'x'\ntR."],
)  # fmt: skip
def test_other_things_that_a_pickle_could_name_are_refused(tmp_path, data):
    (tmp_path / "x.pkl").write_bytes(data)
    with pytest.raises(FusetuneError, match="refused"):
        read_pickle(tmp_path / "x.pkl")


def test_numpy_of_every_protocol_is_admitted(tmp_path):
    turned = np.arange(4).reshape(2, 2).T
    value = {"a": np.arange(3.0), "b": [np.float32(2), "x", np.array(["y"])], 3: (True, None, turned)}
    for protocol in range(6):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
        found = read_pickle(tmp_path / "x.pkl")
        assert np.array_equal(found["a"], value["a"]) and np.array_equal(found[3][2], turned)
        assert found["b"][0] == 2 and found["b"][2][0] == "y" and found[3][:2] == (True, None)


def test_msrvtt(tmp_path):
    videos = [{"video_id": f"video{i}", "split": s, "category": i} for i, s in enumerate(["train", "validate", "test"])]
    sentences = [{"video_id": f"video{i % 3}", "sen_id": i, "caption": f"caption {i}"} for i in range(9)]
    file = tmp_path / "train_val_videodatainfo.json"
    file.write_text(json.dumps({"info": {}, "videos": videos, "sentences": sentences}))
    experts = {}
    for number, name in enumerate(("scene", "rgb", "flow", "face", "speech", "ocr", "audio")):
        known = {f"video{i}": np.ones((1 + number, 4 + number)) for i in range(2 if name == "face" else 3)}
        if name == "scene":
            known = {key: value[0] for key, value in known.items()}
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(known))
        experts[name] = str(tmp_path / f"{name}.pkl")
    found = rows(read("msrvtt", annotations=[str(file)], experts=experts, captions=2))
    assert len(found) == 6 and {row["split"] for row in found} == {"train", "val", "test"}
    first = found[0]
    assert first["video"] == "videos/video0.mp4" and first["text"] == "caption 0" and first["group_id"] == "video0"
    assert np.array(first["scene"]).shape == (1, 4) and np.array(first["audio"]).shape == (7, 10)
    assert [row["face"] is None for row in found] == [False, False, True, False, False, True]
    pairs = tmp_path / "MSRVTT_JSFUSION_test.csv"
    pairs.write_text("key,vid_key,video_id,sentence\nret0,msr1,video1,a pair of its own\n")
    found = rows(read("msrvtt", annotations=[str(file)], pairs=str(pairs), val_share=0.0))
    assert [row["text"] for row in found if row["split"] == "test"] == ["a pair of its own"]
    assert [row["video_id"] for row in found if row["split"] == "train"] == ["video0", "video2"] * 3


def test_vqav2(tmp_path):
    for part, count in (("train", 40), ("val", 3)):
        first = {"train": 1000, "val": 2000}[part]
        asked = [{"image_id": i // 2, "question": f"what {i}?", "question_id": first + i} for i in range(count)]
        answers = [{"answer": "yes", "answer_confidence": "yes", "answer_id": n + 1} for n in range(10)]
        told = []
        for question in asked:
            rare = part == "train" and question["question"] == "what 5?"
            ids = {key: question[key] for key in ("question_id", "image_id")}
            kinds = {"question_type": "what", "answer_type": "yes/no"}
            told.append({**ids, **kinds, "multiple_choice_answer": "rare" if rare else "yes", "answers": answers})
        (tmp_path / f"v2_OpenEnded_mscoco_{part}2014_questions.json").write_text(json.dumps({"questions": asked}))
        (tmp_path / f"v2_mscoco_{part}2014_annotations.json").write_text(json.dumps({"annotations": told}))
    found = rows(read("vqav2", folder=str(tmp_path), val_share=0.3))
    assert len(found) == 43 and {row["split"] for row in found} == {"train", "val", "test"}
    assert found[0]["image"] == "train2014/COCO_train2014_000000000000.jpg" and len(found[0]["answers"]) == 10
    assert found[-1]["image"].startswith("val2014/COCO_val2014_") and found[-1]["split"] == "test"
    groups = {(row["group_id"], row["split"]) for row in found if row["split"] != "test"}
    assert len({group for group, _ in groups}) == len(groups), "a picture's questions stay together"
    assert len(read("vqav2", folder=str(tmp_path), most_answers=1)) == 42


@pytest.mark.parametrize("coco", [True, False])
def test_karpathy(tmp_path, coco):
    pictures = []
    for number, split in enumerate(["train", "restval" if coco else "train", "val", "test"]):
        sentences = [{"raw": f"picture {number}.{i}", "sentid": 5 * number + i, "tokens": []} for i in range(5)]
        picture = {"filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": sentences}
        pictures.append({**picture, **({"filepath": "val2014", "cocoid": number} if coco else {})})
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"images": pictures, "dataset": "x"}))
    found = rows(read("karpathy", file=str(file)))
    assert len(found) == 20 and [row["split"] for row in found[::5]] == ["train", "train", "val", "test"]
    assert found[6]["image"] == ("val2014/1.jpg" if coco else "1.jpg") and found[6]["text"] == "picture 1.1"
    assert len(read("karpathy", file=str(file), captions=1)) == 4
    assert found[6]["references"] == [f"picture 1.{i}" for i in range(5)]
    tested = rows(read("karpathy", file=str(file), tested=1))
    assert [row["split"] for row in tested] == ["train"] * 10 + ["val", "test"] and len(tested[-1]["references"]) == 5
    file.write_text(json.dumps({"pictures": []}))
    with pytest.raises(FusetuneError, match="dataset.json: expected a key 'images', found pictures"):
        read("karpathy", file=str(file))


def test_ave(tmp_path):
    (tmp_path / "AVE").mkdir()
    for split in ("train", "val", "test"):
        lines = [f"Church bell&{split}-_{i}&good&{i}&{i + 5}" for i in range(2)]
        (tmp_path / f"{split}Set.txt").write_text("\n".join(lines) + "\n")
        (tmp_path / "AVE" / f"{split}-_0.mp4").write_bytes(clip(1))
    found = rows(read("ave", folder=str(tmp_path)))
    assert len(found) == 6 and found[1]["start"] == 1.0 and found[1]["end"] == 6.0
    assert found[1]["segments"] == ["background"] + ["Church bell"] * 5 + ["background"] * 4
    assert found[0]["label"] == "Church bell" and (tmp_path / found[0]["video"]).is_file()
    (tmp_path / "valSet.txt").write_text("Church bell&x&good\n")
    with pytest.raises(FusetuneError, match=r"valSet.txt, line 1: expected Category&VideoID&Quality&StartTime&EndTime"):
        read("ave", folder=str(tmp_path))


def test_the_sound_of_a_video_is_heard():
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000)
        wave = (0.5 * np.sin(np.arange(16_000) * 0.2)).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    sound = decode("audio", buffer.getvalue(), "x")
    assert sound.sampling_rate == 16_000 and abs(len(sound.waveform) - 16_000) < 3000
    assert 0.3 < np.abs(sound.waveform).max() < 0.7


@pytest.mark.parametrize("split", [True, False])
def test_hugging_face_datasets_on_disk(tmp_path, split):
    datasets = pytest.importorskip("datasets", reason='an extra: pip install "fusetune[datasets]"')
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "who": datasets.Value("int64"),
        }
    )

    def part(count: int):
        columns = {"image": [{"bytes": jpeg(i), "path": None} for i in range(count)], "text": ["a"] * count,
                   "label": [i % 2 for i in range(count)], "who": list(range(count))}  # fmt: skip
        return datasets.Dataset.from_dict(columns, features=features)

    made = datasets.DatasetDict({"train": part(4), "validation": part(2), "test": part(2)}) if split else part(4)
    made.save_to_disk(str(tmp_path / "data"))
    table = read("hf", folder=str(tmp_path / "data"), group_id="who")
    assert ("split" in table.column_names) == split
    assert table["label"].to_pylist()[:2] == ["cat", "dog"] and table["group_id"].to_pylist()[1] == "1"
    assert decode("image", table["image"][1].as_py(), "x")[0].size == (64, 64)
    if split:
        assert [row["split"] for row in rows(table)] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    with pytest.raises(FusetuneError, match=r"ingest.settings.folder: .*nowhere is no data set on disk"):
        read("hf", folder=str(tmp_path / "nowhere"))


def test_every_reader_names_its_files_so_that_a_change_is_noticed():
    for name in readers.names():
        assert name.startswith("glyph") or readers.companion(name, "sources"), name


def test_what_is_not_there_is_said_with_where_it_was_looked_for(tmp_path):
    folder = {"folder": str(tmp_path)}
    asked = {"food101": folder, "ave": folder, "vqav2": folder, "karpathy": {"file": str(tmp_path / "x.json")}}
    for name, settings in asked.items():
        with pytest.raises(FusetuneError, match=f"{tmp_path}.* is not there"):
            read(name, **settings)
