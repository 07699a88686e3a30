"""Keys in 32 bytes, and rows that are opened by them: the same as lists of text and a row at a time."""

import errno
import hashlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from fusetune import keys as keys_module
from fusetune import on_disk
from fusetune.errors import FusetuneError
from fusetune.features import rows as module
from fusetune.features.store import Entry
from fusetune.keys import Keys

NAMES = ["", *(hashlib.sha256(bytes([i])).hexdigest() for i in range(40))]


def shuffled(count: int) -> list[str]:
    return random.Random(count).choices(NAMES, k=count)


@pytest.fixture(params=["in memory", "on disk"])
def held(request, monkeypatch):
    """Few rows as many are: a file each, and a few at once."""
    if request.param == "on disk":
        for module, name, value in ((on_disk, "KEPT", 0), (on_disk, "ROWS", 7), (keys_module, "TOGETHER", 16),
                                    (keys_module, "AT_ONCE", 9)):  # fmt: skip
            monkeypatch.setattr(module, name, value)
    return request.param


def test_keys_are_what_they_were_made_of(held):
    names = shuffled(200)
    keys = Keys.of(names)
    assert list(keys) == names and len(keys) == 200 and keys.digests.nbytes == 200 * 32
    assert keys == Keys.of(names) and keys != Keys.of(names[:-1]) != Keys.of(NAMES)
    assert (
        keys[3] == names[3] and list(keys[5:9]) == names[5:9] and list(keys[[7, 1, 7]]) == [names[i] for i in (7, 1, 7)]
    )
    assert Keys.of(keys) is keys and Keys.joined([keys[:50], keys[50:]]) == keys and Keys.joined([]) == Keys.of(())
    assert keys.fingerprint() == Keys.of(names).fingerprint() != keys[::-1].fingerprint()
    for wrong in ("abc", "00", "no hex at all"):
        with pytest.raises(ValueError):
            Keys.of([NAMES[1], wrong])


def test_keys_are_numbered_and_found_as_a_dictionary_does_it(held):
    names, others = shuffled(300), shuffled(30)
    numbers, first = Keys.of(names).numbered()
    distinct = list(dict.fromkeys(names))
    assert [distinct[number] for number in numbers] == names and first.tolist() == [names.index(n) for n in distinct]
    expected = [others.index(name) if name in others else -1 for name in names]
    assert -1 in expected and max(expected) > 0
    assert Keys.of(names).places_in(Keys.of(others)).tolist() == expected
    assert Keys.of(()).numbered()[0].tolist() == [] and Keys.of(names).places_in(Keys.of(())).tolist() == [-1] * 300


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8", "as prepared"])
def test_all_rows_in_one_tensor_are_those_that_come_one_by_one(dtype, tmp_path, held):
    generator, entry = torch.Generator().manual_seed(0), Entry(tmp_path)
    for start in range(0, len(NAMES), 7):
        lengths = torch.randint(0, 6, (len(NAMES[start : start + 7]),), generator=generator)
        entry.write(NAMES[start : start + 7], torch.randn(int(lengths.sum()), 3, generator=generator), lengths, dtype)
    wanted = random.Random(0).sample(NAMES, 25)
    rows = entry.rows(wanted)
    assert len(rows.maps) > 3 and len(set(rows.length.tolist())) > 3
    one_by_one = torch.cat(list(rows))
    expected = one_by_one.half() if dtype == "int8" else one_by_one
    packed = rows.packed()
    assert packed.dtype == expected.dtype and torch.equal(packed[:-1], expected) and not packed[-1].any()
    rows.verify()
    assert entry.rows([]).packed().shape == (1, 1)


def test_more_shards_than_files_may_be_open_is_said(tmp_path, monkeypatch):
    entry = Entry(tmp_path)
    entry.write([NAMES[1]], torch.ones(1, 3), torch.ones(1, dtype=torch.long))

    def refused(_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module, "MappedShard", refused)
    with pytest.raises(FusetuneError, match=r"1 shards are more files than .* cache.shard_size=8192"):
        entry.rows([NAMES[1]])


LIMITED = """
import resource, sys
from pathlib import Path
from fusetune.features.store import Entry
entry, most = Entry(Path(sys.argv[1])), int(sys.argv[2])
names = [key for shard in entry.shards() for key in shard.keys]
resource.setrlimit(resource.RLIMIT_NOFILE, (60, most))
held = [entry.rows(names) for _ in range(3)]
print(sum(len(rows.maps) for rows in held))
"""


def test_a_low_limit_of_open_files_is_raised_each_time_as_far_as_it_goes(tmp_path):
    entry = Entry(tmp_path)
    for name in NAMES[1:31]:
        entry.write([name], torch.ones(1, 3), torch.ones(1, dtype=torch.long))
    done = [
        subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path), most], capture_output=True, text=True)
        for most in ("400", "60")
    ]
    assert done[0].stdout.strip() == "90", done[0].stderr
    assert "30 shards are more files than this system lets one process open" in done[1].stderr


def test_rows_take_no_python_object_each(tmp_path):
    entry, count = Entry(tmp_path), 20_000
    names = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]
    for start in range(0, count, 5_000):
        entry.write(names[start : start + 5_000], torch.ones(5_000, 2), torch.ones(5_000, dtype=torch.long), "float16")
    rows = entry.rows(names)
    held = [value for value in vars(rows).values() if isinstance(value, np.ndarray)] + [rows.keys.digests]
    assert {len(value) for value in held} == {count} and sum(value.nbytes for value in held) <= 80 * count
    assert all(len(value) <= 4 for value in (rows.maps, rows.files))
