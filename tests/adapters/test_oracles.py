"""Each method against something that doesn't know it: peft's own model, an equation, attention written out."""

import encoders
import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusetune.adapters.adalora import AdaLoRA, AdaLoRAConfig
from fusetune.adapters.adapter import Block, Stack, Stream
from fusetune.adapters.attention_prefix import Prefixing
from fusetune.adapters.bottleneck import BottleneckAdapter, BottleneckConfig
from fusetune.adapters.cross_modal import CrossModal, CrossModalConfig, stretches
from fusetune.adapters.fusion_gate import FusionGate, FusionGateConfig
from fusetune.adapters.lmf import LMF, LMFConfig
from fusetune.adapters.opened import BitFit, OpenedConfig
from fusetune.adapters.peft_tuners import (
    IA3,
    DoRA,
    IA3Config,
    LoRA,
    LoRAConfig,
    VeRA,
    VeRAConfig,
)
from fusetune.adapters.prefix import PrefixAdapter, PrefixConfig
from fusetune.adapters.unipelt import UniPELT, UniPELTConfig
from fusetune.adapters.vl_adapter import Kronecker
from fusetune.backbones.blocks import ENCODER_ROLES, Attention, EncoderBlock
from fusetune.tokens import Tokens

TARGETS = ("query", "value", "mlp_output")


class Blocks(nn.Module):
    """A stack of our encoder blocks, for both sides of a comparison."""

    def __init__(self, depth=3, width=16):
        super().__init__()
        self.layers = nn.ModuleList(EncoderBlock(width, 2) for _ in range(depth))

    def forward(self, states, mask):
        for block in self.layers:
            states = block(states, mask)
        return states


def placed(cls, config, model, numbers=None):
    stack = Stack("text", model, ENCODER_ROLES, {"text": Stream(16, 8)})
    chosen = range(len(model.layers)) if numbers is None else numbers
    adapter = cls(config, stack, [Block(i, model.layers[i]) for i in chosen])
    adapter.attach()
    return adapter


def twins(seed=0):
    torch.manual_seed(seed)
    one, two = Blocks(), Blocks()
    two.load_state_dict(one.state_dict())
    return one.requires_grad_(False).eval(), two.requires_grad_(False).eval()


def inputs():
    torch.manual_seed(9)
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[1, 5:] = False
    return torch.randn(4, 8, 16), mask


