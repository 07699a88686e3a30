"""Whole columns give what their cells give one by one."""

import numpy as np
import pyarrow as pa
import pytest

from fusetune.errors import FusetuneError
from fusetune.features.source import Source
from fusetune.manifest.contents import content_digest, content_digests, readable_digests
from fusetune.manifest.decoders import decode, vectors
from fusetune.manifest.labels import label_text
from fusetune.manifest.schema import Modality
from fusetune.on_disk import taken

RNG = np.random.default_rng(0)
PAIRS = pa.list_(pa.float32(), 2)
COLUMNS = {
    "fixed": ("vector", pa.FixedSizeListArray.from_arrays(pa.array(RNG.standard_normal(160).astype(np.float32)), 16)),
    "fixed with gaps": ("vector", pa.array([[1.0, 2.0], None, [3.0, 4.0]] * 5, PAIRS)),
    "ragged": ("sequence", pa.array([RNG.standard_normal(RNG.integers(0, 5)).tolist() for _ in range(20)])),
    "gaps": ("sequence", pa.array([[1.0, 2.0], None, [], [3.5]] * 5)),
    "missing numbers": ("sequence", pa.array([[1.0, None], [2.0]] * 5)),
    "booleans": ("sequence", pa.array([[True, False], [True]] * 5)),
    "half": ("sequence", pa.array([[np.float16(1)], [np.float16(2)]] * 5, pa.list_(pa.float16()))),
    "large": ("sequence", pa.array([[1], [2, 3]] * 5, pa.large_list(pa.int64()))),
    "lists of lists": ("sequence", pa.array([[[1.0, 2.0], [3.0, 4.0]], None, [[5.0, 6.0]]] * 5)),
    "texts": ("text", pa.array(["a", "b", None, "", "é"] * 4)),
    "bytes": ("image", pa.array([b"a", None, b"b"] * 4)),
}


@pytest.mark.parametrize(("kind", "cells"), COLUMNS.values(), ids=COLUMNS.keys())
@pytest.mark.parametrize("cut", [False, True])
def test_contents_have_the_digests_of_their_cells(kind, cells, cut):
    column = pa.chunked_array([cells.slice(3, 6), cells.slice(0, 0), cells.slice(1, 4)] if cut else [cells])
    one_by_one = [content_digest(Modality(kind), cell) for cell in column]
    assert [digest.hex() if digest else "" for digest in content_digests(Modality(kind), column)] == one_by_one
    assert len(set(one_by_one)) > 1


def test_what_cannot_be_read_is_told_apart_from_what_is_not_there(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    column = pa.chunked_array([["a.png", None, "b.png"]])
    found = readable_digests(Modality("image", root=str(tmp_path)), column)
    assert len(found[0]) == 32 and found[1:] == [b"", None]


def test_a_file_that_is_gone_is_noticed_at_the_next_look(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "b.png").write_bytes(b"b")
    source = Source(pa.table({"image": ["a.png", "b.png"]}), {"image": Modality("image", root=str(tmp_path))})
    assert len(set(source.content_keys()["image"])) == 2
    (tmp_path / "b.png").unlink()
    with pytest.raises(FusetuneError, match=r"row 1, column 'image': the file .*b\.png can't be read"):
        source.content_keys()


@pytest.mark.parametrize("rows", [[], [0], [5, 6, 0, 0, 9, 3], range(10), [9, 4, 4, 5]])
def test_rows_are_taken_chunk_by_chunk(rows):
    column = pa.chunked_array([["a", None, "b"], [], ["c", "d"], ["e", "f", "g", "h", None]])
    assert taken(column, rows).to_pylist() == [column.to_pylist()[row] for row in rows]
    assert taken(column, rows).type == column.type


@pytest.mark.parametrize("name", ["fixed", "fixed with gaps"])
def test_vectors_are_decoded_as_their_cells_are(name):
    cells = pa.chunked_array([COLUMNS[name][1], COLUMNS[name][1].slice(1)])
    for column in (cells, cells.cast(pa.list_(pa.float64()))):
        found = vectors(column)
        for cell, vector in zip(column.to_pylist(), found, strict=True):
            if cell is None:
                assert vector is None
            else:
                expected = decode("vector", cell, "row")
                assert vector.dtype == expected.dtype and np.array_equal(vector, expected)


@pytest.mark.parametrize(
    "cells", [[[1.0], [1.0, 2.0]], [[1.0, None]], [[float("nan")]], [[]], [[True]], [[[1.0]]], ["a"]]
)
def test_vectors_that_need_a_look_are_left_to_it(cells):
    assert vectors(pa.chunked_array([pa.array(cells)])) is None


@pytest.mark.parametrize(
    ("given", "label"),
    [(" a ", "a"), ("1.0", "1"), ("007", "007"), ("10", "10"), ("-2.00", "-2"), ("1.50", "1.50"), (1.0, "1"),
     (True, "true"), (np.str_("3.0"), "3"), (np.int64(4), "4"), (None, None), (float("nan"), None), ("0", "0"),
     ("x.0", "x.0")],
)  # fmt: skip
def test_a_label_is_text(given, label):
    assert label_text(given) == label
