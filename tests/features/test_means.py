"""What reads the mean of a row's tokens alone is given it: taken once, and the same as from the tokens."""

import pytest
import torch
from test_extraction import CPU, backbone, run, source  # noqa: F401

from conftest import WANDER
from fusetune.features.dataset import FeatureSet
from fusetune.tokens import Tokens, pad

ALL = torch.tensor([3, 20, 0, 7, 7, 1])
LMF, GATE = {"where": "junction", "adapter": "lmf"}, {"where": "junction", "adapter": "fusion_gate"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_means_of_rows_are_those_of_their_tokens(tmp_path, backbone, dtype):  # noqa: F811
    features, _ = run(source(), backbone, tmp_path, dtype=dtype, shard_size=4)
    whole, means = (FeatureSet(features, tmp_path, CPU, means=asked) for asked in (False, True))
    assert means.bytes < whole.bytes and "means of features resident" in means.placement
    tokens, one = whole.batch(ALL), means.batch(ALL)
    assert tokens["points"].mask.shape[1] > 1 and not tokens["points"].mask[1].any(), "several tokens, and none"
    for name in tokens:
        assert one[name].mask.shape == (6, 1) and torch.equal(one[name].mask[:, 0], tokens[name].mask.any(1))
        torch.testing.assert_close(
            one[name].pooled(), tokens[name].pooled(), atol=2e-3 if dtype == "int8" else 1e-6, rtol=0
        )
        assert torch.equal(one[name].pooled(), one[name].values[:, 0] * one[name].mask)


def test_means_of_views(tmp_path, backbone):  # noqa: F811
    noisy = source(numbers={"augment": {"name": "noise", "share": 0.2}})
    features, _ = run(noisy, backbone, tmp_path, views=3)
    rows = features.of_rows(range(15), augmented=True)
    whole, means = (FeatureSet(rows, tmp_path, CPU, means=asked) for asked in (False, True))
    seen = [means.batch(torch.arange(15), view)["numbers"].pooled() for view in range(3)]
    assert not torch.equal(seen[0], seen[1])
    for view, values in enumerate(seen):
        torch.testing.assert_close(values, whole.batch(torch.arange(15), view)["numbers"].pooled())


def test_without_room_tokens_come_from_the_map(tmp_path, backbone, monkeypatch):  # noqa: F811
    features, _ = run(source(), backbone, tmp_path)
    monkeypatch.setattr("fusetune.features.dataset.free_memory", lambda _: 0)
    found = FeatureSet(features, tmp_path, CPU, means=True)
    assert "read from the memory map" in found.placement and found.batch(ALL)["points"].mask.shape[1] > 1


@pytest.mark.parametrize(
    ("placements", "means"),
    [((), True), ((LMF,), True), ((GATE,), True), ((WANDER,), False), ((LMF, WANDER), False)],
    ids=["head", "lmf", "fusion_gate", "wander", "lmf and wander"],
)
def test_a_plan_that_reads_means_is_given_them(toy, placements, means):
    experiment = toy.experiment(*placements)
    split = toy.splits(experiment)["train"]
    assert ("means" in split.features.placement) == means == experiment.model.reads_means()
    for parameter in experiment.model.trainable().values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    whole = FeatureSet(toy.features(experiment).of_rows(experiment.rows["train"], False), toy.store, toy.device)
    index = torch.arange(20)
    with torch.no_grad():
        given, tokens = (experiment.model.eval()(f.batch(index), f.frontier) for f in (split.features, whole))
    torch.testing.assert_close(given, tokens, atol=1e-5, rtol=1e-5)
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3


def test_a_task_that_asks_for_tokens_is_given_them(toy):
    experiment = toy.experiment()
    experiment.model.head.takes_tokens = True
    assert not experiment.model.reads_means()


def test_what_changes_by_one_vector_is_read_by_its_mean():
    tokens = pad([torch.randn(3, 4), torch.randn(5, 4), torch.randn(1, 4)])
    tokens = Tokens(tokens.values, tokens.mask & torch.tensor([[True], [True], [False]]))
    vectors = torch.randn(3, 4, requires_grad=True)
    shifted, plain = tokens.shifted(vectors), Tokens(tokens.values + vectors[:, None], tokens.mask)
    torch.testing.assert_close(shifted.pooled(), plain.pooled())
    assert "values" not in vars(shifted) and not shifted.pooled()[2].any() and shifted.width == 4
    assert torch.equal(shifted.values, plain.values) and torch.equal(shifted.mask, plain.mask)
    one, two = (torch.autograd.grad(t.pooled().square().sum(), vectors)[0] for t in (shifted, plain))
    torch.testing.assert_close(one, two)
    again = shifted.shifted(vectors.detach())
    torch.testing.assert_close(again.pooled(), plain.pooled() + vectors * tokens.mask.any(1, keepdim=True))
