"""A plan past this machine: from what a method costs a sample to what it costs a fleet; nothing is run.

Of S samples on D devices, each with c cores beside it, b bytes of features a sample and F FLOPs of its forward pass up
to the cut, f from there (forward and backward), L operations a step of B samples a device, P trained parameters:

    extraction  = max(S / (D c decoded), S F / (D flops), S b / (D write))      the three run beside each other
    an epoch    = max(S f / (D flops) + S L launch / (D B), S b / (D read)) + exchange
    exchange    = 8 P S / (D B network), where D > 1: gradients to and from every other device

Without cores of its own a device decodes itself, and extraction is the sum. `read` is that of the fastest place which
holds a device's share: half of its memory, half of the main memory beside it, the disk.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusetune.config import check
from fusetune.features.index import CacheSettings
from fusetune.plan.cost import LAUNCH

if TYPE_CHECKING:
    from fusetune.runs.account import Account

HALF = 0.5  # of a memory may hold features
PASSES = 5  # that a step makes over what it has gathered from a device's own memory


@dataclass(frozen=True)
class Fleet:
    """Rates that are reached, not those of a data sheet; those here were measured on an H100 and 16 cores.

    Attributes:
        devices: 0: nothing is asked about a fleet.
        cores: beside each device, for decoding; 0: it decodes itself.
        decoded: samples a second and core.
        flops: a second and device.
        launch: seconds of an operation beside its arithmetic.
        device_memory, main_memory: bytes of a device, and beside it.
        device_read, main_read, disk_read: bytes a second and device, out of each.
        write: bytes a second and device into the store, hashed and synced.
        network: bytes a second and device, between devices.
        price: of a device's hour, with what is beside it.
        epochs: of a training.
    """

    devices: int = 0
    cores: int = 16
    decoded: float = 180.0
    flops: float = 2e14
    launch: float = LAUNCH
    device_memory: float = 80e9
    main_memory: float = 128e9
    device_read: float = 3e12
    main_read: float = 1.9e10
    disk_read: float = 2e9
    write: float = 5e8
    network: float = 2.5e10
    price: float = 3.0
    epochs: int = 10

    def __post_init__(self) -> None:
        for name in ("devices", "cores", "price"):
            check(getattr(self, name) >= 0, f"estimate.fleet.{name}: expected 0 or more, found {getattr(self, name)}.")
        for name, value in vars(self).items():
            positive = name in ("devices", "cores", "price") or value > 0
            check(positive, f"estimate.fleet.{name}: expected a positive number, found {value}.")


@dataclass(frozen=True)
class Scaled:
    """Seconds by stage, of all devices together at once; and what follows from them.

    Attributes:
        extraction: decoding, arithmetic, writing.
        epoch: arithmetic, launches, reading, exchange.
        uncached: seconds of an epoch from the raw inputs.
        bytes: of all features.
        shards: files of the store.
        place: where a device's share lies in training.
    """

    fleet: Fleet
    extraction: dict[str, float]
    epoch: dict[str, float]
    uncached: float
    bytes: float
    shards: int
    place: str

    @property
    def extraction_seconds(self) -> float:
        return sum(self.extraction.values()) if not self.fleet.cores else max(self.extraction.values())

    @property
    def epoch_seconds(self) -> float:
        computed = self.epoch["arithmetic"] + self.epoch["launches"]
        return max(computed, self.epoch["reading"]) + self.epoch["exchange"]

    @property
    def price(self) -> float:
        """Of extraction and one training."""
        return self._price(self.extraction_seconds + self.fleet.epochs * self.epoch_seconds)

    @property
    def price_uncached(self) -> float:
        return self._price(self.fleet.epochs * self.uncached)

    def _price(self, seconds: float) -> float:
        return seconds / 3600 * self.fleet.devices * self.fleet.price

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "extraction_seconds": self.extraction_seconds,
            "extraction": self.extraction,
            "extraction_waits_for": max(self.extraction, key=lambda name: self.extraction[name]),
            "bytes": self.bytes,
            "shards": self.shards,
            "place": self.place,
            "epoch_seconds": self.epoch_seconds,
            "epoch": self.epoch,
            "epoch_waits_for": max(self.epoch, key=lambda name: self.epoch[name]),
            "epoch_seconds_uncached": self.uncached,
            "price": self.price,
            "price_uncached": self.price_uncached,
        }


def at_scale(account: "Account", samples: int, batch_size: int, fleet: Fleet, cache: CacheSettings) -> Scaled:
    """What a method costs a fleet.

    Args:
        account: of the same samples.
        batch_size: of a device.
    """
    devices, size = fleet.devices, float(account.cache_bytes)
    arithmetic, steps = devices * fleet.flops, samples / (devices * batch_size)
    decoding = samples / (devices * max(1, fleet.cores) * fleet.decoded)
    place, read = _place(size / devices, fleet)
    extraction = {
        "decoding": decoding,
        "arithmetic": samples * account.flops_below / arithmetic,
        "writing": size / (devices * fleet.write),
    }
    exchange = 8 * account.trainable_parameters / fleet.network * steps if devices > 1 else 0.0
    epoch = {
        "arithmetic": samples * account.flops / arithmetic,
        "launches": account.launches * fleet.launch * steps,
        "reading": size / (devices * read),
        "exchange": exchange,
    }
    whole = samples * account.flops_uncached / arithmetic + account.launches_uncached * fleet.launch * steps
    uncached = (max(whole, decoding) if fleet.cores else whole + decoding) + exchange
    shards = -(-samples // cache.shard_size) * len(account.frontier.towers)
    return Scaled(fleet, extraction, epoch, uncached, size, shards, place)


def _place(share: float, fleet: Fleet) -> tuple[str, float]:
    """Where a device's share of the features lies, and bytes a second that come from there."""
    if share <= HALF * fleet.device_memory:
        return "device memory", fleet.device_read / PASSES
    if share <= HALF * fleet.main_memory:
        return "main memory", fleet.main_read
    return "disk", fleet.disk_read
