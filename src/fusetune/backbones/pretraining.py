"""Pretraining of the embedded base model: towers by contrast with the names, then the trunk by masked names.

Both read characters (`manifest.readers.glyphs`, view `characters`): pictures, outlines, metrics and Unicode names. The
towers are pulled together as in CLIP (Radford et al. 2021, arXiv 2103.00020), every modality against the name; the
trunk fills in masked words of a name (as BERT does) while it looks at a scene of four characters, or at one character
in all its modalities.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.characters import Characters
from fusetune.backbones.cloze import CAPTIONS, CELLS, IGNORED, ORDINALS, caption_words, hide_words, scenes, take
from fusetune.backbones.contrast import contrastive_loss
from fusetune.backbones.feature_towers import FeatureTowerSettings, SequenceTower, VectorTower
from fusetune.backbones.item_towers import ImageTower
from fusetune.backbones.text_tower import TextTower
from fusetune.backbones.tokenizer import train_tokenizer
from fusetune.backbones.trunk import StreamSettings, Trunk, TrunkSettings
from fusetune.config import check
from fusetune.schedule import warmup_cosine
from fusetune.tokens import Tokens

Progress = Callable[[str, int, int, dict[str, float]], None]  # phase, step, steps, losses

INITIAL_STD = 0.1  # of the image tower; with ViT's 0.02 so small a tower stands still for the first 100 steps
FIRST_CAPTION = 0.4  # share of the trunk's steps with one form of caption alone: to look at a cell is learned first
TEXT_MASK_RATE = 0.15  # words hidden from the text tower, so that it knows [MASK] before the trunk asks for it
WARMUP = 0.1  # share of the steps


@dataclass(frozen=True)
class EncoderSettings:
    """Size of a transformer tower.

    Attributes:
        width: floats per token.
        depth: blocks.
        heads: attention heads.
        patch: image only, pixels both ways.
    """

    width: int = 96
    depth: int = 4
    heads: int = 4
    patch: int = 8


@dataclass(frozen=True)
class PretrainSettings:
    """
    Attributes:
        image, text, outline: tower sizes.
        metrics_width: width of the vector tower.
        trunk_width, trunk_depth, trunk_heads: size of the trunk.
        vocabulary, max_length: of the tokenizer, in words and tokens.
        contrast_steps, contrast_batch: steps and characters per step of the towers' phase.
        trunk_steps, trunk_batch: steps and scenes per step of the trunk's phase.
        learning_rate, trunk_learning_rate, weight_decay: AdamW, with warm-up and a cosine.
        mask_rate: share of the words of a name that the trunk has to guess.
        projection: width of the space in which modalities are compared.
        seed: of weights, order and masks.
    """

    image: EncoderSettings = field(default_factory=lambda: EncoderSettings(depth=3))
    text: EncoderSettings = field(default_factory=lambda: EncoderSettings(depth=2))
    outline: EncoderSettings = field(default_factory=lambda: EncoderSettings(width=64, depth=2))
    metrics_width: int = 64
    trunk_width: int = 96
    trunk_depth: int = 1
    trunk_heads: int = 4
    vocabulary: int = 2000
    max_length: int = 24
    contrast_steps: int = 500
    contrast_batch: int = 128
    trunk_steps: int = 550
    trunk_batch: int = 64
    learning_rate: float = 2e-3
    trunk_learning_rate: float = 3e-3
    weight_decay: float = 0.05
    mask_rate: float = 0.9
    projection: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("contrast_steps", "contrast_batch", "trunk_steps", "trunk_batch"):
            check(getattr(self, name) > 0, f"{name}: expected a positive number, found {getattr(self, name)}.")
        check(0 < self.mask_rate < 1, f"mask_rate: expected a share between 0 and 1, found {self.mask_rate}.")


def pretrain_towers(
    rows: Characters, phrases: Sequence[str], settings: PretrainSettings, progress: Progress, device: torch.device
) -> Backbone:
    """Train towers from nothing.

    Args:
        phrases: more texts for the tokenizer's vocabulary (the questions of later tasks).

    Returns:
        The backbone, without a trunk, frozen, on the CPU.
    """
    torch.manual_seed(settings.seed)
    tokenizer = train_tokenizer(
        [*sorted(set(rows.names)), *phrases, *CAPTIONS, *ORDINALS], settings.vocabulary, settings.max_length
    )
    towers = nn.ModuleDict(
        {
            "image": _image_tower(settings.image),
            "text": small_text_tower(settings.text, tokenizer, settings.max_length),
            "outline": SequenceTower(
                FeatureTowerSettings(
                    rows.outlines[0].shape[1], settings.outline.width, settings.outline.depth, settings.outline.heads
                )
            ),
            "metrics": VectorTower(FeatureTowerSettings(rows.metrics[0].shape[1], settings.metrics_width)),
        }
    ).to(device)
    inputs = _inputs(towers, rows, device)
    towers["metrics"].fit_statistics(inputs["metrics"])  # type: ignore[operator]
    _contrast(towers, inputs, rows.chars, tokenizer, settings, progress)
    return Backbone(dict(towers.items())).cpu()  # type: ignore[arg-type]


def pretrain_trunk(
    backbone: Backbone, rows: Characters, settings: PretrainSettings, progress: Progress, device: torch.device
) -> Backbone:
    """The towers that `pretrain_towers` has made, with a trunk on them that is trained from nothing."""
    towers = backbone.towers.to(device)
    trunk = _fuse(towers, _inputs(towers, rows, device), rows, settings, progress, device)
    return Backbone(dict(towers.items()), trunk).cpu()  # type: ignore[arg-type]


def _inputs(towers: nn.ModuleDict, rows: Characters, device: torch.device) -> dict[str, Tokens]:
    samples = {"image": [[p] for p in rows.pictures], "outline": rows.outlines, "metrics": rows.metrics}
    samples["text"] = rows.names
    return {name: towers[name].prepare(column).to(device) for name, column in samples.items()}  # type: ignore[operator]


def _contrast(
    towers: nn.ModuleDict,
    inputs: dict[str, Tokens],
    chars: Sequence[str],
    tokenizer: Any,
    settings: PretrainSettings,
    progress: Progress,
) -> None:
    """Phase one: the picture, outline and metrics of a character near its name, far from the others' names."""
    by_char: dict[str, list[int]] = defaultdict(list)
    for row, char in enumerate(chars):
        by_char[char].append(row)
    device = inputs["image"].values.device
    projections = nn.ModuleDict({n: nn.Linear(t.width, settings.projection, bias=False) for n, t in towers.items()})  # type: ignore[arg-type]
    projections.to(device)
    scale = nn.Parameter(torch.tensor(2.3, device=device))  # log of 10
    modules = nn.ModuleList([towers, projections]).train()
    optimizer, schedule = optimizer_of(
        [*modules.parameters(), scale], settings.learning_rate, settings.weight_decay, settings.contrast_steps
    )
    rng = random.Random(settings.seed)
    order: list[str] = []
    for step in range(settings.contrast_steps):
        if len(order) < settings.contrast_batch:
            order = rng.sample(sorted(by_char), len(by_char))
        picked, order = order[: settings.contrast_batch], order[settings.contrast_batch :]
        index = torch.tensor([rng.choice(by_char[char]) for char in picked], device=device)
        views = {name: take(tokens, index) for name, tokens in inputs.items()}
        half = Tokens(views["outline"].values[::2], views["outline"].mask[::2])
        views["outline"] = half  # outlines are long: every other one is compared with all the names
        views["text"] = hide_words(views["text"], tokenizer, TEXT_MASK_RATE, rng)[0]
        pooled = {
            name: F.normalize(projections[name](towers[name].advance(view, 0, towers[name].depth).pooled()), dim=-1)  # type: ignore[operator]
            for name, view in views.items()
        }
        target = torch.arange(len(index), device=device)
        losses = {}
        for name in ("image", "outline", "metrics"):
            rows = target[::2] if name == "outline" else target
            logits = scale.exp().clamp(max=100) * pooled[name] @ pooled["text"].T
            losses[name] = contrastive_loss(logits, rows)
        step_with(sum(losses.values()), modules, optimizer, schedule)  # type: ignore[arg-type]
        progress("towers", step + 1, settings.contrast_steps, {name: loss.item() for name, loss in losses.items()})
    towers.eval().requires_grad_(False)


