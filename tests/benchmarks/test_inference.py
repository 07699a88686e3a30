"""What a method costs at inference, beside the plain backbone with a linear head; and Wander's cost in M and T.

    pytest -m benchmark -s tests/benchmarks/test_inference.py

ViT-B and BERT-B sizes (197 and about 32 tokens), a batch at a time, on whatever device there is.
"""

import statistics

import full_size
import pytest
import torch
from measuring import in_turn, seconds, show
from torch.utils.flop_counter import FlopCounterMode

from fusetune.adapters.adapter import Stream
from fusetune.adapters.wander import Wander, WanderConfig
from fusetune.backbones.backbone import Frontier
from fusetune.device import pick_device
from fusetune.tokens import Tokens

pytestmark = pytest.mark.benchmark


def at(where, adapter, **config):
    return {"where": where, "adapter": adapter, "config": config}


PLANS = {
    "backbone and linear head": [],
    "LoRA, merged": [at("towers", "lora")],
    "LoRA": [at("towers", "lora")],
    "DoRA": [at("towers", "dora")],
    "VeRA": [at("towers", "vera")],
    "IA3": [at("towers", "ia3")],
    "BitFit": [at("towers", "bitfit")],
    "adapter, pfeiffer, 64": [at("towers", "bottleneck", bottleneck_dim=64)],
    "adapter, houlsby, 64": [at("towers", "bottleneck", bottleneck_dim=64, position="houlsby")],
    "prefix, 16": [at("towers", "prefix", length=16)],
    "UniPELT": [at("towers", "unipelt")],
    "Wander": [at("junction", "wander", rank=8)],
    "cross_modal": [at("junction", "cross_modal")],
    "fusion_gate": [at("junction", "fusion_gate")],
}


def test_inference_overhead():
    device = pick_device("auto")
    count, rounds = (2, 9) if device.type == "cpu" else (64, 20)
    runs = {}
    ground = Frontier({"image": 0, "text": 0})
    for name, placements in PLANS.items():
        made = full_size.experiment(16, *placements)
        model = made.model.to(device).eval()
        model.fold()
        if name.endswith("merged"):
            model.merge()
        inputs = {key: tokens.to(device) for key, tokens in made.example(count).items()}

        def forward(model=model, inputs=inputs):
            with torch.inference_mode():
                model(inputs, ground)
            if device.type == "cuda":
                torch.cuda.synchronize()

        forward()  # warm up
        runs[name] = lambda forward=forward: seconds(forward)
    plain, rows = runs.pop("backbone and linear head"), []
    for name, run in runs.items():
        pairs = [
            (plain(), run()) for _ in range(rounds)
        ]  # one behind the other: a machine's pace changes by the minute
        ratio = statistics.median(after / before for before, after in pairs)
        took = statistics.median(after for _, after in pairs)
        rows.append([name, f"{1000 * took / count:.1f}", f"{ratio - 1:+.1%}"])
    headings = ["method", "ms a sample", "over the backbone and a linear head"]
    show(f"inference on {device}, batches of {count}, medians of {rounds} pairs", headings, rows)


def test_wander_grows_linearly_in_modalities_and_tokens():
    rows = []
    for modalities, tokens in ((2, 50), (3, 50), (5, 50), (7, 50), (2, 100), (2, 200), (2, 400)):
        streams = {f"m{i}": Stream(256, tokens) for i in range(modalities)}
        adapter = Wander(WanderConfig(), streams)
        given = {n: Tokens(torch.randn(32, tokens, 256), torch.ones(32, tokens, dtype=torch.bool)) for n in streams}

        def step(adapter=adapter, given=given):
            adapter(given)["m0"].values.sum().backward()

        with FlopCounterMode(display=False) as counter:
            step()
        took = in_turn({"step": lambda step=step: seconds(step)}, 9)["step"]
        share = counter.get_total_flops() / modalities / tokens / 32
        rows.append(
            [
                f"{modalities} x {tokens}",
                f"{counter.get_total_flops() / 32e6:.2f}",
                f"{share:,.0f}",
                f"{1000 * took:.1f}",
            ]
        )
    show(
        "Wander, width 256, forward and backward", ["M x T", "MFLOP a sample", "FLOP a token", "ms a batch of 32"], rows
    )
