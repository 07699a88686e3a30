"""Language blocks in few bits: what is read of them, what learns beside them, and what is refused."""

from importlib.util import find_spec

import pytest
import torch
from encoders import pictures
from speaking import TEXTS, saved_llava
from test_answering import ANSWERS, ASKED, KINDS, adapted, generation, given
from test_decoding import BEHIND, IN_BLOCKS, NONE, asked, ground
from test_leaving import data_of

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.composite.loading import CompositeSource
from fusetune.backbones.composite.quantising import KINDS as WAYS
from fusetune.backbones.composite.quantising import quantised
from fusetune.bank.artifact import Artifact
from fusetune.bank.bank import Bank
from fusetune.bank.export import Export
from fusetune.errors import FusetuneError
from fusetune.plan.speaking import spoken
from fusetune.training.data import ANSWER, answering

WIDE = {"hidden_size": 64, "intermediate_size": 96}  # what int4 and nf4 take


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    missing = [package for package in ("torchao", "bitsandbytes") if find_spec(package) is None]
    if missing:  # they would be imported by transformers in every run, so that `dev` has neither; CI installs them
        pytest.skip(f'no {" and ".join(missing)}: pip install -e ".[quantised]"')
    folder = tmp_path_factory.mktemp("wide")
    saved_llava(folder, **WIDE)
    return folder


def listening(folder, kind):
    backbone = Backbone.from_composite(CompositeSource(str(folder), quantise=kind), KINDS).take_answers(ANSWER, 4)
    task = generation(max_answer_tokens=4)
    task.meet(backbone.tower(ANSWER))
    return backbone, task


def loss_of(model, backbone, task, shown):
    streams = given(backbone, shown, ANSWERS)
    return task.loss(model(streams, ground(streams)).float(), task.targets({"said": ANSWERS}))


@pytest.mark.parametrize("kind", WAYS)
def test_what_is_read_is_nearly_the_same_and_takes_less(kind, checkpoint, caplog):
    shown = pictures(1, 0, 1)
    plain, task = listening(checkpoint, None)
    expected = loss_of(adapted(plain, task), plain, task, shown).item()
    with caplog.at_level("INFO"):
        backbone, task = listening(checkpoint, kind)
    found = loss_of(adapted(backbone, task), backbone, task, shown).item()
    assert found != expected and found == pytest.approx(expected, rel={"int8": 0.005}.get(kind, 0.2))
    said = next(r.getMessage() for r in caplog.records if "language blocks in" in r.getMessage())
    after, before = (float(word) for word in said.split() if word.replace(".", "").isdigit())
    assert after < {"int8": 0.35}.get(kind, 0.4) * before, said
    assert quantised(backbone.trunk) == kind and quantised(backbone.tower("image")) is None


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_int_weights_are_those_of_the_dequantised_layers(kind, checkpoint):
    backbone, task = listening(checkpoint, kind)
    model, shown = adapted(backbone, task), pictures(1, 1, 1)
    found = loss_of(model, backbone, task, shown)
    for layer in backbone.trunk.blocks().modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight = torch.nn.Parameter(layer.weight.dequantize(), requires_grad=False)
    torch.testing.assert_close(loss_of(model, backbone, task, shown), found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", WAYS)
def test_answering_first_changes_no_gradient(kind, checkpoint):
    def gradients():
        loss_of(model, backbone, task, shown).backward()
        found = {name: p.grad.clone() for name, p in model.trainable().items()}
        model.zero_grad()
        return found

    backbone, task = listening(checkpoint, kind)
    model, shown = adapted(backbone, task, IN_BLOCKS["lora"]), pictures(1, 0, 1)
    before = gradients()
    assert any(g.any() for g in before.values())
    with torch.no_grad():
        loss_of(model, backbone, task, shown)
    streams = asked(backbone, shown)
    spoken(model, streams, ground(streams), NONE)
    torch.testing.assert_close(gradients(), before, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["lora", "bottleneck", "modality_prefix", "vl_adapter", "wander", "bitfit"])
@pytest.mark.parametrize("kind", WAYS)
def test_adapters_learn_beside_it_are_saved_and_answer_the_same(kind, method, checkpoint, tmp_path):
    backbone, task = listening(checkpoint, kind)
    plan = {**IN_BLOCKS, **BEHIND, "bitfit": {"where": "towers", "adapter": "bitfit"}}[method]
    backbone.part(list(KINDS)).save_pretrained(tmp_path / "base")
    model, shown = adapted(backbone, task, plan), pictures(1, 0, 1)
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=0.02)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(loss_of(model, backbone, task, shown))
        losses[-1].backward()
        assert all(p.grad is not None for p in model.trainable().values())
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]
    streams = asked(backbone, shown)
    expected = spoken(model.eval(), streams, ground(streams), NONE)
    place = Frontier({"image": 0, "text": 0, ANSWER: 0})
    Artifact.of(model, data_of("llava"), method, "", place).save_pretrained(tmp_path / "adapter")
    again = Artifact.from_pretrained(tmp_path / "adapter").build(tmp_path / "base")
    assert quantised(again.backbone.trunk) == kind
    assert spoken(again, streams, ground(streams), NONE).tolist() == expected.tolist()
    bank = Bank(tmp_path / "base")
    bank.load("one", tmp_path / "adapter")
    found = bank.outputs(["one"] * 3, {"image": shown, "text": ASKED})
    assert torch.stack(found).long().tolist() == expected.tolist()


