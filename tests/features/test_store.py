"""The store against kills, flipped bytes, full disks and changed samples."""

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pytest
import torch

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.feature_towers import FeatureTowerSettings, SequenceTower, VectorTower
from fusetune.errors import FusetuneError
from fusetune.features.dataset import FeatureSet
from fusetune.features.extraction import CacheSettings, Features, Source, extract
from fusetune.features.store import Entry
from fusetune.manifest.schema import Modality

CPU = torch.device("cpu")


def rows(*lengths: int):
    return [torch.randn(n, 4) for n in lengths]


def test_rows_come_back_in_the_order_asked_for(tmp_path):
    entry, values = Entry(tmp_path / "entry"), rows(3, 0, 5, 2)
    entry.write(["a", "b"], values[:2])
    entry.write(["c", "d"], values[2:])
    found = entry.rows(["d", "a", "b", "c", "a"])
    for got, expected in zip(found, [values[3], values[0], values[1], values[2], values[0]], strict=True):
        assert torch.equal(got, expected)


def test_what_is_missing_is_said(tmp_path):
    entry = Entry(tmp_path / "entry")
    entry.write(["a"], rows(1))
    with pytest.raises(FusetuneError, match="1 of 2 samples are not cached"):
        entry.rows(["a", "b"])


def test_a_flipped_byte_is_found_and_named(tmp_path):
    entry = Entry(tmp_path / "entry")
    shard = entry.write(["a"], rows(50))
    entry.verify()
    data = bytearray(shard.file.read_bytes())
    data[-7] ^= 1
    shard.file.write_bytes(data)
    with pytest.raises(FusetuneError, match=shard.file.name):
        entry.verify()


def test_infinite_activations_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(FusetuneError, match=r"float16.*cache.dtype to bfloat16"):
        Entry(tmp_path).write(["a"], [torch.full((1, 4), 1e6).half()])
    assert not list(tmp_path.iterdir())


def test_a_write_that_the_system_refuses_leaves_whole_shards_and_nothing_else(tmp_path):
    entry = Entry(tmp_path / "entry")
    entry.write(["a"], rows(3))
    limit = 2000  # bytes: RLIMIT_FSIZE makes the kernel refuse, as a full disk would
    code = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from fusetune.features.store import Entry\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "Entry(Path(sys.argv[1])).write(['big'], [torch.zeros(5000, 4)])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(entry.folder)], capture_output=True, text=True)
    assert done.returncode != 0
    assert [s.keys for s in entry.shards()] == [("a",)]
    assert not list(entry.folder.glob("*.tmp"))


WRITER = """
import sys, torch
from pathlib import Path
from fusetune.features.store import Entry
entry = Entry(Path(sys.argv[1])); entry.sweep(); have = entry.keys()
for i in range(40):
    if f"k{i}" in have: continue
    generator = torch.Generator().manual_seed(i)
    entry.write([f"k{i}"], [torch.randn(2000, 16, generator=generator)])
print("done")
"""


def test_killed_at_random_moments_then_resumed_gives_the_same_bytes(tmp_path):
    def run(folder, kill_after=None):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
        if kill_after is not None:
            deadline = time.time() + 60
            while time.time() < deadline and len(list(folder.glob("*.json"))) < kill_after:
                time.sleep(0.002)
            os.kill(process.pid, signal.SIGKILL)
        return process.wait()

    undisturbed, killed = tmp_path / "one", tmp_path / "two"
    assert run(undisturbed) == 0
    times: dict[str, int] = {}
    for shards in (3, 11, 24):
        run(killed, shards)
        for shard in Entry(killed).shards():
            stamp = shard.file.stat().st_mtime_ns
            assert times.setdefault(shard.file.name, stamp) == stamp, "a finished shard was written again"
    assert run(killed) == 0
    Entry(killed).verify()
    bytes_of = {f.name: f.read_bytes() for f in undisturbed.iterdir()}
    assert {f.name: f.read_bytes() for f in killed.iterdir()} == bytes_of


