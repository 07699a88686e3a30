"""The account of plans on full-size models, from their configurations: no weights, no data."""

import subprocess
import sys
import textwrap

import pytest
import torch
import yaml
from test_answering import HEARS, SPEAKING, adapted, listening

from conftest import ROOT
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.features.index import CacheSettings
from fusetune.plan.plan import Plan
from fusetune.runs import account as accounting
from fusetune.runs.account import EstimateSettings, account, estimate

HEAD = {"where": "head", "adapter": "linear"}


def estimated(model, *placements, **settings):
    plan = build(Plan, {"placements": [*placements, HEAD]}, "p")
    return estimate(plan, "p", EstimateSettings(model=model, **settings), CacheSettings())


def at(where, adapter, blocks="all", **config):
    return {"where": where, "adapter": adapter, "blocks": blocks, "config": config}


def percent(found):
    return found.plain()["percent_of_base_without_head"]


BANDS = {
    # what the field states of a CLIP-size or BERT-size base, in percent; sizes as their papers have them
    "lora": (at("towers", "lora", rank=4), 0.01, 0.3),
    "bottleneck": (at("towers", "bottleneck", bottleneck_dim=64, position="houlsby"), 0.5, 3.0),
    "prefix": (at("towers", "prefix", length=16, hidden=0), 0.0, 1.0),
    "vera": (at("towers", "vera", rank=256), 0.0, 0.1),
    "ia3": (at("towers", "ia3"), 0.0, 0.1),
    "ln_tuning": (at("towers", "ln_tuning"), 0.0, 0.1),
}


@pytest.mark.parametrize("model", ["clip", "bert"])
@pytest.mark.parametrize("name", BANDS)
def test_overheads_lie_in_the_bands_that_the_field_states(model, name):
    placement, low, high = BANDS[name]
    assert low < percent(estimated(model, placement)) < high


def test_bitfit_is_at_the_edge_of_its_band_for_clip():
    """0.09% of BERT, as the paper says; CLIP's towers are narrower, so biases weigh more: 0.11%."""
    assert 0.08 < percent(estimated("bert", at("towers", "bitfit"))) < 0.1
    assert 0.1 < percent(estimated("clip", at("towers", "bitfit"))) < 0.12


def test_a_cross_modal_adapter_reaches_its_band_with_the_width_of_its_paper():
    assert 0.5 < percent(estimated("clip", at("junction", "cross_modal", bottleneck_dim=512, heads=8))) < 5


def test_the_counts_are_those_of_the_published_models():
    full = estimated("clip", {"where": "backbone", "adapter": "unfreeze"})
    assert full.base_parameters == 87_456_000 + 63_165_952  # CLIPVisionModel and CLIPTextModel of ViT-B/32
    assert full.trainable == {"image": 87_456_000, "text": 63_165_952, "head": (768 + 512) * 1000 + 1000}
    assert full.flop_ratio == 1 and full.flops_below == 0


def test_flops_agree_with_the_formula():
    """A transformer of width d: 24 d^2 + 4 T d per token, block and forward pass, 3 times that with backward."""
    tokens, d, depth = 32, 768, 12
    forward = depth * tokens * (24 * d**2 + 4 * tokens * d)
    found = estimated("bert", text_tokens=tokens)
    assert found.flops_below == pytest.approx(forward, rel=0.01)
    full = estimated("bert", {"where": "backbone", "adapter": "unfreeze"}, text_tokens=tokens)
    assert full.flops == pytest.approx(3 * forward, rel=0.01)
    half = estimated("bert", at("towers", "lora", {"take": "top", "count": 6}), text_tokens=tokens)
    assert half.frontier.towers == {"text": 6} and half.flops_below == pytest.approx(forward / 2, rel=0.01)
    assert half.cache_bytes == 100_000 * tokens * d * 2


