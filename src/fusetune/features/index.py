"""Which rows of the store are the features of a manifest: everything has its name before anything is computed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.config import check, digest
from fusetune.errors import FusetuneError
from fusetune.features.codecs import CODECS
from fusetune.features.key_files import read_keys, write_keys
from fusetune.features.source import Source
from fusetune.keys import Keys
from fusetune.manifest.decoders import VERSIONS
from fusetune.manifest.schema import Modality
from fusetune.on_disk import RowNumbers

CUTS = ("inputs", "encoder", "towers", "frontier")  # from below; `plan.cost` says what they are


@dataclass(frozen=True)
class CacheSettings:
    """
    Attributes:
        dtype: of activations on disk: float16, bfloat16, float32, or int8 per token; depth 0 is kept as it is.
        batch_size: samples per pass over the backbone.
        shard_size: samples per shard; more of them where there would be more than 16,384 shards otherwise.
        views: seeded augmented views of each training sample; needed where a modality has `augment`.
        part: ``2/4`` leaves three quarters of the samples to other machines; they need no lock.
        ray_workers: processes of a Ray cluster that share the work; 0 is this process alone.
        decoders: processes that decode ahead of the model; None: one a core but one beside a GPU, none beside a CPU; 0:
            threads of this process.
        device: auto, cpu, cuda or cuda:N.
        cut: where features are cached: auto weighs bytes against arithmetic (`plan.cost`); or inputs, encoder (in front
            of a connector), towers, frontier.
        readings: how often they will be read: epochs x seeds x methods.
    """

    dtype: str = "float16"
    batch_size: int = 128
    shard_size: int = 512
    views: int = 0
    part: str = "1/1"
    ray_workers: int = 0
    decoders: int | None = None
    device: str = "auto"
    cut: str = "auto"
    readings: int = 20

    def __post_init__(self) -> None:
        check(self.cut in ("auto", *CUTS), f"cut: expected auto or one of {', '.join(CUTS)}, found '{self.cut}'.")
        check(self.dtype in CODECS, f"dtype: expected one of {', '.join(CODECS)}, found '{self.dtype}'.")
        for name in ("batch_size", "shard_size", "readings"):
            value = getattr(self, name)
            check(value > 0, f"{name}: expected a positive number, found {value}.")
        for name in ("views", "ray_workers", "decoders"):
            check((getattr(self, name) or 0) >= 0, f"{name}: expected 0 or more, found {getattr(self, name)}.")
        self.owned()

    def owned(self) -> tuple[int, int]:
        """This machine's number, from 0, and how many there are."""
        number, _, count = self.part.partition("/")
        well = number.isdigit() and count.isdigit() and 0 < int(number) <= int(count)
        check(well, f"part: expected e.g. 2/4, the second of four, found '{self.part}'.")
        return int(number) - 1, int(count)


