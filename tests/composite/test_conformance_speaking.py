"""What holds of every adapter in a model that speaks: causal (LLaVA, Qwen2-VL), reading by cross-attention (BLIP), and
an encoder with a decoder (Whisper)."""

import pytest
import torch
from speaking import ASKED as ENCODED
from speaking import MODELS, READERS, SIZED
from test_answering import ANSWERS, KINDS, SPEAKING, adapted, given, listening, shown_to

from fusetune.backbones.backbone import Frontier
from fusetune.plan.frontier import frontier
from fusetune.tokens import Tokens
from fusetune.training.data import ANSWER
from fusetune.training.optimizer import rates_of
from fusetune.training.settings import TrainSettings

GROUND = Frontier(dict.fromkeys((*KINDS, ANSWER), 0))


def trunk(adapter, **config):
    return {"where": "trunk", "adapter": adapter, "blocks": {"take": "top", "count": 2}, "config": config}


def tower(adapter, **config):
    return {"where": "towers", "adapter": adapter, "blocks": {"modalities": ["image"]}, "config": config}


BOTH = {"where": "backbone", "adapter": "unfreeze", "config": {"parts": ["image"], "top_blocks": 1}}
# in the last block nothing reads what stands at the picture's places
BELOW = {"take": "explicit", "explicit": {"trunk": [1, 2]}}
CROSS = {"targets": ["cross_query", "cross_value"]}
BEGIN_OTHERWISE = ("prefix", "modality_prefix", "unipelt", "prompt_tuning", "deep_prompts")
ALL, CAUSAL = ("llava", "qwen2_vl", "blip", "whisper", "blip2_t5"), ("llava", "qwen2_vl")
CROSSED = ("blip", "whisper", "mllama", "blip2_t5")
SDPA = ("llava", "qwen2_vl", "whisper", "blip2_t5")  # BLIP's text attends by itself, without a place for a prefix
ROWS = {  # placements, models, folds into the base's weights
    "lora": ([trunk("lora", rank=2)], ALL, True),
    "lora in cross-attention": ([trunk("lora", rank=2, **CROSS)], CROSSED, True),
    "dora": ([trunk("dora", rank=2)], ALL, True),
    "adalora": ([trunk("adalora", rank=1, initial_rank=3)], ALL, True),
    "vera": ([trunk("vera", rank=4)], ALL, True),
    "ia3": ([trunk("ia3")], ALL, True),
    "bottleneck": ([trunk("bottleneck", bottleneck_dim=4)], ALL, False),
    "prefix": ([trunk("prefix", length=3, hidden=0)], SDPA, False),
    "modality_prefix": ([trunk("modality_prefix", length=3, hidden=0)], SDPA, False),
    "unipelt": ([trunk("unipelt", rank=2, bottleneck_dim=4)], SDPA, False),
    "prompt_tuning": ([{**trunk("prompt_tuning", length=3), "blocks": "all"}], ALL[:-1], False),
    "deep_prompts": ([tower("deep_prompts", length=3)], ("llava", "blip", "whisper"), False),
    "bitfit": ([trunk("bitfit")], ("blip", "whisper"), True),
    "ln_tuning": ([trunk("ln_tuning")], ALL, True),
    "vl_adapter": ([{**trunk("vl_adapter", bottleneck_dim=4), "blocks": BELOW}], ALL, False),
    "vl_adapter behind cross-attention": (
        [trunk("vl_adapter", bottleneck_dim=4, behind=["cross_attention", "mlp"])],
        CROSSED,
        False,
    ),
    "vl_adapter, text alone": ([trunk("vl_adapter", bottleneck_dim=4, streams=["text"])], ALL, False),
    "wander": ([trunk("wander", bottleneck_dim=4)], CAUSAL, False),
    "cross_modal": ([trunk("cross_modal", bottleneck_dim=8, heads=2)], CAUSAL, False),
    "the connector": ([BOTH], ALL, True),
    "words beside lora": (
        [
            {"where": "backbone", "adapter": "unfreeze", "config": {"parts": ["words"]}},
            {**trunk("lora", rank=2), "blocks": BELOW},
        ],
        ALL,
        True,
    ),
    "bottleneck in the tower": ([tower("bottleneck", bottleneck_dim=4)], ALL, False),
    "lora in both": ([trunk("lora", rank=2), tower("lora", rank=2, targets=["mlp_input"])], ALL, True),
}
CASES = [(name, row) for row, (_, models, _) in ROWS.items() for name in models]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for name in {*ALL, *CROSSED}:
        found[name] = tmp_path_factory.mktemp(name)
        SPEAKING[name](found[name])
    return found


