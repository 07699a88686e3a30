"""Tiny dual encoders as a hub has them."""

import torch
from encoders import SMALL, tokenizer

VISION = dict(**SMALL, image_size=32, patch_size=16)


def saved(folder, name):
    """A tiny dual encoder as a hub has it, its random projections and scale included."""
    import transformers

    torch.manual_seed(0)
    words, square = tokenizer(), {"height": 32, "width": 32}
    text = dict(**SMALL, vocab_size=len(words), max_position_embeddings=16)
    if name == "clip":
        text |= dict(eos_token_id=words.sep_token_id)
        config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square)
    else:
        config = transformers.SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=VISION)
        processor = transformers.SiglipImageProcessor(size=square)
    model = getattr(transformers, {"clip": "CLIPModel", "siglip": "SiglipModel"}[name])(config).eval()
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
    for part in (model, words, processor):
        part.save_pretrained(folder)
    return model, words, processor
