"""A linear space of two streams: what they share is found, and a head is no worse for knowing it."""

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from fusetune.backbones.aligned_towers import AlignedTower
from fusetune.backbones.alignment import AlignSettings
from fusetune.backbones.backbone import Backbone
from fusetune.backbones.sources import BackboneSettings
from fusetune.config import build
from fusetune.features.composing import FittingRows, compose
from fusetune.features.index import CacheSettings
from fusetune.plan.plan import Plan
from fusetune.runs.experiment import Experiment
from fusetune.runs.run import train_and_test
from fusetune.tasks.linear_space import compared, fit_space
from fusetune.tasks.retrieval import Retrieval, RetrievalConfig
from fusetune.training.data import DataSettings, TaskRows
from fusetune.training.epochs import Reporter
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.settings import TrainSettings

TASK = Retrieval(RetrievalConfig(query="one", target="other"))


def streams(rows=400, seed=0, shared=4):
    """Two streams with a few directions in common among many of their own, which are louder."""
    maps = np.random.default_rng(99)
    common, ways = maps.normal(0, 1, (shared, 30)), maps.normal(0, 1, (shared, 20))
    rng = np.random.default_rng(seed)
    latent = rng.normal(0, 1, (rows, shared))
    one = latent @ common + rng.normal(0, 1.5, (rows, 30))
    other = latent @ ways + rng.normal(0, 1.5, (rows, 20))
    return {"one": torch.tensor(one * 50 + 3).float(), "other": torch.tensor(other).float()}


def targets(rows):
    return torch.arange(rows)[:, None].expand(-1, 3).clone()


def test_what_the_streams_share_is_found_and_their_own_noise_is_not():
    pooled, outside = streams(), streams(200, seed=1)
    space = fit_space(pooled, targets(400), TASK.loss, 64, range(400))
    metrics = TASK.metrics(compared(space, outside), targets(200))
    raw = torch.stack([F.pad(outside["one"], (0, 34)), F.pad(outside["other"], (0, 44))], 1)
    assert TASK.metrics(F.normalize(raw, dim=-1), targets(200))["recall_at_10"] < 0.15, "as they are they don't fit"
    assert metrics["recall_at_10"] > 0.7 and metrics["reverse_recall_at_10"] > 0.7
    assert space.weight["one"].shape == (64, 30) and not space.weight["one"][20:].any(), "only so many directions"


def test_correlations_are_those_of_canonical_correlation_analysis():
    """With next to no ridge, of well-behaved streams: the squared ones are the eigenvalues of the textbook's matrix."""
    from fusetune.tasks.linear_space import _spaces

    pooled = streams(2000, shared=3)
    x = [(values - values.mean(0)).double() / values.std(0) for values in pooled.values()]
    (ways,) = _spaces(x, (1e-9,), 3)
    a, b = (part @ way.T for part, way in zip(x, ways, strict=True))
    found = (a * b).mean(0)  # each direction's variance is its correlation, and so is its covariance, times that
    cov = [[p.T @ q / len(p) for q in x] for p in x]
    matrix = torch.linalg.solve(cov[0][0], cov[0][1]) @ torch.linalg.solve(cov[1][1], cov[1][0])
    expected = torch.linalg.eigvals(matrix).real.sort(descending=True).values[:3]
    assert expected[0] - expected[2] > 0.01, "they can differ"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_rows_without_one_of_the_two_are_not_used():
    pooled = streams()
    more = {name: torch.cat([values, values.flip(0)[:50]]) for name, values in pooled.items()}
    more["one"][400:] = 0
    groups = [*range(400), *range(50)]
    with_missing = fit_space(more, targets(450), TASK.loss, 16, groups)
    whole = fit_space(pooled, targets(400), TASK.loss, 16, range(400))
    broken = fit_space({**more, "one": torch.cat([pooled["one"], pooled["one"][:50]])}, targets(450), TASK.loss, 16,
                       groups)  # fmt: skip
    assert (broken.mean["other"] - whole.mean["other"]).abs().max() > 1e-3, "they would change it"
    torch.testing.assert_close(with_missing.mean["other"], whole.mean["other"])