def _fuse(
    towers: nn.ModuleDict,
    inputs: dict[str, Tokens],
    rows: Characters,
    settings: PretrainSettings,
    progress: Progress,
    device: torch.device,
) -> Trunk:
    """Phase two: the trunk fills in masked words of '<ordinal> <name>' from a scene, or of a name from a character."""
    tokenizer: Any = towers["text"].processor
    images = _encoded(towers["image"], inputs["image"])  # seen again in every scene: once is enough
    streams = {
        "image": StreamSettings(settings.image.width, CELLS * images.values.shape[1]),
        "text": StreamSettings(settings.text.width, settings.max_length),
        "outline": StreamSettings(settings.outline.width, inputs["outline"].values.shape[1]),
        "metrics": StreamSettings(settings.metrics_width, 1),
    }
    torch.manual_seed(settings.seed + 1)
    trunk = Trunk(TrunkSettings(streams, settings.trunk_width, settings.trunk_depth, settings.trunk_heads)).to(device)
    guess = nn.Linear(settings.trunk_width, len(tokenizer)).to(device)
    modules = nn.ModuleList([trunk, guess]).train()
    optimizer, schedule = optimizer_of(
        list(modules.parameters()), settings.trunk_learning_rate, settings.weight_decay, settings.trunk_steps
    )
    by_face = rows.by_face()
    rng, skip = random.Random(settings.seed + 1), caption_words(tokenizer)
    for step in range(settings.trunk_steps):
        if step % 4 < 3:
            captions = CAPTIONS[: 1 if step < FIRST_CAPTION * settings.trunk_steps else None]
            pictures, names = scenes(images, rows.names, by_face, captions, settings.trunk_batch, rng)
            batch = {"image": pictures}
        else:
            index = torch.tensor(rng.choices(range(len(rows.chars)), k=settings.trunk_batch), device=device)
            batch = {name: _encoded(towers[name], take(inputs[name], index)) for name in ("outline", "metrics")}
            batch["image"] = take(images, index)
            names = [rows.names[i] for i in index.tolist()]
        text = towers["text"].prepare(names).to(device)  # type: ignore[operator]
        masked, target = hide_words(text, tokenizer, settings.mask_rate, rng, skip)
        with torch.no_grad():
            batch["text"] = towers["text"].advance(masked, 0, towers["text"].depth)  # type: ignore[operator]
        out = trunk.advance(batch, 0, trunk.depth)["text"].values
        chosen = target != IGNORED
        loss = F.cross_entropy(guess(out[chosen]), target[chosen])
        step_with(loss, modules, optimizer, schedule)
        progress("trunk", step + 1, settings.trunk_steps, {"cloze": loss.item()})
    return trunk.eval()


