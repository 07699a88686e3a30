"""The composite families of `transformers`: where each keeps its parts, and what a pass from a cut has to be given.

Measured on transformers 5.24. A family is a row. The model's own forward runs from every cut, so that masks, rotary
positions, norms and the head are its own; a row says what stands where, and what must not run.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fusetune.backbones.composite import generating, given_media
from fusetune.backbones.composite.family import CompositeFamily
from fusetune.backbones.families import (
    BERT_ROLES,
    BLIP_ROLES,
    CLIP_ROLES,
    LLAMA_ROLES,
    QWEN2_5_ROLES,
    QWEN_ROLES,
    T5_ROLES,
    WHISPER_ROLES,
    crossed,
)
from fusetune.backbones.replay import STATES


def _feature_layer(config: Any, blocks: int) -> int:
    """LLaVA reads hidden states: 0 stands before the first block, -1 behind the last one."""
    layer: int = config.vision_feature_layer
    return layer if layer >= 0 else blocks + 1 + layer


def _encoded(model: Any, inputs: dict[str, Any], memory: Tensor | None, rows: int) -> None:
    from transformers.modeling_outputs import BaseModelOutput

    inputs["encoder_outputs"] = BaseModelOutput(last_hidden_state=memory)


def _cross_states(model: Any, inputs: dict[str, Any], memory: Tensor | None, rows: int) -> None:
    inputs["cross_attention_states"] = memory


def _no_picture(model: Any, inputs: dict[str, Any], memory: Tensor | None, rows: int) -> None:
    inputs["pixel_values"] = None


def _queries(model: Any, inputs: dict[str, Any], memory: Tensor | None, rows: int) -> None:
    """BLIP-2 and InstructBLIP fill picture places whatever happens to them later."""
    config = model.config
    embedded = torch.zeros(rows, config.num_query_tokens, config.text_config.hidden_size, device=model.device)
    given = SimpleNamespace(pooler_output=embedded.to(model.dtype), qformer_outputs=None, vision_outputs=None)
    inputs |= {"mm_encoder_outputs": {"image": given}, "pixel_values": None}
    if "qformer_input_ids" in inputs:
        inputs |= {"qformer_input_ids": None, "qformer_attention_mask": None}
    if memory is not None:
        _encoded(model, inputs, memory, rows)


def output_of(memory: Tensor) -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    return BaseModelOutputWithPooling(last_hidden_state=memory)


def _t5_block(hidden_states: Tensor, mask: Any = None, bias: Any = None, *more: Any, **named: Any) -> Any:
    """T5's blocks hand on the position biases too, that of cross-attention as the sixth argument."""
    return hidden_states, bias, more[2] if len(more) > 2 else named.get("encoder_decoder_position_bias")


