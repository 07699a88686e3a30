"""Retrieval against brute force; what has collapsed finds nothing."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from fusetune.errors import FusetuneError
from fusetune.features.source import Source
from fusetune.manifest.schema import Modality
from fusetune.tasks.retrieval import Retrieval, RetrievalConfig
from fusetune.tasks.task import content_column
from fusetune.training.data import task_columns


def made(groups, images=None, texts=None):
    task, columns = Retrieval(RetrievalConfig()), {"group_id": groups}
    columns |= {content_column("image"): images} if images else {}
    columns |= {content_column("text"): texts} if texts else {}
    return task, task.targets(columns)


def unit(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def test_ranks_are_those_of_brute_force_in_both_directions():
    torch.manual_seed(0)
    names = [f"t{i % 12}" for i in range(30)]  # texts stand in several rows, pictures in one
    texts, pictures = unit(12, 8), unit(30, 8)
    task, targets = made([f"g{i % 10}" for i in range(30)], [f"p{i}" for i in range(30)], names)
    outputs = torch.stack([pictures, texts[[i % 12 for i in range(30)]]], 1)
    found = task.per_sample(outputs, targets)
    ranks = {"": [], "reverse_": []}
    for prefix, side, other, items in (("", 0, 1, names), ("reverse_", 1, 0, list(range(30)))):
        for i in range(30):
            right = {items[j] for j in range(30) if i % 10 == j % 10 or names[i] == names[j]}
            score = {items[j]: float(outputs[i, side] @ outputs[j, other]) for j in range(30)}
            ranked = sorted(score, key=lambda item: -score[item])
            ranks[prefix].append(1 + min(ranked.index(item) for item in right))
        for k in (1, 5, 10):
            assert found[f"{prefix}recall_at_{k}"].tolist() == [float(rank <= k) for rank in ranks[prefix]]
    medians = task.metrics(outputs, targets)
    assert 0 < found["recall_at_1"].mean() < 1
    for prefix, values in ranks.items():
        assert medians[f"{prefix}median_rank"] == sorted(values)[14]


@pytest.mark.parametrize("which", ["everything", "one side"])
def test_a_collapsed_model_finds_nothing(which):
    """Equal embeddings: every item ties, the right one is in the middle of them."""
    torch.manual_seed(0)
    task, targets = made([f"g{i}" for i in range(50)])
    outputs = unit(50, 2, 8)
    outputs[:, 1] = outputs[0, 1]
    if which == "everything":
        outputs[:] = outputs[0, 0]
    metrics = task.metrics(outputs, targets)
    assert metrics["recall_at_1"] == metrics["recall_at_10"] == 0 and metrics["median_rank"] == 25.5
    assert metrics["reverse_recall_at_1"] <= (0 if which == "everything" else 1 / 50)


def test_what_is_no_number_finds_nothing():
    torch.manual_seed(0)
    task, targets = made([f"g{i}" for i in range(50)])
    outputs = unit(50, 2, 8)
    outputs[:, 1] = outputs[:, 0]
    assert task.metrics(outputs, targets)["recall_at_1"] == 1
    metrics = task.metrics(torch.full((50, 2, 8), torch.nan), targets)
    assert metrics["recall_at_10"] == metrics["reverse_recall_at_10"] == 0 and metrics["median_rank"] == 50
    outputs[3] = torch.nan
    assert task.per_sample(outputs, targets)["recall_at_1"].sum() == 0, "one that is no number is before all others"


def test_ties_take_the_mean_of_all_orders():
    """Two right and three wrong items of one score, one wrong item above: the mean over all orders, drawn."""
    task, targets = made(["a", "a", "b", "c", "d", "e"])
    scores = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.9])
    outputs = torch.zeros(6, 2, 1)
    outputs[:, 0], outputs[:, 1, 0] = 1.0, scores
    rng, places = np.random.default_rng(0), []
    for _ in range(20_000):
        order = [5, *rng.permutation(5)]
        places.append(1 + min(order.index(0), order.index(1)))
    (_, ranks), _ = task._ranks(outputs, targets)
    assert ranks[0].item() == pytest.approx(np.mean(places), abs=0.02) and ranks[5].item() == 1


def test_the_same_content_is_one_item_and_right_for_every_row_that_has_it():
    torch.manual_seed(0)
    pictures, words = unit(4, 8), unit(2, 8)
    outputs = torch.stack([pictures, words[[0, 0, 0, 1]]], 1)  # three rows say the same
    outputs[:, 0] = words[[0, 0, 0, 1]]
    task, targets = made(list("abcd"), list("pqrs"), ["cat", "cat", "cat", "dog"])
    assert task.metrics(outputs, targets)["recall_at_1"] == 1, "any row of 'cat' is right"
    assert task.metrics(outputs, made(list("abcd"))[1])["recall_at_1"] == 0.25, "without knowing that, they tie"
    answers = task.answers(outputs, ["s0", "s1", "s2", "s3"], {"text": ["cat", "cat", "cat", "dog"]})
    assert answers[0]["best_text"] == ["s0", "s3"], "one item, under its first name"
    assert set(answers[3]["best_image"]) == {"s0", "s1", "s2", "s3"} and answers[3]["best_image"][0] == "s3"
    assert answers[3]["best_image_cosines"][0] == pytest.approx(1, abs=1e-5)


def test_a_file_that_is_missing_costs_the_metrics_its_row_alone(tmp_path):
    """What could be read is known already; the task's columns don't ask for it again."""
    (tmp_path / "a.png").write_bytes(b"some bytes")
    table = pa.table({"group_id": ["g", "h"], "image": ["a.png", "gone.png"], "text": ["one", "two"]})
    source = Source(table, {"image": Modality("image", root=str(tmp_path)), "text": Modality("text")})
    task = Retrieval(RetrievalConfig())
    with pytest.raises(FusetuneError, match=r"row 1, column 'image': the file .*gone.png can't be read"):
        task_columns(task, source)
    columns = task_columns(task, source, source.readable_keys())
    assert columns["image: content"][1] is None and task.targets(columns).shape == (2, 3)


def test_the_contrastive_loss_is_cross_entropy_where_all_groups_differ():
    torch.manual_seed(0)
    task, outputs = Retrieval(RetrievalConfig()), torch.randn(6, 2, 4)
    logits = outputs[:, 0] @ outputs[:, 1].T
    diagonal = torch.arange(6)
    expected = (
        torch.nn.functional.cross_entropy(logits, diagonal) + torch.nn.functional.cross_entropy(logits.T, diagonal)
    ) / 2
    torch.testing.assert_close(task.loss(outputs, diagonal), expected)


def test_several_streams_of_a_side_are_fused_there_and_nowhere_else(tmp_path):
    """A query is found by what only both streams of the other side know together, and by none of its own."""
    from fusetune.backbones.backbone import Backbone
    from fusetune.backbones.given_features import TOWERS
    from fusetune.bank.artifact import Artifact
    from fusetune.config import build
    from fusetune.features.index import CacheSettings
    from fusetune.features.storage import Store
    from fusetune.plan.plan import Plan
    from fusetune.runs.experiment import Experiment
    from fusetune.runs.testing import tested
    from fusetune.runs.workplace import Workplace
    from fusetune.training.data import DataSettings
    from fusetune.training.evaluation import EvaluationSettings
    from fusetune.training.settings import TrainSettings

    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(240, 6)).astype(np.float32), rng.normal(size=(240, 6)).astype(np.float32)
    whole = (left @ rng.normal(size=(6, 6)) + right @ rng.normal(size=(6, 6))).astype(np.float32)  # neither is told
    names = [f"s{i}" for i in range(240)]
    table = pa.table(
        {"sample_id": names, "group_id": names, "split": ["train"] * 160 + ["val"] * 40 + ["test"] * 40,
         "asked": whole.tolist(), "left": left.tolist(),
         "right": [None if i == 3 else row for i, row in enumerate(right.tolist())]}
    )  # fmt: skip
    modalities = {
        "asked": {"kind": "vector"},
        "left": {"kind": "vector"},
        "right": {"kind": "vector", "optional": True},
    }
    vectors = {"asked": whole, "left": left, "right": right}
    towers = {n: TOWERS["vector"].fitted([row[None] for row in values], n) for n, values in vectors.items()}
    Backbone(towers).save_pretrained(tmp_path / "base")
    wander = {"where": "junction", "adapter": "wander", "config": {"bottleneck_dim": 4}}
    work = Workplace(Store(tmp_path), CacheSettings(dtype="float32"), tmp_path, lambda *_: None, torch.device("cpu"))
    found = {}
    for name, extra, placements in (("one", (), []), ("both", ("right",), []), ("fused", ("right",), [wander])):
        task = {
            "name": "retrieval",
            "query": "asked",
            "target": "left",
            "target_with": list(extra),
            "embedding_dim": 16,
        }
        used = {key: value for key, value in modalities.items() if key != "right" or extra}
        data = build(DataSettings, {"modalities": used, "task": task, "use_trunk": False}, "data")
        plan = build(Plan, {"placements": [*placements, {"where": "head", "adapter": "linear"}]}, "plan")
        backbone = Backbone.from_pretrained(tmp_path / "base", dict.fromkeys(used, "vector"))
        experiment = Experiment(table, backbone, data, plan, 0, name)
        settings = TrainSettings(epochs=40, batch_size=40, learning_rate=0.01, patience=40)
        splits, epochs = work.trained(experiment, settings)
        found[name] = tested(experiment, splits, epochs, settings, EvaluationSettings(), name, {})
    recalls = {name: result.metrics["test"]["recall_at_1"] for name, result in found.items()}
    assert recalls["both"] > recalls["one"] + 0.2, recalls
    model, state = experiment.model, splits["test"].features.batch(torch.arange(8))
    before = model(state, splits["test"].features.frontier)
    with torch.no_grad():
        for parameter in model.junction[0].parameters():
            parameter.add_(0.3)
    after = model(state, splits["test"].features.frontier)
    assert torch.equal(before[:, 0], after[:, 0]) and not torch.allclose(before[:, 1], after[:, 1], atol=1e-3)
    assert "of left, right" in " ".join(model.resolved)
    found["fused"].artifact.save_pretrained(tmp_path / "adapter")
    again = Artifact.from_pretrained(tmp_path / "adapter").build(tmp_path / "base")
    assert torch.allclose(again(state, splits["test"].features.frontier), before, atol=1e-6)
    with pytest.raises(FusetuneError, match="retrieval: each modality is of one side; found a, b, c, b"):
        RetrievalConfig(query="a", query_with=("b",), target="c", target_with=("b",))
