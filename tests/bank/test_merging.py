"""Merging against the equations, and merged adapters against what they were merged from."""

import pytest
import torch
from artifacts import made, of_row, samples
from methods import METHODS, SMALL, placement

from fusetune.bank.artifact import Artifact
from fusetune.bank.bank import Bank
from fusetune.bank.merging import MergeSettings, low_rank_factors, merge_vectors
from fusetune.bank.task_vectors import merge
from fusetune.errors import FusetuneError


def vectors(*rows):
    """Task vectors over two places, from flat rows."""
    return {f"v{i}": {"a": torch.tensor(r[:2]).view(1, 2), "b": torch.tensor(r[2:])} for i, r in enumerate(rows)}


def flat(vector):
    return torch.cat([vector["a"].flatten(), vector["b"]]).tolist()


def test_linear_adds_and_negates():
    given = vectors([1.0, 2.0, 3.0, 4.0], [10.0, 0.0, -10.0, 1.0])
    assert flat(merge_vectors(given, [1.0, 0.5], MergeSettings())) == [6.0, 2.0, -2.0, 4.5]
    assert flat(merge_vectors(vectors([1.0, 2.0, 3.0, 4.0]), [-1.0], MergeSettings())) == [-1.0, -2.0, -3.0, -4.0]


def test_ties_trims_elects_and_takes_the_mean_of_who_agrees():
    """Algorithm 1 of the paper by hand: two of four entries kept; signs +, -, +, 0; means over who has them."""
    given = vectors([4.0, -1.0, 3.0, 0.5], [2.0, -6.0, -1.0, 0.2], [-1.0, 0.5, 5.0, 2.0])
    merged = merge_vectors(given, [1.0, 1.0, 1.0], MergeSettings("ties", density=0.5))
    assert flat(merged) == [3.0, -6.0, 4.0, 2.0]


def test_dare_keeps_the_mean_and_is_the_same_twice():
    torch.manual_seed(0)
    one = {"v": {"a": torch.rand(1, 20_000) + 1, "b": torch.zeros(0)}}
    settings = MergeSettings("dare_linear", density=0.3, seed=5)
    merged = merge_vectors(one, [1.0], settings)["a"]
    assert abs((merged != 0).float().mean() - 0.3) < 0.02
    torch.testing.assert_close(merged[merged != 0], one["v"]["a"][merged != 0] / 0.3)
    assert abs(merged.mean() - one["v"]["a"].mean()) < 0.05
    assert torch.equal(merged, merge_vectors(one, [1.0], settings)["a"])
    other = merge_vectors(one, [1.0], MergeSettings("dare_linear", density=0.3, seed=6))["a"]
    assert not torch.equal(merged, other)
    tied = merge_vectors(one, [1.0], MergeSettings("dare_ties", density=0.3, seed=5))["a"]
    torch.testing.assert_close(tied, merged)


def test_factors_are_the_nearest_of_their_rank():
    torch.manual_seed(0)
    change = torch.randn(12, 7)
    a, b = low_rank_factors(change, 3)
    singular = torch.linalg.svdvals(change)
    torch.testing.assert_close((b @ a - change).norm(), singular[3:].norm())
    a, b = low_rank_factors(change, 9)
    assert a.shape == (9, 7) and b.shape == (12, 9)
    torch.testing.assert_close(b @ a, change)


