"""LeRobot data sets of the formats v2.0, v2.1 and v3.0: what a robot saw, was told and did, step by step.

From https://github.com/huggingface/lerobot. Expected below `folder`, as a hub has it:

    meta/info.json              {codebase_version, fps, data_path, video_path, features: {name: {dtype, shape}}, splits}
    meta/tasks.jsonl            {"task_index", "task"} a line (v2); meta/tasks.parquet (v3)
    meta/episodes.jsonl         {"episode_index", "length", "tasks"} a line (v2)
    meta/episodes/chunk-000/file-000.parquet    where each episode's videos are, and when they begin in them (v3)
    <data_path>                 Parquet: a row a step, with episode_index, frame_index, task_index, the state, the
                                action, and pictures where a feature is of dtype image
    <video_path>                an mp4 an episode (v2), or of several (v3), where a feature is of dtype video

Frames of videos are kept as JPEG of quality 95. A published split of train alone says nothing of validation and test:
then there is no column `split`, and `ingest.split` draws one by episode.
"""

import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fusetune.config import build, check
from fusetune.errors import FusetuneError
from fusetune.manifest.readers import layouts
from fusetune.manifest.schema import SPLITS

QUALITY = 95  # of JPEG
VERSIONS = ("v2.", "v3.")
NAMED = {"train": "train", "validation": "val", "val": "val", "test": "test"}


@dataclass(frozen=True)
class LeRobotSettings:
    """
    Attributes:
        folder: of the data set.
        cameras: column of the manifest -> the feature with its pictures.
        states: likewise of numbers that the robot knows of itself.
        action: the feature with what it did.
        chunk: actions of a row: of this step and those behind it; behind the end of an episode its last one again.
        stride: every so many steps become a row.
        episodes: that are read, from the first; 0: all.
    """

    folder: str
    cameras: Mapping[str, str] = field(default_factory=lambda: {"image": "observation.image"})
    states: Mapping[str, str] = field(default_factory=lambda: {"state": "observation.state"})
    action: str = "action"
    chunk: int = 1
    stride: int = 1
    episodes: int = 0

    def __post_init__(self) -> None:
        for name, least in (("chunk", 1), ("stride", 1), ("episodes", 0)):
            check(getattr(self, name) >= least, f"{name}: expected at least {least}, found {getattr(self, name)}.")


def sources(settings: Mapping[str, Any]) -> list[str]:
    folder = Path(str(settings.get("folder")))
    return [str(folder / name) for name in ("meta", "data", "videos") if (folder / name).is_dir()]


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """One row a step: text (the task), action (`chunk` of them), cameras, states, episode; split where published."""
    chosen = build(LeRobotSettings, settings, where)
    published = _Published(Path(chosen.folder))
    wanted = [*chosen.cameras.values(), *chosen.states.values(), chosen.action]
    for name in wanted:
        layouts.field(published.features, name, str(published.info_file))
    films = {c: f for c, f in chosen.cameras.items() if published.features[f].get("dtype") == "video"}
    rows: list[dict[str, Any]] = []
    for number, steps in published.episodes(chosen.episodes, [name for name in wanted if name not in films.values()]):
        actions = [step[chosen.action] for step in steps]
        kept = range(0, len(steps), chosen.stride)
        seen = {column: published.frames(number, feature, kept) for column, feature in films.items()}
        for place in kept:
            step = steps[place]
            ahead = [actions[min(place + i, len(actions) - 1)] for i in range(chosen.chunk)]
            shown = {c: _bytes(step[f], f"episode {number}, {f}") for c, f in chosen.cameras.items() if c not in films}
            rows.append(
                {
                    "sample_id": f"{number:06d}-{step['frame_index']:06d}",
                    **({"split": published.split(number)} if published.splits else {}),
                    "group_id": f"{number:06d}",
                    "text": published.task(step["task_index"]),
                    **shown,
                    **{column: frames[place] for column, frames in seen.items()},
                    **{column: _listed(step[feature]) for column, feature in chosen.states.items()},
                    "action": [_listed(action) for action in ahead],
                    "episode": number,
                }
            )
    return layouts.manifest(rows, where)


