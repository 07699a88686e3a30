"""What a mixed batch costs beside one adapter alone, and what a swap costs.

    pytest -m benchmark -s tests/benchmarks/test_mixed_batches.py

32 adapters of one method on one backbone, 256 requests in one batch (each adapter 8 times, in any order), against the
same requests all to one adapter. A BERT of 4 layers, 768 wide, on texts of 30 words, and an MLP on a vector.
"""

import random
import statistics
import time

import pytest
import torch
from measuring import seconds, show

from fusetune.adapters.adapter import Stream
from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.feature_towers import FeatureTowerSettings, VectorTower
from fusetune.backbones.text_tower import TextTower
from fusetune.backbones.tokenizer import train_tokenizer
from fusetune.bank.artifact import Artifact
from fusetune.bank.bank import Bank
from fusetune.config import build
from fusetune.device import pick_device
from fusetune.plan.adapted import AdaptedModel
from fusetune.plan.frontier import frontier
from fusetune.plan.plan import Plan
from fusetune.training.data import DataSettings, make_task

pytestmark = pytest.mark.benchmark
SENTENCE = "a photograph of the small red house behind two old trees near some quiet water at noon"
ADAPTERS, REQUESTS, ROUNDS = 32, 256, 5
TEXT = {"modalities": ["text"]}


def at(where, adapter, blocks="all", **config):
    return {"where": where, "adapter": adapter, "blocks": blocks, "config": config}


PLANS = {
    "lora": [at("towers", "lora", TEXT, rank=8)],
    "lora, every layer": [at("towers", "lora", TEXT, rank=8, targets=["query", "key", "value", "mlp_input"])],
    "vera": [at("towers", "vera", TEXT)],
    "adalora": [at("towers", "adalora", TEXT)],
    "wander": [at("junction", "wander")],
    "dora": [at("towers", "dora", TEXT)],
    "ia3": [at("towers", "ia3", TEXT)],
    "adapter, pfeiffer": [at("towers", "bottleneck", TEXT)],
    "prefix": [at("towers", "prefix", TEXT)],
    "adapter in the last block": [at("towers", "bottleneck", {**TEXT, "take": "top", "count": 1})],
    "full_finetune": [at("backbone", "unfreeze")],
}


def make_backbone() -> Backbone:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    words = train_tokenizer([SENTENCE], 200, 64)
    bert = BertModel(BertConfig(vocab_size=len(words), num_hidden_layers=4), add_pooling_layer=False)
    return Backbone({"text": TextTower(bert, words), "vector": VectorTower(FeatureTowerSettings(8, 64))})


def test_a_mixed_batch_and_a_swap(tmp_path):
    device = pick_device("auto")
    make_backbone().save_pretrained(tmp_path / "base")
    data = build(
        DataSettings,
        {
            "modalities": {"text": {"kind": "text"}, "vector": {"kind": "vector"}},
            "task": {"name": "classification", "label": "label"},
        },
        "data",
    )
    rng = random.Random(0)
    samples = {
        "text": [" ".join(rng.choices(SENTENCE.split(), k=30)) for _ in range(REQUESTS)],
        "vector": [torch.randn(1, 8).numpy() for _ in range(REQUESTS)],
    }
    rows = []
    for method, placements in PLANS.items():
        backbone = Backbone.from_pretrained(tmp_path / "base")
        task = make_task(data.task)
        task.restore({"labels": ["a", "b", "c"]})
        plan = build(Plan, {"placements": [*placements, {"where": "head", "adapter": "linear"}]}, method)
        model = AdaptedModel(backbone, plan, task, {"text": Stream(768, 40), "vector": Stream(64, 1)})
        model.fold()
        found = frontier(model, backbone.prepare({m: column[:2] for m, column in samples.items()}))
        count = 4 if method == "full_finetune" else ADAPTERS  # 32 times a whole backbone is not what a bank is for
        bank = Bank(tmp_path / "base", most_bytes=2**33, device=device)
        loads = []
        for number in range(count):
            torch.manual_seed(number)
            with torch.no_grad():
                for parameter in model.trainable().values():
                    parameter.add_(torch.randn_like(parameter) * 0.01)
            Artifact.of(model, data, method, "", found).save_pretrained(tmp_path / "adapter")
            loads.append(seconds(lambda n=number, bank=bank: bank.load(str(n), tmp_path / "adapter")))
        owners = [str(i % count) for i in range(REQUESTS)]
        rng.shuffle(owners)
        one = Artifact.from_pretrained(tmp_path / "adapter").build(tmp_path / "base").to(device)

        def alone(one=one):
            with torch.no_grad():
                inputs = {n: t.to(device) for n, t in one.backbone.prepare(samples).items()}
                return one(inputs, Frontier({"text": 0, "vector": 0})).cpu()

        def mixed(bank=bank, owners=owners):
            return bank.outputs(owners, samples)

        alone(), mixed()
        ratios = []
        for _ in range(ROUNDS):
            before, after = seconds(alone), seconds(mixed)
            ratios.append(before / after)
        swaps = []
        for number in range(count):
            held = bank.model(str(number))
            began = time.perf_counter()
            held.attach()
            swaps.append(time.perf_counter() - began)
            held.detach()
        rows.append(
            [
                f"{method} x {count}",
                f"{bank.bytes / count / 1e6:.2f}",
                f"{REQUESTS / before:.0f}",
                f"{statistics.median(ratios):.0%}",
                f"{1000 * statistics.median(swaps):.2f}",
                f"{1000 * statistics.median(loads):.0f}",
            ]
        )
    headings = ["method", "MB each", "alone, requests/s", "mixed, of that", "swap, ms", "load, ms"]
    show(f"{REQUESTS} requests in one batch on {device}, medians of {ROUNDS}", headings, rows)
