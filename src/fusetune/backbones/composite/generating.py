"""Ways to go on from a prompt by a model's own `generate`, where calling it is not all."""

from typing import Any

import torch
from torch import Tensor


def by_opt(model: Any, given: dict[str, Any], **options: Any) -> Tensor:
    """BLIP-2's own asks for a picture in every batch."""
    speaker = model if given.get("pixel_values") is not None else model.language_model
    known = given if speaker is model else {name: given[name] for name in ("input_ids", "attention_mask")}
    out: Tensor = speaker.generate(**known, **options)
    return out


def by_blip(model: Any, given: dict[str, Any], **options: Any) -> Tensor:
    """BLIP's own would change the prompt's first and last token."""
    memory = model.vision_model(pixel_values=None).last_hidden_state
    read = {"encoder_hidden_states": memory, "encoder_attention_mask": torch.ones_like(memory[..., 0]).long()}
    words = {name: given[name] for name in ("input_ids", "attention_mask")}
    out: Tensor = model.text_decoder.generate(**words, **read, **options)
    return out


def by_whisper(model: Any, given: dict[str, Any], **options: Any) -> Tensor:
    """Whisper's own cuts sounds into windows, and puts a prompt in front."""
    from transformers import GenerationMixin

    options["generation_config"].decoder_start_token_id = int(given["decoder_input_ids"][0, 0])
    out: Tensor = GenerationMixin.generate(model, **given, **options)
    return out
