"""LeRobot's formats, written here as published: pictures in Parquet, a film an episode, films of several episodes."""

import json

import av
import numpy as np
import pandas as pd
import pytest
from media import jpeg

from fusetune.errors import FusetuneError
from fusetune.manifest.decoders import decode
from fusetune.manifest.readers import readers

STEPS, FPS, CAMERA = (5, 4, 6), 8, "observation.images.top"


def read(folder, **settings):
    return readers.get("lerobot")({"folder": str(folder), **settings}, "ingest.settings").to_pylist()


def film(file, shades):
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for shade in shades:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def shade(episode, step):
    return 20 + 60 * episode + 8 * step


def written(folder, version, dtype, splits=None):
    """Three episodes of two tasks; states and actions count up."""
    v3, index = version.startswith("v3"), 0
    info = {
        "codebase_version": version, "robot_type": "so100", "fps": FPS, "chunks_size": 2, "total_episodes": 3,
        "splits": splits or {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet" if v3
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4" if v3
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
            "observation.state": {"dtype": "float32", "shape": [3], "names": None},
            CAMERA: {"dtype": dtype, "shape": [32, 32, 3], "names": ["height", "width", "channels"]},
        },
    }  # fmt: skip
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    tasks, frames, places = ["pick up the cube", "open the drawer"], [], []
    for episode, count in enumerate(STEPS):
        rows = []
        for step in range(count):
            row = {
                "action": np.array([episode, step], np.float32),
                "observation.state": np.array([episode, step, 0.5], np.float32),
                "timestamp": np.float32(step / FPS), "frame_index": step, "episode_index": episode, "index": index,
                "task_index": episode % 2,
            }  # fmt: skip
            if dtype == "image":
                row[CAMERA] = {"bytes": jpeg(index), "path": f"frame_{step:06d}.png"}
            rows.append(row)
            index += 1
        if v3:
            places.append({"episode_index": episode, "tasks": [tasks[episode % 2]], "length": count,
                           f"videos/{CAMERA}/chunk_index": 0, f"videos/{CAMERA}/file_index": 0,
                           f"videos/{CAMERA}/from_timestamp": sum(STEPS[:episode]) / FPS})  # fmt: skip
            frames += rows
        else:
            file = folder / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_parquet(file)
            if dtype == "video":
                shades = [shade(episode, step) for step in range(count)]
                film(folder / f"videos/chunk-{episode // 2:03d}/{CAMERA}/episode_{episode:06d}.mp4", shades)
    if not v3:
        lines = [json.dumps({"task_index": i, "task": text}) for i, text in enumerate(tasks)]
        (folder / "meta" / "tasks.jsonl").write_text("\n".join(lines) + "\n")
        return folder
    for name, table in (("data", pd.DataFrame(frames)), ("meta/episodes", pd.DataFrame(places))):
        (folder / name / "chunk-000").mkdir(parents=True)
        table.to_parquet(folder / name / "chunk-000" / "file-000.parquet")
    pd.DataFrame({"task_index": [0, 1]}, index=pd.Index(tasks, name="task")).to_parquet(folder / "meta/tasks.parquet")
    film(
        folder / f"videos/{CAMERA}/chunk-000/file-000.mp4", [shade(e, s) for e, n in enumerate(STEPS) for s in range(n)]
    )
    return folder


@pytest.mark.parametrize(("version", "dtype"), [("v2.0", "image"), ("v2.1", "video"), ("v3.0", "video")])
def test_every_step_is_a_row_with_what_was_seen_then(tmp_path, version, dtype):
    folder = written(tmp_path, version, dtype)
    rows = read(folder, cameras={"image": CAMERA}, chunk=3)
    assert [row["sample_id"] for row in rows][:6] == [f"000000-{i:06d}" for i in range(5)] + ["000001-000000"]
    assert len(rows) == sum(STEPS) and len({row["group_id"] for row in rows}) == 3 and "split" not in rows[0]
    second = [row for row in rows if row["episode"] == 1]
    assert {row["text"] for row in second} == {"open the drawer"} and rows[0]["text"] == "pick up the cube"
    assert second[2]["state"] == [1, 2, 0.5]
    assert second[1]["action"] == [[1, 1], [1, 2], [1, 3]], "this step and those behind it"
    assert second[3]["action"] == [[1, 3]] * 3, "behind the end the last one again"
    if dtype == "image":
        assert second[0]["image"] == jpeg(STEPS[0])
        return
    means = [np.asarray(decode("image", row["image"], "row")[0]).mean() for row in rows]
    wanted = [shade(e, s) for e, count in enumerate(STEPS) for s in range(count)]
    assert np.abs(np.array(means) - wanted).max() < 4 and len(set(wanted)) == len(wanted)


def test_strides_episodes_and_published_splits(tmp_path):
    folder = written(tmp_path, "v3.0", "video", {"train": "0:1", "validation": "1:2", "test": "2:3"})
    rows = read(folder, cameras={"image": CAMERA}, stride=2)
    assert [(row["episode"], row["split"]) for row in rows] == [(0, "train")] * 3 + [(1, "val")] * 2 + [(2, "test")] * 3
    assert rows[1]["action"] == [[0, 2]]
    assert {row["episode"] for row in read(folder, cameras={"image": CAMERA}, episodes=2)} == {0, 1}


def test_what_is_not_as_published_is_told_by_file(tmp_path):
    folder = written(tmp_path, "v2.1", "video")
    with pytest.raises(FusetuneError, match=r"info.json: expected a key 'observation.image', found action"):
        read(folder)
    film_file = folder / f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    film(film_file, [1, 2])
    with pytest.raises(FusetuneError, match=r"episode_000001.mp4: it has no frame of step \[2\] of episode 1"):
        read(folder, cameras={"image": CAMERA})
    film_file.unlink()
    with pytest.raises(FusetuneError, match=r"episode_000001.mp4 is not there"):
        read(folder, cameras={"image": CAMERA})
    info = json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v1.6"}))
    with pytest.raises(FusetuneError, match=r"info.json: format v1.6; v2.0, v2.1 and v3.0 are read"):
        read(folder, cameras={"image": CAMERA})
