"""From a manifest to the store and into batches: exactly what the backbone computes, and each sample only once."""

import os
import shutil
import signal
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
import torch

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.feature_towers import FeatureTowerSettings, SequenceTower, VectorTower
from fusetune.backbones.trunk import StreamSettings, Trunk, TrunkSettings
from fusetune.errors import FusetuneError
from fusetune.features.ahead import ahead
from fusetune.features.dataset import FeatureSet
from fusetune.features.extraction import extract
from fusetune.features.index import CacheSettings, Features
from fusetune.features.orders import BUCKET, batches, padding
from fusetune.features.source import Source
from fusetune.features.storage import Store
from fusetune.features.store import Entry
from fusetune.manifest.schema import Modality

CPU = torch.device("cpu")


def source(**changes) -> Source:
    table = pa.table(
        {
            "points": pa.array([[[0.1 * i, 1.0, 2.0]] * (1 + i % 4) for i in range(20)] + [None]),
            "numbers": pa.array([[float(i), 1.0] for i in range(21)]),
            "split": pa.array(["train"] * 15 + ["val"] * 3 + ["test"] * 3),
        }
    )
    modalities = {
        "points": Modality("sequence", optional=True, **changes.get("points", {})),
        "numbers": Modality("vector", **changes.get("numbers", {})),
    }
    return Source(table, modalities)


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(
        {
            "points": SequenceTower(FeatureTowerSettings(3, 8, 2, 2, 8)),
            "numbers": VectorTower(FeatureTowerSettings(2, 8)),
        }
    )


def with_trunk(backbone: Backbone) -> Backbone:
    streams = {"points": StreamSettings(8, 8), "numbers": StreamSettings(8, 1)}
    return Backbone(dict(backbone.towers.items()), Trunk(TrunkSettings(streams, 8, 2, 2)))


def run(source, backbone, root, frontier=None, **options):
    """Features, and how many samples were computed (a sample counts once a stream, or once where they have met)."""
    counted = []
    frontier = frontier or backbone.full_depth(list(source.modalities))
    settings = CacheSettings(**{"dtype": "float32", "batch_size": 4, "shard_size": 8, **options})
    features = extract(backbone, source, frontier, root, settings, lambda done, total, _: counted.append(total), CPU)
    return features, max(counted, default=0)


@torch.no_grad()
def computed(source, backbone, rows, frontier):
    inputs = backbone.prepare({name: source.decoded(name, rows) for name in source.modalities})
    return backbone.advance(inputs, Frontier(dict.fromkeys(inputs, 0)), frontier)


@pytest.mark.parametrize("trunk", [False, True])
def test_cached_equals_computed_and_a_second_run_computes_nothing(tmp_path, backbone, trunk):
    backbone = with_trunk(backbone) if trunk else backbone
    features, count = run(source(), backbone, tmp_path)
    assert count == 21 if trunk else 42
    assert run(source(), backbone, tmp_path)[1] == 0
    batch = FeatureSet(features, tmp_path, CPU).batch(torch.tensor([3, 20, 0]))
    fresh = computed(source(), backbone, [3, 20, 0], features.frontier)
    for name in fresh:
        assert torch.equal(batch[name].mask, fresh[name].mask)
        torch.testing.assert_close(batch[name].values[batch[name].mask], fresh[name].values[fresh[name].mask])
    assert not batch["points"].mask[1].any(), "a missing modality stays missing"


def test_shards_grow_where_there_would_be_too_many(tmp_path, backbone, monkeypatch):
    few, _ = run(source(), backbone, tmp_path / "few", shard_size=2)
    monkeypatch.setattr("fusetune.features.chunks.MOST", 3)
    many, _ = run(source(), backbone, tmp_path / "many", shard_size=2)
    counts = {root: len(list((tmp_path / root / few.entries["numbers"]).glob("*.json"))) for root in ("few", "many")}
    assert counts == {"few": 11, "many": 3}
    rows = [FeatureSet(of, tmp_path / root, CPU).batch(torch.arange(21)) for of, root in ((few, "few"), (many, "many"))]
    for name in rows[0]:  # which samples go through the towers together may decide their last bit
        torch.testing.assert_close(rows[0][name].values, rows[1][name].values)