@torch.no_grad()
def _encoded(tower: Any, tokens: Tokens, batch: int = 512) -> Tokens:
    parts = [
        tower.advance(Tokens(values, mask), 0, tower.depth)
        for values, mask in zip(tokens.values.split(batch), tokens.mask.split(batch), strict=True)
    ]
    return Tokens(torch.cat([p.values for p in parts]), torch.cat([p.mask for p in parts]))


def optimizer_of(parameters: list[nn.Parameter], rate: float, weight_decay: float, steps: int):
    """AdamW, and its rates: a warm-up and a cosine over so many steps."""
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, WARMUP))
    return optimizer, schedule


def step_with(loss: Tensor, modules: nn.Module, optimizer, schedule) -> None:
    """One step down the gradient of a loss, clipped to a norm of 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def _image_tower(size: EncoderSettings) -> ImageTower:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = ViTConfig(
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        image_size=32,
        patch_size=size.patch,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=INITIAL_STD,
    )
    processor = ViTImageProcessor(do_resize=True, size={"height": 32, "width": 32})
    return ImageTower(ViTModel(config, add_pooling_layer=False), processor)


def small_text_tower(size: EncoderSettings, tokenizer, max_length: int) -> TextTower:
    """A BERT of this size."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        max_position_embeddings=max_length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return TextTower(BertModel(config, add_pooling_layer=False), tokenizer)
