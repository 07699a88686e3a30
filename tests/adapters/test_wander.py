"""Wander against the explicit outer product contracted with the rebuilt tensor, and the traps of public code."""

from itertools import pairwise

import pytest
import torch

from fusetune.adapters.adapter import Stream
from fusetune.adapters.wander import Wander, WanderConfig
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens


def streams_of(sizes: dict[str, tuple[int, int]], batch: int = 2) -> dict[str, Tokens]:
    return {
        name: Tokens(torch.randn(batch, tokens, width), torch.ones(batch, tokens, dtype=torch.bool))
        for name, (tokens, width) in sizes.items()
    }


def adapter_of(sizes: dict[str, tuple[int, int]], **config) -> Wander:
    adapter = Wander(WanderConfig(**config), {n: Stream(width, tokens) for n, (tokens, width) in sizes.items()})
    with torch.no_grad():
        adapter.scale.normal_()
    return adapter


def brute_force(adapter: Wander, streams: dict[str, Tokens]) -> torch.Tensor:
    """Build each modality's factor matrix on the flattened, 1-extended Z_m, form the whole weight tensor from them,
    take the outer product of all modalities, and contract the two. Exponential in M; sizes are tiny."""
    (_, first), *_ = adapter.factors.items()
    rank, width = first.bias_row.shape
    fused_tokens = adapter.fused_tokens
    vectors, matrices = [], []
    for name, factor in adapter.factors.items():
        tokens = streams[name].values
        z = torch.nn.functional.gelu(tokens @ factor.down.weight.T + factor.down.bias)  # (batch, T, r)
        vectors.append(torch.cat([z.flatten(1), z.new_ones(len(z), 1)], 1))  # (batch, T r + 1)
        weight = torch.einsum("ijtk,ijrd->itrkd", factor.token_factors, factor.feature_factors).flatten(1, 2)
        bias = factor.bias_row[:, None, None, :].expand(rank, 1, fused_tokens, width)
        matrices.append(torch.cat([weight, bias], 1))  # (R, T r + 1, T_h, width)
    tensor = matrices[0]
    for matrix in matrices[1:]:  # the CP-form tensor before the sum over R, one axis a modality
        tensor = tensor.unsqueeze(-3) * matrix.view(rank, *[1] * (tensor.ndim - 3), *matrix.shape[1:])
    tensor = tensor.sum(0)
    outs = []
    for row in range(len(vectors[0])):
        outer = vectors[0][row]
        for vector in vectors[1:]:
            outer = outer.unsqueeze(-1) * vector[row]
        outs.append(torch.tensordot(outer, tensor, outer.ndim))
    return adapter.scale * torch.stack(outs)


@pytest.mark.parametrize("sizes", [{"a": (3, 4), "b": (2, 5)}, {"a": (2, 3), "b": (3, 2), "c": (1, 4)}])
@pytest.mark.parametrize("config", [{"fused_tokens": 1}, {"fused_tokens": None}, {"rank": 1, "token_rank": 1}])
def test_equals_the_contraction_of_the_outer_product(sizes, config):
    torch.manual_seed(0)
    adapter = adapter_of(sizes, **{"bottleneck_dim": 2, "rank": 3, "token_rank": 2, **config}).double()
    streams = {n: Tokens(t.values.double(), t.mask) for n, t in streams_of(sizes).items()}
    torch.testing.assert_close(adapter.fuse(streams), brute_force(adapter, streams), rtol=1e-10, atol=1e-12)


def test_is_the_identity_at_first_and_every_factor_moves_within_ten_steps():
    torch.manual_seed(0)
    sizes = {"a": (5, 6), "b": (4, 6)}
    adapter = Wander(WanderConfig(bottleneck_dim=3), {n: Stream(w, t) for n, (t, w) in sizes.items()})
    streams = streams_of(sizes, batch=8)
    out = adapter(streams)
    assert all(torch.equal(out[name].values, streams[name].values) for name in sizes)
    before = {name: p.detach().clone() for name, p in adapter.named_parameters()}
    goal = torch.randn(8, 5, 6)
    optimizer = torch.optim.SGD(adapter.parameters(), 0.1)
    for _ in range(10):
        optimizer.zero_grad()
        (adapter(streams)["a"].values - goal).square().mean().backward()
        optimizer.step()
    still = [name for name, p in adapter.named_parameters() if torch.equal(p, before[name])]
    assert not still


def test_the_product_of_seven_modalities_does_not_vanish():
    torch.manual_seed(0)
    magnitudes = []
    for count in (2, 3, 5, 7):
        sizes = {f"m{i}": (6, 8) for i in range(count)}
        magnitudes.append(adapter_of(sizes).fuse(streams_of(sizes, 16)).abs().mean().item())
    assert all(later > 0.5 * earlier for earlier, later in pairwise(magnitudes)), magnitudes


def test_a_missing_modality_is_a_factor_of_the_bias_row_alone():
    torch.manual_seed(0)
    sizes = {"a": (3, 4), "b": (3, 4)}
    adapter, streams = adapter_of(sizes), streams_of(sizes)
    masked = {**streams, "b": Tokens(streams["b"].values, torch.zeros(2, 3, dtype=torch.bool))}
    absent = {"a": streams["a"]}
    torch.testing.assert_close(adapter.fuse(masked), adapter.fuse(absent))
    assert not torch.allclose(adapter.fuse(masked), adapter.fuse(streams))


