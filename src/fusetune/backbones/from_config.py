"""Backbones from a configuration alone, on the `meta` device: shapes and costs without weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.composite.families import class_of, composite_family
from fusetune.backbones.composite.family import CompositeFamily
from fusetune.backbones.composite.hearing import HearingTower, MeasuredTower
from fusetune.backbones.composite.loading import CompositeSource, trunk_of
from fusetune.backbones.composite.model import CompositeModel
from fusetune.backbones.composite.seeing import SeeingTower
from fusetune.backbones.composite.words import WordTower
from fusetune.backbones.families import FAMILIES, load, quiet
from fusetune.backbones.item_towers import ImageTower, ItemTower, VideoTower
from fusetune.backbones.text_tower import TextTower
from fusetune.backbones.tower import Tower
from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens

# classes that AutoModel doesn't find by the model type of a part
_CLASSES = {
    "blip_vision_model": "BlipVisionModel",
    "blip_text_model": "BlipTextModel",
    "clip_vision_model": "CLIPVisionModel",
    "clip_text_model": "CLIPTextModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip_text_model": "SiglipTextModel",
}


@dataclass(frozen=True)
class Shape:
    """A backbone without weights, and how large a sample is.

    Attributes:
        backbone: on the meta device.
        inputs: one sample at depth 0, by modality.
        most_tokens: of a sample behind its tower, by modality.
    """

    backbone: Backbone
    inputs: dict[str, Tokens]
    most_tokens: dict[str, int]


def shape_of(source: str, text_tokens: int, answer: tuple[str, int] | None = None) -> Shape:
    """The towers of a model that is known by its configuration; of one that speaks, its language blocks are the trunk.

    Args:
        source: a config.json or its folder, a hub id, or a model type of `transformers` (clip, blip, llava, bert, ...),
            which stands for the sizes that its configuration has by default.
        text_tokens: of a sample's text, in its prompt.
        answer: the name of the stream of answers, and their tokens; None: nothing is answered in words.

    Raises:
        FusetuneError: no such configuration, an encoder of other than pictures, videos and texts, or a model that
            doesn't speak and should.
    """
    config = _config(source)
    name = class_of(config) or type(config).__name__.removesuffix("Config") + "ForConditionalGeneration"
    family = composite_family(name, config)
    if family:
        return _speaking(name, config, family, text_tokens, answer)
    check(
        answer is None,
        f"estimate.answer_tokens: '{source}' is no model that an experiment with answers in words can be built on. "
        "Expected one (llava, qwen2_5_vl, smolvlm, blip, whisper ...), or 0: then its encoders are accounted for.",
    )
    parts = {
        name: part
        for name, key in (("image", "vision_config"), ("text", "text_config"))
        if (part := getattr(config, key, None)) is not None
    }
    towers: dict[str, Tower] = {}
    inputs, most = {}, {}
    for part in parts.values() or [config]:
        tower, tokens = _tower(part, source, text_tokens)
        towers[tower.kind], inputs[tower.kind] = tower, tokens
        most[tower.kind] = tower.tokens_out(tokens.values.shape[1])
    return Shape(Backbone(towers), inputs, most)


def _speaking(
    name: str, config: Any, family: CompositeFamily, text_tokens: int, answer: tuple[str, int] | None
) -> Shape:
    import transformers

    cls = getattr(transformers, name)
    attention = {"attn_implementation": "sdpa"} if cls._supports_sdpa else {}
    with torch.device("meta"):
        model = cls._from_config(config, **attention)
    if getattr(config, "image_token_index", 0) is None:
        config.image_token_index = 0  # BLIP-2 has none by default
    composite = CompositeModel(model)
    composite.picture_shape = torch.Size(family.taken(config))
    composite.picture_side = family.side(config) if family.side else None
    towers = {"image": SeeingTower, "audio": MeasuredTower if family.measured else HearingTower}
    seeing = towers[family.kind](composite, None)
    seeing.__dict__["shape"] = composite.picture_shape
    words = WordTower(config.get_text_config().hidden_size)
    trunk = trunk_of(composite, words, family.kind, "text", seeing)
    backbone = Backbone({family.kind: seeing, "text": words}, trunk, CompositeSource(name))
    inputs = {family.kind: _zeros(1, seeing.size, torch.float32)}
    inputs["text"] = _zeros(text_tokens, 1, torch.long)
    found = seeing.advance(inputs[family.kind], 0, seeing.depth).width
    check(
        found == seeing.width,
        f"estimate.model: by this configuration the encoder's connector gives {found} numbers a token, the language "
        f"blocks take {seeing.width}. A model type's default sizes may not fit each other: expected a config.json.",
    )
    most = {family.kind: seeing.tokens_out(1), "text": text_tokens}
    if answer:
        backbone.take_answers(*answer)
        inputs[answer[0]] = _zeros(answer[1] - 1, 1, torch.long)
    return Shape(backbone, inputs, most)


def _config(source: str) -> Any:
    from transformers import AutoConfig

    quiet()
    if not source:
        raise FusetuneError("estimate.model: expected a model type (clip, llava, ...), a config.json, or a hub id.")
    if not Path(source).exists() and "/" not in source:
        try:
            return AutoConfig.for_model(source)
        except ValueError:
            raise FusetuneError(
                f"estimate.model: transformers knows no model type '{source}', and there is no such file or folder."
            ) from None
    return load(AutoConfig, source)


def _tower(config: Any, source: str, text_tokens: int) -> tuple[Tower, Tokens]:
    import transformers

    cls = getattr(transformers, _CLASSES.get(config.model_type, "AutoModel"))
    told = "estimate.model '{}': an encoder of '{}' can't be accounted for without its weights."
    with torch.device("meta"):
        if cls is transformers.AutoModel:
            check(type(config) in transformers.MODEL_MAPPING, told.format(source, config.model_type))
            model = cls.from_config(config, attn_implementation="sdpa")
        else:
            model = cls._from_config(config)
    name = model.main_input_name
    if name == "pixel_values":
        is_video = hasattr(config, "num_frames")
        tower: ItemTower = (VideoTower if is_video else ImageTower)(model, None)
        side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        picture = (getattr(config, "num_channels", 3), side, side)
        shape = torch.Size((config.num_frames, *picture) if is_video else picture)
        tower.__dict__["_input_shape"] = shape  # else learned from the processor, which a configuration lacks
        return tower, _zeros(1, shape.numel(), torch.float32)
    if name == "input_ids":
        check(config.model_type in FAMILIES, told.format(source, config.model_type))
        return TextTower(model, None), _zeros(text_tokens, 1, torch.long)
    raise FusetuneError(told.format(source, name))


def _zeros(tokens: int, width: int, dtype: torch.dtype) -> Tokens:
    values = torch.zeros(1, tokens, width, dtype=dtype, device="meta")
    return Tokens(values, torch.ones(1, tokens, dtype=torch.bool, device="meta"))
