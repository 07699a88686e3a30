"""The store itself: rows in, the same rows out; kills, flipped bytes, full disks, other file systems."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from fusetune.errors import FusetuneError
from fusetune.features.__main__ import main
from fusetune.features.dataset import gather
from fusetune.features.key_files import write_keys
from fusetune.features.storage import RemoteFolder, Store
from fusetune.features.store import Entry
from fusetune.keys import Keys
from fusetune.scratch import ABANDONED, machine, scratch


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


A, B, C, D, X, OLD = map(key, ("a", "b", "c", "d", "x", "old"))


def rows(*lengths: int, width: int = 4):
    return [torch.randn(n, width) for n in lengths]


def write(entry: Entry, keys, values, dtype: str = "float32"):
    return entry.write(keys, torch.cat(values), torch.tensor([len(v) for v in values]), dtype)


@pytest.fixture(params=["local", "file://", "memory://"])
def store(request, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "local":
        return Store(tmp_path / "store")
    return Store(f"{request.param}{tmp_path}/store")


def test_rows_come_back_in_the_order_asked_for(store):
    entry, values = Entry.of(store, "entry"), rows(3, 0, 5, 2)
    write(entry, [A, B], values[:2])
    write(entry, [C, D], values[2:])
    found = entry.rows([D, A, B, C, A])
    found.verify()
    for got, expected in zip(found, [values[3], values[0], values[1], values[2], values[0]], strict=True):
        assert torch.equal(got, expected)
    assert store.entries() == ["entry"] and entry.size() > 0
    assert isinstance(entry.folder, RemoteFolder) == ("memory" in str(store))


def test_what_is_missing_is_said(store):
    entry = Entry.of(store, "entry")
    write(entry, [A], rows(1))
    with pytest.raises(FusetuneError, match="1 of 2 samples are not cached"):
        entry.rows([A, B])


@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", 0.0), ("float16", 5e-4), ("bfloat16", 4e-3), ("int8", 8e-3), ("as prepared", 0.0)]
)
def test_every_dtype_costs_what_it_says(tmp_path, dtype, error):
    """Relative error of activations with outlier channels, as transformers have them."""
    torch.manual_seed(0)
    values = torch.randn(600, 64)
    values[:, 7] *= 60
    values[:, 9] += 40
    entry = Entry(tmp_path)
    entry.write([A, B], values, torch.tensor([400, 200]), dtype)
    found = torch.cat(list(entry.rows([A, B]))).float()
    assert (found - values).norm() / values.norm() <= error
    if dtype == "int8":  # not paid for by the small channels
        per_channel = (found - values).norm(dim=0) / (values - values.mean(0)).norm(dim=0)
        assert per_channel.max() < 0.012
    batch = gather(entry.rows([B, A]), torch.tensor([0, 1]).numpy())
    assert torch.equal(batch.values[batch.mask].float(), torch.cat([found[400:], found[:400]]))
    assert batch.mask.sum(1).tolist() == [200, 400] and not batch.values[0, 200:].any()


def test_integer_ids_stay_integers(tmp_path):
    entry, ids = Entry(tmp_path), torch.tensor([[3], [2**40]])
    entry.write([A], ids, torch.tensor([2]), "float16")
    assert torch.equal(entry.rows([A])[0], ids)


def test_infinite_activations_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(FusetuneError, match=r"float16 can hold.*cache.dtype to bfloat16"):
        write(Entry(tmp_path), [A], [torch.full((1, 4), 1e6)], "float16")
    for dtype in ("int8", "float32", "as prepared"):
        with pytest.raises(FusetuneError, match="can hold"):
            write(Entry(tmp_path), [A], [torch.full((1, 4), float("nan"))], dtype)
    assert not list(tmp_path.iterdir())


def test_a_flipped_byte_is_found_named_and_costs_its_shard_alone(store, tmp_path, capsys):
    entry, values = Entry.of(store, "entry"), rows(50, 20, 30)
    whole = write(entry, [X], rows(9))
    shard = write(entry, [A, B, C], values)
    assert not list(entry.damage())
    _flip(entry, shard, -8 - 30 * 16)  # in the last token of b, in front of c's 30 tokens of 16 bytes
    assert [(s.name, keys) for s, keys in entry.damage()] == [(shard.name, [B])]
    with pytest.raises(FusetuneError, match=rf"{shard.file}: sample {B} has changed.*verify --repair"):
        entry.rows([A, B]).verify()
    sound = entry.rows([A, C])
    sound.verify()
    assert torch.equal(sound[1], values[2])
    assert main(["verify", "--store", str(store)]) == 1
    assert f"{shard.file}: sample {B} of 3 changed on disk" in capsys.readouterr().out
    assert main(["verify", "--store", str(store), "--repair"]) == 0
    assert [s.name for s in entry.shards()] == [whole.name]
    assert main(["verify", "--store", str(store)]) == 0


@pytest.mark.parametrize("place", [3, 60])
def test_a_broken_header_is_found_too(tmp_path, place):
    entry = Entry(tmp_path)
    shard = write(entry, [A, B], rows(5, 5))
    _flip(entry, shard, place)
    assert [keys for _, keys in entry.damage()] == [[A, B]]


def _flip(entry: Entry, shard, place: int) -> None:
    if isinstance(entry.folder, RemoteFolder):
        path = f"{entry.folder.path}/{shard.file}"
        data = bytearray(entry.folder.filesystem.cat(path))
        data[place] ^= 1
        entry.folder.filesystem.pipe(path, bytes(data))
        entry.folder.local(shard.file, shard.sha256).unlink()  # a copy from before would be sound
    else:
        file = entry.folder.path / shard.file
        data = bytearray(file.read_bytes())
        data[place] ^= 1
        file.write_bytes(data)


def test_sizes_and_garbage(tmp_path, capsys):
    store, data = tmp_path / "store", tmp_path / "data"
    write(Entry(store / "used"), [A, B], rows(3, 3))
    write(Entry(store / "used"), [OLD], rows(3))
    write(Entry(store / "unused"), [A], rows(3))
    data.mkdir()
    arguments = ["--store", str(store), "--data", str(data)]
    assert main(["gc", "--delete", *arguments]) == 1
    assert "everything would go" in capsys.readouterr().err
    index = {"keys": {"m": 0}, "views": [], "entries": {"m": "used"}}
    write_keys(data / "features.arrow", index, [Keys.of([A, B])])
    assert main(["sizes", *arguments]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "1 rows, 0 in use" in said[0] and said[0].endswith("unused") and "3 rows, 2 in use" in said[1]
    assert main(["gc", *arguments]) == 0 and "2 shards" in capsys.readouterr().out
    assert len(list(store.rglob("*.safetensors"))) == 3, "without --delete nothing goes"
    assert main(["gc", "--delete", *arguments]) == 0
    assert [s.keys for s in Entry(store / "used").shards()] == [(A, B)] and not (store / "unused").exists()
    (data / "lora").mkdir()
    (data / "lora" / "features.json").write_text("{}")
    assert (
        main(["gc", "--delete", *arguments]) == 1
        and "lora/features.json: an index of an older" in capsys.readouterr().err
    )
    (data / "lora" / "features.arrow").write_bytes((data / "features.arrow").read_bytes())
    assert main(["gc", "--delete", *arguments]) == 0
    (data / "features.arrow").write_text("{}")
    assert main(["gc", "--delete", *arguments]) == 1 and "nothing was deleted" in capsys.readouterr().err


def test_an_index_that_is_none_or_has_lost_its_shard_is_named(tmp_path):
    entry = Entry(tmp_path)
    shard = write(entry, [A], rows(2))
    (tmp_path / "x.json").write_text('{"keys": 1}')
    with pytest.raises(FusetuneError, match=r"x\.json: not the index of a shard"):
        list(entry.shards())
    (tmp_path / "x.json").unlink()
    (tmp_path / shard.file).unlink()
    with pytest.raises(FusetuneError, match=r"its .*safetensors is gone"):
        list(entry.shards())


WRITER = """
import sys, torch
from pathlib import Path
from fusetune.features.store import Entry
entry = Entry(Path(sys.argv[1])); entry.sweep(); have = entry.keys()
print("begun", flush=True)
for i in range(60):
    if f"{i + 1:064x}" in have: continue
    generator = torch.Generator().manual_seed(i)
    entry.write([f"{i + 1:064x}"], torch.randn(20_000, 16, generator=generator), torch.tensor([20_000]), "float16")