def test_a_changed_and_an_added_sample_cost_themselves_alone(tmp_path, backbone):
    one = source()
    run(one, backbone, tmp_path)
    numbers = one.table["numbers"].to_pylist()
    numbers[5] = [99.0, 1.0]
    changed = one.table.set_column(1, "numbers", pa.array(numbers))
    assert run(Source(changed, one.modalities), backbone, tmp_path)[1] == 1
    assert run(Source(pa.concat_tables([changed, changed.slice(0, 3)]), one.modalities), backbone, tmp_path)[1] == 0
    assert run(one, backbone, tmp_path)[1] == 0, "what was there before is still there"


def test_a_sample_that_many_rows_share_is_computed_and_kept_once(tmp_path, backbone):
    one = source()
    table = one.table.set_column(1, "numbers", pa.array([[1.0, 2.0]] * 21))
    features, count = run(Source(table, one.modalities), backbone, tmp_path)
    assert count == 21 + 1
    assert len(Entry.of(Store(tmp_path), features.entries["numbers"]).keys()) == 1
    batch = FeatureSet(features, tmp_path, CPU).batch(torch.tensor([0, 7]))
    assert torch.equal(batch["numbers"].values[0], batch["numbers"].values[1])


def test_other_weights_are_another_entry(tmp_path, backbone):
    first, _ = run(source(), backbone, tmp_path)
    with torch.no_grad():
        next(backbone.towers["points"].parameters()).add_(0.1)
    second, count = run(source(), backbone, tmp_path)
    assert first.entries["points"] != second.entries["points"]
    assert first.entries["numbers"] == second.entries["numbers"]
    assert count == 21


def test_the_index_survives_json(tmp_path, backbone):
    features, _ = run(source(numbers={"augment": {"name": "noise"}}), backbone, tmp_path, views=2)
    features.save(tmp_path / "features.arrow")
    assert Features.load(tmp_path / "features.arrow") == features


def test_mapped_and_resident_batches_are_the_same(tmp_path, backbone, monkeypatch):
    for dtype in ("float32", "bfloat16"):
        features, _ = run(source(), backbone, tmp_path, dtype=dtype)
        resident = FeatureSet(features, tmp_path, CPU)
        with monkeypatch.context() as small:
            small.setattr("fusetune.features.dataset.free_memory", lambda _: 0)
            mapped = FeatureSet(features, tmp_path, CPU)
        assert resident.resident and "resident in cpu memory" in resident.placement
        assert not mapped.resident and "read from the memory map" in mapped.placement
        indices = [torch.tensor([7, 1, 20, 4]), torch.tensor([20]), torch.tensor([0, 2])]
        for (index, one), (_, two) in zip(resident.batches(indices), mapped.batches(indices), strict=True):
            for name in one:
                assert one[name].values.dtype == torch.float32
                assert torch.equal(one[name].values, two[name].values), index
                assert torch.equal(one[name].mask, two[name].mask)


def test_work_ahead_keeps_the_order_the_bound_and_the_errors_and_leaves_no_thread():
    before, started = threading.active_count(), []

    def work(item: int) -> int:
        started.append(item)
        if item == 7:
            raise ValueError("seven")
        return item * item

    stream = ahead(work, iter(range(100)), 3)
    assert [next(stream) for _ in range(4)] == [0, 1, 4, 9]
    time.sleep(0.05)
    assert len(started) <= 4 + 3 and threading.active_count() > before
    with pytest.raises(ValueError, match="seven"):
        list(stream)
    assert threading.active_count() == before and started[-1] < 12
    abandoned = ahead(abs, range(100), 3)
    next(abandoned)
    abandoned.close()
    assert threading.active_count() == before


def test_a_changed_byte_stops_a_resident_training_before_it_starts(tmp_path, backbone):
    features, _ = run(source(), backbone, tmp_path)
    file = next((tmp_path / features.entries["points"]).glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-6] ^= 1
    file.write_bytes(data)
    with pytest.raises(FusetuneError, match=rf"{file.name}: sample \w+ has changed.*verify --repair"):
        FeatureSet(features, tmp_path, CPU)


