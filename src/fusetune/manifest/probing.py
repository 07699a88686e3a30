"""What stands in a column of a modality: facts of every cell, for the checks to judge.

Cheap facts (is it there, how long is it, does its path lead to a file) are read in this process. Whether a cell decodes
is found out by a pool of processes, a few chunks at a time, so that no data set is ever in memory as a whole.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from fusetune.errors import FusetuneError
from fusetune.manifest.contents import is_list, names_files
from fusetune.manifest.decoders import decoded
from fusetune.manifest.files import path_problem, read_media
from fusetune.manifest.pictures import NOTE
from fusetune.manifest.schema import MEDIA, Modality
from fusetune.on_disk import taken

Progress = Callable[[int, int], None]  # cells decoded, cells
CHUNK = 64  # cells that a process takes at once
ALONE = 2000  # cells up to which starting processes costs more than it saves
EXPECTED = {
    "image": (bytes, str, list),
    "audio": (bytes, str),
    "video": (bytes, str),
    "text": (str,),
    "sequence": (list,),
    "vector": (list,),
}


def column_facts(modality: Modality, column: pa.ChunkedArray) -> pd.DataFrame:
    """One row a cell: `present`, `type` (what is wrong with it), `length`, `path` (check: what was found), and more.

    For numbers `width` and `finite`; for text its length in characters without white space around it. Encoded media are
    counted where they lie.
    """
    facts = pd.DataFrame({"present": column.is_valid().to_pandas()})
    kind, arrow = modality.kind, column.type
    if kind in ("sequence", "vector") and is_list(arrow):
        return facts.join(_numbers(column, kind))
    if kind in MEDIA and (_is_binary(arrow) or (kind == "image" and is_list(arrow) and not names_files(arrow))):
        facts["type"] = None
        count = pc.list_value_length if is_list(arrow) else pc.binary_length
        facts["length"] = count(column).to_pandas().astype(float)
        return facts
    cells = column.to_pylist()
    expected = EXPECTED[kind]
    facts["type"] = [
        None if cell is None or isinstance(cell, expected) else f"{type(cell).__name__} {str(cell)[:40]!r}"
        for cell in cells
    ]
    sound = facts["present"] & facts["type"].isna()
    if kind == "text":
        facts["length"] = [len(cell.strip()) if ok else np.nan for cell, ok in zip(cells, sound, strict=True)]
    elif kind in MEDIA:
        facts["length"] = [len(cell) if ok else np.nan for cell, ok in zip(cells, sound, strict=True)]
        problems = [
            next(filter(None, (path_problem(modality.root, path) for path in _paths(cell))), None) if ok else None
            for cell, ok in zip(cells, sound, strict=True)
        ]
        for check in {problem[0] for problem in problems if problem}:
            facts[check] = [problem[1] if problem and problem[0] == check else None for problem in problems]
    return facts


def _paths(cell: Any) -> list[str]:
    return [item for item in (cell if isinstance(cell, list) else [cell]) if isinstance(item, str)]


def widths(modality: Modality, column: pa.ChunkedArray) -> np.ndarray:
    """Of the cells of a column of numbers that have one."""
    if not is_list(column.type):
        return np.empty(0)
    facts = _shapes(column.combine_chunks(), modality.kind)[0]
    return facts["width"].dropna().to_numpy() if "width" in facts else np.empty(0)


def _shapes(array: Any, kind: str) -> tuple[pd.DataFrame, Any, np.ndarray]:
    """`length` and `width` of lists of floats (vector) or of lists of floats (sequence), or the `type` that is wrong;
    and all numbers, with the row of each."""
    facts = pd.DataFrame({"length": pc.list_value_length(array).to_pandas().astype(float)})
    depth = 1 + is_list(array.type.value_type)
    if depth != (2 if kind == "sequence" else 1):
        facts["type"] = f"{depth}-dimensional list"
        return facts, None, np.empty(0)
    rows = pc.list_parent_indices(array).to_numpy()
    values = array.flatten()
    if kind == "sequence":
        tokens = pc.list_value_length(values).to_numpy(zero_copy_only=False).astype(float)
        by_row = pd.Series(tokens).groupby(rows)
        low, high = by_row.min().reindex(facts.index), by_row.max().reindex(facts.index)
        facts["width"] = high.where(low == high, -1)  # -1: tokens of several widths
        rows = rows[pc.list_parent_indices(values).to_numpy()]
        values = values.flatten()
    else:
        facts["width"] = facts["length"]
    return facts, values, rows


def _numbers(column: pa.ChunkedArray, kind: str) -> pd.DataFrame:
    """Lists of floats (vector) or of lists of floats (sequence), without a Python loop over the values."""
    facts, values, rows = _shapes(column.combine_chunks(), kind)
    if values is None:
        return facts
    try:
        numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        facts["type"] = f"list of {values.type}"
        return facts
    bad = np.zeros(len(facts), bool)
    bad[rows[~np.isfinite(numbers)]] = True
    facts["finite"] = ~bad
    return facts


def decode_facts(
    modality: Modality, column: pa.ChunkedArray, rows: Sequence[int], workers: int, progress: Progress
) -> pd.DataFrame:
    """Facts of the given rows that only decoding tells, by row: `error`, and sizes in the kind's own units."""
    chunks = [list(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]
    found: dict[int, dict[str, Any]] = {}
    for chunk, facts in zip(chunks, _mapped(modality, column, chunks, workers, len(rows)), strict=True):
        found.update(zip(chunk, facts, strict=True))
        progress(len(found), len(rows))
    return pd.DataFrame.from_dict(found, orient="index")


def _mapped(
    modality: Modality, column: pa.ChunkedArray, chunks: Sequence[list[int]], workers: int, count: int
) -> Iterator[list[dict[str, Any]]]:
    workers = workers or os.cpu_count() or 1
    cells = (taken(column, chunk).to_pylist() for chunk in chunks)
    if workers == 1 or count <= ALONE:
        for some in cells:
            yield _probed(modality, some)
        return
    # a fork of threads that hold locks may hang
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    waiting: deque[Future[list[dict[str, Any]]]] = deque()
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context(method)) as pool:
            for some in cells:
                waiting.append(pool.submit(_probed, modality, some))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise FusetuneError(
            f"validate: a process that decodes {modality.kind} cells died, for want of memory or in a library. Set "
            "validate.workers to 1 to see where. Nothing was written."
        ) from error