_DECODER = "model.language_model.layers"
_NORM = "model.language_model.norm"
_PROJECTOR = "model.multi_modal_projector"
_TOWER, _TOWER_BLOCKS = "model.vision_tower", "model.vision_tower.encoder.layers"
_CROSS = "encoder_hidden_states"
_VISUAL, _MERGER = "model.visual", "model.visual.merger"
_PALIGEMMA = CompositeFamily(
    _TOWER,
    _TOWER_BLOCKS,
    (_PROJECTOR,),
    _DECODER,
    _NORM,
    causal=False,
    several=True,
    entry=(_PROJECTOR, STATES),
    encoder_roles=CLIP_ROLES,
    language_roles=LLAMA_ROLES,
    prompt="{image}{bos}{}\n",
)
_LLAVA = replace(_PALIGEMMA, read=_feature_layer, causal=True, prompt="USER: {image}\n{} ASSISTANT:")
_LLAVA_NEXT = replace(
    _LLAVA,
    several=False,
    side=lambda config: 2 * config.vision_config.image_size,
    taken=lambda config: (5, 3, *(config.vision_config.image_size,) * 2),  # whole, and in four
    grid=given_media.before_tiles,
    packed="model.pack_image_features",
    apart="model.image_newline",
)
_QWEN = CompositeFamily(
    _VISUAL,
    f"{_VISUAL}.blocks",
    (_MERGER,),
    _DECODER,
    _NORM,
    entry=(_MERGER, STATES),
    encoder_roles=QWEN_ROLES,
    language_roles=LLAMA_ROLES,
    prompt="<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>",
    side=lambda config: 14 * config.vision_config.patch_size * config.vision_config.spatial_merge_size,
    taken=given_media.patched,
    process=given_media.as_patches,
    flat=True,
    grid=given_media.squares,
    marked=True,
    by_parts=True,
)
_DEEPSTACK = f"{_VISUAL}.deepstack_merger_list"
_QWEN3 = replace(
    _QWEN,
    connector=(_DEEPSTACK, _MERGER),
    encoder_roles=QWEN_ROLES | {"mlp_input": "mlp.linear_fc1", "mlp_output": "mlp.linear_fc2"},
    taps=lambda config: [(k, f"{_DEEPSTACK}.{i}") for i, k in enumerate(config.vision_config.deepstack_visual_indexes)],
    first=lambda config: len(config.vision_config.deepstack_visual_indexes),
)
_SMOL = CompositeFamily(
    "model.vision_model",
    "model.vision_model.encoder.layers",
    ("model.connector",),
    "model.text_model.layers",
    "model.text_model.norm",
    entry=("model.connector", STATES),
    encoder_roles=CLIP_ROLES,
    language_roles=LLAMA_ROLES,
    prompt="<|im_start|>User:{image}{}<end_of_utterance>\nAssistant: {answer}<end_of_utterance>",
    around="<fake_token_around_image><global-img>{image}<fake_token_around_image>",
    side=lambda config: int(config.vision_config.image_size),
    taken=lambda config: (1, config.vision_config.num_channels, *(config.vision_config.image_size,) * 2),
    process=given_media.one_each,
    by_parts=True,
)
_OPT = CompositeFamily(
    "vision_model",
    "vision_model.encoder.layers",
    ("qformer", "language_projection"),
    "language_model.model.decoder.layers",
    "language_model.model.decoder.final_layer_norm",
    "language_model.lm_head",
    entry=("qformer", _CROSS),
    apart="query_tokens",
    resume=_queries,
    encoder_roles=BLIP_ROLES,
    language_roles=WHISPER_ROLES,  # OPT's parts have the same names
    prompt="{image}{bos}Question: {} Answer: {answer}",
    speak=generating.by_opt,
)
_INSTRUCT = replace(_OPT, instructed=True, prompt="{image}{bos}{} {answer}")
_VICUNA = replace(
    _INSTRUCT, language="language_model.model.layers", top="language_model.model.norm", language_roles=LLAMA_ROLES
)
_T5 = replace(
    _OPT,
    language="language_model.decoder.block",
    top="language_model.decoder.final_layer_norm",
    memory="language_model.encoder",
    question="language_model.encoder.block",
    skip=_t5_block,
    always=(0,),
    language_roles=T5_ROLES,
    prompt="{image}Question: {} Answer:</s>{answer}",
    speak=generating.by_t5,
)
_BLIP = CompositeFamily(
    "vision_model",
    "vision_model.encoder.layers",
    (),
    "text_decoder.bert.encoder.layer",
    "text_decoder.cls",
    "text_decoder.cls",
    memory="vision_model",
    resume=_no_picture,
    stubs={"vision_model": output_of},
    padding=("right",),
    encoder_roles=BLIP_ROLES,
    language_roles=BERT_ROLES
    | crossed(BERT_ROLES, "attention.self", "crossattention.self", "attention.output", "crossattention.output"),
    prompt="{} {answer}",
    speak=generating.by_blip,
)
_BLIP_VQA = replace(
    _BLIP,
    prompt="[CLS] {} [SEP]{answer}",
    memory="text_encoder",
    question="text_encoder.encoder.layer",
    entry=("text_encoder", _CROSS),
    stubs={"vision_model": lambda memory: output_of(memory[:, :1]), "text_encoder": lambda memory: (memory,)},
    speak=generating.by_answering_blip,
    mend=generating.masked_questions,
)
_TILED = "model.vision_model.transformer.layers"
_MLLAMA = CompositeFamily(
    "model.vision_model",
    _TILED,
    ("model.vision_model.global_transformer", _PROJECTOR),
    _DECODER,
    _NORM,
    media=("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"),
    memory=_PROJECTOR,
    entry=(_PROJECTOR, STATES),
    idle=("model.vision_model.global_transformer.layers",),
    resume=_cross_states,
    taps=lambda config: [(k, f"{_TILED}.{k}") for k in config.vision_config.intermediate_layers_indices],
    encoder_roles=CLIP_ROLES | {"attention_output": "self_attn.o_proj"},
    language_roles=LLAMA_ROLES | crossed(LLAMA_ROLES, "self_attn", "cross_attn"),
    side=lambda config: int(config.vision_config.image_size),
    taken=lambda config: (1, config.vision_config.max_num_tiles, 3, *(config.vision_config.image_size,) * 2),
    process=given_media.in_tiles,
    grid=given_media.of_tiles,
    crossed=given_media.by_tiles,
    speak=generating.by_mllama,
)
_WHISPER = CompositeFamily(
    "model.encoder",
    "model.encoder.layers",
    (),
    "model.decoder.layers",
    "model.decoder.layer_norm",
    "proj_out",
    media=("input_features",),
    memory="model.encoder",
    resume=_encoded,
    padding=("right",),
    words=("decoder_input_ids", "decoder_attention_mask"),
    encoder_roles=WHISPER_ROLES,
    language_roles=WHISPER_ROLES | crossed(WHISPER_ROLES, "self_attn", "encoder_attn"),
    taken=lambda config: (config.num_mel_bins, 2 * config.max_source_positions),
    speak=generating.by_whisper,
    prompt="<|startoftranscript|><|en|><|transcribe|><|notimestamps|>{} {answer}",
)
_QWEN_AUDIO = CompositeFamily(
    "model.audio_tower",
    "model.audio_tower.layers",
    (_PROJECTOR,),
    _DECODER,
    _NORM,
    media=("input_features", "feature_attention_mask"),
    entry=(_PROJECTOR, STATES),
    encoder_roles=WHISPER_ROLES,
    language_roles=LLAMA_ROLES,
    prompt="<|im_start|>user\nAudio 1: <|audio_bos|>{image}<|audio_eos|>\n{}<|im_end|>\n"
    "<|im_start|>assistant\n{answer}<|im_end|>",
    taken=lambda config: (config.audio_config.num_mel_bins, 2 * config.audio_config.max_source_positions),
    measured=given_media.frames_there,
)