def test_parts_are_disjoint_need_no_lock_and_make_the_whole(tmp_path, backbone):
    """Several machines, each with a range of the hashes, at once and in any order; late comers included."""
    counts = []

    def part(number: int) -> None:
        counts.append(run(source(), backbone, tmp_path / "parts", part=f"{number}/3")[1])

    part(2)
    both = [threading.Thread(target=part, args=(number,)) for number in (1, 3)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sum(counts) == 42 and all(counts)
    features, count = run(source(), backbone, tmp_path / "parts")
    assert count == 0
    for entry in features.entries.values():
        keys = [key for shard in Entry.of(Store(tmp_path / "parts"), entry).shards() for key in shard.keys]
        assert len(keys) == len(set(keys)) == 21, "no row was written twice"
    with pytest.raises(FusetuneError, match="part: expected e.g. 2/4"):
        CacheSettings(part="4/3")


def test_a_store_at_a_url_is_filled_and_read(tmp_path, backbone, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local, _ = run(source(), backbone, tmp_path / "local")
    for url in (f"memory://bucket{tmp_path}", f"file://{tmp_path}/other"):
        features, count = run(source(), backbone, url)
        assert count == 42 and run(source(), backbone, url)[1] == 0
        index = torch.arange(21)
        there = FeatureSet(features, url, CPU).batch(index)
        here = FeatureSet(local, tmp_path / "local", CPU).batch(index)
        assert all(torch.equal(there[name].values, here[name].values) for name in here)


def test_several_threads_ahead_write_the_very_bytes_of_one(tmp_path, backbone, monkeypatch):
    """As beside a GPU, where they do: a batch is made ready in parts."""
    one, two = tmp_path / "one", tmp_path / "two"
    features, _ = run(source(), backbone, one)
    monkeypatch.setattr("fusetune.features.decoding.threads_beside", lambda _: 3)
    monkeypatch.setattr("fusetune.features.decoding.PART", 3)
    assert run(source(), backbone, two)[0] == features
    files = {f.relative_to(one): f.read_bytes() for f in one.rglob("*.*")}
    assert {f.relative_to(two): f.read_bytes() for f in two.rglob("*.*")} == files and len(files) == 12


def test_processes_write_the_very_bytes_of_threads(tmp_path, backbone, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    features, count = run(source(), backbone, one)
    monkeypatch.setattr("fusetune.features.decoding.PART", 3)
    here, prepare = os.getpid(), Backbone.prepare

    def noted(self, samples):
        (tmp_path / f"pid_{os.getpid()}").touch()
        return prepare(self, samples)

    monkeypatch.setattr(Backbone, "prepare", noted)
    assert run(source(), backbone, two, decoders=2) == (features, count)
    seen = [int(file.name[4:]) for file in tmp_path.glob("pid_*")]
    assert here in seen and len(seen) == 3, "the first part is this process's, to know its size"
    files = {f.relative_to(one): f.read_bytes() for f in one.rglob("*.*")}
    assert {f.relative_to(two): f.read_bytes() for f in two.rglob("*.*")} == files and len(files) == 12


@pytest.mark.parametrize("decoders", [0, 2])
def test_a_sample_that_a_tower_cannot_take_is_named_by_its_row(tmp_path, backbone, monkeypatch, decoders):
    monkeypatch.setattr("fusetune.features.decoding.PART", 3)
    table = source().table
    points = table["points"].to_pylist()
    points[17] = [[1.0, 2.0]]
    odd = Source(table.set_column(0, "points", pa.array(points)), source().modalities)
    message = r"^row 17, column 'points': expected at most 8 tokens of 3 floats .*, found \(1, 2\)"
    with pytest.raises(FusetuneError, match=message):
        run(odd, backbone, tmp_path, decoders=decoders)


def test_what_goes_wrong_in_a_process_that_decodes_is_told(tmp_path, backbone, monkeypatch):
    monkeypatch.setattr("fusetune.features.decoding.PART", 3)
    prepare, here = Backbone.prepare, os.getpid()

    def unreadable(self, samples):
        if os.getpid() != here:
            raise FusetuneError("row 7, column 'image': no picture.")
        return prepare(self, samples)

    monkeypatch.setattr(Backbone, "prepare", unreadable)
    with pytest.raises(FusetuneError, match="^row 7, column 'image': no picture"):
        run(source(), backbone, tmp_path / "store", decoders=2)

    def killed(self, samples):
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return prepare(self, samples)

    monkeypatch.setattr(Backbone, "prepare", killed)
    with pytest.raises(FusetuneError, match=r"cache.decoders: a process that decodes was killed"):
        run(source(), backbone, tmp_path / "store", decoders=2)
    monkeypatch.setattr(Backbone, "prepare", prepare)
    assert run(source(), backbone, tmp_path / "store", decoders=2)[1] > 0
    assert run(source(), backbone, tmp_path / "store")[1] == 0


def test_threads_decode_where_shared_memory_is_small(tmp_path, backbone, monkeypatch, caplog):
    monkeypatch.setattr("fusetune.features.decoding.PART", 3)
    known = shutil.disk_usage

    def small(folder):
        return shutil._ntuple_diskusage(4_000, 3_900, 100) if str(folder) == "/dev/shm" else known(folder)

    monkeypatch.setattr(shutil, "disk_usage", small)
    monkeypatch.setattr("fusetune.features.decoding.DataLoader", None)
    assert run(source(), backbone, tmp_path / "store", decoders=2)[1] == 42
    assert "cache.decoders: threads instead of 2 processes" in caplog.text


def test_ray_writes_the_very_bytes_of_one_process(tmp_path, backbone):
    pytest.importorskip("ray", reason='Ray is an extra: pip install "fusetune[ray]"')
    one, two = tmp_path / "one", tmp_path / "two"
    features, count = run(source(), backbone, one)
    assert run(source(), backbone, two, ray_workers=2) == (features, count)
    files = {f.relative_to(one): f.read_bytes() for f in one.rglob("*.*")}
    assert {f.relative_to(two): f.read_bytes() for f in two.rglob("*.*")} == files and len(files) == 12
    assert run(source(), backbone, two, ray_workers=2)[1] == 0
    with pytest.raises(FusetuneError, match="no other process sees the store memory://"):
        run(source(), backbone, "memory://nobody", ray_workers=2)
    with pytest.raises(FusetuneError, match=r"cache.ray_workers: 999 were asked for, and the cluster has \d+ CPUs"):
        run(source(), backbone, tmp_path / "three", ray_workers=999)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, backbone, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10_000, 9_000, 1_000))
    with pytest.raises(FusetuneError, match=r"will take about 0\.000 GB.*Nothing was written.*cache.dtype"):
        run(source(), backbone, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_random_changes_are_refused_without_views_and_cached_with_them(tmp_path, backbone):
    noisy = source(numbers={"augment": {"name": "noise", "share": 0.2}})
    with pytest.raises(FusetuneError, match=r"numbers.augment: a random change can't be cached. Set cache.views"):
        run(noisy, backbone, tmp_path)
    features, count = run(noisy, backbone, tmp_path, views=3)
    assert count == 42 + 3 * 15, "three views of the fifteen training samples"
    again, count = run(noisy, backbone, tmp_path / "again", views=3)
    assert again == features and count == 87, "the views are seeded"
    train = FeatureSet(features.of_rows(range(15), augmented=True), tmp_path, CPU)
    seen = [train.batch(torch.arange(15), view)["numbers"].values for view in range(4)]
    assert train.views == 3 and torch.equal(seen[3], seen[0])
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    points = [train.batch(torch.arange(15), view)["points"].values for view in range(2)]
    assert torch.equal(*points), "what has no augmentation is the same in every view"
    plain = FeatureSet(features.of_rows(range(15, 21), augmented=False), tmp_path, CPU)
    assert plain.views == 0
    fresh = computed(noisy, backbone, list(range(15, 21)), features.frontier)
    torch.testing.assert_close(plain.batch(torch.arange(6))["numbers"].values, fresh["numbers"].values)
    elsewhere = FeatureSet(again.of_rows(range(15), augmented=True), tmp_path / "again", CPU)
    same = [kept.batch(torch.arange(15))["numbers"].values for kept in (train, elsewhere)]
    assert torch.equal(*same)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"name": "crop_flip"}, r"numbers.augment: this one changes image, video; the modality is of kind 'vector'"),
        ({"name": "nois"}, "augmentations: 'nois' is unknown. Known: crop_flip, misprints, noise"),
        ({"name": "noise", "share": -1}, "share: expected a positive number"),
    ],
)
def test_an_augmentation_that_makes_no_sense_is_named(augment, message):
    with pytest.raises(FusetuneError, match=message):
        source(numbers={"augment": augment})