def test_each_way_is_a_base_of_its_own_on_one_cache_of_pictures(checkpoint):
    found = {kind: answering(listening(checkpoint, kind)[0], data_of("llava")) for kind in (None, *WAYS)}
    assert len({backbone.fingerprint_of("trunk") for backbone in found.values()}) == 4
    assert len({backbone.fingerprint_of("image") for backbone in found.values()}) == 1


def test_what_few_bits_cannot_do_is_refused(checkpoint, tmp_path):
    with pytest.raises(FusetuneError, match="backbone.quantise: expected one of int8, int4, nf4, found 'int3'"):
        listening(checkpoint, "int3")
    saved_llava(tmp_path / "narrow")
    with pytest.raises(
        FusetuneError, match=r"int4 takes layers that read a multiple of 32, found \['0.self_attn.q_proj \(48\)'"
    ):
        listening(tmp_path / "narrow", "int4")
    backbone, task = listening(checkpoint, "int8")
    opened = {"where": "backbone", "adapter": "unfreeze", "config": {"parts": ["trunk"]}}
    with pytest.raises(FusetuneError, match="weights in int8 can't be trained. Leave the language blocks out"):
        adapted(backbone, task, opened)
    ours = adapted(backbone, task, {**opened, "config": {"parts": ["image"]}}, IN_BLOCKS["prefix"])
    assert ours.trainable_count() > 0
    ours.detach()
    backbone.part(list(KINDS)).save_pretrained(tmp_path / "base")
    made = adapted(backbone, task, IN_BLOCKS["lora"])
    place = Frontier({"image": 0, "text": 0, ANSWER: 0})
    Artifact.of(made, data_of("llava"), "lora", "", place).save_pretrained(tmp_path / "adapter")
    export = Export(
        Artifact.from_pretrained(tmp_path / "adapter"), tmp_path / "base", {"image": pictures(1), "text": TEXTS[:1]}
    )
    with pytest.raises(FusetuneError, match="the base's weights are in int8; what is folded into them"):
        export.save_pretrained(tmp_path / "exported")


def test_without_the_package_it_says_what_to_install(checkpoint, monkeypatch):
    import sys

    for kind, package in (("int8", "torchao"), ("nf4", "bitsandbytes")):
        with monkeypatch.context() as patched:
            for name in [n for n in sys.modules if n.partition(".")[0] == package] or [package]:
                patched.setitem(sys.modules, name, None)
            patched.setitem(sys.modules, f"{package}.quantization", None)
            with pytest.raises(FusetuneError, match=f'{kind} needs {package}. Run pip install "fusetune.quantised."'):
                listening(checkpoint, kind)
