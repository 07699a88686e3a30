"""The comparison as a whole: cells, processes, resuming, failures, search; on a small real experiment."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from conftest import WANDER
from fusetune.bank.artifact import Artifact
from fusetune.comparison.compare import Watcher, compare, shared_by_all
from fusetune.comparison.jobs import Shared
from fusetune.comparison.record import opened, record
from fusetune.comparison.summary import summarize
from fusetune.config import to_plain
from fusetune.errors import FusetuneError
from fusetune.training.evaluation import EvaluationSettings

HEAD = {"where": "head", "adapter": "linear"}
METHODS = {
    "probe": {"placements": [HEAD]},
    "wander": {"placements": [WANDER, HEAD]},
    "lora": {"placements": [{"where": "towers", "adapter": "lora", "config": {"rank": 2}}, HEAD]},
    "unfit": {"placements": [{"where": "towers", "adapter": "wander"}, HEAD]},
}
TRAIN = {"epochs": 3, "batch_size": 32, "device": "cpu"}
SMALL = {"samples": 16, "missing": [0.5], "noise": [0.5]}


def summarized(made, found):
    rows = opened(json.loads(json.dumps(record(made, found))), made.folder)
    return summarize(rows, None, {}, EvaluationSettings())


class Heard(Watcher):
    def __init__(self) -> None:
        self.events: list[tuple] = []

    def heard(self, job, kind, place, details) -> None:
        self.events.append((job.name, kind, place, details))

    def of(self, kind: str) -> list[tuple]:
        return [event for event in self.events if event[1] == kind]


def shared(toy, **settings) -> Shared:
    compare_settings = {"seeds": [0, 1], "workers": 2, "robustness": SMALL, **settings}
    cache = {"dtype": "float32"}
    folder = toy.folder / "comparison"
    data = to_plain(toy.data)
    return shared_by_all(toy.table, toy.base, data, TRAIN, cache, {}, compare_settings, toy.store, folder, "code")


def run(toy, watcher=None, **settings):
    found = shared(toy, **settings)
    return found, compare(found, METHODS, lambda *_: None, watcher or Heard())


def test_variants_by_seeds_become_cells_and_a_second_run_trains_nothing(toy):
    chosen = {"probe": {}, "wander": {"grid": {"placements.0.config.rank": [1, 2]}}, "unfit": {}}
    _, found = run(toy, **{"methods": chosen})
    assert [row.variant.name for row in found.rows] == ["probe", "wander, rank 1", "wander, rank 2", "unfit"]
    assert found.computed == 6 and found.kept == 0 and found.failed() == {}
    assert "junction" in found.rows[3].errors[0] and not found.rows[3].cells
    for row in found.rows[:3]:
        assert set(row.cells) == {0, 1}
        for seed, cell in row.cells.items():
            assert cell.results["metrics"]["seed"] == seed
            assert set(cell.results["conditions"]) == {"samples", "whole", "without", "missing", "noise"}
            assert cell.predictions().num_rows == 40
            assert Artifact.from_pretrained(cell.adapter).build(toy.base).trainable_count() > 0
    watcher = Heard()
    _, again = run(toy, watcher, **{"methods": chosen})
    assert again.computed == 0 and again.kept == 6 and not watcher.events
    _, more = run(toy, **{"methods": chosen, "seeds": [1, 5]})
    assert more.computed == 3, "one new seed of three variants"


def test_cells_of_seeds_trained_together_are_those_of_seeds_trained_alone(toy):
    chosen = {"methods": {"wander": {}, "probe": {}}, "seeds": [0, 3, 7]}
    _, together = run(toy, **chosen, batch_seeds=True)
    shutil.rmtree(toy.folder / "comparison")
    _, alone = run(toy, **chosen, batch_seeds=False)
    for one, other in zip(together.rows, alone.rows, strict=True):
        for seed in (0, 3, 7):
            a, b = one.cells[seed], other.cells[seed]
            assert a.cost["how"] == "one of 3 that were trained together" and b.cost["how"] == "trained alone"
            for key in ("train_loss", "val_loss", "val_metric"):
                rows = ([row[key] for row in cell.results["curve"]] for cell in (a, b))
                assert next(rows) == pytest.approx(next(rows), rel=1e-5, abs=1e-5)
            expected = Artifact.from_pretrained(b.adapter).tensors
            for name, tensor in Artifact.from_pretrained(a.adapter).tensors.items():
                assert torch.allclose(tensor, expected[name], atol=1e-5), name


def test_a_cell_depends_on_what_it_is_made_of_and_on_nothing_else(toy):
    found = shared(toy, methods={"wander": {}})
    (row,) = compare(found, METHODS, lambda *_: None, Heard()).rows
    keys = dict(row.keys)

    def key(found: Shared, methods=METHODS) -> str:
        return dict(compare(replace(found), methods, lambda *_: None, Heard()).rows[0].keys)[0]

    assert key(shared(toy, methods={"wander": {}}, workers=1, batch_seeds=False, memory=0.1)) == keys[0]
    assert key(replace(found, code="other")) != keys[0]
    assert key(replace(found, train={**TRAIN, "learning_rate": 0.1})) != keys[0]
    rest = toy.table.filter(pa.compute.not_equal(toy.table["sample_id"], "s0"))
    assert key(replace(found, table=rest)) != keys[0]
    wider = {"placements": [{**WANDER, "config": {"bottleneck_dim": 5}}, HEAD]}
    assert key(found, {**METHODS, "wander": wider}) != keys[0]


def test_a_seed_that_raises_is_a_row_with_its_error_and_the_rest_goes_on(toy):
    chosen = {"probe": {}, "wander": {"set": {"train.learning_rate": 1e30}}, "lora": {}}
    watcher = Heard()
    made, found = run(toy, watcher, **{"methods": chosen})
    assert set(found.rows[1].errors) == {0, 1} and not found.rows[1].cells
    assert "the loss is" in found.rows[1].errors[0] and "learning_rate" in found.rows[1].errors[0]
    assert all(len(found.rows[i].cells) == 2 for i in (0, 2))
    assert set(found.failed()) == {"wander"} and len(watcher.of("failed")) == 2
    summary = summarize(
        opened(json.loads(json.dumps(record(made, found))), made.folder), None, {}, EvaluationSettings()
    )
    assert set(summary.rows) == {"probe", "lora"} and set(summary.errors) == {"wander"}
    _, again = run(toy, **{"methods": {**chosen, "wander": {}}})
    assert again.computed == 2 and not again.failed()


def test_a_process_that_is_killed_costs_its_own_seeds(toy):
    class Killer(Heard):
        def heard(self, job, kind, place, details) -> None:
            super().heard(job, kind, place, details)
            if kind == "started" and job.name == "wander":
                (child,) = multiprocessing.active_children()
                os.kill(child.pid, signal.SIGKILL)

    watcher = Killer()
    _, found = run(toy, watcher, **{"methods": {"wander": {}, "probe": {}}, "workers": 1})
    errors = found.rows[0].errors
    assert set(errors) == {0, 1} and "signal 9 (SIGKILL)" in errors[0] and "memory" in errors[0]
    assert len(found.rows[1].cells) == 2
    _, again = run(toy, **{"methods": {"wander": {}, "probe": {}}})
    assert again.computed == 2 and len(again.rows[0].cells) == 2


@pytest.mark.slow
def test_a_ray_cluster_makes_the_same_cells_and_a_task_that_is_killed_costs_its_own(toy):
    pytest.importorskip("ray", reason='Ray is an extra: pip install "fusetune[ray]"')
    chosen = {"methods": {"wander": {}, "probe": {}}}
    made, alone = run(toy, **chosen)
    names = sorted(path.name for path in made.folder.glob("cells/*"))
    tensors = [Artifact.from_pretrained(row.cells[0].adapter).tensors for row in alone.rows]
    shutil.rmtree(made.folder)

    class Killer(Heard):
        def heard(self, job, kind, place, details) -> None:
            super().heard(job, kind, place, details)
            if kind == "started" and job.name == "wander":
                os.kill(int(details[0].rsplit(" ", 1)[1]), signal.SIGKILL)

    _, found = run(toy, Killer(), ray=True, **chosen)
    assert set(found.rows[0].errors) == {0, 1} and "its process has ended" in found.rows[0].errors[0]
    assert len(found.rows[1].cells) == 2
    watcher = Heard()
    _, again = run(toy, watcher, ray=True, **chosen)
    assert again.computed == 2 and not again.failed() and {e[0] for e in watcher.of("epoch")} == {"wander"}
    assert sorted(path.name for path in made.folder.glob("cells/*")) == names
    for row, expected in zip(again.rows, tensors, strict=True):
        kept = Artifact.from_pretrained(row.cells[0].adapter).tensors
        assert all(torch.allclose(kept[name], value, atol=1e-6) for name, value in expected.items())
    with pytest.raises(FusetuneError, match=r"compare.ray: 'lora' asks for 0 of a GPU and .* GB, and no machine"):
        from fusetune.comparison.jobs import Job, Part
        from fusetune.comparison.ray_pool import run_jobs_with_ray
        from fusetune.comparison.variants import Variant

        job = Job((Part(Variant("lora", "lora", {}, (0,)), (0,)),), 10**18, 1.0, 1.0, 1)
        run_jobs_with_ray(made, [job], torch.device("cpu"), lambda *_: None)


def _compare_in_a_process(folder: Path, store: Path, base: Path, table, data, epochs: int) -> None:
    settings = {"methods": {"wander": {}, "lora": {}, "probe": {}}, "seeds": [0, 1], "workers": 1, "robustness": SMALL}
    train = {**TRAIN, "epochs": epochs, "patience": 100}
    found = shared_by_all(table, base, data, train, {"dtype": "float32"}, {}, settings, store, folder, "code")
    compare(found, METHODS, lambda *_: None, Watcher())


def test_a_comparison_that_is_killed_goes_on_where_it_was_and_ends_the_same(toy):
    data, args = to_plain(toy.data), (toy.store, toy.base, toy.table)
    context = multiprocessing.get_context("spawn")
    folder, whole = toy.folder / "cut", toy.folder / "whole"
    process = context.Process(target=_compare_in_a_process, args=(folder, *args, data, 40))
    process.start()
    end = time.monotonic() + 120
    while not list(folder.glob("cells/[!.]*")) and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    done = {path.name for path in folder.glob("cells/[!.]*")}
    assert 0 < len(done) < 6
    time.sleep(1)  # the orphan notices that nobody listens
    _compare_in_a_process(folder, *args, data, 40)
    _compare_in_a_process(whole, *args, data, 40)
    names = {path.name for path in folder.glob("cells/[!.]*")}
    assert done < names and len(names) == 6 == len(list(whole.glob("cells/*")))
    for name in names:
        assert (folder / "cells" / name / "cell.json").read_text() == (whole / "cells" / name / "cell.json").read_text()
        cut, uncut = (Artifact.from_pretrained(f / "cells" / name / "adapter").tensors for f in (folder, whole))
        assert all(torch.equal(cut[key], uncut[key]) for key in uncut)
    assert not list(folder.glob("checkpoints/*"))


def test_learning_rates_of_one_method_are_one_batched_model_and_give_what_each_gives_alone(toy):
    grid = {"train.learning_rate": [0.001, 0.01], "placements.0.config.rank": [1, 2]}
    chosen = {"methods": {"wander": {"grid": grid}}}
    watcher = Heard()
    _, together = run(toy, watcher, **chosen)
    assert len(watcher.of("started")) == 2, "one job a rank, both rates in it"
    shutil.rmtree(toy.folder / "comparison")
    _, alone = run(toy, **chosen, batch_seeds=False)
    for one, other in zip(together.rows, alone.rows, strict=True):
        assert one.variant.name == other.variant.name and len(one.cells) == 2
        for seed, cell in one.cells.items():
            assert cell.cost["how"] == "one of 4 that were trained together"
            assert cell.folder.name == other.cells[seed].folder.name
            losses, expected = ([row["val_loss"] for row in c.results["curve"]] for c in (cell, other.cells[seed]))
            assert losses == pytest.approx(expected, rel=1e-5)


def test_members_that_were_killed_between_their_cells_end_bitwise_like_the_others(toy):
    chosen = {"methods": {"wander": {}}, "seeds": [0, 1, 2]}

    class Killer(Heard):
        def heard(self, job, kind, place, details) -> None:
            if kind == "cell" and place == ("wander", 0):
                (child,) = multiprocessing.active_children()
                os.kill(child.pid, signal.SIGKILL)

    made, whole = run(toy, **chosen)
    expected = {s: Artifact.from_pretrained(c.adapter).tensors for s, c in whole.rows[0].cells.items()}
    shutil.rmtree(made.folder)
    _, cut = run(toy, Killer(), **chosen)
    if len(cut.rows[0].cells) == 3:
        pytest.skip("the process was through before it could be killed")
    _, resumed = run(toy, **chosen)
    for seed, cell in resumed.rows[0].cells.items():
        found = Artifact.from_pretrained(cell.adapter).tensors
        assert all(torch.equal(found[name], expected[seed][name]) for name in found)
    assert not list(made.folder.glob("checkpoints/*"))


def test_a_search_finds_prunes_resumes_and_its_best_setting_is_compared(toy):
    space = {
        "train.learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
        "placements.0.config.rank": {"choices": [1, 2]},
    }
    chosen = {"wander": {"search": space}, "probe": {}}
    wanted = {"trials": 6, "startup": 2, "warmup": 1}
    watcher = Heard()
    _, found = run(toy, watcher, **{"methods": chosen, "search": wanted})
    row = found.rows[0]
    assert row.variant.name == "wander, searched" and len(row.cells) == 2
    trials = row.search["trials"]
    assert len(trials) == 6 and {"complete", "pruned"} >= {trial["state"] for trial in trials}
    best = max((t for t in trials if t["state"] == "complete"), key=lambda t: t["metric"])
    settings = row.cells[0].results["settings"]
    assert settings["train"]["learning_rate"] == best["values"]["train.learning_rate"]
    assert settings["placements"][0]["config"]["rank"] == best["values"]["placements.0.config.rank"]
    assert len(watcher.of("trial")) == 6 and row.variant.changed == best["values"]
    again = Heard()
    run(toy, again, **{"methods": chosen, "search": wanted})
    assert not again.events, "nothing is searched or trained again"
    more = Heard()
    run(toy, more, **{"methods": chosen, "search": {**wanted, "trials": 8}})
    assert len(more.of("trial")) == 2, "the study goes on"
    assert [t[3][0]["number"] for t in more.of("trial")] == [6, 7]


def test_the_scaling_shares_the_cells_of_the_comparison(toy):
    scaling = {
        "method": "wander",
        "path": "placements.0.config.rank",
        "values": [1, 2],
        "shares": [0.5, 1.0],
        "seeds": [0],
    }
    chosen = {"wander": {"set": {"placements.0.config.rank": 2}}}
    made, found = run(toy, **{"methods": chosen, "scaling": scaling})
    assert found.computed == 2 + 3, "rank 2 on all samples, seed 0, stands in both"
    assert all(len(row.cells) == len(row.variant.seeds) for row in found.rows)
    summary = summarized(made, found)
    assert list(summary.rows) == ["wander"]
    points = {(point["size"], point["samples"]) for point in summary.points}
    assert points == {(1, 80), (1, 160), (2, 80), (2, 160)}


def test_memory_bounds_how_many_run_at_once(toy):
    class Counting(Heard):
        most = running = 0

        def heard(self, job, kind, place, details) -> None:
            self.running += {"started": 1, "ended": -1}.get(kind, 0)
            self.most = max(self.most, self.running)

    chosen, one, two = {"methods": {"probe": {}, "wander": {}, "lora": {}}}, Counting(), Counting()
    _, found = run(toy, one, **chosen, memory=1e-6)
    assert one.most == 1 and found.computed == 6
    shutil.rmtree(toy.folder / "comparison")
    run(toy, two, **chosen)
    assert two.most == 2


def test_what_conf_says_wrong_is_said_with_its_place(toy):
    for chosen, words in (
        ({"wandr": {}}, "unknown method 'wandr'"),
        ({"wander": {"grid": {"placements.7.config.rank": [1]}}}, "'7' is none of 2 entries"),
        ({"wander": {"set": {"placement.0.rank": 1}}}, "there is no 'placement'"),
        ({"wander": {"grid": {"placements.0.config.rank": 3}}}, "expected a list of values"),
        ({"wander": {"search": {"train.epochs": {"low": 3, "high": 1}}}}, "low 3"),
    ):
        with pytest.raises(FusetuneError, match=words):
            run(toy, **{"methods": chosen})
    _, found = run(toy, **{"methods": {"wander": {"set": {"placements.0.config.rnak": 1}}}})
    assert "Did you mean 'rank'" in found.rows[0].errors[0], "a variant that doesn't fit is a row"
