"""What is up to date, and being a good citizen: sessions of Python, threads, other runners and datasets, plug-ins."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import clean, kedro
from fusetune.pipelines import hashing
from fusetune.pipelines.cache_features.nodes import cache_features_of
from fusetune.pipelines.compare.nodes import cell_code
from fusetune.pipelines.pretrain.nodes import make_base

SESSION = """
import sys, threading
from pathlib import Path
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from fusetune.pipelines.session import FusetuneSession
root = Path.cwd()
bootstrap_project(root)
errors = []
def go():
    try:
        with SESSION.create(project_path=root, env="ci", runtime_params=PARAMS) as session:
            session.run(HOW)
    except BaseException as error:
        errors.append(error)
        raise
WHERE
sys.exit(len(errors))
"""
IN_A_THREAD = "thread = threading.Thread(target=go); thread.start(); thread.join()"


@pytest.fixture(scope="module")
def project(trained_project, tmp_path_factory):
    return Path(shutil.copytree(trained_project, tmp_path_factory.mktemp("runner") / "project", symlinks=True))


def said(done) -> str:
    return " ".join((done.stdout + done.stderr).split())


def session(project, how, where="go()", params="{}", of="FusetuneSession"):
    code = SESSION.replace("SESSION", of).replace("HOW", how).replace("WHERE", where).replace("PARAMS", params)
    return subprocess.run([sys.executable, "-c", code], cwd=project, env=clean(), capture_output=True, text=True)


def run(project, *arguments, **environment):
    return kedro(project, "run", "--env", "ci", *arguments, **environment)


@pytest.mark.parametrize("how", ["pipeline_name='validate'", "'validate'", "pipeline_names=['validate']"])
def test_a_session_runs_the_pipeline_that_it_is_asked_for(project, how):
    done = session(project, how)
    assert done.returncode == 0, done.stderr
    assert "validate: up to date" in said(done) and "train_wander" not in said(done)


def test_kedros_own_session_runs_it_too_and_says_that_nothing_is_skipped(project):
    done = session(project, "pipeline_names=['ingest']", of="KedroSession")
    assert done.returncode == 0 and "nothing is skipped" in said(done), done.stderr
    done = session(project, "pipeline_names=['ingest']", of="KedroSession", params="{'trian': 1}")
    assert done.returncode == 1 and "unknown key 'trian'" in done.stderr
    how = "pipeline_names=['ingest'], runner=__import__('kedro.runner').runner.ThreadRunner()"
    done = session(project, how, of="KedroSession")
    assert done.returncode == 1 and "runner ThreadRunner: nodes run one after the other" in done.stderr


def test_a_session_in_a_thread_trains_and_ends_its_run(project):
    """Airflow, Streamlit, Jupyter: only the main thread may set signals."""
    done = session(project, "pipeline_names=['predict']", IN_A_THREAD, "{'predict': {'split': 'val'}}")
    assert done.returncode == 0 and "128 rows predicted" in said(done), done.stderr


@pytest.mark.parametrize("runner", ["ParallelRunner", "ThreadRunner"])
def test_runners_that_would_run_nodes_at_once_are_refused_in_a_sentence(project, runner):
    done = run(project, "--pipelines", "validate", "--runner", runner)
    assert done.returncode == 1 and f"Error: runner {runner}: nodes run one after the other" in said(done)


def test_any_other_runner_meets_the_same_checks(project):
    (project / "src" / "mine.py").write_text(
        "from kedro.runner import SequentialRunner\nclass Mine(SequentialRunner): ...\n"
    )
    done = run(project, "--pipelines", "validate", "--runner", "mine.Mine", "--params", "trian.epochs=3")
    assert done.returncode == 1 and "parameters: unknown key 'trian'. Did you mean 'train'?" in said(done)
    done = run(project, "--pipelines", "ingest", "--runner", "mine.Mine")
    assert done.returncode == 0 and "Mine" in said(done) and "nothing is skipped" in said(done)
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    found = client.search_runs([client.get_experiment_by_name("fusetune-ci").experiment_id], "status = 'RUNNING'")
    assert not found, "every run has an end"


def test_what_has_not_changed_can_be_forced(project):
    text = said(run(project, "--pipelines", "validate", "--params", "force=check_manifest"))
    assert "ingest: up to date" in text and "check_manifest: up to date" not in text and "validate: up to date" in text
    text = said(run(project, "--pipelines", "validate", "--params", "force=true"))
    assert "up to date" not in text


def test_a_dataset_that_does_not_tell_its_content_is_always_stale_and_says_so(project):
    file = project / "conf/ci/catalog.yml"
    file.write_text("quarantine:\n  type: MemoryDataset\n")
    try:
        for _ in range(2):
            done = run(project, "--pipelines", "validate")
            assert done.returncode == 0, said(done)
            assert "check_manifest: runs every time, 'quarantine' (MemoryDataset) doesn't tell its content" in said(
                done
            )
            assert "ingest: up to date" in said(done) and "validate: up to date" in said(done)
    finally:
        file.unlink()


def test_a_node_without_outputs_runs_every_time_and_fires_its_hooks():
    from kedro.framework.hooks import hook_impl
    from kedro.framework.hooks.manager import _create_hook_manager
    from kedro.io import DataCatalog, MemoryDataset
    from kedro.pipeline import Node, Pipeline

    from fusetune.pipelines.runner import IncrementalRunner

    class Watcher:
        def __init__(self):
            self.seen = []

        @hook_impl
        def before_node_run(self, node):
            self.seen.append(f"before {node.name}")

        @hook_impl
        def after_node_run(self, node):
            self.seen.append(f"after {node.name}")

    watcher, hooks = Watcher(), _create_hook_manager()
    hooks.register(watcher)
    catalog = DataCatalog({"parameters": MemoryDataset({}), "number": MemoryDataset(1)})
    for _ in range(2):
        IncrementalRunner().run(Pipeline([Node(print, "number", None, name="show")]), catalog, hooks)
    assert watcher.seen == ["before show", "after show"] * 2


def test_a_new_version_of_a_library_makes_what_it_computes_stale(monkeypatch):
    node = cache_features_of("lora")
    before = hashing.code_hash(node)
    assert hashing.code_hash(node) == before
    for name in ("torch", "peft", "transformers", "tokenizers", "pillow"):
        hashing.library_version.cache_clear()
        monkeypatch.setattr(hashing, "version", lambda n, name=name: "99.9" if n == name else real(n))
        assert hashing.code_hash(node) != before, name
    hashing.library_version.cache_clear()
    monkeypatch.setattr(hashing, "version", lambda n: f"{real(n)}+cu130")
    assert hashing.code_hash(node) == before, "the same version, built for another machine"
    monkeypatch.undo()
    hashing.library_version.cache_clear()
    assert hashing.code_hash(make_base) != before


def real(name):
    from importlib.metadata import version

    return version(name)


def test_a_changed_reader_of_a_third_party_is_run_again(project, tmp_path):
    """A package with an entry point, as `pip install` leaves it."""
    package, info = tmp_path / "their_data", tmp_path / "their_data-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-data\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fusetune.readers]\ntheirs = their_data.reader:read\n")
    (package / "__init__.py").write_text("")
    (package / "reader.py").write_text("from their_data.rows import read\n")
    rows = (
        "import pyarrow as pa\n"
        "def read(settings, where):\n"
        "    n = range(8)\n"
        "    return pa.table({'sample_id': [f's{i}' for i in n], 'group_id': [f'g{i}' for i in n],\n"
        "                     'split': ['train', 'val', 'test', 'train'] * 2, 'text': ['WORD'] * 8})\n"
    )
    (package / "rows.py").write_text(rows)
    (project / "conf/theirs").mkdir(exist_ok=True)
    (project / "conf/theirs/globals.yml").write_text("experiment: theirs\n")
    (project / "conf/theirs/parameters.yml").write_text("ingest: {reader: theirs, settings: {}}\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    def ingested():
        done = kedro(project, "run", "--env", "theirs", "--pipelines", "ingest", PYTHONPATH=path)
        assert done.returncode == 0, said(done)
        return "ingest: up to date" in said(done)

    assert not ingested() and ingested()
    (package / "rows.py").write_text(rows.replace("WORD", "OTHER"))
    assert not ingested() and ingested(), "the reader's own module hasn't changed, one that it imports has"


def test_a_changed_adapter_of_a_third_party_makes_cells_of_a_comparison_anew(tmp_path, monkeypatch):
    from importlib.metadata import EntryPoint

    package = tmp_path / "their_adapters"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "fancy.py").write_text("RANK = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("fancy", "their_adapters.fancy:Fancy", "fusetune.adapters")
    monkeypatch.setattr(hashing, "_plugins", lambda: (point,))
    plan = {"placements": [{"where": "junction", "adapter": "fancy"}]}

    def codes():
        hashing._package_hash.cache_clear()
        return cell_code({"data": 1}, [plan]), cell_code({"data": 1}, [{"placements": [{"adapter": "wander"}]}])

    before = codes()
    assert codes() == before
    (package / "fancy.py").write_text("RANK = 22\n")
    assert codes()[0] != before[0] and codes()[1] == before[1], "only of what names it"


def test_training_without_kedro_takes_an_experiments_settings(project):
    command = [
        sys.executable, "-m", "fusetune.runs", "--method", "late_fusion", "--env", "ci",
        "--manifest", "data/03_primary/ci/manifest.parquet", "--base", "data/06_models/ci/base.json",
        "--store", "data/04_feature/store", "--out", "out", "--set", "late_fusion.train.epochs=2",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=project, env=clean(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "epoch 2:" in done.stdout and "epoch 3:" not in done.stdout
    assert json.loads((project / "out/metrics.json").read_text())["method"] == "late_fusion"
    from fusetune.runs.__main__ import read_parameters

    layers = [project / "conf/base", project / "conf/ci"]
    assert read_parameters(layers, [])["validate"] == {"min_rows_per_split": 10}
    assert read_parameters(layers[:1], [])["validate"]["min_rows_per_split"] == 100
    wrong = list(command)
    wrong[wrong.index("--env") + 1] = "nowhere"
    done = subprocess.run(wrong, cwd=project, env=clean(), capture_output=True, text=True)
    assert done.returncode == 1 and "Error: conf/nowhere: no parameters*.yml in it." in done.stderr