def shaken(model):
    """Every trainable parameter moved off its initial value."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)


LAYERS = [f"layers.{i}.{ENCODER_ROLES[role]}" for i in range(3) for role in TARGETS]


@pytest.mark.parametrize(
    ("cls", "ours", "theirs"),
    [
        (LoRA, LoRAConfig(4, 8.0, targets=TARGETS), peft.LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS)),
        (
            DoRA,
            LoRAConfig(4, 8.0, targets=TARGETS),
            peft.LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS, use_dora=True),
        ),
        (
            VeRA,
            VeRAConfig(8, targets=TARGETS),
            peft.VeraConfig(r=8, target_modules=LAYERS, projection_prng_key=0, d_initial=0.1),
        ),
        (
            IA3,
            IA3Config(("key", "value"), ("mlp_output",)),
            peft.IA3Config(
                target_modules=[
                    f"layers.{i}.{ENCODER_ROLES[r]}" for i in range(3) for r in ("key", "value", "mlp_output")
                ],
                feedforward_modules=[f"layers.{i}.{ENCODER_ROLES['mlp_output']}" for i in range(3)],
            ),
        ),
        (
            AdaLoRA,
            AdaLoRAConfig(2, 4, alpha=8.0, targets=TARGETS),
            peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=8, target_modules=LAYERS, total_step=10),
        ),
    ],
    ids=["lora", "dora", "vera", "ia3", "adalora"],
)
def test_on_the_same_weights_it_gives_what_a_peft_model_gives(cls, ours, theirs):
    one, two = twins()
    adapter = placed(cls, ours, one)
    other = peft.get_peft_model(two, theirs)
    shaken(one)
    mine = [p for p in one.parameters() if p.requires_grad]
    peers = [p for p in other.parameters() if p.requires_grad]
    assert [p.shape for p in mine] == [p.shape for p in peers] and len(mine) == len(adapter.trained())
    with torch.no_grad():
        for parameter, peer in zip(mine, peers, strict=True):
            peer.copy_(parameter)
    torch.testing.assert_close(one(*inputs()), other.eval()(*inputs()), rtol=1e-6, atol=1e-6)


def test_ranks_may_differ_by_block():
    one, _ = twins()
    stack = Stack("text", one, ENCODER_ROLES, {"text": Stream(16, 8)})
    adapter = LoRA(LoRAConfig(4, targets=("query",)), stack, [Block(0, one.layers[0], 2), Block(2, one.layers[2], 7)])
    adapter.attach()
    assert sorted(tuple(p.shape) for p in adapter.trained()) == [(2, 16), (7, 16), (16, 2), (16, 7)]
    layer = one.layers[2].attention.query
    assert layer.scaling["lora"] == 1.0, "alpha follows the rank where it isn't given"


def test_adalora_moves_ranks_and_ends_with_the_budget():
    one, _ = twins()
    adapter = placed(AdaLoRA, AdaLoRAConfig(1, 4, every=2, warmup=0.1, final=0.3), one)
    optimizer, steps = torch.optim.AdamW(adapter.trained(), 1e-2), 40
    adapter.on_start(steps)
    states, mask = inputs()
    goal = torch.randn(4, 8, 16)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        ((one(states, mask) - goal).square().mean() + adapter.penalty()).backward()
        optimizer.step()
        adapter.on_step(step)
    ranks = [(layer.lora_E["adalora"] != 0).sum().item() for layer in adapter._layers.values()]
    assert sum(ranks) == len(ranks) and len(set(ranks)) > 1, f"a budget of one a layer, given unevenly: {ranks}"


@pytest.mark.parametrize(("causal", "masking"), [(True, "none"), (False, "none"), (False, "bool"), (False, "float")])
def test_a_prefix_is_attention_over_longer_keys_and_values(causal, masking):
    class Plain(nn.Module):
        def forward(self, query, key, value, mask):
            return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)

    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    keys, values = torch.randn(2, 3, 32)
    seen = torch.ones(5, 5, dtype=torch.bool).tril() if causal else torch.ones(5, 5, dtype=torch.bool)
    seen = seen.expand(2, 1, 5, 5).clone()
    if masking != "none":
        seen[1, :, :, 3:] = False
    mask = {"none": None, "bool": seen, "float": torch.zeros(seen.shape).masked_fill(~seen, -1e9)}[masking]
    module = Plain()
    wrapped = Prefixing(module, lambda _: ((keys, values, None), None))
    heads = [states.view(3, 4, 8).transpose(0, 1).expand(2, -1, -1, -1) for states in (keys, values)]
    scores = query @ torch.cat([heads[0], key], 2).transpose(-1, -2) / 8**0.5
    scores = scores.masked_fill(torch.cat([torch.zeros(2, 1, 5, 3, dtype=torch.bool), ~seen], -1), -torch.inf)
    expected = scores.softmax(-1) @ torch.cat([heads[1], value], 2)
    torch.testing.assert_close(module(query, key, value, mask), expected)
    wrapped.remove()
    torch.testing.assert_close(
        module(query, key, value, mask), F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    )


def test_a_prefix_that_the_attention_never_asks_for_is_an_error():
    class Eager(nn.Module):
        def forward(self, query):
            return (query @ query.transpose(-1, -2)).softmax(-1) @ query

    module = Eager()
    Prefixing(module, lambda _: ((torch.zeros(1, 4), torch.zeros(1, 4), None), None))
    with pytest.raises(Exception, match="without scaled_dot_product_attention"):
        module(torch.randn(1, 1, 3, 4))


def unipelt(model, gates):
    """UniPELT on all blocks, its submodules shaken, each gate driven to 0 or 1."""
    adapter = placed(UniPELT, UniPELTConfig(4, 3, 0, 2, 4.0), model)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        for gated in adapter.gated.values():
            for name, gate in gated.gates.items():
                gate.weight.zero_()
                gate.bias.fill_(100.0 if name in gates else -100.0)
    return adapter


def test_unipelt_with_all_gates_shut_is_the_backbone():
    one, two = twins()
    unipelt(one, ())
    torch.testing.assert_close(one(*inputs()), two(*inputs()), rtol=0, atol=0)


def test_unipelt_with_one_gate_open_is_that_submodule():
    for name, make in {
        "bottleneck": lambda m: placed(BottleneckAdapter, BottleneckConfig(4), m),
        "prefix": lambda m: placed(PrefixAdapter, PrefixConfig(3, 0), m),
        "lora": lambda m: placed(LoRA, LoRAConfig(2, 4.0), m),
    }.items():
        one, two = twins()
        whole, alone = unipelt(one, (name,)), make(two)
        with torch.no_grad():
            for i in range(3):
                gated = whole.gated[str(i)]
                if name == "bottleneck":
                    alone.bottlenecks[f"{i}_mlp_output"].load_state_dict(gated.bottleneck.state_dict())
                elif name == "prefix":
                    alone.tables[f"{i}_attention_text"].table.copy_(gated.prefix.table)
                else:
                    for role, low_rank in (("query", gated.lora_query), ("value", gated.lora_value)):
                        layer = getattr(two.layers[i].attention, role)
                        layer.lora_A["lora"].weight.copy_(low_rank.a.weight)
                        layer.lora_B["lora"].weight.copy_(low_rank.b.weight)
        torch.testing.assert_close(one(*inputs()), two(*inputs()), rtol=1e-5, atol=1e-5)
        shown = whole.observed()
        assert shown["text_block1_" + name].min() == 1 and len(shown) == 9


def test_bitfit_trains_biases_and_nothing_else():
    one, _ = twins()
    adapter = placed(BitFit, OpenedConfig(), one)
    named = {name for name, p in one.named_parameters() if p.requires_grad}
    assert named == {name for name, _ in one.named_parameters() if name.endswith("bias")}
    assert len(adapter.trained()) == len(named)


def test_the_bottleneck_equations():
    torch.manual_seed(0)
    for position in ("pfeiffer", "parallel", "houlsby"):
        one, two = twins()
        adapter = placed(BottleneckAdapter, BottleneckConfig(4, position, 2.0), one, [0])
        shaken(adapter)
        states, mask = inputs()
        block = two.layers[0]
        normed = block.attention_norm(states)
        attended = block.attention(normed, normed, mask)
        if position == "houlsby":
            attended = attended + adapter.bottlenecks["0_attention_output"](attended)
        states = states + attended
        read = block.mlp_norm(states)
        written, bottleneck = block.mlp(read), adapter.bottlenecks["0_mlp_output"]
        change = 2.0 * bottleneck(read) if position == "parallel" else bottleneck(written)
        expected = two.layers[2](two.layers[1](states + written + change, mask), mask)
        torch.testing.assert_close(one(*inputs()), expected)


def test_kronecker_is_the_sum_of_kronecker_products():
    torch.manual_seed(0)
    shared = nn.Parameter(torch.randn(3, 3, 3))
    layer = Kronecker(shared, 12, 6, 2, zero=False)
    expected = sum(torch.kron(shared[i], layer.s[i] @ layer.t[i]) for i in range(3))
    torch.testing.assert_close(layer.weight(), expected)


def token_streams(counts, widths):
    torch.manual_seed(1)
    return {
        name: Tokens(torch.randn(3, count, widths[name]), torch.ones(3, count, dtype=torch.bool))
        for name, count in counts.items()
    }


COUNTS, WIDTHS = {"a": 4, "b": 2, "c": 3}, {"a": 5, "b": 6, "c": 7}
STREAMS = {name: Stream(WIDTHS[name], COUNTS[name]) for name in COUNTS}


def test_lmf_is_the_outer_product_contracted_with_the_rebuilt_tensor():
    torch.manual_seed(0)
    adapter = LMF(LMFConfig(3), STREAMS)
    shaken(adapter)
    vectors = {name: torch.randn(2, width) for name, width in WIDTHS.items()}
    with_one = [torch.cat([v, torch.ones(2, 1)], 1) for v in vectors.values()]
    factors = [torch.cat([adapter.factors[n], adapter.ones[n].unsqueeze(1)], 1) for n in WIDTHS]  # (R, d + 1, width)
    tensor = torch.einsum("iax,ibx,icx->abcx", *factors)
    outer = torch.einsum("na,nb,nc->nabc", *with_one)
    expected = adapter.scale * (torch.einsum("nabc,abcx->nx", outer, tensor) + adapter.bias)
    torch.testing.assert_close(adapter.fuse(vectors), expected, rtol=1e-4, atol=1e-4)


def test_the_gate_is_a_weighted_sum_of_modalities_and_leaves_out_what_is_missing():
    torch.manual_seed(0)
    adapter = FusionGate(FusionGateConfig(4), STREAMS)
    shaken(adapter)
    streams = token_streams(COUNTS, WIDTHS)
    out = adapter(streams)["a"].values - streams["a"].values
    gates = torch.cat([adapter.observed()[f"gate_{name}"] for name in COUNTS], 1)
    torch.testing.assert_close(gates.sum(1), torch.ones(3))
    hidden = torch.stack([adapter.hidden[n](t.values.mean(1)).tanh() for n, t in streams.items()], 1)
    expected = (gates.unsqueeze(-1) * hidden).sum(1) @ adapter.up.weight.T
    torch.testing.assert_close(out, expected.unsqueeze(1).expand_as(out))
    adapter({name: tokens for name, tokens in streams.items() if name != "b"})
    assert adapter.observed()["gate_b"].abs().max() == 0


def test_cross_modal_for_two_is_g_one_way_and_one_minus_g_the_other():
    torch.manual_seed(0)
    pair = {name: STREAMS[name] for name in ("a", "b")}
    adapter = CrossModal(CrossModalConfig(4, 2), pair)
    shaken(adapter)
    streams = token_streams({"a": 4, "b": 2}, WIDTHS)
    out, gates = adapter(streams), adapter.observed()
    torch.testing.assert_close(gates["gate_a"] + gates["gate_b"], torch.ones(3, 1))
    low = {n: adapter._low(n, t) for n, t in streams.items()}
    heads, a = [], adapter.attention
    for h, part in enumerate((slice(0, 2), slice(2, 4))):
        query, key, value = (f(low[n])[..., part] for f, n in ((a.query, "a"), (a.key, "b"), (a.value, "b")))
        logits = query @ key.transpose(1, 2) / 2**0.5 + adapter.stretches["b"][h]
        heads.append(logits.masked_fill(~streams["b"].mask[:, None], -torch.inf).softmax(-1) @ value)
    message = adapter.up["a"](a.output(torch.cat(heads, -1) * 2 * a.gate(low["a"]).sigmoid()))
    torch.testing.assert_close(out["a"].values, streams["a"].values + gates["gate_a"].unsqueeze(-1) * message)


def test_heads_start_at_a_stretch_each_and_tile_a_stream_of_any_length():
    tiled = stretches(4, 8)
    assert ((tiled == 0).sum(0) >= 1).all() and (tiled[0] == torch.tensor([0, 0, 0, -1, -2, -3, -4, -5])).all()
    assert torch.equal(tiled, tiled.flip(0, 1)), "from the end as from the beginning"
    assert (stretches(4, 1) == 0).all(), "all read the only token"
    few = stretches(4, 2) == 0
    assert few[0, 0] and few[1, 0] and not few[0, 1] and few[3, 1] and not few[3, 0]


@pytest.mark.parametrize("count", [2, 3, 5, 7])
@pytest.mark.parametrize("length", [1, 200])
def test_any_number_of_modalities_and_tokens(count, length):
    streams = {f"m{i}": Stream(8, length if i % 2 else 1) for i in range(count)}
    for cls, config in (
        (LMF, LMFConfig(2)),
        (FusionGate, FusionGateConfig(4)),
        (CrossModal, CrossModalConfig(4, 2)),
    ):
        torch.manual_seed(0)
        adapter = cls(config, streams)
        shaken(adapter)
        given = token_streams({n: s.max_tokens for n, s in streams.items()}, dict.fromkeys(streams, 8))
        out = adapter(given)
        change = sum((out[n].values - given[n].values).abs().sum() for n in given)
        assert torch.isfinite(change) and change > 1e-3
        out["m0"].values.sum().backward()
        missing = {n: Tokens(t.values, t.mask & (torch.arange(3) != 1)[:, None]) for n, t in given.items() if n != "m1"}
        assert torch.isfinite(adapter(missing)["m0"].values).all()


def test_an_attention_of_ours_is_met_by_a_prefix():
    torch.manual_seed(0)
    attention = Attention(16, 2)
    states, mask = inputs()
    plain = attention(states, states, mask)
    Prefixing(attention, lambda _: ((torch.zeros(2, 16), torch.zeros(2, 16), None), None))
    assert (attention(states, states, mask) - plain).abs().max() > 1e-3


TOWERS = [n for n in encoders.FAMILIES if n != "vector" and "not in the table" not in n and "features" not in n]


@pytest.mark.parametrize("name", TOWERS)
def test_every_part_that_a_family_names_is_there_and_is_met(name):
    make, samples = encoders.FAMILIES[name]
    torch.manual_seed(0)
    tower = make()
    stack = Stack("x", tower, tower.roles(), {"x": Stream(32, 16)})
    blocks = [Block(i, block) for i, block in enumerate(tower.blocks())]
    tokens = tower.prepare(samples())
    tower.requires_grad_(False)
    plain = tower.advance(tokens, 0, tower.depth).values
    for cls, config in (
        (LoRA, LoRAConfig(2, targets=("query", "key", "value", "attention_output", "mlp_input", "mlp_output"))),
        (PrefixAdapter, PrefixConfig(3, 0)),
        (BottleneckAdapter, BottleneckConfig(4, "houlsby")),
        (UniPELT, UniPELTConfig(4, 2, 0, 2)),
    ):
        adapter = cls(config, stack, blocks)
        adapter.attach()
        with torch.no_grad():
            for parameter in adapter.trained():
                parameter.add_(torch.randn_like(parameter) * 0.5)
        changed = tower.advance(tokens, 0, tower.depth).values
        assert (changed - plain).abs().max() > 1e-3
        half = tower.advance(tokens, 0, 1)
        torch.testing.assert_close(tower.advance(half, 1, tower.depth).values, changed, rtol=0, atol=0)
        adapter.detach()
        torch.testing.assert_close(tower.advance(tokens, 0, tower.depth).values, plain, rtol=0, atol=0)