"""


def test_killed_at_twenty_random_moments_then_resumed_gives_the_same_bytes(tmp_path):
    def run(folder, seconds=None):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
        process.stdout.readline()  # the imports are behind it
        if seconds is not None:
            time.sleep(seconds)
            os.kill(process.pid, signal.SIGKILL)
        return process.wait()

    undisturbed, killed = tmp_path / "one", tmp_path / "two"
    began = time.perf_counter()
    assert run(undisturbed) == 0
    once = time.perf_counter() - began
    moments, stamps = random.Random(0), {}
    for _ in range(20):
        run(killed, moments.uniform(0, once / 12))
        for shard in Entry(killed).shards():
            stamp = (killed / shard.file).stat().st_mtime_ns
            assert stamps.setdefault(shard.file, stamp) == stamp, "a finished shard was written again"
    assert len(stamps) > 0, "no moment was late enough for a shard"
    assert run(killed) == 0
    assert not list(Entry(killed).damage())
    assert all((killed / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    assert {f.name: f.read_bytes() for f in killed.iterdir()} == {f.name: f.read_bytes() for f in undisturbed.iterdir()}


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk takes root on Linux")
def test_a_full_disk_is_one_sentence_and_finished_shards_stay(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        entry = Entry(disk / "entry")
        write(entry, [A], rows(5000))
        with pytest.raises(FusetuneError, match=r"the disk is full. Finished shards are kept.*float16 or int8"):
            write(entry, [B], rows(50_000))
        assert [s.keys for s in entry.shards()] == [(A,)] and not list(entry.folder.path.glob("*.tmp"))
        assert not list(entry.damage())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_write_that_the_system_refuses_leaves_whole_shards_and_nothing_else(tmp_path):
    entry = Entry(tmp_path / "entry")
    write(entry, [A], rows(3))
    limit = 2000  # bytes: RLIMIT_FSIZE makes the kernel refuse, as a full disk would
    code = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from fusetune.features.store import Entry\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "Entry(Path(sys.argv[1])).write(['b' * 64], torch.zeros(5000, 4), torch.tensor([5000]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(entry.folder)], capture_output=True, text=True)
    assert done.returncode != 0 and "File too large" in done.stderr
    assert [s.keys for s in entry.shards()] == [(A,)]
    assert not list(entry.folder.path.glob("*.tmp"))


def test_what_a_living_writer_has_half_written_is_not_swept(tmp_path):
    entry = Entry(tmp_path)
    write(entry, [A], rows(3))
    alive, gone = scratch(tmp_path / "x"), tmp_path / f"y.{machine()}-999999999-0a1b.tmp"
    elsewhere, long_ago = tmp_path / "z.0123456789ab-1-0a1b.tmp", tmp_path / "w.0123456789ab-2-0a1b.tmp"
    for file in (alive, gone, elsewhere, long_ago):
        file.write_text("half")
    hours_ago = time.time() - 2 * ABANDONED
    os.utime(long_ago, (hours_ago, hours_ago))
    entry.sweep()
    assert set(tmp_path.glob("*.tmp")) == {alive, elsewhere}, "a number says nothing of another machine's process"


FAR_WRITER = """
import hashlib, sys, torch
import fusetune.scratch
from pathlib import Path
from fusetune.features.store import Entry
key = lambda name: hashlib.sha256(name.encode()).hexdigest()
fusetune.scratch.machine = lambda: sys.argv[2]
entry = Entry(Path(sys.argv[1]))
print("begun", flush=True)
for i in range(40):
    entry.sweep()
    entry.write([key(f"{sys.argv[3]}{i}")], torch.full((40_000, 16), float(i)), torch.tensor([40_000]))
"""


def test_two_writers_on_two_machines_never_sweep_one_another(tmp_path):
    """Real processes; what each says of its machine makes the other's numbers of processes mean nothing to it."""
    writers = [
        subprocess.Popen([sys.executable, "-c", FAR_WRITER, str(tmp_path), host, name], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
        for host, name in (("a" * 12, "left"), ("b" * 12, "right"))
    ]  # fmt: skip
    ended = [process.communicate(timeout=120) for process in writers]
    assert [process.returncode for process in writers] == [0, 0], ended
    entry = Entry(tmp_path)
    assert set(entry.keys()) == {key(f"{side}{i}") for side in ("left", "right") for i in range(40)}
    assert not list(entry.damage()) and not list(tmp_path.glob("*.tmp"))