def _probed(modality: Modality, cells: Sequence[Any]) -> list[dict[str, Any]]:
    return [_probe(modality, cell) for cell in cells]


def _probe(modality: Modality, cell: Any) -> dict[str, Any]:
    """Facts of one cell; what can't be decoded is a fact too, whatever the library's way of saying so."""
    try:
        if modality.kind in MEDIA:
            cell = read_media(modality.root, cell, "cell")
        sample = decoded(modality, cell, "cell")
    except FusetuneError as error:
        return {"error": str(error).removeprefix("cell: ")}
    except Exception as error:  # a decoder's own fault on hostile bytes: the row is named, the others go on
        return {"error": f"{type(error).__name__}: {error}"}
    if modality.kind == "audio":
        peak = float(np.abs(sample.waveform).max())
        finite = bool(np.isfinite(sample.waveform).all())
        seconds = len(sample.waveform) / max(1, sample.sampling_rate)
        return {"error": None, "seconds": seconds, "rate": sample.sampling_rate, "peak": peak, "finite": finite,
                "kept": sample.kept}  # fmt: skip
    sizes = [picture.size for picture in sample]
    constant = bool(sample) and all(_is_constant(picture) for picture in sample)
    return {
        "error": None,
        "note": next((picture.info[NOTE] for picture in sample if picture.info.get(NOTE)), None),
        "constant": f"{sample[0].getpixel((0, 0))} everywhere" if constant else None,
        "items": len(sizes),
        "smallest": min((min(size) for size in sizes), default=0),
        "largest": max((max(size) for size in sizes), default=0),
    }


def _is_constant(picture: Any) -> bool:
    extremes = picture.getextrema()
    return all(low == high for low, high in (extremes if isinstance(extremes[0], tuple) else [extremes]))


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
