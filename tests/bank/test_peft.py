"""LoRA goes to Hugging Face `peft` and comes from there; and the bank on real encoders of transformers."""

import encoders
import peft
import pytest
import torch
from artifacts import SAMPLES, model_of
from methods import placement

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.bank.artifact import Artifact
from fusetune.bank.bank import Bank
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.plan.adapted import AdaptedModel
from fusetune.training.data import DataSettings


def towers(*names):
    torch.manual_seed(0)
    makers = {"image": encoders.clip_vision, "text": encoders.clip_text, "sound": encoders.FAMILIES["wav2vec2"][0]}
    return {name: makers[name]() for name in names}


def data(*names):
    kinds = {"image": "image", "text": "text", "sound": "audio"}
    task = {"name": "classification", "label": "label"}
    return build(DataSettings, {"modalities": {n: {"kind": kinds[n]} for n in names}, "task": task}, "data")


def saved(folder, backbone, settings, *placements, seed=0):
    made, found = model_of(backbone, settings, *placements, seed=seed)
    Artifact.of(made, settings, "lora", "", found).save_pretrained(folder)
    return made


def states(tower, sample):
    """What leaves the encoder for one sample, run by hand."""
    inputs = tower.prepare([sample])
    with torch.no_grad():
        return tower.advance(inputs, 0, tower.depth).values


@pytest.mark.parametrize("name", ["image", "text", "sound"])
def test_a_lora_of_ours_opens_in_peft(name, tmp_path):
    backbone = Backbone(towers(name))
    blocks = {"take": "explicit", "explicit": {name: [0, 2]}, "ranks": {name: [2, 4]}}
    made = saved(tmp_path, backbone, data(name), placement("towers", "lora", blocks, targets=["query", "mlp_input"]))
    expected = states(made.backbone.tower(name), SAMPLES[name][0])
    plain = towers(name)[name]
    assert not torch.allclose(states(plain, SAMPLES[name][0]), expected, atol=1e-3)
    opened = peft.PeftModel.from_pretrained(plain.model, str(tmp_path / "peft" / name))
    assert opened.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(states(plain, SAMPLES[name][0]), expected, rtol=1e-5, atol=1e-6)


def test_a_plan_that_is_not_lora_alone_has_no_folder_for_peft(tmp_path):
    saved(tmp_path, Backbone(towers("text")), data("text"), placement("towers", "bottleneck", bottleneck_dim=4))
    assert not (tmp_path / "peft").exists()


def from_peft(folder, **options):
    """What peft saves of a text encoder with a random LoRA, and what the encoder then gives."""
    tower = towers("text")["text"]
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options)
    torch.manual_seed(1)
    peft.get_peft_model(tower.model, config).save_pretrained(folder)
    return states(tower.eval(), SAMPLES["text"][1])


@pytest.mark.parametrize("rslora", [False, True])
def test_a_lora_of_peft_opens_here(tmp_path, rslora):
    expected = from_peft(tmp_path / "theirs", use_rslora=rslora)
    alpha = 12.0 if rslora else 6.0
    config = {"rank": 4, "alpha": alpha, "pretrained": str(tmp_path / "theirs")}
    backbone = Backbone(towers("text"))
    backbone.save_pretrained(tmp_path / "base")
    made, found = model_of(backbone, data("text"), placement("towers", "lora", **config))
    fresh = AdaptedModel(Backbone(towers("text")), made.plan, made.task, made.streams)
    torch.testing.assert_close(states(fresh.backbone.tower("text"), SAMPLES["text"][1]), expected, rtol=1e-5, atol=1e-6)
    Artifact.of(fresh, data("text"), "lora", "", found).save_pretrained(tmp_path / "ours")
    again = Artifact.from_pretrained(tmp_path / "ours").build(tmp_path / "base")
    torch.testing.assert_close(states(again.backbone.tower("text"), SAMPLES["text"][1]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank": 4}, "is scaled by 1.5, here by 1. Set alpha: 6"),
        ({"rank": 2, "alpha": 3.0}, "Set the rank"),
        ({"rank": 4, "alpha": 6.0, "targets": ["query"]}, "it also changes"),
        ({"rank": 4, "alpha": 6.0, "targets": ["query", "key"]}, "no factors for layer"),
    ],
)
def test_a_lora_of_peft_that_does_not_fit_says_what_to_set(tmp_path, config, message):
    from_peft(tmp_path)
    with pytest.raises(FusetuneError, match=message):
        model_of(
            Backbone(towers("text")), data("text"), placement("towers", "lora", **config, pretrained=str(tmp_path))
        )


def test_a_folder_of_peft_is_no_artifact_and_says_what_it_is(tmp_path):
    from_peft(tmp_path)
    with pytest.raises(FusetuneError, match="written by `peft`, without a task"):
        Artifact.from_pretrained(tmp_path)
    with pytest.raises(FusetuneError, match="expected adapter_config.json and adapter_model.safetensors"):
        model_of(Backbone(towers("text")), data("text"), placement("towers", "lora", pretrained="nowhere"))


@pytest.mark.parametrize("names", [("image",), ("text",), ("sound",), ("image", "text", "sound")])
def test_the_bank_on_encoders_of_transformers(names, tmp_path):
    """Several pictures a sample, missing ones, waveforms one by one: each row of a layer finds its own adapter."""
    Backbone(towers(*names)).save_pretrained(tmp_path / "base")
    bank, models = Bank(tmp_path / "base"), {}
    plans = {
        "lora": [placement("towers", "lora", rank=3)],
        "other": [placement("towers", "lora", rank=2, targets=["query", "mlp_output"])],
        "vera": [placement("towers", "vera", rank=5)],
        "prefix": [placement("towers", "bottleneck", bottleneck_dim=4)],
        "plain": [],
    }
    for seed, (name, placements) in enumerate(plans.items()):
        backbone = Backbone.from_pretrained(tmp_path / "base")
        models[name] = saved(tmp_path / name, backbone, data(*names), *placements, seed=seed)
        bank.load(name, tmp_path / name)
    rows = [row for _ in plans for row in range(4) if any(SAMPLES[n][row] is not None for n in names)]
    owners = [list(plans)[i % 5] for i in range(len(rows))]
    found = bank.outputs(owners, {n: [SAMPLES[n][row] for row in rows] for n in names})
    for i, (row, name) in enumerate(zip(rows, owners, strict=True)):
        model = models[name]
        streams = model.backbone.prepare({n: [SAMPLES[n][row]] for n in names})
        with torch.no_grad():
            expected = model(streams, Frontier(dict.fromkeys(names, 0)))[0]
        torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-5)