class _Published:
    """The files of a data set."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.info_file = folder, folder / "meta" / "info.json"
        self.info = layouts.read_json(self.info_file)
        self.version = str(layouts.field(self.info, "codebase_version", str(self.info_file)))
        check(
            self.version.startswith(VERSIONS),
            f"{self.info_file}: format {self.version}; v2.0, v2.1 and v3.0 are read. LeRobot's own converter brings "
            "older ones there.",
        )
        self.features = layouts.field(self.info, "features", str(self.info_file))
        self.fps = float(layouts.field(self.info, "fps", str(self.info_file)))
        self.tasks = self._tasks()
        self.splits = self._splits()
        self._videos = self._video_places() if self.version.startswith("v3.") else {}

    def task(self, number: int) -> str:
        if number not in self.tasks:
            raise FusetuneError(f"{self.folder / 'meta'}: no task of task_index {number}, which a step has.")
        return self.tasks[number]

    def split(self, number: int) -> str:
        name = next((name for name, episodes in self.splits.items() if number in episodes), None)
        check(name is not None, f"{self.info_file}, splits: episode {number} is in none.")
        return str(name)

    def episodes(self, most: int, names: Sequence[str]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Number and steps of each, in order; no more than one file in memory."""
        columns = ["episode_index", "frame_index", "task_index", *names]
        files = sorted((self.folder / "data").glob("*/*.parquet"))
        check(bool(files), f"{self.folder / 'data'}: no Parquet file is there. Expected {self.info.get('data_path')}.")
        count = 0
        for file in files:
            table = pq.ParquetFile(file)
            missing = [name for name in columns if name not in table.schema_arrow.names]
            check(not missing, f"{file}: no column '{''.join(missing[:1])}'; it has {table.schema_arrow.names}.")
            steps: dict[int, list[dict[str, Any]]] = defaultdict(list)
            for step in table.read(columns).to_pylist():
                steps[step["episode_index"]].append(step)
            for number, own in sorted(steps.items()):
                count += 1
                if most and count > most:
                    return
                yield number, sorted(own, key=lambda step: step["frame_index"])

    def frames(self, number: int, feature: str, wanted: Sequence[int]) -> dict[int, bytes]:
        """Frames of an episode by their number in it, as JPEG."""
        file, first = self._video(number, feature)
        import av

        needed = {first + place: place for place in wanted}
        found: dict[int, bytes] = {}
        with av.open(str(layouts.there(file))) as container:
            for i, frame in enumerate(container.decode(video=0)):
                if i in needed:
                    buffer = io.BytesIO()
                    frame.to_image().save(buffer, "JPEG", quality=QUALITY)
                    found[needed[i]] = buffer.getvalue()
                if i >= max(needed):
                    break
        lost = [place for place in wanted if place not in found]
        check(not lost, f"{file}: it has no frame of step {lost[:1]} of episode {number}.")
        return found

    def _video(self, number: int, feature: str) -> tuple[Path, int]:
        """Its file, and the number of the episode's first frame in it."""
        pattern, where = str(self.info.get("video_path")), {"video_key": feature}
        if not self.version.startswith("v3."):
            size = int(self.info.get("chunks_size", 1000))
            return self.folder / pattern.format(episode_chunk=number // size, episode_index=number, **where), 0
        row = self._videos.get(number)
        if row is None or f"videos/{feature}/chunk_index" not in row:
            raise FusetuneError(
                f"{self.folder / 'meta' / 'episodes'}: it says nothing of '{feature}' in episode {number}."
            )
        places = {key: int(row[f"videos/{feature}/{key}"]) for key in ("chunk_index", "file_index")}
        return self.folder / pattern.format(**places, **where), round(
            row[f"videos/{feature}/from_timestamp"] * self.fps
        )

    def _video_places(self) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for file in sorted((self.folder / "meta" / "episodes").glob("*/*.parquet")):
            schema = pq.read_schema(file)
            names = [name for name in schema.names if name == "episode_index" or name.startswith("videos/")]
            found |= {row["episode_index"]: row for row in pq.read_table(file, columns=names).to_pylist()}
        return found

    def _tasks(self) -> dict[int, str]:
        lines, file = self.folder / "meta" / "tasks.jsonl", self.folder / "meta" / "tasks.parquet"
        if file.is_file():
            table = pq.read_table(file)
            words = next(
                (f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)), ""
            )
            check(bool(words), f"{file}: no column of texts; it has {table.column_names}.")
            return dict(zip(table["task_index"].to_pylist(), table[words].to_pylist(), strict=True))
        told = str(lines)
        rows = [json.loads(line) for line in layouts.there(lines).read_text(encoding="utf-8").splitlines() if line]
        return {layouts.field(row, "task_index", told): layouts.field(row, "task", told) for row in rows}

    def _splits(self) -> dict[str, range]:
        """Ranges of episodes by our names; {} where there aren't all three."""
        found: dict[str, range] = {}
        for name, text in (self.info.get("splits") or {}).items():
            begin, _, end = str(text).partition(":")
            if name in NAMED and begin.isdigit() and end.isdigit():
                found[NAMED[name]] = range(int(begin), int(end))
        return found if set(found) == set(SPLITS) else {}


def _bytes(cell: Any, where: str) -> bytes:
    data = cell.get("bytes") if isinstance(cell, Mapping) else cell
    check(isinstance(data, bytes), f"{where}: expected the bytes of a picture, found {type(data).__name__}.")
    return data  # type: ignore[return-value]


def _listed(value: Any) -> list[float]:
    return [float(number) for number in value] if isinstance(value, list) else [float(value)]
