"""A head starts from linear models of its streams: noise gets no share, a missing stream adds nothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fusetune.adapters.heads import LinearHead, LinearHeadConfig, MLPHead, MLPHeadConfig
from fusetune.tasks.joined_head import JoinedHead, LinearStart, standardised
from fusetune.tasks.linear_models import fit_start, folds_of


def streams(rows=300, noise=200, seed=0):
    """One stream knows the class, one knows a little, one is wide and nothing but noise."""
    rng = np.random.default_rng(seed)
    targets = torch.tensor(rng.integers(0, 3, rows))
    strong = F.one_hot(targets, 3) * 2.0 + torch.tensor(rng.normal(0, 1, (rows, 3)))
    weak = F.one_hot(targets, 3) * 1.0 + torch.tensor(rng.normal(0, 1, (rows, 3)))
    pooled = {"strong": strong * 100 + 7, "weak": weak, "noise": torch.tensor(rng.normal(0, 1, (rows, noise)))}
    return {name: values.float() for name, values in pooled.items()}, targets


def _standardised(start, pooled):
    return {name: standardised(x, start.mean[name], start.std[name]) for name, x in pooled.items()}


def begun(start, pooled, make=lambda w, o: LinearHead(LinearHeadConfig(), w, o)):
    torch.manual_seed(0)
    head = JoinedHead({name: values.shape[1] for name, values in pooled.items()}, 3, make)
    head.begin(start)
    head.shares.data.copy_(torch.tensor([1.0, 0.0]))
    return head


def test_noise_gets_no_share_and_nothing_is_lost_to_it():
    pooled, targets = streams()
    start = fit_start(pooled, targets, F.cross_entropy, 3, range(300))
    spread = {n: (start.shares[n] * (x @ start.weight[n].T)).std() for n, x in _standardised(start, pooled).items()}
    assert spread["noise"] < 0.3 * spread["weak"] < 0.3 * spread["strong"]
    assert start.losses[""] < min(start.losses[name] for name in pooled), "together they know more"
    others, wanted = streams(2000, seed=1)
    for make in (lambda w, o: LinearHead(LinearHeadConfig(), w, o), lambda w, o: MLPHead(MLPHeadConfig(), w, o)):
        head = begun(start, pooled, make)
        right = (head(others).argmax(1) == wanted).float().mean()
        alone = standardised(others["strong"], start.mean["strong"], start.std["strong"]) @ start.weight["strong"].T
        assert right > ((alone + start.bias["strong"]).argmax(1) == wanted).float().mean() + 0.02
        assert sum(p.numel() for p in head.parameters() if p.requires_grad) == sum(
            p.numel() for p in head.head.parameters()
        )


def test_outputs_are_the_formula_and_a_missing_stream_is_left_out():
    pooled, targets = streams()
    start = fit_start(pooled, targets, F.cross_entropy, 3, range(300))
    head, expected = begun(start, pooled), start.prior.expand(300, -1)
    for name, share in start.shares.items():
        own = standardised(pooled[name], start.mean[name], start.std[name]) @ start.weight[name].T + start.bias[name]
        expected = expected + share * (own - start.prior)
    torch.testing.assert_close(head(pooled), expected, atol=1e-4, rtol=1e-4)
    without = {name: values for name, values in pooled.items() if name != "weak"}
    gone = head({**without, "weak": torch.zeros_like(pooled["weak"])})
    torch.testing.assert_close(head(without), gone)
    assert not torch.allclose(gone, head(pooled))
    nothing = head({name: torch.zeros_like(values) for name, values in pooled.items()})
    torch.testing.assert_close(nothing, start.prior.expand(300, -1))
    shares = F.one_hot(targets).double().mean(0)
    torch.testing.assert_close(start.prior.double().softmax(0), shares, atol=1e-3, rtol=1e-3)


def test_one_modality_alone_has_the_whole_share_and_files_keep_everything():
    pooled, targets = streams()
    start = fit_start(pooled, targets, F.cross_entropy, 3, range(300))
    assert start.of(["weak"]).shares == {"weak": 1.0} and start.of(["weak", "noise"]).shares["weak"] < 10
    again = LinearStart.from_tensors(start.tensors())
    assert again.digest() == start.digest() != start.of(["weak"]).of(["weak"]).weight["weak"].sum()
    torch.testing.assert_close(begun(again, pooled)(pooled), begun(start, pooled)(pooled))


def test_folds_keep_groups_together_and_spread_the_targets():
    targets, groups = torch.arange(40) % 4, [i // 2 for i in range(40)]
    folds = folds_of(targets, groups)
    assert all(len({int(folds[2 * g]), int(folds[2 * g + 1])}) == 1 for g in range(20)) and len(folds.unique()) == 5
    few = folds_of(torch.arange(50) % 10, range(50))
    for fold in range(5):
        assert torch.bincount(torch.arange(50)[few == fold] % 10, minlength=10).max() <= 2, "five of each label"


def test_numbers_and_several_labels_start_alike():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(0, 1, (200, 4)))
    wanted = x @ torch.tensor([[1.0], [-2.0], [0.0], [0.5]], dtype=torch.float64)
    start = fit_start({"x": x, "noise": torch.tensor(rng.normal(0, 1, (200, 60)))}, wanted, F.mse_loss, 1, range(200))
    assert start.losses[""] < 0.05 * wanted.var() and start.losses["noise"] > 0.9 * wanted.var()
    assert start.prior.item() == pytest.approx(wanted.mean().item(), abs=1e-2)
    both = (x[:, :2] > 0).double()
    start = fit_start({"x": x}, both, F.binary_cross_entropy_with_logits, 2, range(200))
    outputs = standardised(x, start.mean["x"], start.std["x"]).float() @ start.weight["x"].T + start.bias["x"]
    assert ((outputs > 0) == (both > 0)).float().mean() > 0.95
