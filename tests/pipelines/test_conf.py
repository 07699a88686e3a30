"""What conf says is what the code knows: defaults are the same in both, and every environment is sound."""

import shutil
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from fusetune.config import build, to_plain
from fusetune.pipelines.conf_source import method_names
from fusetune.pipelines.parameters import PLAN, SCHEMAS, check_values
from fusetune.runs.__main__ import read_parameters

CONF = ROOT / "conf"
ENVIRONMENTS = sorted(p.parent.name for p in CONF.glob("*/globals.yml"))
SAME = ("serve", "cache", "train", "evaluate", "pretrain", "backbone", "estimate")


def load(path: str):
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


@pytest.mark.parametrize("name", SAME)
def test_the_defaults_of_the_code_are_those_of_conf(name):
    cls = load(SCHEMAS[name])
    assert to_plain(build(cls, read_parameters([CONF / "base"], [])[name], name)) == to_plain(cls())


def test_the_comparison_differs_from_the_codes_defaults_in_what_is_compared_alone():
    cls = load(SCHEMAS["compare"])
    found, plain = build(cls, read_parameters([CONF / "base"], [])["compare"], "compare"), cls()
    for name in ("seeds", "train", "workers", "memory", "batch_seeds", "search", "robustness"):
        assert to_plain(getattr(found, name)) == to_plain(getattr(plain, name)), name
    assert len(found.methods) >= 12


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_every_parameter_of_every_environment_is_known(env):
    parameters = read_parameters([CONF / "base", *([CONF / env] if env != "base" else [])], [])
    experiment = yaml.safe_load((CONF / env / "globals.yml").read_text())["experiment"]
    assert experiment
    for name, value in parameters.items():
        if name in method_names(CONF):
            check_values(PLAN, value, name)
        elif SCHEMAS[name]:
            check_values(SCHEMAS[name], value, name)


def test_a_method_of_one_experiment_is_none_of_another(tmp_path):
    """Whose pipelines would ask for parameters that aren't there."""
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    from fusetune.pipeline_registry import register_pipelines
    from fusetune.pipelines import conf_source

    bootstrap_project(ROOT)
    before, own = list(conf_source._used), "params:lora_and_words"
    try:
        for env, there in (("speak", True), (None, False), ("family", False)):
            with KedroSession.create(ROOT, env=env) as session:
                session.load_context()
                pipelines = register_pipelines()
            assert ("train_lora_and_words" in pipelines) is there and "train_wander" in pipelines
            for name in ("plan", "estimate", "compare", "cache_features"):
                assert (own in pipelines[name].inputs()) is there, (env, name)
    finally:
        conf_source._used[:] = before
    assert "lora_and_words" in method_names(CONF) and "wander" in method_names(CONF, "speak")
    archive = shutil.make_archive(str(tmp_path / "conf"), "zip", ROOT, "conf")
    for env in (None, "speak", "family"):
        assert method_names(Path(archive), env) == method_names(CONF, env)


def test_every_default_is_explained():
    for file in sorted((CONF / "base").glob("parameters*.yml")) + sorted((CONF / "base" / "methods").glob("*.yml")):
        assert "#" in file.read_text(), file.name


def test_the_command_line_changes_single_values_in_every_environment():
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(ROOT)
    for env in ("local", "base", "ci", "family"):
        given = {"wander": {"train": {"epochs": 3}}, "train": {"seed": 9}}
        for runtime in ({}, given):
            with KedroSession.create(project_path=ROOT, env=env, runtime_params=runtime) as session:
                found = session.load_context().params
            if not runtime:
                before = found
        assert found["wander"] == {**before["wander"], "train": {**before["wander"]["train"], "epochs": 3}}, env
        assert found["train"] == {**before["train"], "seed": 9}, env
