"""Shared by all tests: tiny towers made here, and a project folder with a small pretrained base."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

import preloaded

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores; their kedro runs inherit this
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


def kedro(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run the real command in a project folder: in a process of its own from the start where it has variables of its
    own, else forked where everything is imported."""
    if not environment:
        return preloaded.kedro(project, arguments, clean())
    command = [sys.executable, "-m", "kedro", *arguments]
    return subprocess.run(command, cwd=project, env=clean(**environment), capture_output=True, text=True, timeout=600)


def clean(**environment: str) -> dict[str, str]:
    """The environment for a command of ours; MLflow's client in this process would hand its own database down."""
    inherited = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    return {**inherited, "COLUMNS": "200", **environment}


def copy_project(target: Path) -> Path:
    """A copy of what a clone of this project holds, without its data."""
    shutil.copytree(ROOT / "conf", target / "conf", ignore=shutil.ignore_patterns("local"))
    (target / "conf" / "local").mkdir()
    (target / "data").mkdir()
    for name in ("pyproject.toml", ".telemetry", "dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, target / name)
    shutil.copytree(ROOT / "src", target / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return target


def experiment_in(project: Path, name: str, parameters: dict) -> Path:
    """A conf folder of its own; returns it."""
    import yaml

    folder = project / "conf" / name
    folder.mkdir()
    (folder / "globals.yml").write_text(f"experiment: {name}\n")
    (folder / "parameters.yml").write_text(yaml.safe_dump(parameters, sort_keys=False))
    return folder


def ran(project: Path, env: str, *arguments: str) -> str:
    """What `kedro run` of an experiment says, white space apart; it has to succeed."""
    done = kedro(project, "run", "--env", env, *arguments)
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, text
    return text


@pytest.fixture(scope="session")
def trained_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which `kedro run --pipelines train_wander --env ci` has run once."""
    made = _made_once(tmp_path_factory, "trained", _train)
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("trained") / "project", symlinks=True))


@pytest.fixture(scope="session")
def compared_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it in which `compare` has run once, with records of its own."""
    trained = _made_once(tmp_path_factory, "trained", _train)
    made = _made_once(tmp_path_factory, "compared", lambda project: _compare(trained, project))
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("compared") / "project", symlinks=True))


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A project that the first of several test processes makes, for the others to wait for; nobody writes in it."""
    root = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    project, done = root / f"made_{name}", root / f"made_{name}.done"
    with FileLock(root / f"made_{name}.lock"):
        if not done.is_file():
            shutil.rmtree(project, ignore_errors=True)  # of one that failed
            make(project)
            done.touch()
    return project


def _train(project: Path) -> None:
    project.mkdir()
    done = kedro(copy_project(project), "run", "--pipeline", "train_wander", "--env", "ci")
    assert done.returncode == 0, done.stdout + done.stderr


def _compare(trained: Path, project: Path) -> None:
    records = shutil.ignore_patterns("mlflow.db*", "mlruns", "mlartifacts")
    shutil.copytree(trained, project, ignore=records, symlinks=True)
    done = kedro(project, "run", "--pipeline", "compare", "--env", "ci")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def base(trained_project: Path) -> Path:
    """The folder of a small pretrained base with all four towers."""
    from fusetune.backbones.bases import opened

    return Path(opened(trained_project / "data" / "06_models" / "ci" / "base.json"))


@pytest.fixture
def toy(tmp_path: Path):
    """A small real experiment: two sequence modalities, own towers and a trunk, saved as a base in `tmp_path`.

    The label says whether the two sides agree in the sign of their means: neither side alone knows.
    """
    return Toy(tmp_path)


class Toy:
    def __init__(self, folder: Path) -> None:
        import pyarrow as pa
        import torch

        from fusetune.backbones.backbone import Backbone
        from fusetune.backbones.feature_towers import FeatureTowerSettings, SequenceTower, VectorTower
        from fusetune.backbones.trunk import StreamSettings, Trunk, TrunkSettings
        from fusetune.config import build
        from fusetune.training.data import DataSettings

        torch.manual_seed(0)
        self.device = torch.device(os.environ.get("FUSETUNE_TEST_DEVICE", "cpu"))  # of features and training
        self.folder, self.base, self.store = folder, folder / "base", folder / "store"
        towers = {
            "left": SequenceTower(FeatureTowerSettings(4, 16, 2, 2, 8)),
            "right": VectorTower(FeatureTowerSettings(4, 16)),
        }
        streams = {"left": StreamSettings(16, 8), "right": StreamSettings(16, 1)}
        Backbone(towers, Trunk(TrunkSettings(streams, 16, 2, 2))).save_pretrained(self.base)
        left, right = torch.randn(240, 5, 4), torch.randn(240, 4)
        same = (left.mean((1, 2)) > 0) == (right.mean(1) > 0)
        self.table = pa.table(
            {
                "sample_id": [f"s{i}" for i in range(240)],
                "split": ["train"] * 160 + ["val"] * 40 + ["test"] * 40,
                "group_id": [f"g{i}" for i in range(240)],
                "left": [row[: 2 + i % 4].tolist() for i, row in enumerate(left)],
                "right": right.tolist(),
                "label": ["same" if value else "other" for value in same.tolist()],
            }
        )
        self.data = build(
            DataSettings,
            {
                "modalities": {"left": {"kind": "sequence"}, "right": {"kind": "vector"}},
                "task": {"name": "classification", "label": "label"},
            },
            "data",
        )

    def experiment(self, *placements: dict, seed: int = 0, plan: dict | None = None, **data):
        from dataclasses import replace

        from fusetune.config import build
        from fusetune.plan.plan import Plan
        from fusetune.runs.experiment import Experiment
        from fusetune.training.data import load_backbone

        settings = replace(self.data, **data)
        head = {"where": "head", "adapter": "linear"}
        made = build(Plan, {"placements": [*placements, head], **(plan or {})}, "toy")
        found = Experiment(self.table, load_backbone(self.base, settings), settings, made, seed, "toy")
        found.model.to(self.device)
        return found

    def features(self, experiment):
        from fusetune.features.extraction import CacheSettings

        settings = CacheSettings(dtype="float32", batch_size=32, cut="frontier")
        return experiment.extract(self.store, settings, lambda *_: None, self.device)

    def splits(self, experiment):
        features = self.features(experiment)
        return {name: experiment.split(name, features, self.store, self.device) for name in ("train", "val", "test")}


WANDER = {"where": "junction", "adapter": "wander", "config": {"bottleneck_dim": 4}}