@pytest.mark.parametrize("kind", ["lora", "dora", "vera", "adalora", "fusion_lora", "lora on every layer"])
def test_what_is_merged_changes_the_base_by_the_weighted_sum(toy, kind):
    folders = [made(toy, f"x{i}", *METHODS[kind].placements, seed=i) for i in range(2)]
    given = {f"x{i}": Artifact.from_pretrained(folder) for i, folder in enumerate(folders)}
    merged = merge(given, [0.7, -0.4], toy.base, MergeSettings())
    assert merged.error < 1e-5
    merged.save_pretrained(toy.folder / "merged")
    changes = [artifact.build(toy.base).changes() for artifact in given.values()]
    columns = samples(toy, range(6))
    bank = Bank(toy.base)
    for name in given:
        model = Artifact.from_pretrained(toy.folder / "merged" / name).build(toy.base)
        assert {p.adapter for p in model.plan.placements} == {"lora", "linear"}
        for place, change in model.changes().items():
            expected = 0.7 * changes[0][place] - 0.4 * changes[1][place]
            if kind == "lora":
                assert torch.linalg.matrix_rank(change, rtol=1e-4) == 4
            torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)
        if kind == "lora":
            assert {len(t) for n, t in model.kept().items() if "lora_A" in n} == {4}, "the sum of the ranks, no more"
        head = given[name].tensors["head.head.linear.weight"]
        assert torch.equal(model.head.head.linear.weight, head), "each task keeps its head"
        bank.load(name, toy.folder / "merged" / name)
        expected = torch.stack([of_row(model, columns, row) for row in range(6)])
        torch.testing.assert_close(torch.stack(bank.outputs([name] * 6, columns)), expected, rtol=1e-5, atol=1e-5)


def test_tuners_of_different_kinds_merge_where_they_change_the_same_layers(toy):
    given = {k: Artifact.from_pretrained(made(toy, k, *METHODS[k].placements)) for k in ("lora", "dora")}
    merged = merge(given, [1.0, 1.0], toy.base, MergeSettings())
    changes = [artifact.build(toy.base).changes() for artifact in given.values()]
    for place, change in merged.artifacts["dora"].build(toy.base).changes().items():
        torch.testing.assert_close(change, changes[0][place] + changes[1][place], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["full_finetune", "bitfit", "ln_tuning", "partial_finetune"])
def test_task_arithmetic_on_what_was_opened(toy, kind):
    """Adding a task vector to the base gives the trained weights; subtracting it as well gives the base."""
    given = {"x": Artifact.from_pretrained(made(toy, "x", *METHODS[kind].placements))}
    columns = samples(toy, range(4))
    trained = given["x"].build(toy.base)
    expected = torch.stack([of_row(trained, columns, row) for row in range(4)])
    whole = merge(given, [1.0], toy.base, MergeSettings()).artifacts["x"].build(toy.base)
    torch.testing.assert_close(torch.stack([of_row(whole, columns, r) for r in range(4)]), expected, rtol=0, atol=1e-5)
    gone = merge({**given, "y": given["x"]}, [1.0, -1.0], toy.base, MergeSettings()).artifacts["x"].build(toy.base)
    assert all(change.abs().max() < 1e-6 for change in gone.changes().values())


def test_a_small_rank_says_what_it_loses(toy):
    given = {n: Artifact.from_pretrained(made(toy, n, *METHODS["lora"].placements, seed=i)) for i, n in enumerate("ab")}
    assert 0.05 < merge(given, [1.0, 1.0], toy.base, MergeSettings(rank=1)).error < 1


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["wander"], "adapter 'a0': Wander can't be merged into the base"),
        (["ia3"], "attention.key.bias' is changed too"),
        (["lora", "fusion_lora"], "adapter 'a0' changes 'left.layers.0.attention.query.weight', adapter 'a1' does not"),
    ],
)
def test_what_cannot_be_merged_says_so(toy, kinds, message):
    given = {
        f"a{i}": Artifact.from_pretrained(made(toy, f"a{i}", *METHODS[kind].placements)) for i, kind in enumerate(kinds)
    }
    with pytest.raises(FusetuneError, match=message):
        merge(given, [1.0] * len(kinds), toy.base, MergeSettings())


def test_adapter_fusion_over_a_bank(toy):
    """Adapters of a bank as members of a new one, by their folders."""
    folders = [str(made(toy, f"w{i}", SMALL, seed=i)) for i in range(2)]
    fusion = placement("junction", "adapter_fusion", adapters=[{"trained": folder} for folder in folders])
    bank = Bank(toy.base)
    for name, folder in {"w0": folders[0], "w1": folders[1], "fused": made(toy, "fused", fusion)}.items():
        bank.load(name, folder)
    columns = samples(toy, range(6))
    outputs = bank.outputs(["w0", "w1", "fused"] * 2, columns)
    expected = Artifact.from_pretrained(toy.folder / "fused").build(toy.base)
    torch.testing.assert_close(outputs[2], of_row(expected, columns, 2), rtol=1e-5, atol=1e-5)
