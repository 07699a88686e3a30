"""A search for placements: what nothing beats by hand, budgets that hold, and the real command."""

import json
import shutil

import pytest
import torch
import yaml

from conftest import ROOT, kedro
from fusetune.config import build
from fusetune.features.index import CacheSettings
from fusetune.features.storage import Store
from fusetune.plan.plan import Plan
from fusetune.runs.placement_search import Ground, SearchSettings, _beats, search, verdict
from fusetune.runs.sensitivity import sensitivities, upper_blocks
from fusetune.runs.workplace import Workplace
from fusetune.training.data import load_backbone
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.settings import TrainSettings

PROBE = {"placements": [{"where": "head", "adapter": "linear"}]}
WANDER = {"placements": [{"where": "junction", "adapter": "wander"}, {"where": "head", "adapter": "linear"}]}


def test_what_nothing_beats_by_hand():
    a, b, c = ({"metric": m, "cost": k} for m, k in ((0.5, 100), (0.5, 200), (0.6, 200)))
    assert _beats(a, b) and _beats(c, b) and not _beats(a, c) and not _beats(c, a) and not _beats(a, a)


def test_a_verdict_names_the_preset_that_validation_chooses():
    def seeds(*values):
        return {str(i): {"test": test, "validation": val} for i, (test, val) in enumerate(values)}

    told = {
        "found": seeds((0.80, 0.9), (0.82, 0.9)),
        "best": {"method": WANDER},
        "presets": {
            "better on test": {"cost": 1, "seeds": seeds((0.90, 0.5), (0.90, 0.5))},
            "better on validation": {"cost": 1, "seeds": seeds((0.70, 0.6), (0.72, 0.6))},
            "too large": {"cost": 9, "why": "above the budget"},
        },
    }
    assert "0.810 on test, beats the best preset within the budget, better on validation, 0.710" in verdict(told)
    told["found"] = seeds((0.70, 0.9), (0.78, 0.9))
    assert "does not beat" in verdict(told)
    assert "wander at junction, linear at head" in verdict(told)


def ground(toy, folder):
    return Ground(
        toy.table, toy.base, toy.data, {"linear_probe": PROBE, "wander": WANDER}, {"epochs": 3, "device": "cpu"},
        EvaluationSettings(bootstrap_samples=50),
        Workplace(
            Store(toy.store), build(CacheSettings, {"dtype": "float32"}, "cache"), folder, lambda *_: None,
            torch.device("cpu"),
        ),
    )  # fmt: skip


def bottleneck_in(name, block):
    blocks = {"take": "explicit", "explicit": {name: [block]}}
    return {"where": "towers", "adapter": "bottleneck", "blocks": blocks, "config": {"bottleneck_dim": 16}}


def test_the_guide_is_the_gradient_of_each_block_by_itself(toy, tmp_path):
    place = ground(toy, tmp_path)
    settings = TrainSettings(epochs=2, device="cpu")
    stacks = {name: len(load_backbone(toy.base, toy.data).stack(name).blocks()) for name in ("left", "right")}
    shares = sensitivities(place.experiment, place.work, stacks, settings)
    assert {name: len(own) for name, own in shares.items()} == stacks
    assert sum(sum(own) for own in shares.values()) == pytest.approx(1.0)
    flat = [share for own in shares.values() for share in own]
    assert max(flat) > 1.5 * min(flat), "blocks differ"
    assert sensitivities(place.experiment, place.work, stacks, settings) == shares, "seeded"
    placed = [bottleneck_in(name, block) for name in stacks for block in range(stacks[name])]
    alone = [gradient(place, placed, number, settings) for number in range(len(placed))]
    assert flat == pytest.approx([one / sum(alone) for one in alone], rel=1e-4)


def gradient(place, several, number, settings):
    """Of one block's adapter alone, begun as among the others, behind the same probe on the same batches."""
    among = place.experiment(build(Plan, {"placements": [*several, *PROBE["placements"]]}, "x"), 0, "x").model
    among.detach()
    probe = place.experiment(build(Plan, PROBE, "probe"), 0, "probe")
    place.work.trained(probe, settings)
    alone = {"placements": [several[number], *PROBE["placements"]]}
    experiment = place.experiment(build(Plan, alone, "x"), 0, "x")
    experiment.model.blocks[0].load_state_dict(among.blocks[number].state_dict())
    splits, _ = place.work.splits(experiment)
    head = {name: value for name, value in probe.model.state_dict().items() if name.startswith("head.")}
    experiment.model.load_state_dict({**experiment.model.state_dict(), **head})
    experiment.model.eval()
    train, squared = splits["train"], 0.0
    order = torch.randperm(len(train.targets), generator=torch.Generator().manual_seed(0)).split(32)[:8]
    for index in order:
        states = train.features.batch(index)
        loss = experiment.task.loss(experiment.model(states, train.features.frontier), train.targets[index])
        (adapter,) = experiment.model.blocks
        found = torch.autograd.grad(loss, adapter.trained())
        squared += sum(float(one.double().square().sum()) for one in found)
    experiment.model.detach()
    return squared


