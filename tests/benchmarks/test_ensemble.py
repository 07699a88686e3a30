"""Seeds of one method trained as one batched model, against one after the other: the gain by method and number.

    pytest -m benchmark -s tests/benchmarks/test_ensemble.py

On the embedded data set's cached features (`kedro run --pipelines train_wander` first): an epoch with its validation
and checkpoint, in turn, one thread on a CPU.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from measuring import in_turn, seconds, show

from conftest import ROOT
from fusetune.config import build
from fusetune.device import pick_device
from fusetune.features.index import CacheSettings
from fusetune.plan.plan import Plan
from fusetune.runs.__main__ import read_parameters
from fusetune.runs.experiment import Experiment
from fusetune.training.data import DataSettings, load_backbone
from fusetune.training.epochs import Reporter
from fusetune.training.loop import assign, train
from fusetune.training.settings import TrainSettings, of_method
from fusetune.training.together import train_together

pytestmark = pytest.mark.benchmark
DATA = ROOT / "data"
MANIFEST, BASE, STORE = (
    DATA / "03_primary/vqa/manifest.parquet",
    DATA / "06_models/vqa/base.json",
    DATA / "04_feature/store",
)
METHODS = ("linear_probe", "late_fusion", "fusion_gate", "lmf", "wander", "perceiver_resampler", "cross_modal")
MEMBERS, ROUNDS = (5,), 3


def test_members_together_against_one_after_the_other(tmp_path):
    if not MANIFEST.is_file() or not BASE.is_dir():
        pytest.skip(f"{MANIFEST} is not there: `kedro run --pipelines train_wander` makes it")
    import pyarrow.parquet as pq

    torch.set_num_threads(1)
    parameters, table = read_parameters([ROOT / "conf" / "base"], []), pq.read_table(MANIFEST)
    data, device = build(DataSettings, parameters["data"], "data"), pick_device("auto")
    rows = []
    for method in METHODS:
        one = replace(of_method(parameters["train"], parameters[method], method), epochs=1, device=str(device))
        plan = build(Plan, parameters[method], method)
        experiment = Experiment(table, load_backbone(BASE, data), data, plan, 0, method)
        found = in_turn(contestants(experiment, one, device, tmp_path), ROUNDS)
        gains = [f"{count * found['alone'] / found[str(count)]:.2f}" for count in MEMBERS]
        rows.append([method, f"{found['alone']:.2f}", *gains])
    headings = ["method", "s an epoch, one alone", *(f"gain of {count} together" for count in MEMBERS)]
    show(f"seeds as one batched model, {device}", headings, rows)


def contestants(
    experiment: Experiment, one: TrainSettings, device: torch.device, folder: Path
) -> dict[str, Callable[[], float]]:
    features = experiment.extract(STORE, CacheSettings(), lambda *_: None, device)
    splits = [experiment.split(name, features, STORE, device) for name in ("train", "val")]
    model = experiment.model.to(device)
    initial = {name: p.detach().clone() for name, p in model.trainable().items()}
    turns = iter(range(1_000_000))  # of folders, so that nothing is resumed

    def alone() -> float:
        assign(model, initial)
        return seconds(lambda: train(model, *splits, one, "key", folder / str(next(turns)), Reporter()))

    def together(count: int) -> float:
        several = [replace(one, seed=seed) for seed in range(count)]
        values = [initial] * count
        return seconds(lambda: train_together(model, values, *splits, several, "key", folder / str(next(turns))))

    return {"alone": alone} | {str(count): lambda count=count: together(count) for count in MEMBERS}