def test_pictures_are_cropped_and_mirrored_all_of_a_sample_alike():
    from PIL import Image

    from fusetune.manifest.augmentations import CropFlip

    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1)))
    views = [CropFlip(0.5)([ramp, ramp], np.random.default_rng(seed)) for seed in range(20)]
    slopes = []
    for first, second in views:
        assert first.size == (64, 64) and first.tobytes() == second.tobytes()
        row = np.asarray(first)[0].astype(int)
        slopes.append((row[-1] - row[0]) / 63)
    assert min(np.abs(slopes)) > 0.65 and max(np.abs(slopes)) < 1.01 and min(slopes) < 0 < max(slopes)


def test_blocks_are_read_one_after_the_other_and_every_row_once():
    blocks = np.arange(10_000) // 50  # 200 of them, 16 at a time

    def epoch(seed: int):
        return list(batches(10_000, 64, torch.Generator().manual_seed(seed), blocks=blocks))

    one = torch.cat(epoch(0))
    assert one.sort().values.tolist() == list(range(10_000))
    assert [b.tolist() for b in epoch(0)] == [b.tolist() for b in epoch(0)] != [b.tolist() for b in epoch(1)]
    for start in range(0, 9_600, 800):  # a window: all rows of 16 blocks and no other
        held = np.unique(blocks[one[start : start + 800].numpy()])
        assert len(held) == 16
    assert len(np.unique(blocks[epoch(0)[0].numpy()])) > 10, "a batch has rows of many of them"
    assert len({tuple(np.unique(blocks[torch.cat(epoch(seed))[:800].numpy()])) for seed in range(5)}) == 5
    apart = (one[1:] - one[:-1]).abs()
    assert (apart == 1).float().mean() < 0.01, "nor are they in order within"


