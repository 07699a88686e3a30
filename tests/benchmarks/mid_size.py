"""A LLaVA of some 100 M parameters (SIZE=tiny: of 0.3 M) with random weights, saved as a hub has it, and a small
manifest for it."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import transformers as tf
from PIL import Image
from speaking import TEMPLATE, TEXTS, tokenizer

# sides of picture and patch, blocks of each, heads, widths of the encoder and of the language model, and of their MLPs
SIZES = {"mid": (224, 16, 12, (8, 10), (512, 640), (2048, 1720)), "tiny": (32, 8, 8, (4, 4), (32, 48), (64, 96))}
SIDE, PATCH, DEPTH, HEADS, WIDTHS, MLPS = SIZES[os.environ.get("SIZE", "mid")]
ANSWERS = ("it is light", "dark as which")


def saved(folder: Path) -> Path:
    torch.manual_seed(0)
    words = tokenizer()
    vision = tf.CLIPVisionConfig(
        hidden_size=WIDTHS[0], intermediate_size=MLPS[0], num_hidden_layers=DEPTH, num_attention_heads=HEADS[0],
        image_size=SIDE, patch_size=PATCH,
    )  # fmt: skip
    text = tf.LlamaConfig(
        vocab_size=8000, hidden_size=WIDTHS[1], intermediate_size=MLPS[1], num_hidden_layers=DEPTH,
        num_attention_heads=HEADS[1], num_key_value_heads=HEADS[1], max_position_embeddings=1024, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    image = words.convert_tokens_to_ids("<image>")
    config = tf.LlavaConfig(vision_config=vision, text_config=text, image_token_id=image)
    images = tf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = tf.LlavaProcessor(
        image_processor=images, tokenizer=words, patch_size=PATCH, vision_feature_select_strategy="default",
        image_token="<image>", num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    tf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def manifest(train: int) -> pa.Table:
    """Pictures that are noise, the same question, two answers in turn; as many tokens in every row of a kind."""
    rng, rows = np.random.default_rng(0), []
    for i in range(train + 8):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(buffer, "png")
        split = "train" if i < train else "val" if i < train + 4 else "test"
        rows.append(
            {"sample_id": str(i), "split": split, "group_id": str(i), "image": buffer.getvalue(), "text": TEXTS[0],
             "said": ANSWERS[i % 2]}
        )  # fmt: skip
    return pa.Table.from_pylist(rows)