@pytest.fixture(params=CASES, ids=[f"{name}, {row}" for name, row in CASES])
def case(request, folders):
    """The model's name, its adapted model, streams and targets, and whether the plan folds."""
    name, row = request.param
    placements, _, merges = ROWS[row]
    torch.manual_seed(0)
    backbone, task = listening(folders[name], name=name)
    model = adapted(backbone, task, *placements).eval()
    return name, row, model, given(backbone, shown_to(name, 1, 1, 1)), merges


def trained(model, streams, steps=4):
    targets = model.task.targets({"said": ANSWERS})
    optimizer = torch.optim.AdamW(list(model.trainable().values()), lr=1e-2)
    for adapter in model.adapters():
        adapter.on_start(steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss = model.task.loss(model(streams, GROUND), targets)
        penalty = model.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        for adapter in model.adapters():
            adapter.on_step(step + 1)
    model.eval()


def test_it_learns_alone_and_from_the_cache_it_is_the_same(case):
    """All of it moves, nothing of the base does; what is below the frontier can be cached; off the base all is gone."""
    _, row, model, streams, _ = case
    with torch.no_grad():
        model.detach()
        bare = model(streams, GROUND)
        model.attach()
        gap = (model(streams, GROUND) - bare).abs().max()
        assert gap < 1e-4 or row in BEGIN_OTHERWISE, "it begins as the base"
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(model, streams)
    trainable = model.trainable()
    # softmax is blind to a key's bias, and AdaLoRA gives up some of its ranks
    blind = ("key.bias", "k_proj.bias", "lora_E.adalora")
    still = [n for n in trainable if torch.equal(trainable[n], before[n]) and not n.endswith(blind)]
    assert not still, still
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n not in trainable)
    with torch.no_grad():
        after = model(streams, GROUND)
        assert (after - bare).abs().max() > 1e-4
        reached = frontier(model, streams)
        assert reached != model.backbone.full_depth(list(streams))
        assert torch.equal(model(model.backbone.advance(streams, GROUND, reached), reached), after)


@torch.no_grad()
def test_a_batch_gives_what_its_samples_give_alone(case):
    _, _, model, streams, _ = case
    for parameter in model.trainable().values():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    together = model(streams, GROUND)
    for i in range(3):
        alone = {key: Tokens(t.values[i : i + 1], t.mask[i : i + 1]) for key, t in streams.items()}
        for key in ("text", ANSWER):
            length = int(alone[key].mask.sum())
            alone[key] = Tokens(alone[key].values[:, :length], alone[key].mask[:, :length])
        out = model(alone, GROUND)[0]
        torch.testing.assert_close(out, together[i, : len(out)], rtol=1e-3, atol=1e-4)


def test_it_folds_or_says_that_it_does_not(case):
    _, _, model, streams, merges = case
    trained(model, streams)
    with torch.no_grad():
        model.fold()
        before = model(streams, GROUND)
        if not merges:
            with pytest.raises(TypeError, match="can't be merged into the base"):
                model.merge()
            return
        model.merge()
        torch.testing.assert_close(model(streams, GROUND), before, rtol=1e-4, atol=1e-4)


def test_every_model_is_one_that_the_other_tests_know():
    assert set(ALL) <= {*MODELS, *READERS, *SIZED, *ENCODED}


def test_vision_connector_and_language_have_rates_of_their_own(folders):
    several = [BOTH, trunk("lora", rank=2), tower("lora", rank=2, targets=["attention_output"])]
    model = adapted(*listening(folders["llava"]), *several)
    rates = TrainSettings(learning_rate=1.0, base_learning_rate=0.1, rate_factors={"connector": 3, "language_model": 5})
    found = {name: rate for name, (_, rate, _) in rates_of(model, rates).items()}
    connector = {name for name in found if ".connector." in name}
    language = {name for name in found if ".language." in name or name.startswith("blocks.0")}
    assert connector and all(found[name] == pytest.approx(0.3) for name in connector)
    assert language and {found[name] for name in language} == {5.0}
    assert {rate for name, rate in found.items() if name not in connector | language} == {1.0}