@pytest.fixture
def source_and_backbone():
    torch.manual_seed(0)
    table = pa.table(
        {
            "points": pa.array([[[0.1 * i, 1.0, 2.0]] * (1 + i % 4) for i in range(20)] + [None]),
            "numbers": pa.array([[float(i), 1.0] for i in range(21)]),
        }
    )
    modalities = {"points": Modality("sequence", optional=True), "numbers": Modality("vector")}
    towers = {
        "points": SequenceTower(FeatureTowerSettings(3, 8, 2, 2, 8)),
        "numbers": VectorTower(FeatureTowerSettings(2, 8)),
    }
    return Source(table, modalities), Backbone(towers)


def run_extraction(source, backbone, root, **options):
    counted = []
    frontier = backbone.full_depth(list(source.modalities))
    settings = CacheSettings(**{"dtype": "float32", "batch_size": 4, "shard_size": 8, **options})
    features = extract(backbone, source, frontier, root, settings, lambda done, total, _: counted.append(total), CPU)
    return features, max(counted, default=0)


def test_cached_equals_computed_and_a_second_run_computes_nothing(tmp_path, source_and_backbone):
    source, backbone = source_and_backbone
    features, computed = run_extraction(source, backbone, tmp_path)
    assert computed == len(source)
    assert run_extraction(source, backbone, tmp_path)[1] == 0
    batch = FeatureSet(features, tmp_path, CPU).batch(torch.tensor([3, 20, 0]))
    inputs = backbone.prepare(source.decoded([3, 20, 0]))
    with torch.no_grad():
        fresh = backbone.advance(inputs, Frontier({"points": 0, "numbers": 0}), features.frontier)
    for name in inputs:
        assert torch.equal(batch[name].mask, fresh[name].mask)
        torch.testing.assert_close(batch[name].values[batch[name].mask], fresh[name].values[fresh[name].mask])
    assert not batch["points"].mask[1].any(), "a missing modality stays missing"


def test_a_changed_sample_costs_itself_alone(tmp_path, source_and_backbone):
    source, backbone = source_and_backbone
    run_extraction(source, backbone, tmp_path)
    numbers = source.table["numbers"].to_pylist()
    numbers[5] = [99.0, 1.0]
    table = source.table.set_column(1, "numbers", pa.array(numbers))
    _, computed = run_extraction(Source(table, source.modalities), backbone, tmp_path)
    assert computed == 1


def test_other_weights_are_another_entry(tmp_path, source_and_backbone):
    source, backbone = source_and_backbone
    first, _ = run_extraction(source, backbone, tmp_path)
    with torch.no_grad():
        next(backbone.towers["points"].parameters()).add_(0.1)
    second, computed = run_extraction(source, backbone, tmp_path)
    assert first.entries["points"] != second.entries["points"]
    assert first.entries["numbers"] == second.entries["numbers"]
    assert computed == len(source)


def test_the_index_survives_json(tmp_path, source_and_backbone):
    source, backbone = source_and_backbone
    features, _ = run_extraction(source, backbone, tmp_path)
    features.save(tmp_path / "features.json")
    assert Features.load(tmp_path / "features.json") == features
    (next(tmp_path.glob("points-*")) / "x.json").write_text(json.dumps({"keys": 1}))
    with pytest.raises(FusetuneError, match="not the index of a shard"):
        FeatureSet(features, tmp_path, CPU)


def test_mapped_and_resident_batches_are_the_same(tmp_path, source_and_backbone, monkeypatch):
    source, backbone = source_and_backbone
    features, _ = run_extraction(source, backbone, tmp_path)
    resident = FeatureSet(features, tmp_path, CPU)
    monkeypatch.setattr("fusetune.features.dataset.free_memory", lambda _: 0)
    mapped = FeatureSet(features, tmp_path, CPU)
    assert resident.resident and not mapped.resident
    index = torch.tensor([7, 1, 20, 4])
    for name, tokens in resident.batch(index).items():
        assert torch.equal(tokens.values, mapped.batch(index)[name].values)
        assert torch.equal(tokens.mask, mapped.batch(index)[name].mask)
