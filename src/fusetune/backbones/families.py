"""The encoder families of `transformers` that can be entered and left at any depth, and how any encoder is loaded."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from fusetune.errors import FusetuneError


def _same(states: Tensor) -> Tensor:
    return states


def _channels_first(states: Tensor) -> Tensor:
    return states.transpose(1, 2)


@dataclass(frozen=True)
class Family:
    """Where a model keeps its stack of blocks, and what stands before it.

    Attributes:
        blocks: path of the stack in the model.
        stubs: modules before the stack, by path, with what each gives while the stack is entered above its bottom:
            a function of the hidden states (batch, tokens, width), whose values are thrown away.
        stack: path of the module that is run from the stack's bottom upwards, where the model's own forward can't be
            entered (waveforms: its mask is one of samples, not of frames).
        options: for `from_pretrained`; a pooler that no checkpoint holds would be random, new at every load.
        reserved_positions: position codes that no token uses.
        fixed_length: texts are padded to the model's full length and attend to the padding, as in its training.
        roles: what the parts of a block are for -> their paths in a block, for adapters.
    """

    blocks: str
    stubs: Mapping[str, Callable[[Tensor], Any]] = field(default_factory=lambda: {"embeddings": _same})
    stack: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    reserved_positions: int = 0
    fixed_length: bool = False
    roles: Mapping[str, str] = field(default_factory=dict)


def _attention(attention: str, query: str, key: str, value: str, output: str) -> dict[str, str]:
    """Roles of a self-attention: the module that attends, and the linear layers in it, by their paths."""
    parts = {"query": query, "key": key, "value": value, "attention_output": output}
    return {"attention": attention} | {role: f"{attention}.{path}" for role, path in parts.items()}


def _mlp(first: str, last: str) -> dict[str, str]:
    return {"mlp_input": first, "mlp_output": last}


def crossed(roles: Mapping[str, str], *replaced: str) -> dict[str, str]:
    """Roles of a cross-attention, from those of the self-attention of the same block.

    Args:
        replaced: paths in the roles, each with what it is there.
    """
    found = {}
    for role, path in roles.items():
        for old, new in zip(replaced[::2], replaced[1::2], strict=True):
            if path == old or path.startswith(f"{old}."):
                found["cross_output" if role == "attention_output" else f"cross_{role}"] = new + path[len(old) :]
    return found


_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_VIT = _attention("attention", *_PROJECTIONS, "o_proj") | _mlp("mlp.fc1", "mlp.fc2")
CLIP_ROLES = _attention("self_attn", *_PROJECTIONS, "out_proj") | _mlp("mlp.fc1", "mlp.fc2")
_WORDS = ("query", "key", "value", "dense")
BERT_ROLES = _attention("attention.self", *_WORDS) | _mlp("intermediate.dense", "output.dense")
BERT_ROLES["attention_output"] = "attention.output.dense"
_VIDEOMAE = _attention("attention.attention", *_WORDS) | _mlp("intermediate.dense", "output.dense")
_VIDEOMAE["attention_output"] = "attention.output.dense"
_WAVE = _attention("attention", *_PROJECTIONS, "out_proj") | _mlp(
    "feed_forward.intermediate_dense", "feed_forward.output_dense"
)
WHISPER_ROLES = _attention("self_attn", *_PROJECTIONS, "out_proj") | _mlp("fc1", "fc2")
LLAMA_ROLES = {
    **_attention("self_attn", *_PROJECTIONS, "o_proj"), **_mlp("mlp.up_proj", "mlp.down_proj"),
    "mlp_gate": "mlp.gate_proj",
}  # fmt: skip
_T5_SELF, _T5_CROSS, _T5_MLPS = "layer.0.SelfAttention", "layer.1.EncDecAttention", ("layer.1", "layer.2")
T5_ROLES = {  # behind an encoder's attention stands the MLP, behind a decoder's the cross-attention; gated or not
    **_attention(_T5_SELF, "q", "k", "v", "o"),
    **crossed(_attention(_T5_SELF, "q", "k", "v", "o"), _T5_SELF, _T5_CROSS),
    "mlp_input": "|".join(f"{at}.DenseReluDense.{name}" for at in _T5_MLPS for name in ("wi", "wi_1")),
    "mlp_gate": "|".join(f"{at}.DenseReluDense.wi_0" for at in _T5_MLPS),
    "mlp_output": "|".join(f"{at}.DenseReluDense.wo" for at in _T5_MLPS),
}
QWEN_ROLES = {"qkv": "attn.qkv", "attention_output": "attn.proj"} | _mlp("mlp.fc1", "mlp.fc2")
QWEN2_5_ROLES = QWEN_ROLES | _mlp("mlp.up_proj", "mlp.down_proj") | {"mlp_gate": "mlp.gate_proj"}
BLIP_ROLES = {"qkv": "self_attn.qkv", "attention_output": "self_attn.projection"} | _mlp("mlp.fc1", "mlp.fc2")

_NO_POOLER = {"add_pooling_layer": False}
_WAVES = Family(
    "encoder.layers",
    {"encoder.pos_conv_embed": _same},
    stack="encoder",
    options={"mask_time_prob": 0.0, "mask_feature_prob": 0.0},  # SpecAugment's vector is of no use in eval mode
    roles=_WAVE,
)

_ROBERTA = Family("encoder.layer", options=_NO_POOLER, reserved_positions=2, roles=BERT_ROLES)

# by the model type of the encoder itself; MiniLM is a BERT
FAMILIES = {
    "vit": Family("layers", options=_NO_POOLER, roles=_VIT),
    "dinov2": Family("encoder.layer", roles=_VIT),
    "clip_vision_model": Family("encoder.layers", roles=CLIP_ROLES),
    "siglip_vision_model": Family("encoder.layers", roles=CLIP_ROLES),
    "blip_vision_model": Family("encoder.layers", roles=BLIP_ROLES),
    "bert": Family("encoder.layer", options=_NO_POOLER, roles=BERT_ROLES),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,  # multilingual
    "clip_text_model": Family("encoder.layers", roles=CLIP_ROLES),
    "siglip_text_model": Family("encoder.layers", fixed_length=True, roles=CLIP_ROLES),
    "blip_text_model": Family("encoder.layer", options=_NO_POOLER, roles=BERT_ROLES),
    "llama": Family("layers", {"embed_tokens": _same}, roles=LLAMA_ROLES),
    "wav2vec2": _WAVES,
    "hubert": _WAVES,
    "whisper": Family("layers", {"conv1": _same, "conv2": _channels_first}, roles=WHISPER_ROLES),
    "audio-spectrogram-transformer": Family("layers", roles=_VIT),
    "videomae": Family("encoder.layer", roles=_VIDEOMAE),
}

# the encoder of one modality within a composite model: (model type, kind) -> class, and keys of its checkpoints
_PARTS: dict[tuple[str, str], tuple[str, dict[str, str] | None]] = {
    ("clip", "image"): ("transformers:CLIPVisionModel", None),
    ("clip", "text"): ("transformers:CLIPTextModel", None),
    ("siglip", "image"): ("transformers:SiglipVisionModel", None),
    ("siglip", "text"): ("transformers:SiglipTextModel", None),
    ("siglip_text_model", "text"): ("transformers:SiglipTextModel", None),
    ("whisper", "audio"): (
        "transformers.models.whisper.modeling_whisper:WhisperEncoder",
        {r"^(model\.)?encoder\.": ""},
    ),
}


def parts_of(model_type: str) -> list[str]:
    """The kinds of modality whose encoder can be taken out of a composite model."""
    return [kind for composite, kind in _PARTS if composite == model_type]


def load_model(source: str | Path, kind: str, revision: str | None = None) -> tuple[Any, set[str]]:
    """The encoder for modalities of `kind`, and the names of its weights that the checkpoint does not hold.

    Args:
        source: a local folder made by `save_pretrained`, or a hub id.
        revision: of a hub id.
    """
    from transformers import AutoConfig, AutoModel

    config = load(AutoConfig, source, revision)
    path, key_mapping = _PARTS.get((config.model_type, kind), ("", None))
    if path:
        module, _, name = path.partition(":")
        cls = getattr(import_module(module), name)
    else:
        cls = AutoModel
    family = FAMILIES.get(config.model_type)
    options = dict(family.options) if family else {}
    if key_mapping:
        options["key_mapping"] = key_mapping
    model, info = load(cls, source, revision, output_loading_info=True, **options)
    return model, set(info["missing_keys"])


def load(cls: Any, source: str | Path, revision: str | None = None, **options: Any) -> Any:
    """`cls.from_pretrained`; what goes wrong becomes one sentence for the user."""
    quiet()
    if revision:
        options["revision"] = revision
    try:
        return cls.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FusetuneError(
            f"backbone '{source}': {cls.__name__} can't be loaded ({first}). Expected a local folder made by "
            "save_pretrained, or a hub id and a network."
        ) from error


def refuse_random(missing: Sequence[str], source: str | Path, expected: str) -> None:
    """Raise FusetuneError for weights that a checkpoint lacks and outputs depend on.

    Args:
        expected: the class whose checkpoint has them.
    """
    if missing:
        raise FusetuneError(
            f"backbone '{source}': its checkpoint has no weights for {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}, so they would be random. Expected the "
            f"checkpoint of a {expected}."
        )


def quiet() -> None:
    """No bars for a handful of tensors, and no advice about packages that we don't use."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
