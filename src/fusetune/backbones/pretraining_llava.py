"""Pretraining of the embedded model that speaks: a LLaVA of tiny size, saved as a hub would have it.

Its pictures are scenes: four characters of one typeface, two above two. Phase one, seeing: the vision tower, so that
each quarter of a scene is near the name of its character (CLIP's contrast; Radford et al. 2021, arXiv 2103.00020).
Phase two, speaking: connector and language blocks learn to describe a scene (all four, or one that is named by its
place) by what can be read off a character. Nothing else is asked: questions are left to those who adapt it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fusetune.backbones.characters import Characters
from fusetune.backbones.cloze import IGNORED, hide_words, take
from fusetune.backbones.contrast import contrastive_loss
from fusetune.backbones.pretraining import (
    INITIAL_STD,
    TEXT_MASK_RATE,
    EncoderSettings,
    PretrainSettings,
    Progress,
    optimizer_of,
    small_text_tower,
    step_with,
)
from fusetune.backbones.spoken_scenes import OF_ALL, OF_ONE, SIDE, Conversations, Scenes
from fusetune.backbones.tokenizer import train_tokenizer
from fusetune.config import check

PROJECTION = 64  # width of the space in which characters and names are compared
SPEAKING_STD = 0.08  # of the language blocks at first; with Llama's 0.02 so small a model learns nothing for long
OF_ALL_EVERY = 3  # steps of phase two: then whole scenes are described, else one character each
POSITIONS = 256  # tokens of a sequence
PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"
# the picture first
TEMPLATE = (
    "{% for m in messages %}{% if loop.first %}<s>{% endif %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}{{ m['role'] }}:"
    "{% for c in m['content'] if c['type'] == 'text' %} {{ c['text'] }}{% endfor %}"
    "{{ '</s>' if m['role'] == 'assistant' else ' ' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True)
class PretrainLlavaSettings:
    """
    Attributes:
        image: size of the vision tower (CLIP's).
        width, depth, heads: of the language blocks (Llama's).
        vocabulary: of the byte-level tokenizer, in pieces.
        sight_steps, sight_batch: steps and scenes per step of phase one.
        speech_steps, speech_batch: steps and scenes per step of phase two.
        learning_rate, speech_learning_rate, weight_decay: AdamW, with warm-up and a cosine.
        seed: of weights and order.
    """

    image: EncoderSettings = field(default_factory=lambda: EncoderSettings(depth=3, patch=16))
    width: int = 128
    depth: int = 4
    heads: int = 4
    vocabulary: int = 1000
    sight_steps: int = 500
    sight_batch: int = 32
    speech_steps: int = 600
    speech_batch: int = 64
    learning_rate: float = 2e-3
    speech_learning_rate: float = 3e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("sight_steps", "sight_batch", "speech_steps", "speech_batch"):
            check(getattr(self, name) > 0, f"{name}: expected a positive number, found {getattr(self, name)}.")
        check(
            SIDE % (2 * self.image.patch) == 0,
            f"image.patch: expected pixels that divide a character's {SIDE // 2}, found {self.image.patch}.",
        )


def pretrain_llava(
    rows: Characters,
    descriptions: Sequence[str],
    phrases: Sequence[str],
    settings: PretrainLlavaSettings,
    progress: Progress,
    device: torch.device,
    folder: Path,
) -> None:
    """Train a `LlavaForConditionalGeneration` from nothing, and write it with its processor and chat template.

    Args:
        descriptions: of each row.
        phrases: more texts for the tokenizer's vocabulary (the questions of later tasks).
        folder: where they are written.
    """
    from transformers import CLIPImageProcessor, LlavaProcessor

    torch.manual_seed(settings.seed)
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    scenes = Scenes(rows, images, settings.seed, device)
    seeing = _sighted(scenes, settings, progress, device)
    words = _tokenizer([*rows.names, *descriptions, *phrases, *OF_ALL, *OF_ONE], settings.vocabulary)
    model = _llava(seeing, words, settings).to(device)
    _speak(model, scenes, Conversations(descriptions, words, settings.seed), settings, progress)
    model.cpu().eval().save_pretrained(folder)
    LlavaProcessor(
        image_processor=images,
        tokenizer=words,
        patch_size=settings.image.patch,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        image_token=IMAGE,
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)


def _sighted(scenes: Scenes, settings: PretrainLlavaSettings, progress: Progress, device: torch.device) -> Any:
    """Phase one: a vision model that tells characters of a scene apart."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    size, own = settings.image, PretrainSettings()
    config = CLIPVisionConfig(
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        image_size=SIDE,
        patch_size=size.patch,
        initializer_range=INITIAL_STD,
    )
    names = train_tokenizer(sorted(set(scenes.rows.names)), own.vocabulary, own.max_length)
    vision: Any = CLIPVisionModel(config)
    text = small_text_tower(own.text, names, own.max_length).to(device)
    spoken = text.prepare(scenes.rows.names).to(device)
    projections = nn.ModuleList(nn.Linear(width, PROJECTION, bias=False) for width in (size.width, text.width))
    scale = nn.Parameter(torch.tensor(2.3, device=device))  # log of 10
    modules = nn.ModuleList([vision.to(device), text, projections.to(device)]).train()
    optimizer, schedule = optimizer_of(
        [*modules.parameters(), scale], settings.learning_rate, settings.weight_decay, settings.sight_steps
    )
    half = SIDE // size.patch // 2
    for step in range(settings.sight_steps):
        drawn = scenes.apart(settings.sight_batch)
        states = vision(pixel_values=scenes.pixels(drawn)).last_hidden_state[:, 1:]  # without the class token
        quarters = states.unflatten(1, (2, half, 2, half)).mean((2, 4)).flatten(0, 2)
        hidden = hide_words(take(spoken, drawn.flatten().to(device)), names, TEXT_MASK_RATE, scenes.rng)[0]
        told = text.advance(hidden, 0, text.depth).pooled()
        seen, named = (F.normalize(p(v), dim=-1) for p, v in zip(projections, (quarters, told), strict=True))
        loss = contrastive_loss(scale.exp().clamp(max=100) * seen @ named.T)
        step_with(loss, modules, optimizer, schedule)
        progress("sight", step + 1, settings.sight_steps, {"loss": loss.item()})
    return vision.eval()


def _tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Byte-level pieces, so that it can write anything; common words are one piece."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token=None))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    spoken = [f" {text}" for text in sorted(texts)]  # words behind a blank, as they stand in a sequence
    made.train_from_iterator([*spoken, "user: assistant:"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=POSITIONS,
        extra_special_tokens={"image_token": IMAGE},
    )


def _llava(vision: Any, words: Any, settings: PretrainLlavaSettings) -> Any:
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(settings.seed + 1)
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=settings.width,
        intermediate_size=settings.width * 8 // 3,
        num_hidden_layers=settings.depth,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=POSITIONS,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        initializer_range=SPEAKING_STD,
    )
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    for layer in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        nn.init.normal_(layer.weight, std=SPEAKING_STD)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    return model


def _speak(
    model: Any, scenes: Scenes, conversations: Conversations, settings: PretrainLlavaSettings, progress: Progress
) -> None:
    """Phase two: connector, language blocks and head learn to describe scenes; in place."""
    llava, language, head = model.model, model.model.language_model, model.lm_head
    learning = nn.ModuleList([llava.multi_modal_projector, language, head]).train()
    llava.vision_tower.requires_grad_(False)
    optimizer, schedule = optimizer_of(
        list(learning.parameters()), settings.speech_learning_rate, settings.weight_decay, settings.speech_steps
    )
    for step in range(settings.speech_steps):
        drawn = scenes.draw(settings.speech_batch)
        ids, targets = (t.to(model.device) for t in conversations.of(drawn, of_all=(step + 1) % OF_ALL_EVERY == 0))
        seen = torch.stack(list(llava.get_image_features(scenes.pixels(drawn)).pooler_output))
        embedded = torch.cat([language.embed_tokens(ids[:, :1]), seen, language.embed_tokens(ids[:, 1:])], 1)
        out = language(inputs_embeds=embedded).last_hidden_state[:, seen.shape[1] :]  # of the picture's last place on
        asked = targets != IGNORED
        loss = F.cross_entropy(head(out[asked]), targets[asked])
        step_with(loss, learning, optimizer, schedule)
        progress("speech", step + 1, settings.speech_steps, {"loss": loss.item()})
