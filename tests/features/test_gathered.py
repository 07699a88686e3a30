"""Large batches on a CPU are cast a sample at a time: the same tokens, the same means, the same steps."""

import pytest
import torch
from test_extraction import CPU, backbone, run, source  # noqa: F401
from torch import nn

from conftest import WANDER
from fusetune.features import dataset, gathered
from fusetune.features.dataset import FeatureSet
from fusetune.features.gathered import Gathered
from fusetune.tokens import Tokens
from fusetune.training.losses import batch_losses
from fusetune.training.predicting import predict

ALL = torch.tensor([3, 20, 0, 7, 7, 1])


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "from the map"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_samples_one_by_one_are_the_batch(tmp_path, backbone, monkeypatch, dtype, resident):  # noqa: F811
    features, _ = run(source(), backbone, tmp_path, dtype=dtype, shard_size=4)
    monkeypatch.setattr(gathered, "LARGE", 0)
    if not resident:
        monkeypatch.setattr(dataset, "free_memory", lambda _: 0)
    rows = FeatureSet(features, tmp_path, CPU)
    [(_, parts)] = rows.batches([ALL], by_parts=True)
    [(_, whole)] = rows.batches([ALL])
    assert type(whole["points"]) is Tokens and type(parts["points"]) is Gathered and not whole["points"].mask[1].any()
    assert type(parts["numbers"]) is Tokens, "one token each"
    part, tokens = parts["points"], whole["points"]
    torch.manual_seed(0)
    layers = [nn.Linear(part.width, 5) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    found, expected = part.through(layers[0]), tokens.through(layers[1])
    assert "values" not in part.__dict__, "nobody has asked for the batch"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for out in (found, expected):
        (out**2).sum().backward()
    for own, other in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        assert own.grad.abs().max() > 0
        torch.testing.assert_close(own.grad, other.grad, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(part.pooled(), tokens.pooled(), atol=1e-6, rtol=1e-5)
    assert torch.equal(part.values, tokens.values) and torch.equal(part.mask, tokens.mask)
    assert part.to(CPU, torch.float32) is part and part.to(CPU, torch.float64).values.dtype == torch.float64


def test_steps_of_wander_are_the_same(toy, monkeypatch):
    experiment = toy.experiment(WANDER)
    for parameter in experiment.model.trainable().values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    split, index, found = toy.splits(experiment)["train"], torch.arange(24), []
    for large in (10**9, 0):
        monkeypatch.setattr(gathered, "LARGE", large)
        experiment.model.zero_grad()
        [(_, states)] = split.features.batches([index], by_parts=True)
        assert isinstance(states["left"], Gathered) == (large == 0)
        loss, _ = batch_losses(experiment.model, states, split.features.frontier, split.targets[index], None)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in experiment.model.trainable().items()}
        found.append((loss.detach(), gradients, *predict(experiment.model, split, 16)))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
    assert max(gradient.abs().max() for gradient in found[0][1].values()) > 1e-3
