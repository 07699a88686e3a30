"""ViT-B and BERT-B sized towers with random weights, and a small manifest for them."""

import io

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.item_towers import ImageTower
from fusetune.backbones.text_tower import TextTower
from fusetune.backbones.tokenizer import train_tokenizer
from fusetune.config import build
from fusetune.plan.plan import Plan
from fusetune.runs.experiment import Experiment
from fusetune.training.data import DataSettings

SENTENCE = "a photograph of the small red house behind two old trees near some quiet water at noon"
WORDS = SENTENCE.split()


def backbone() -> Backbone:
    from transformers import BertConfig, BertModel, ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    words = train_tokenizer([SENTENCE], 200, 64)
    bert = BertModel(BertConfig(vocab_size=len(words)), add_pooling_layer=False)
    vit = ViTModel(ViTConfig(), add_pooling_layer=False)
    return Backbone({"image": ImageTower(vit, ViTImageProcessor()), "text": TextTower(bert, words)})


def manifest(train: int) -> pa.Table:
    rng = np.random.default_rng(0)
    count = train + 16

    def picture() -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, "png")
        return buffer.getvalue()

    return pa.table(
        {
            "sample_id": [f"s{i}" for i in range(count)],
            "split": ["train"] * train + ["val"] * 8 + ["test"] * 8,
            "image": [picture() for _ in range(count)],
            "text": [" ".join(rng.choice(WORDS, 30)) for _ in range(count)],
            "label": [f"class {i % 4}" for i in range(count)],
        }
    )


def experiment(train: int, *placements: dict) -> Experiment:
    data = build(
        DataSettings,
        {
            "modalities": {"image": {"kind": "image"}, "text": {"kind": "text"}},
            "task": {"name": "classification", "label": "label"},
        },
        "data",
    )
    plan = build(Plan, {"placements": [*placements, {"where": "head", "adapter": "linear"}]}, "plan")
    return Experiment(manifest(train), backbone(), data, plan, 0, "plan")
