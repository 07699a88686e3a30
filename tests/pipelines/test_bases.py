"""Bases lie under their own fingerprints: experiments, settings and failures in any order disturb nobody's base."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from conftest import kedro
from fusetune.backbones.backbone import Backbone
from fusetune.backbones.bases import find_base, opened, save_base
from fusetune.backbones.feature_towers import FeatureTowerSettings, VectorTower
from fusetune.errors import FusetuneError

SEED = "pretrain.seed=7"


@pytest.fixture(scope="module")
def project(trained_project, tmp_path_factory):
    """With a second experiment, `other`, that is `ci` on a base of its own, and no catalog file for it."""
    copy = Path(shutil.copytree(trained_project, tmp_path_factory.mktemp("bases") / "project", symlinks=True))
    shutil.copytree(copy / "conf/ci", copy / "conf/other")
    (copy / "conf/other/globals.yml").write_text("experiment: other\n")
    file = copy / "conf/other/parameters.yml"
    file.write_text(file.read_text().replace("pretrain:\n", "pretrain:\n  seed: 7\n"))
    assert not list(copy.glob("conf/*/catalog.yml"))[1:], "the base's catalog is the only one"
    return copy


def run(project, env, *arguments):
    done = kedro(project, "run", "--env", env, *arguments)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def files(base):
    return {f.relative_to(base): (f.read_bytes(), f.stat().st_mtime_ns) for f in Path(base).rglob("*") if f.is_file()}


def test_two_experiments_with_two_bases_never_disturb_one_another(project):
    first = opened(project / "data/06_models/ci/base.json")
    before = files(first)
    code, text = run(project, "other", "--pipelines", "train_wander")
    assert code == 0, text
    second = opened(project / "data/06_models/other/base.json")
    assert second != first and files(first) == before, "a base of one's own, beside the other"
    assert "everything is up to date" in run(project, "ci", "--pipelines", "train_wander")[1]
    for env in ("ci", "other", "ci"):
        code, text = run(project, env, "--pipelines", "predict")
        assert code == 0, text


def test_another_base_by_params_leaves_the_champion_what_it_was_trained_on(project):
    trained = opened(project / "data/06_models/ci/base.json")
    code, text = run(project, "ci", "--pipelines", "pretrain", "--params", SEED)
    assert code == 0 and "was made from these very settings and data before" in text, "by the other experiment"
    assert opened(project / "data/06_models/ci/base.json") != trained
    code, text = run(project, "ci", "--pipelines", "predict", "--params", "predict.batch_size=32")
    assert code == 0 and "128 rows predicted, 0 could not be read" in text
    code, text = run(project, "ci", "--pipelines", "train_wander")
    assert "was made from these very settings" in text and "train_wander: up to date" in text
    assert opened(project / "data/06_models/ci/base.json") == trained


def test_a_failed_run_with_another_base_leaves_everything_as_it_was(project):
    code, text = run(project, "ci", "--pipelines", "pretrain", "--params", "backbone.source=/no/such/model")
    assert code == 1 and "Error" in text
    text = run(project, "ci", "--pipelines", "train_wander")[1]
    assert "pretrain: up to date" in text and "train_wander: up to date" in text


def test_a_base_is_written_once_and_found_by_its_parts(tmp_path):
    torch.manual_seed(0)
    towers = {name: VectorTower(FeatureTowerSettings(4, 8)) for name in ("left", "right")}
    backbone, bases = Backbone(towers), tmp_path / "bases"
    folder = save_base(backbone, bases)
    before = files(folder)
    assert save_base(backbone, bases) == folder and files(folder) == before
    assert find_base(bases, backbone.fingerprint(["left"]), ["left"], True) == folder
    other = save_base(Backbone({"left": VectorTower(FeatureTowerSettings(4, 8))}), bases)
    assert other != folder and files(folder) == before
    with pytest.raises(FusetuneError, match=r"no base whose left have the fingerprint 0000.* There are .*dvc pull"):
        find_base(bases, "0" * 64, ["left"], True)


def test_a_reference_says_what_is_missing(tmp_path):
    file = tmp_path / "base.json"
    file.write_text(json.dumps({"fingerprint": "x", "base": "bases/x"}))
    with pytest.raises(FusetuneError, match=r"base.json: the base .*bases/x is not there. `dvc pull`"):
        Backbone.from_pretrained(file)
    file.write_text("[]")
    with pytest.raises(FusetuneError, match="expected a reference to a base"):
        Backbone.from_pretrained(file)
