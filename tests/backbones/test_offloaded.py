"""Blocks that come one after another give what a base gives that is there as a whole."""

import sys

import pytest
import torch

from conftest import ROOT
from fusetune.backbones import offloaded
from fusetune.backbones.backbone import Frontier
from fusetune.backbones.offloaded import by_block, placed
from fusetune.features.extraction import extract
from fusetune.features.index import CacheSettings

CPU = torch.device("cpu")


def places(backbone):
    return {name: p.data_ptr() for name, p in backbone.named_parameters()}


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "blip2_t5", "blip_vqa", "whisper"])
def test_a_model_answers_the_same(name, tmp_path):
    sys.path[:0] = [str(ROOT / "tests" / "composite"), str(ROOT / "tests" / "backbones")]
    from test_answering import SPEAKING, given, listening, shown_to

    SPEAKING[name](tmp_path)
    backbone, _ = listening(tmp_path, name=name)
    home, seen = places(backbone), {}
    streams = given(backbone, shown_to(name, 1, 1, 1))
    ground, top = Frontier(dict.fromkeys(streams, 0)), backbone.full_depth(list(streams))
    block, below = backbone.trunk.blocks()[-1], backbone.trunk.blocks()[0]
    before = backbone.advance(streams, ground, top)

    def look(module, *_):
        seen["block"], seen["below"] = (next(m.parameters()).data_ptr() for m in (module, below))

    block.register_forward_hook(look)
    with by_block(backbone, CPU):
        after = backbone.advance(streams, ground, top)
        at_rest = places(backbone)
    for stream, tokens in before.items():
        assert torch.equal(tokens.values, after[stream].values), stream
    assert seen["block"] not in home.values() and seen["below"] in home.values(), "the one that runs has come, alone"
    moved = {name for name, place in at_rest.items() if place != home[name]}
    assert moved and not any(p.data_ptr() != home[n] for n, p in backbone.named_parameters())
    assert not moved & {
        n for n, p in backbone.named_parameters() if any(p is q for q in backbone.trunk.blocks().parameters())
    }


def test_a_pass_that_fails_leaves_all_where_it_was(toy):
    backbone = toy.experiment().model.backbone
    home, block = places(backbone), backbone.tower("left").blocks()[1]

    def fails(*_):
        raise RuntimeError("no more")

    block.mlp.register_forward_hook(fails)
    with pytest.raises(RuntimeError, match="no more"), by_block(backbone, CPU):
        block(torch.zeros(1, 2, 16), torch.ones(1, 2, dtype=torch.bool))
    assert places(backbone) == home


def test_what_does_not_fit_is_extracted_all_the_same_and_said(toy, monkeypatch, caplog):
    experiment = toy.experiment()
    backbone, source, top = experiment.model.backbone, experiment.source, experiment.frontier
    settings, home = CacheSettings(dtype="float32"), places(backbone)
    whole = extract(backbone, source, top, toy.folder / "whole", settings, lambda *_: None, CPU)
    assert not caplog.text
    monkeypatch.setattr(offloaded, "free", lambda _: -1)
    found = extract(backbone, source, top, toy.folder / "parts", settings, lambda *_: None, CPU)
    assert "its blocks lie in main memory and come one by one" in caplog.text and places(backbone) == home
    files = [
        {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*.safetensors")}
        for folder in (toy.folder / "whole", toy.folder / "parts")
    ]
    assert files[0] and files[0] == files[1] and whole.entries == found.entries


def test_what_fits_stays(toy):
    backbone = toy.experiment().model.backbone
    home = places(backbone)
    with placed(backbone, CPU):
        assert places(backbone) == home
