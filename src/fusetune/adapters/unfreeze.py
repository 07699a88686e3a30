"""Opening the backbone itself: the bound from above, and its cheaper halves."""

from dataclasses import dataclass

from torch import nn

from fusetune.adapters.adapter import BackboneAdapter
from fusetune.config import check
from fusetune.errors import FusetuneError


@dataclass(frozen=True)
class UnfreezeConfig:
    """
    Attributes:
        parts: ``towers``, ``trunk``, or the name of one modality's tower.
    """

    parts: tuple[str, ...] = ("towers", "trunk")

    def __post_init__(self) -> None:
        check(bool(self.parts), "parts: expected at least one of towers, trunk or a modality.")


class Unfreeze(BackboneAdapter):
    """Makes whole parts of the backbone trainable: full fine-tuning with the default parts."""

    Config = UnfreezeConfig

    def __init__(self, config: UnfreezeConfig) -> None:
        self.config = config

    def apply(self, backbone) -> list[str]:
        modules: dict[str, nn.Module | None] = {"towers": backbone.towers, "trunk": backbone.trunk}
        modules.update({name: tower for name, tower in backbone.towers.items()})
        opened = []
        for part in self.config.parts:
            if part not in modules:
                raise FusetuneError(f"unfreeze: the backbone has no part '{part}'. Known: {', '.join(modules)}.")
            module = modules[part]
            if module is not None:  # a backbone without a trunk has nothing to open there
                module.requires_grad_(True)
                opened.append(part)
        if not opened:
            raise FusetuneError(f"unfreeze: {list(self.config.parts)} matches nothing in this backbone.")
        return opened