@dataclass(frozen=True)
class Features:
    """Which rows of which entries are the features of a manifest at a frontier.

    Attributes:
        frontier: where they were taken.
        entries: entry folder by modality, relative to the store's root.
        keys: row keys by modality, in the manifest's order.
        views: the same for each augmented view; samples outside training are the same in all of them.
        later: features at the deeper frontiers of plans that unfreeze gradually, by the epoch from which on.
    """

    frontier: Frontier
    entries: Mapping[str, str]
    keys: Mapping[str, Keys]
    views: Sequence[Mapping[str, Keys]] = ()
    later: Mapping[int, "Features"] = field(default_factory=dict)

    def of_rows(self, rows: RowNumbers, augmented: bool) -> "Features":
        """The features of some rows of the manifest; `augmented` rows keep their views."""
        picked = [{name: keys[rows] for name, keys in mapping.items()} for mapping in (self.keys, *self.views)]
        return Features(self.frontier, self.entries, picked[0], picked[1:] if augmented else ())

    def joined(self, other: "Features") -> "Features":
        """The features of both, of different modalities."""
        frontier = Frontier({**self.frontier.towers, **other.frontier.towers}, other.frontier.trunk)
        mine = self.views or [{}] * len(other.views)
        views = [{**a, **b} for a, b in zip(mine, other.views or mine, strict=True)]
        return Features(frontier, {**self.entries, **other.entries}, {**self.keys, **other.keys}, views)

    def save(self, file: Path) -> None:
        """Each list of keys once, however many streams, views and stages have it."""
        several: dict[str, tuple[int, Keys]] = {}
        record = self._record(lambda keys: several.setdefault(keys.fingerprint(), (len(several), keys))[0])
        write_keys(file, record, [keys for _, keys in several.values()])

    def _record(self, number: Callable[[Keys], int]) -> dict[str, Any]:
        record: dict[str, Any] = {
            "frontier": {"towers": dict(self.frontier.towers), "trunk": self.frontier.trunk},
            "entries": dict(self.entries),
            "keys": {name: number(keys) for name, keys in self.keys.items()},
            "views": [{name: number(keys) for name, keys in view.items()} for view in self.views],
        }
        if self.later:
            record["later"] = {epoch: features._record(number) for epoch, features in self.later.items()}
        return record

    @classmethod
    def load(cls, file: Path) -> "Features":
        return cls._of(*read_keys(file))

    @classmethod
    def _of(cls, record: Mapping[str, Any], several: Sequence[Keys]) -> "Features":
        later = {int(epoch): cls._of(part, several) for epoch, part in record.get("later", {}).items()}
        keys, *views = (
            {name: several[number] for name, number in mapping.items()}
            for mapping in (record["keys"], *record["views"])
        )
        return cls(Frontier(**record["frontier"]), record["entries"], keys, views, later)

    def fingerprints(self) -> list[Any]:
        """Of which rows they are, JSON-ready."""
        return [{name: keys.fingerprint() for name, keys in mapping.items()} for mapping in (self.keys, *self.views)]


def together(several: Sequence[Features]) -> Features:
    """One index that names the rows of all, so that the store keeps them; it is there to be kept, not to be read."""
    first, *others = several or [Features(Frontier({}), {}, {})]
    later = [one for features in several for one in features.later.values()]
    return replace(first, later=dict(enumerate([*others, *later], start=2)))


def describe(backbone: Backbone, source: Source, frontier: Frontier, settings: CacheSettings) -> Features:
    """Name the entries and rows without computing any: base weights, preprocessing, depth, dtype, content.

    Raises:
        FusetuneError: an augmentation without a number of views; what is random has no features to cache.
    """
    names = list(source.modalities)
    random = [name for name in names if name in source.augmentations]
    if random and not settings.views:
        raise FusetuneError(
            f"data.modalities.{random[0]}.augment: a random change can't be cached. Set cache.views to the number of "
            "seeded views to keep of each training sample, e.g. 4, or take `augment` out."
        )
    content = source.content_keys()
    meets = frontier.trunk > 0  # above the trunk's first block a stream depends on all the others
    entries = {}
    for name in names:
        identity = {
            "base": backbone.fingerprint(names) if meets else backbone.fingerprint_of(name),
            "streams": names if meets else [name],
            "depth": [frontier.trunk, "trunk"] if meets else [frontier.towers[name], "tower"],
            "dtype": stored_dtype(frontier, name, settings),
            "decoder": decoder_of(source.modalities[name]),
            "frames": source.modalities[name].frames if source.modalities[name].kind == "video" else None,
        }
        label = f"trunk{frontier.trunk}" if meets else f"depth{frontier.towers[name]}"
        entries[name] = f"{name}-{label}-{digest([name, identity])[:16]}"
    count = settings.views if random else 0
    views = [source.view_keys(content, view) for view in range(count)]
    return Features(frontier, entries, _met(content, meets), [_met(view, meets) for view in views])


def decoder_of(modality: Modality) -> list[Any]:
    """What turns a cell of this modality into a sample."""
    return [VERSIONS[modality.kind], *([modality.background] if modality.kind == "image" else [])]


def _met(keys: Mapping[str, Keys], meets: bool) -> dict[str, Keys]:
    if not meets:
        return dict(keys)
    joint = Keys.of(digest(list(row)) for row in zip(*keys.values(), strict=True))
    return dict.fromkeys(keys, joint)


def stored_dtype(frontier: Frontier, name: str, settings: CacheSettings) -> str:
    """How the activations of one stream are kept."""
    return settings.dtype if frontier.towers[name] or frontier.trunk else "as prepared"