def test_padding_changes_nothing():
    torch.manual_seed(0)
    adapter = adapter_of({"a": (6, 4), "b": (3, 4)})
    streams = streams_of({"a": (4, 4), "b": (3, 4)})
    longer = torch.cat([streams["a"].values, torch.full((2, 2, 4), 9.0)], 1)
    mask = torch.cat([streams["a"].mask, torch.zeros(2, 2, dtype=torch.bool)], 1)
    torch.testing.assert_close(adapter.fuse(streams), adapter.fuse({**streams, "a": Tokens(longer, mask)}))


def learned(rank: int) -> float:
    """Error left on a target that is the sum of two products of modalities, relative to its variance, on new data.

    One output column, so that the head can't add up what the ranks leave apart; F_1(x) F_2(y) is separable, and the
    best separable function leaves half of x1 y1 + x2 y2 (its two singular values are equal).
    """
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(512, 1, dtype=torch.bool)
    torch.manual_seed(1)
    config = WanderConfig(bottleneck_dim=8, rank=rank, token_rank=1)
    adapter = Wander(config, {"x": Stream(4, 1), "y": Stream(4, 1)})
    optimizer = torch.optim.Adam(adapter.parameters(), 2e-2)

    def relative_error() -> torch.Tensor:
        x, y = torch.randn(2, 512, 1, 4, generator=generator)
        goal = x[:, 0, 0] * y[:, 0, 0] + x[:, 0, 1] * y[:, 0, 1]
        fused = adapter.fuse({"x": Tokens(x, mask), "y": Tokens(y, mask)})[:, 0, 0]
        return (fused - goal).square().mean() / goal.var()

    for _ in range(800):
        optimizer.zero_grad()
        relative_error().backward()
        optimizer.step()
    with torch.no_grad():
        return torch.stack([relative_error() for _ in range(20)]).mean().item()


def test_a_sum_of_two_products_needs_cp_rank_two():
    assert learned(rank=1) > 0.45
    assert learned(rank=2) < 0.15


def test_too_many_tokens_and_an_unknown_target_are_errors():
    with pytest.raises(FusetuneError, match="made for 3"):
        adapter_of({"a": (3, 4), "b": (3, 4)}).fuse(streams_of({"a": (4, 4), "b": (3, 4)}))
    with pytest.raises(FusetuneError, match="no stream 'z'"):
        adapter_of({"a": (3, 4)}, target="z")


def test_cannot_be_merged():
    with pytest.raises(TypeError, match="merged"):
        adapter_of({"a": (3, 4)}).delta()


@pytest.mark.parametrize("lengths", [(1, 1), (200, 200), (1, 200), (17, 1, 200), (1, 2, 3, 4, 5), (200,) * 7])
def test_any_number_of_modalities_and_tokens(lengths):
    sizes = {f"m{i}": (length, 6) for i, length in enumerate(lengths)}
    adapter, streams = adapter_of(sizes), streams_of(sizes)
    with torch.no_grad():
        adapter.scale.fill_(1.0)
    out = adapter.fuse(streams)
    assert torch.isfinite(out).all() and out.std() > 1e-3
    for name, tokens in streams.items():
        other = {**streams, name: Tokens(tokens.values * -2, tokens.mask)}
        assert not torch.allclose(adapter.fuse(other), out), f"{name} counts"


def test_its_arithmetic_grows_linearly_in_modalities_and_in_tokens():
    from torch.utils.flop_counter import FlopCounterMode

    def flops(modalities, tokens):
        sizes = {f"m{i}": (tokens, 64) for i in range(modalities)}
        adapter, streams = adapter_of(sizes, bottleneck_dim=16), streams_of(sizes)
        with FlopCounterMode(display=False) as counter:
            adapter.fuse(streams).sum().backward()
        return counter.get_total_flops()

    assert flops(4, 100) == pytest.approx(2 * flops(2, 100), rel=0.01)
    assert flops(6, 100) == pytest.approx(3 * flops(2, 100), rel=0.01)
    per_token = [(flops(2, 2 * t) - flops(2, t)) / t for t in (50, 100, 200)]
    assert max(per_token) == pytest.approx(min(per_token), rel=0.01)


@pytest.mark.parametrize("sizes", [{"a": (3, 4), "b": (2, 5)}, {"a": (2, 3), "b": (3, 2), "c": (1, 4)}])
def test_interactions_are_what_two_tokens_add_together_that_neither_adds_alone(sizes):
    torch.manual_seed(0)
    adapter = adapter_of(sizes, bottleneck_dim=2, rank=3, fused_tokens=None)
    streams = streams_of(sizes, batch=3)

    def fused(present: dict[str, int]) -> torch.Tensor:
        """H where of each modality only the named token is there."""
        given = {}
        for name, tokens in streams.items():
            mask = torch.zeros_like(tokens.mask)
            if name in present:
                mask[:, present[name]] = True
            given[name] = Tokens(tokens.values, mask)
        return adapter.fuse(given)

    found = adapter.interactions(streams)
    assert set(found) == {(a, b) for a in sizes for b in sizes if a < b}
    for (a, b), strength in found.items():
        for i in range(sizes[a][0]):
            for j in range(sizes[b][0]):
                both = fused({a: i, b: j}) - fused({a: i}) - fused({b: j}) + fused({})
                assert strength[i, j] == pytest.approx(both.flatten(1).norm(dim=1).mean().item(), rel=1e-4)