def test_length_buckets_hold_every_row_once_and_little_padding():
    lengths = np.random.default_rng(0).integers(1, 100, 1000)

    def epoch(seed: int):
        return list(batches(1000, 16, torch.Generator().manual_seed(seed), lengths))

    assert torch.cat(epoch(0)).sort().values.tolist() == list(range(1000))
    assert [b.tolist() for b in epoch(0)] == [b.tolist() for b in epoch(0)] != [b.tolist() for b in epoch(1)]
    waste = 1 - lengths.sum() / sum(len(b) * lengths[b.numpy()].max() for b in epoch(0))
    assert waste < 0.1 < 0.4 < padding({"m": lengths}, 16)["m"]
    first = {int(row) for b in epoch(0)[:BUCKET] for row in b}
    assert len(first & {int(row) for b in epoch(1)[:BUCKET] for row in b}) < 150, "epochs differ beyond the order"
    ordered = list(batches(1000, 16, None, lengths))
    assert all(np.diff(lengths[torch.cat(ordered).numpy()]) >= 0)


def test_a_hundred_thousand_unchanged_samples_take_seconds_and_no_media_file_is_read(tmp_path, monkeypatch):
    """Pictures as files; the second run may look at their times, not at them."""
    import io
    import sys

    from encoders import vit
    from PIL import Image

    from fusetune import filehash

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    filehash._known.cache_clear()
    count, distinct = 100_000, 200
    folder = tmp_path / "media"
    folder.mkdir()
    for number in range(distinct):
        buffer = io.BytesIO()
        Image.new("L", (8, 8), number).save(buffer, "png")
        (folder / f"{number}.png").write_bytes(buffer.getvalue())
    for number in range(distinct, count):
        (folder / f"{number}.png").hardlink_to(folder / f"{number % distinct}.png")
    table = pa.table({"image": [f"{number}.png" for number in range(count)], "split": ["train"] * count})
    many = Source(table, {"image": Modality("image", root=str(folder))})
    backbone = Backbone({"image": vit()})
    time.sleep(2 * filehash.SETTLED)
    assert run(many, backbone, tmp_path / "store", batch_size=64, shard_size=512)[1] == distinct
    filehash.remember()
    filehash._known.cache_clear()
    opened = []
    sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" and opened is not None else None)
    began = time.perf_counter()
    assert run(many, backbone, tmp_path / "store")[1] == 0
    seconds = time.perf_counter() - began
    media = [name for name in opened if str(name).startswith(str(folder))]
    assert not media and opened
    print(f"{seconds:.1f} s")
    (folder / "7.png").unlink()
    with pytest.raises(FusetuneError, match=r"row 7, column 'image': the file .*7\.png can't be read"):
        run(many, backbone, tmp_path / "store")