# by the class of the checkpoint: one model type may have several (BLIP writes captions, and answers questions)
COMPOSITES: dict[str, CompositeFamily] = {
    "LlavaForConditionalGeneration": _LLAVA,
    "LlavaNextForConditionalGeneration": _LLAVA_NEXT,
    "PaliGemmaForConditionalGeneration": _PALIGEMMA,
    "Qwen2VLForConditionalGeneration": _QWEN,
    "Qwen2_5_VLForConditionalGeneration": replace(_QWEN, encoder_roles=QWEN2_5_ROLES),
    "Qwen3VLForConditionalGeneration": _QWEN3,
    "Idefics3ForConditionalGeneration": _SMOL,
    "SmolVLMForConditionalGeneration": _SMOL,
    "Blip2ForConditionalGeneration": _OPT,
    "InstructBlipForConditionalGeneration": _INSTRUCT,
    "Blip2ForConditionalGeneration, t5": _T5,
    "InstructBlipForConditionalGeneration, llama": _VICUNA,
    "InstructBlipForConditionalGeneration, t5": replace(_T5, instructed=True, prompt="{image}{}</s>{answer}"),
    "BlipForConditionalGeneration": _BLIP,
    "BlipForQuestionAnswering": _BLIP_VQA,
    "MllamaForConditionalGeneration": _MLLAMA,
    "WhisperForConditionalGeneration": _WHISPER,
    "Qwen2AudioForConditionalGeneration": _QWEN_AUDIO,
}
CLASSES = sorted({name.partition(",")[0] for name in COMPOSITES})


def composite_family(name: str, config: Any) -> CompositeFamily | None:
    """The row of a class and its configuration; None for one that the table doesn't know."""
    text = getattr(getattr(config, "text_config", None), "model_type", "")
    return COMPOSITES.get(f"{name}, {text}") or COMPOSITES.get(name)


def class_of(config: Any) -> str:
    """The class that a checkpoint was saved from; '' where its configuration names none."""
    return next(iter(config.architectures or ()), "")