def table(rows=400):
    pooled = {name: values.tolist() for name, values in streams(rows).items()}
    split = ["train"] * (rows // 2) + ["val"] * (rows // 4) + ["test"] * (rows // 4)
    names = [f"r{i}" for i in range(rows)]
    return pa.table({"sample_id": names, "group_id": names, "split": split, **pooled})


DATA = build(
    DataSettings,
    {
        "modalities": {"one": {"kind": "vector"}, "other": {"kind": "vector"}},
        "task": {"name": "retrieval", "query": "one", "target": "other"},
        "use_trunk": False,
    },
    "data",
)
PLAN = build(Plan, {"placements": [{"where": "head", "adapter": "linear"}]}, "plan")


def base(rows, **towers):
    chosen = build(BackboneSettings, {"source": "features", "towers": towers}, "backbone")
    fitting = FittingRows(rows.source, rows.rows["train"], rows.rows["val"], rows.task.linear_parts()[""], rows.targets)
    kinds = dict.fromkeys(rows.data.modalities, "vector")
    return compose(chosen.sources(kinds), fitting, lambda: None, AlignSettings(steps=3), lambda *_: None)


def test_a_head_that_learns_nothing_is_as_good_as_the_space(tmp_path):
    rows = TaskRows(table(), DATA)
    one = Experiment(rows.table, base(rows), DATA, PLAN, 0, "toy")
    cache, cpu = CacheSettings(dtype="float32"), torch.device("cpu")
    one.begin(tmp_path / "store", cache, lambda *_: None)
    features = one.extract(tmp_path / "store", cache, lambda *_: None, cpu)
    settings = TrainSettings(epochs=1, batch_size=64, learning_rate=1e-6)
    result = train_and_test(
        one, features, tmp_path / "store", settings, EvaluationSettings(bootstrap_samples=20), tmp_path / "c",
        Reporter(), "toy", {},
    )  # fmt: skip
    untrained = result.metrics["linear_models"]
    assert untrained > 0.2, "a hundred rows to find one among"
    assert result.metrics["test"]["recall_at_1"] > untrained - 0.05
    assert f"linear models of all {untrained:.3f}" in result.sentence()
    loaded = result.artifact.build(_saved(one.model.backbone, tmp_path / "base"))
    states = one.split("test", features, tmp_path / "store", cpu).features.batch(torch.arange(20))
    assert loaded(states, one.frontier).std() > 0
    torch.testing.assert_close(loaded(states, one.frontier), one.model(states, one.frontier))


def _saved(backbone, folder):
    backbone.save_pretrained(folder)
    return folder


def test_align_is_probed_by_what_is_compared(caplog, tmp_path):
    """Three steps make an MLP that knows less than the plain numbers; the tower gives those, and says so."""
    caplog.set_level("INFO")
    towers = base(TaskRows(table(), DATA), one={"source": "align"})
    tower = towers.tower("one")
    assert isinstance(tower, AlignedTower) and tower.depth == 1, "without its MLP"
    assert "align, one: a linear probe on validation rows scores" in caplog.text
    assert "the tower gives the plain numbers" in caplog.text
    again = Backbone.from_pretrained(_saved(towers, tmp_path / "base")).probes()
    assert again == towers.probes() and again["one"]["behind"] < again["one"]["before"]


@pytest.mark.parametrize("change", ["split", "group_id"])
def test_a_checkpoint_is_of_the_same_rows_in_the_same_splits(tmp_path, change):
    """The features are the same, the training isn't."""
    rows = TaskRows(table(), DATA)
    backbone, keys = base(rows), []
    other = rows.table[change].to_pylist()
    other[0], other[-1] = other[-1], (other[1] if change == "group_id" else other[0])
    changed = rows.table.set_column(rows.table.column_names.index(change), change, pa.array(other))
    for one in (rows.table, rows.table, changed):
        experiment = Experiment(one, backbone, DATA, PLAN, 0, "toy")
        features = experiment.extract(tmp_path, CacheSettings(dtype="float32"), lambda *_: None, torch.device("cpu"))
        keys.append(experiment.key(features, TrainSettings()))
        experiment.model.detach()
    assert keys[0] == keys[1] != keys[2]
