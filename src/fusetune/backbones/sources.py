"""Where a tower comes from: a hub id, a folder, or a part of a composite model."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusetune.backbones import towers
from fusetune.backbones.composite.loading import CompositeSource, is_composite
from fusetune.backbones.families import load, parts_of
from fusetune.backbones.sharing import twin
from fusetune.backbones.tower import Tower
from fusetune.config import check, digest, to_plain
from fusetune.errors import FusetuneError

EMBEDDED_LLAVA = "embedded_llava"
MADE_HERE = ("embedded", EMBEDDED_LLAVA, "align", "features")  # everything else is a hub id or a folder
FEATURES = ("sequence", "vector")  # kinds that may be passed through as they are
EMBEDDED = {"image": "image", "text": "text", "outline": "sequence", "metrics": "vector"}  # the embedded base's towers
INPUTS = {"pixel_values": "image", "input_ids": "text", "input_values": "audio", "input_features": "audio"}


@dataclass(frozen=True)
class TowerSource:
    """
    Attributes:
        source: a hub id or a local folder of `transformers`, or one of ``embedded`` (the base model that is pretrained
            here), ``embedded_llava`` (the one that speaks), ``align`` (a small tower, fitted to the training rows
            without labels), ``features`` (what somebody else extracted: standardised and passed through).
        part: of a composite model the kind of encoder that is taken (default: the modality's kind); of the embedded
            base the name of a tower (default: the one of the modality's name, or else of its kind).
        revision: of a hub id: a branch, a tag or a commit.
        max_tokens: of a text, a waveform or a sequence; what is longer is cut, and `inputs` says how much that is.
    """

    source: str
    part: str | None = None
    revision: str | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        check(bool(self.source), "source: expected a hub id, a folder, or one of " + ", ".join(MADE_HERE) + ".")
        check(self.source != "pretrain", "source: 'pretrain' is called 'embedded' now.")
        check(
            self.max_tokens is None or self.max_tokens > 0, f"max_tokens: expected at least 1, found {self.max_tokens}."
        )

    def options(self) -> dict[str, Any]:
        """What `from_pretrained` of a tower takes beside the source."""
        return {key: value for key, value in to_plain(self).items() if key != "source" and value is not None}


def from_source(chosen: TowerSource, kind: str, name: str) -> Tower:
    """The tower of modality `name` out of a hub id or folder.

    Raises:
        FusetuneError: nothing there, or nothing of this kind; it says which kinds there are and what line to write.
    """
    where, offered = f"backbone.towers.{name}", kinds_of(chosen)
    wanted = chosen.part or kind
    if wanted not in offered:
        line = ", ".join(f"<your {other} modality>: {{source: {chosen.source}}}" for other in offered)
        raise FusetuneError(
            f"{where}: '{chosen.source}' has {' and '.join(offered) or 'no encoder that can be taken out of it'}, not "
            f"{wanted}; modality '{name}' is of kind {kind}. Expected another source for '{name}'"
            + (f"; this one goes to backbone.towers: {{{line}}}." if offered else ".")
        )
    check(
        wanted == kind or {wanted, kind} == {"image", "video"},
        f"{where}.part: an encoder of {wanted} can't read modality '{name}', which is of kind {kind}.",
    )
    return registered_tower(kind, chosen.source, chosen.options())


def towers_from(chosen: Mapping[str, TowerSource], kinds: Mapping[str, str]) -> dict[str, Tower]:
    """The towers of several modalities by name; one that several take is loaded once (`sharing.twin`)."""
    found: dict[str, Tower] = {}
    first: dict[str, str] = {}
    for name, source in chosen.items():
        same = first.setdefault(digest([source, kinds[name]]), name)
        if same == name:
            found[name] = from_source(source, kinds[name], name)
        else:
            found[name] = twin(found[same])
    return found


def registered_tower(registered: str, source: str | Path, options: Mapping[str, Any]) -> Tower:
    """A tower by its name in the registry, which remembers where it came from."""
    tower = towers.get(registered).from_pretrained(source, **options)
    reference = str(Path(source).resolve()) if Path(source).is_dir() else str(source)
    tower.origin = TowerSource(reference, **options)
    return tower


def kinds_of(chosen: TowerSource) -> list[str]:
    """The kinds of modality that a model has an encoder for, by its configuration alone."""
    from transformers import MODEL_MAPPING, AutoConfig

    config = load(AutoConfig, chosen.source, chosen.revision)
    parts = parts_of(config.model_type)
    if parts or type(config) not in MODEL_MAPPING:
        return parts
    if any(getattr(config, f"{part}_config", None) is not None for part in ("vision", "text", "audio")):
        return []  # composite, and not in our table
    cls: Any = MODEL_MAPPING[type(config)]
    found = INPUTS.get(cls.main_input_name)
    if found == "image" and hasattr(config, "num_frames"):
        found = "video"
    return [found] if found else []


@dataclass(frozen=True)
class BackboneSettings:
    """
    Attributes:
        source: of every modality that `towers` doesn't name, as in `TowerSource`; sequences and vectors are
            ``features`` wherever the source has no tower for them.
        towers: by modality.
        prompt: of a composite model (LLaVA), what a text is put into, with {image} and {}; None: the checkpoint's chat
            template, or its family's way.
        system: what the chat template of a composite model is told before anything is asked; None: nothing.
        quantise: int8, int4 or nf4: weights of a composite model's language blocks in few bits; None: as they are.
        picture_side: pixels of the side that pictures are brought to, of a composite model that would give large ones
            more places (Qwen-VL, SmolVLM); None: its family's.
    """

    source: str = "embedded"
    towers: Mapping[str, TowerSource] = field(default_factory=dict)
    prompt: str | None = None
    picture_side: int | None = None
    system: str | None = None
    quantise: str | None = None

    def sources(self, kinds: Mapping[str, str]) -> dict[str, TowerSource]:
        """Where the tower of each modality comes from.

        Args:
            kinds: by modality, of the data.

        Raises:
            FusetuneError: a tower for a modality that isn't there, or a source that was made here and has none for it.
        """
        for name in self.towers:
            check(name in kinds, f"backbone.towers.{name}: data.modalities has no '{name}'. It has {', '.join(kinds)}.")
            check(
                self.towers[name].source != EMBEDDED_LLAVA,
                f"backbone.towers.{name}: {EMBEDDED_LLAVA} is one model of pictures and texts. Expected it as "
                "backbone.source, and no tower of another.",
            )
        found = {name: self.towers.get(name) or self._default(name, kind) for name, kind in kinds.items()}
        for name, chosen in found.items():
            _check_made(name, kinds[name], chosen)
        return found

    def composite(self, kinds: Mapping[str, str]) -> CompositeSource | None:
        """The composite model that modalities come from together; None: each has a tower of its own.

        What has another source stands beside it: its stream meets the others behind the model.

        Raises:
            FusetuneError: two composite models, or a prompt for none.
        """
        chosen = self.sources(kinds)
        asked: dict[str, set[str]] = {}
        for name, one in chosen.items():
            asked.setdefault(one.source, set()).add(kinds[name])
        own = {name: one for name, one in chosen.items() if not one.part and one.source not in MADE_HERE}
        whole = {name: one for name, one in own.items() if _speaks(one, asked[one.source])}
        for setting in ("prompt", "picture_side", "system", "quantise"):
            check(
                bool(whole) or getattr(self, setting) is None,
                f"backbone.{setting}: goes with a composite model (LLaVA, PaliGemma) as backbone.source; leave it out.",
            )
        if not whole:
            return None
        sources = {(one.source, one.revision) for one in whole.values()}
        check(
            len(sources) == 1,
            f"backbone: {', '.join(whole)} are of several composite models, "
            f"{' and '.join(sorted(source for source, _ in sources))}. Expected one, and `part` for one encoder alone "
            "of another.",
        )
        limit = next((one.max_tokens for one in whole.values() if one.max_tokens), None)
        return CompositeSource(*next(iter(sources)), self.prompt, limit, self.picture_side, self.system, self.quantise)

    def beside(self, kinds: Mapping[str, str]) -> list[str]:
        """The modalities that stand beside the composite model; all, where there is none."""
        chosen, whole = self.sources(kinds), self.composite(kinds)
        return [n for n, one in chosen.items() if whole is None or one.part or one.source != whole.source]

    def is_embedded(self, kinds: Mapping[str, str]) -> bool:
        """Whether the data take the embedded base as it is, its trunk included."""
        own = all(EMBEDDED.get(name) == kind for name, kind in kinds.items())
        return self.source == "embedded" and not self.towers and own

    def _default(self, name: str, kind: str) -> TowerSource:
        has_own = self.source == "align" or (self.source == "embedded" and EMBEDDED.get(name) == kind)
        return TowerSource("features" if kind in FEATURES and not has_own else self.source)


def _speaks(chosen: TowerSource, kinds: Set[str]) -> bool:
    """Whether a source is taken as a model that sees or hears, and speaks: its encoders alone don't give all kinds."""
    return is_composite(chosen.source, chosen.revision) and not kinds <= set(kinds_of(chosen))


def embedded_name(name: str, kind: str, chosen: TowerSource) -> str | None:
    """Which tower of the embedded base a modality takes; None: it has none of this kind."""
    wanted = chosen.part or (name if name in EMBEDDED else next((n for n, k in EMBEDDED.items() if k == kind), None))
    return wanted if wanted and EMBEDDED.get(wanted) == kind else None


def _check_made(name: str, kind: str, chosen: TowerSource) -> None:
    where = f"backbone.towers.{name}"
    if chosen.source == "features":
        check(
            kind in FEATURES,
            f"{where}: 'features' are given as numbers, a {' or a '.join(FEATURES)}; '{name}' is of kind {kind}. Write "
            f"the hub id or folder of an encoder of {kind}, backbone.towers: {{{name}: {{source: ...}}}}, or align.",
        )
    if chosen.source == "embedded":
        check(
            embedded_name(name, kind, chosen) is not None,
            f"{where}: the embedded base has {', '.join(f'{n} ({k})' for n, k in EMBEDDED.items())}, nothing for "
            f"'{name}', which is of kind {kind}. Write backbone.towers: {{{name}: {{source: ...}}}} with "
            f"{'features' if kind in FEATURES else 'a hub id or a folder'}, or align.",
        )
    if chosen.source == EMBEDDED_LLAVA:
        check(
            kind in ("image", "text"),
            f"{where}: {EMBEDDED_LLAVA} reads one modality of pictures and one of texts; '{name}' is of kind {kind}.",
        )
    check(
        chosen.max_tokens is None or chosen.source not in ("embedded", "align"),
        f"{where}.max_tokens: a tower from '{chosen.source}' has its own; leave it out.",
    )