def test_upper_blocks_hold_most_and_the_most_sensitive_stack_comes_first():
    shares = {"a": [0.1, 0.1, 0.1], "b": [0.05, 0.05, 0.6]}
    assert upper_blocks(shares) == {"b": 1, "a": 3} and list(upper_blocks(shares)) == ["b", "a"]


def test_presets_by_default_are_methods_that_there_are():
    files = {file.stem for file in (ROOT / "conf/base/methods").glob("*.yml")}
    known = yaml.safe_load((ROOT / "conf/base/parameters_search.yml").read_text())["search"]
    assert set(SearchSettings().presets) == set(known["presets"]) <= files


def test_a_search_keeps_its_budget_and_says_what_it_drew(toy, tmp_path):
    settings = SearchSettings(
        budget=3000, trials=14, startup=8, epochs=1, ranks=(2, 4), presets=("linear_probe", "wander"), seeds=(0,)
    )
    told = search(ground(toy, tmp_path / "trials"), settings)
    trained = [trial for trial in told["trials"] if trial["metric"] is not None]
    over = [trial for trial in told["trials"] if trial.get("why") == "above the budget"]
    assert len(told["trials"]) == 14 and trained and over, "the case has to be there"
    assert max(trial["cost"] for trial in trained) <= 3000 < min(trial["cost"] for trial in over)
    kinds = [{p["adapter"] for p in trial["method"]["placements"]} - {"linear"} for trial in told["trials"]]
    assert kinds[:4] == [{"lora"}, {"bottleneck"}, {"wander"}, {"lmf"}], (
        "each by itself first; cross_modal is too large"
    )
    assert all(trial["metric"] is not None for trial in told["trials"][:4])
    counts = upper_blocks(told["sensitivity"])
    guided = [p["blocks"] for p in told["trials"][4]["method"]["placements"] if p["where"] == "towers"]
    first = next(iter(counts))
    assert guided == [{"take": "top", "count": counts[first], "modalities": [first]}], "then what the guide says"
    front = [trial for trial in trained if trial["number"] in told["front"]]
    for trial in trained:
        beaten = any(_beats(other, trial) for other in trained)
        assert beaten != (trial in front)
    assert told["best"]["metric"] == max(trial["metric"] for trial in trained)
    whole = toy.experiment().model
    assert told["presets"]["linear_probe"]["cost"] == whole.trainable_count()
    assert not list((tmp_path / "trials").glob("*")), "checkpoints of trials are gone"
    backbone = load_backbone(toy.base, toy.data)
    for trial in told["trials"]:
        build(Plan, trial["method"], "x")
    assert set(backbone.towers) == {"left", "right"}
    again = search(ground(toy, tmp_path / "trials"), settings)
    assert json.dumps(again) == json.dumps(told)


def test_a_found_plan_is_a_method_like_any_other(trained_project, tmp_path_factory):
    records = shutil.ignore_patterns("mlflow.db*", "mlruns", "mlartifacts")
    project = shutil.copytree(trained_project, tmp_path_factory.mktemp("search") / "project", ignore=records)
    settings = {"trials": 4, "startup": 4, "epochs": 1, "inside": [], "presets": ["linear_probe"], "seeds": [0]}
    (project / "conf/ci/parameters_search.yml").write_text(json.dumps({"search": settings}))
    done = kedro(project, "run", "--env", "ci", "--pipelines", "search")
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0 and "the best preset within the budget, linear_probe" in text, text
    folder = project / "data/08_reporting/ci/search"
    told = json.loads((folder / "metrics.json").read_text())
    assert len(told["trials"]) == 4 and (folder / "figures/searched.png").stat().st_size > 5_000
    found = yaml.safe_load((folder / "found.yml").read_text())["found"]
    assert found == told["best"]["method"]
    (project / "conf/ci/methods").mkdir()
    shutil.copy(folder / "found.yml", project / "conf/ci/methods/found.yml")
    done = kedro(project, "run", "--env", "ci", "--pipelines", "train_found")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("wrong", "said"), [({"cost": "money"}, "cost: expected one of"), ({"seeds": []}, "seeds: ex")]
)
def test_settings_that_make_no_sense_are_told(wrong, said):
    from fusetune.errors import FusetuneError

    with pytest.raises(FusetuneError, match=said):
        build(SearchSettings, wrong, "search")
