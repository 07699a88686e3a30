"""dvc.yaml says what the Kedro catalog says: derived from the pipelines, so the two can't drift apart."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from conftest import ROOT
from fusetune.pipeline_registry import register_pipelines
from fusetune.pipelines import conf_source
from fusetune.pipelines.datasets import HandleDataset
from fusetune.pipelines.dvc.nodes import stages_texts
from fusetune.pipelines.runner import stamp_path

pytest.importorskip("dvc")
ENV = "base"
SIDE_EFFECT = "mlflow"  # registration is of this machine's MLflow, not of a commit's bytes
# of this machine's registry, or of adapters that a user names: no step of the chain
ON_DEMAND = {
    "promote",
    "rollback",
    "predict",
    "evaluate",
    "merge",
    "export",
    "distil",
    "continual",
    "search",
    "cross_lingual",
    "rollout",
    "new",
    "dvc",
}


@pytest.fixture(scope="module")
def context():
    bootstrap_project(ROOT)
    before = Path.cwd()
    os.chdir(ROOT)
    with KedroSession.create(project_path=ROOT, env=ENV) as session:
        yield session.load_context()
    os.chdir(before)


@pytest.fixture(scope="module")
def stages():
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        return {stage.addressing: stage for stage in repo.index.stages}


def stage_nodes(stage, pipelines):
    """The nodes that are this stage's own: those of its pipelines that no stage before it has."""
    names = stage.cmd.split("--pipelines ")[1].split()[0].split(",")
    upstream = {
        "ingest": (),
        "validate": ("ingest",),
        "pretrain": ("validate",),
        "estimate": (),
        "inputs": ("validate", "pretrain"),
    }.get(
        stage.name,
        ("inputs", *(() if stage.name in ("plan", "cache_features") else ("cache_features", "unimodal"))),
    )
    own = sum((pipelines[name] for name in names), pipelines[names[0]])
    done = {node.name for name in upstream for node in pipelines[name].nodes}
    return [node for node in own.nodes if node.name not in done and SIDE_EFFECT not in node.tags]


def relative(path) -> str:
    return Path(path).resolve().relative_to(ROOT).as_posix()


def derived(nodes, catalog):
    deps, outs, params = {"src/fusetune"}, set(), set()
    made = {name for node in nodes for name in node.outputs}
    for node in nodes:
        outs |= {relative(catalog.get(name).path) for name in node.outputs}
        if node.outputs:
            outs.add(relative(stamp_path(node, catalog)))
        for name in node.inputs:
            if name.startswith("params:"):
                params.add(name.removeprefix("params:"))
            elif name not in made:
                deps.add(catalog.get(name))
    return deps, outs, params


def test_the_files_are_what_the_pipeline_writes(context):
    del context  # whose making has told Kedro of the project
    texts = stages_texts(ENV, ROOT, [])
    assert set(texts) == {"dvc.yaml", "conf/base/dvc.yaml"}
    for file, text in texts.items():
        assert text == (ROOT / file).read_text(), f"{file}: kedro run --pipelines dvc --env base"


def test_a_plain_repro_leads_to_the_main_method_and_no_further(stages):
    main = [name for name in stages if "dvc.yaml:" not in name]
    assert main == ["ingest", "validate", "pretrain", "inputs", "cache_features", "train@wander"]
    asked = {name.removeprefix("conf/base/dvc.yaml:") for name in stages if name not in main}
    assert {"compare", "plan", "estimate", "train@lora"} <= asked and "train@wander" not in asked


def test_there_is_a_stage_for_every_pipeline(stages, monkeypatch):
    monkeypatch.setattr(conf_source, "_used", [(ROOT / "conf", "local")])  # of the default experiment
    pipelines = set(register_pipelines()) - {"__default__"} - ON_DEMAND
    named = {n for s in stages.values() for n in s.cmd.split("--pipelines ")[1].split()[0].split(",")}
    assert pipelines - named == {f"train_{method}" for method in elsewhere()} and named <= pipelines


def elsewhere() -> set[str]:
    """Methods that the default experiment has no place for: a trunk, two tasks, adapters that were trained before."""
    found = set()
    for file in (ROOT / "conf" / "base" / "methods").glob("*.yml"):
        placements = yaml.safe_load(file.read_text())[file.stem]["placements"]
        if any(p["where"] == "trunk" or p.get("task") or "trained" in str(p.get("config")) for p in placements):
            found.add(file.stem)
    return found


def test_deps_params_and_outs_are_the_catalogs(stages, context):
    pipelines, catalog = register_pipelines(), context.catalog
    for name, stage in stages.items():
        inputs, outs, params = derived(stage_nodes(stage, pipelines), catalog)
        handles = {relative(d.path) for d in inputs if isinstance(d, HandleDataset)} - {"data/06_models/checkpoints"}
        cells = handles & {"data/07_model_output/vqa/comparison"}
        handles, outs = handles - cells, outs | cells  # what the one stage that holds them writes into them
        deps = {d if isinstance(d, str) else relative(d.path) for d in inputs if not isinstance(d, HandleDataset)}
        if name in ("cache_features", "pretrain"):
            outs |= handles  # the one stage that writes the store, and the one that writes bases
        else:
            deps |= handles
        assert {o.def_path for o in stage.outs} == outs, name
        paths = {d.def_path for d in stage.deps if not hasattr(d, "params")}
        assert paths == deps, name
        listed = {key for d in stage.deps if hasattr(d, "params") for key in d.params}
        assert listed == params, name


def test_every_parameter_stands_in_the_file_that_the_stage_names(stages):
    for stage in stages.values():
        for dep in stage.deps:
            if hasattr(dep, "params"):
                known = yaml.safe_load((ROOT / dep.def_path).read_text())
                assert set(dep.params) <= set(known), dep.def_path


def test_outs_persist_and_the_project_sends_nothing(stages):
    assert all(out.persist for stage in stages.values() for out in stage.outs)
    assert "analytics = false" in (ROOT / ".dvc" / "config").read_text()
    assert yaml.safe_load((ROOT / ".telemetry").read_text()) == {"consent": False}


def test_raw_data_can_be_added(tmp_path):
    """`dvc add` refuses where its own small file would be ignored."""
    shutil.copy(ROOT / ".gitignore", tmp_path)
    (tmp_path / "data/01_raw/pictures").mkdir(parents=True)
    for name in ("samples.csv", "pictures/a.png"):
        (tmp_path / "data/01_raw" / name).write_text("a,b\n")
    dvc = [sys.executable, "-m", "dvc"]
    for command in (["git", "init", "-q"], [*dvc, "init", "-q"], [*dvc, "add", "-q", "data/01_raw/samples.csv"],
                    [*dvc, "add", "-q", "data/01_raw/pictures"], ["git", "add", "."]):  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)
    kept = subprocess.run(["git", "ls-files", "data"], cwd=tmp_path, capture_output=True, text=True).stdout.split()
    assert kept == [f"data/01_raw/{name}" for name in (".gitignore", "pictures.dvc", "samples.csv.dvc")]