def test_large_models_are_accounted_for_without_their_weights():
    code = textwrap.dedent(
        """
        import resource
        from fusetune.config import build
        from fusetune.features.index import CacheSettings
        from fusetune.plan.plan import Plan
        from fusetune.runs.account import EstimateSettings, estimate
        plan = build(Plan, {"placements": [
            {"where": "towers", "adapter": "lora"}, {"where": "head", "adapter": "linear"}]}, "p")
        found = estimate(plan, "p", EstimateSettings(model="llava", answer_tokens=30), CacheSettings())
        print(found.base_parameters, found.frontier, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    base, *frontier, megabytes = done.stdout.split()
    assert int(base) == 7_062_902_784 and " ".join(frontier) == "image 0, text 0, answer 0"
    assert int(megabytes) < 2500, "27 GB of weights were never there"


QV = {"rank": 32, "targets": ["query", "value"]}
CONNECTOR = {"where": "backbone", "adapter": "unfreeze", "config": {"parts": ["image"], "top_blocks": 1}}


def test_llava_with_lora_is_the_published_account():
    """37.7 M: rank 32 on query and value of the language blocks, and the connector trained; not of both towers."""
    spoken = dict(answer_tokens=30, batch_size=1)
    found = estimated("llava", at("trunk", "lora", **QV), CONNECTOR, **spoken)
    language, connector = 32 * 2 * 2 * 4096 * 32, 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert found.trainable == {"trunk": language, "image": connector} and language + connector == 37_756_928
    both = estimated("llava", at("towers", "lora", **QV), **spoken)  # the encoder's and the language blocks
    vision = 23 * 2 * 2 * 1024 * 32  # of 24 blocks: the last one is not read
    assert both.trainable == {"trunk": language, "image": vision}


def test_memory_of_a_model_that_speaks_by_part_and_precision():
    top = at("trunk", "lora", {"take": "top", "count": 4}, **QV)
    settings = dict(answer_tokens=30, batch_size=4)
    full, half, four = (
        estimated("llava", top, precision=precision, **settings) for precision in ("float32", "bfloat16", "nf4")
    )
    trained, base = full.trainable_parameters, full.base_parameters
    assert full.frontier.trunk == 28 and full.cache_bytes == 100_000 * (576 + 32 + 29) * 4096 * 2
    assert full.memory["weights"] == 4 * (base + trained) and full.memory["optimizer"] == 12 * trained
    assert half.memory["weights"] == 2 * base + 4 * trained
    assert 0.55 * base < four.memory["weights"] - 4 * trained < 0.6 * base, "embeddings, norms and head are not packed"
    assert half.memory["activations"] == full.memory["activations"] // 2
    assert full.memory["outputs"] >= 4 * 30 * 32_000 * 4, "logits at supervised places alone"
    assert full.memory["outputs"] < 4 * (576 + 62) * 32_000 * 4
    deep = estimated("llava", at("trunk", "lora", **QV), **settings)
    assert 6 < deep.memory["activations"] / full.memory["activations"] < 10, "32 blocks against 4"
    assert full.flop_ratio > 4 and full.memory_bytes == sum(full.memory.values())


@pytest.mark.parametrize("name", SPEAKING)
def test_the_account_by_configuration_is_that_of_the_model_itself(name, tmp_path):
    SPEAKING[name](tmp_path)
    seen = "audio" if name in HEARS else "image"
    placements = [
        at("trunk", "lora", {"take": "top", "count": 2}, rank=2), at("towers", "ln_tuning", {"modalities": [seen]})
    ]  # fmt: skip
    sizes = dict(answer_tokens=8, text_tokens=12, batch_size=4)
    found, deep = (estimated(str(tmp_path), *placements[:count], **sizes) for count in (2, 1))
    of_real = [
        {**p, "blocks": {**p["blocks"], **({"modalities": ["image"]} if i else {})}} for i, p in enumerate(placements)
    ]
    model = adapted(*listening(tmp_path, name=name), *of_real)
    named = {"image": seen}
    own: dict[str, int] = {}
    for parameter, site in model.sites().items():
        own[named.get(site, site)] = own.get(named.get(site, site), 0) + parameter.numel()
    assert found.trainable == own and found.base_parameters == model.base_count()
    assert (found.frontier.trunk, deep.cut.costs[0].name) == (0, "inputs")
    assert deep.frontier.trunk == model.backbone.trunk.depth - 2
    assert deep.frontier.towers[seen] == model.backbone.tower("image").depth
    assert deep.flops < deep.flops_uncached and deep.launches < deep.launches_uncached
    assert deep.memory["outputs"] > 0


def test_default_sizes_that_do_not_fit_each_other_are_told():
    with pytest.raises(FusetuneError, match="connector gives 3584 numbers a token, the language blocks take 8192"):
        estimated("qwen2_vl", at("towers", "ln_tuning", {"modalities": ["image"]}), answer_tokens=8)
    with pytest.raises(FusetuneError, match="no model that an experiment with answers in words can be built on"):
        estimated("clip", at("towers", "ln_tuning", {"modalities": ["image"]}), answer_tokens=8)


def test_a_configuration_file_is_enough(tmp_path):
    from transformers import CLIPConfig

    vision = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14)
    text = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    CLIPConfig(vision_config=vision, text_config=text).save_pretrained(tmp_path)
    found = estimated(str(tmp_path))
    assert found.frontier.towers == {"image": 24, "text": 12} and 4.2e8 < found.base_parameters < 4.3e8


@pytest.mark.parametrize("method", sorted(f.stem for f in (ROOT / "conf" / "base" / "methods").glob("*.yml")))
def test_every_method_of_the_conf_fits_or_says_why_not(method):
    values = yaml.safe_load((ROOT / "conf" / "base" / "methods" / f"{method}.yml").read_text())[method]
    try:
        found = estimate(build(Plan, values, method), method, EstimateSettings(), CacheSettings())
    except FusetuneError as error:
        assert any(text in str(error) for text in ("there is no trunk here", "no task", "Train it first")), error
        return
    assert found.trainable_parameters > 0 and found.memory_bytes > 4 * found.base_parameters


def test_memory_is_what_training_takes(toy):
    """Against a count by hand: a linear layer keeps its input, a GELU its own."""
    from fusetune.runs.account import _Kept

    layers = torch.nn.Sequential(torch.nn.Linear(10, 50), torch.nn.GELU(), torch.nn.Linear(50, 3))
    kept = _Kept(layers)
    with kept:
        layers(torch.randn(7, 10))
    assert kept.bytes == 4 * 7 * (10 + 50 + 50)
    plain = account(toy.experiment(), CacheSettings(), 64)
    lora = account(toy.experiment(at("towers", "lora")), CacheSettings(), 64)
    twice = account(toy.experiment(at("towers", "lora")), CacheSettings(), 128)
    assert plain.memory_bytes < lora.memory_bytes < twice.memory_bytes < 2 * lora.memory_bytes


@pytest.mark.parametrize(
    ("model", "message"),
    [("clpi", "knows no model type 'clpi'"), ("wav2vec2", "an encoder of 'input_values' can't be accounted for")],
)
def test_what_cannot_be_accounted_for_is_named(model, message):
    with pytest.raises(FusetuneError, match=message):
        estimated(model)


def test_a_base_without_parameters_has_no_percent():
    """Features that are passed through: anything trained is more than all of it."""
    assert accounting.percent(5, 1000) == 0.5 and accounting.percent(5, 0) is None
