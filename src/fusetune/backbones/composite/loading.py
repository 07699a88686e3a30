"""Where a composite base comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fusetune.backbones.composite.asking import AskedTrunk
from fusetune.backbones.composite.families import CLASSES, class_of
from fusetune.backbones.composite.family import CompositeFamily
from fusetune.backbones.composite.hearing import HearingTower, MeasuredTower
from fusetune.backbones.composite.instructed import InstructedAskedTrunk, InstructedTrunk
from fusetune.backbones.composite.language import LanguageTrunk
from fusetune.backbones.composite.model import CompositeModel
from fusetune.backbones.composite.prompt import Prompt, adjoin
from fusetune.backbones.composite.reading import ReadingTrunk
from fusetune.backbones.composite.seeing import SeeingTower
from fusetune.backbones.composite.words import PromptTower, WordTower, positions, room
from fusetune.backbones.families import load
from fusetune.backbones.tower import Tower
from fusetune.config import check


@dataclass(frozen=True)
class CompositeSource:
    """
    Attributes:
        source: a hub id, or a local folder of model and processor.
        revision: of a hub id.
        prompt: what a text is put into, with {image} and {}; None: the checkpoint's chat template, or its family's way.
        max_tokens: of the text in its prompt; what is longer is cut, and `inputs` says how much that is.
        picture_side: pixels of the side that pictures are brought to, where large ones would take more places.
        system: what the chat template is told before anything is asked.
        quantise: int8, int4 or nf4: the language blocks' weights in few bits; None: as they are.
    """

    source: str
    revision: str | None = None
    prompt: str | None = None
    max_tokens: int | None = None
    picture_side: int | None = None
    system: str | None = None
    quantise: str | None = None


def is_composite(source: str, revision: str | None = None) -> bool:
    """Whether a checkpoint is of a composite family in the table, by its configuration alone."""
    from transformers import AutoConfig

    return class_of(load(AutoConfig, source, revision)) in CLASSES


def load_parts(chosen: CompositeSource, kinds: Mapping[str, str]) -> tuple[dict[str, Tower], LanguageTrunk]:
    """Towers by modality and the trunk of a composite model.

    Args:
        kinds: by modality.

    Raises:
        FusetuneError: nothing there, a class of no known family, or modalities that it doesn't take.
    """
    from transformers import AutoProcessor

    composite = CompositeModel.from_pretrained(chosen.source, chosen.revision)
    processor = _by_parts(chosen) if composite.family.by_parts else load(AutoProcessor, chosen.source, chosen.revision)
    number = composite.image_id
    image_token = None if number is None else processor.tokenizer.convert_ids_to_tokens(number)
    way = composite.family
    prompt = Prompt.of(processor, image_token, chosen.prompt, way.prompt, way.around, chosen.system, way.kind)
    several = composite.family.several and adjoin(processor, str(image_token), chosen.prompt)
    return _parts(composite, processor, kinds, prompt, chosen, several)


def save_processor(chosen: CompositeSource, family: CompositeFamily, folder: Path) -> None:
    """Write a checkpoint's own processor, with its chat template, beside another model."""
    from transformers import AutoProcessor

    several = _two(chosen) if family.by_parts else [load(AutoProcessor, chosen.source, chosen.revision)]
    for one in several:
        one.save_pretrained(folder)


def _two(chosen: CompositeSource) -> list[Any]:
    """Tokenizer and image processor."""
    from transformers import AutoImageProcessor, AutoTokenizer

    return [load(auto, chosen.source, chosen.revision) for auto in (AutoTokenizer, AutoImageProcessor)]


def _by_parts(chosen: CompositeSource) -> Any:
    tokenizer, images = _two(chosen)
    return SimpleNamespace(
        tokenizer=tokenizer,
        image_processor=images,
        chat_template=tokenizer.chat_template,
        apply_chat_template=tokenizer.apply_chat_template,
    )


def _parts(
    composite: CompositeModel,
    processor: Any,
    kinds: Mapping[str, str],
    prompt: Any,
    chosen: CompositeSource,
    several: bool = False,
) -> tuple[dict[str, Tower], LanguageTrunk]:
    """Towers by modality, and the trunk.

    Args:
        kinds: by modality: at most one image (or sound) and one text.
        prompt: a `prompt.Prompt`.
        several: whether a sample may have several pictures.

    Raises:
        FusetuneError: other modalities than a picture (or sound) and a text.
    """
    family, seen = composite.family, "a sound" if composite.family.kind == "audio" else "one image"
    by_kind: dict[str, str] = {}
    for name, kind in kinds.items():
        shown = family.kind if kind == "video" and several else kind  # its frames are pictures, one behind another
        check(
            kind != "video" or several,
            f"data.modalities.{name}: frames of a video are several pictures, and this composite model and its prompt "
            "take one. Expected a LLaVA or PaliGemma whose prompt puts nothing between pictures.",
        )
        check(
            shown in (family.kind, "text") and shown not in by_kind,
            f"data.modalities.{name}: this composite model takes {seen} and one text, found {dict(kinds)}.",
        )
        by_kind[shown] = name
    text_config = composite.model.config.get_text_config()
    hears = family.kind == "audio"
    check(
        chosen.picture_side is None or family.side is not None,
        "backbone.picture_side: this model brings all pictures to one size by itself; leave it out.",
    )
    seeing = (
        (MeasuredTower if family.measured else HearingTower)(composite, processor.feature_extractor)
        if hears
        else SeeingTower(composite, processor.image_processor, chosen.picture_side)
    )
    composite.picture_shape, composite.picture_side = seeing.shape, seeing.side
    places = seeing.places if family.placed else 0
    longest = positions(composite) - room(composite) - places
    if several:
        seeing.most = max(1, (positions(composite) - room(composite)) // (2 * places))
    unsaid = family.memory and not (hears or family.crossed or family.question)
    start = [text_config.bos_token_id] if unsaid else []  # BLIP's decoder begins so
    place, sign = composite.image_id, family.crossed is not None
    words = PromptTower(
        processor.tokenizer, prompt, text_config.hidden_size, longest, chosen.max_tokens, start, place, sign
    )
    seeing.kind = kinds.get(by_kind.get(family.kind, ""), family.kind)
    towers, names = {family.kind: seeing, "text": words}, (by_kind.get(family.kind, ""), by_kind.get("text", ""))
    trunk = trunk_of(composite, words, *names, seeing, getattr(processor, "qformer_tokenizer", None))
    return {name: towers[kind] for kind, name in by_kind.items()}, trunk


def trunk_of(
    composite: CompositeModel, words: WordTower, image: str, text: str, seeing: SeeingTower, asks: Any = None
) -> LanguageTrunk:
    """The language blocks, by how they read pictures: in their sequence, by cross-attention, with a question first.

    Args:
        image, text: the names of the two streams; '' where the data has none.
        asks: the tokenizer of a connector that reads the question.
    """
    family, parts = composite.family, (composite, words, image, text)
    if family.instructed:
        instructed = InstructedAskedTrunk(*parts, seeing) if family.question else InstructedTrunk(*parts)
        instructed.asks = asks
        return instructed
    if family.question:
        return AskedTrunk(*parts, seeing)
    return ReadingTrunk(*parts, seeing) if family.memory else LanguageTrunk(*parts)


def resolved(chosen: CompositeSource) -> CompositeSource:
    """With an absolute path, where it is a local folder."""
    folder = Path(chosen.source)
    return replace(chosen, source=str(folder.resolve()), revision=None) if folder.is_dir() else chosen
