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


def by_mllama(model: Any, given: dict[str, Any], **options: Any) -> Tensor:
    """What cross-attention reads is kept after the first token, and would be read again beside that."""

    def once(_: Any, args: Any, kwargs: Any) -> Any:
        cache = kwargs.get("cache")
        later = cache is not None and cache.get_seq_length()
        return args, {**kwargs, "cross_attention_states": None} if later else kwargs

    hook = model.model.register_forward_pre_hook(once, with_kwargs=True)
    try:
        out: Tensor = model.generate(**given, **options)
    finally:
        hook.remove()
    return out


def by_whisper(model: Any, given: dict[str, Any], **options: Any) -> Tensor:
    """Whisper's own cuts sounds into windows, and puts a prompt in front."""
    from transformers import GenerationMixin

    options["generation_config"].decoder_start_token_id = int(given["decoder_input_ids"][0, 0])
    out: Tensor = GenerationMixin.generate(model, **given, **options)
    return out
