"""What a model's own forward or `generate` needs besides being called."""

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


def by_t5(model: Any, given: dict[str, Any], **options: Any) -> Tensor:
    """The whole prompt has been read."""
    from transformers.modeling_outputs import BaseModelOutput

    start = given["input_ids"]
    options["generation_config"].decoder_start_token_id = int(start[0, 0])
    out: Tensor = model.language_model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=given["memory"]),
        attention_mask=given["memory_mask"],
        decoder_input_ids=start,
        **options,
    )
    return out


def masked_questions(model: Any) -> None:
    """BLIP's cross-attention takes the mask of a question's padding by a name that its layer doesn't use (transformers
    5.24), so that an answer would depend on how long the other questions of a batch are."""

    def named(_: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "encoder_attention_mask": kwargs.get("attention_mask")}

    for block in model.text_decoder.bert.encoder.layer:
        block.crossattention.self.register_forward_pre_hook(named, with_kwargs=True)


def by_answering_blip(model: Any, given: dict[str, Any], **options: Any) -> Tensor:
    """The same of BLIP's decoder, whose mask of what has been read is the question's."""
    read = {"encoder_hidden_states": given["memory"], "encoder_attention_mask": given["memory_mask"]}
    out: Tensor = model.text_decoder.generate(input_ids=given["input_ids"], **read, **options)
    return out


def by_whisper(model: Any, given: dict[str, Any], **options: Any) -> Tensor:
    """Whisper's own cuts sounds into windows, and puts a prompt in front."""
    from transformers import GenerationMixin

    options["generation_config"].decoder_start_token_id = int(given["decoder_input_ids"][0, 0])
    out: Tensor = GenerationMixin.generate(model, **given, **options)
    return out
