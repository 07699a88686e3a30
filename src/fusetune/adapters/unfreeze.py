"""Opening the backbone itself: the bound from above, and its cheaper halves."""

from dataclasses import dataclass

from torch import nn

from fusetune.adapters.adapter import BackboneAdapter
from fusetune.backbones.composite.quantising import quantised
from fusetune.config import check
from fusetune.errors import FusetuneError


@dataclass(frozen=True)
class UnfreezeConfig:
    """
    Attributes:
        parts: ``towers``, ``trunk``, the name of one modality's tower, or, of a model that speaks, ``words``: the
            embeddings of its vocabulary and the head that gives it (beside LoRA: Chen et al., "LongLoRA", ICLR 2024,
            arXiv 2309.12307). What a tokenizer knows and no training has met is random there.
        top_blocks: only so many of the last blocks of each part (a stack of fewer: all of it); 0 opens all there is.
    """

    parts: tuple[str, ...] = ("towers", "trunk")
    top_blocks: int = 0

    def __post_init__(self) -> None:
        check(bool(self.parts), "parts: expected at least one of towers, trunk or a modality.")
        check(self.top_blocks >= 0, f"top_blocks: expected 0 or more, found {self.top_blocks}.")


class Unfreeze(BackboneAdapter):
    """Makes whole parts of the backbone trainable: full fine-tuning with the default parts."""

    Config = UnfreezeConfig

    def __init__(self, config: UnfreezeConfig) -> None:
        super().__init__(config)
        self.config = config

    def set_active(self, active: bool) -> None:
        super().set_active(active)
        for parameter in self.opened:
            parameter.requires_grad_(active)

    def open_in(self, backbone) -> list[str]:
        modules: dict[str, nn.Module | None] = {"towers": backbone.towers, "trunk": backbone.trunk}
        modules |= {name: tower for name, tower in backbone.towers.items()}
        if backbone.origin:
            modules["words"] = nn.ModuleList(
                [backbone.trunk.composite.model.get_input_embeddings(), backbone.trunk.head]
            )
        opened = []
        for part in self.config.parts:
            if part not in modules:
                raise FusetuneError(f"unfreeze: the backbone has no part '{part}'. Known: {', '.join(modules)}.")
            module = modules[part]
            if module is not None:  # a backbone without a trunk has nothing to open there
                self._open(module)
                opened.append(part)
        if not opened:
            raise FusetuneError(f"unfreeze: {list(self.config.parts)} matches nothing in this backbone.")
        check(
            bool(self.opened),
            f"unfreeze: {', '.join(opened)} of this base: there are no weights to fine-tune (given features, plain "
            "numbers). Expected a base with an encoder of its own, or a method that acts on the streams.",
        )
        return opened

    def _open(self, module: nn.Module) -> None:
        if isinstance(module, nn.ModuleDict):
            for tower in module.values():
                self._open(tower)
        elif self.config.top_blocks and hasattr(module, "blocks"):  # words have none
            for block in module.blocks()[-self.config.top_blocks :]:  # type: ignore[operator]
                self._train(block)
        else:
            self._train(module)

    def _train(self, module: nn.Module) -> None:
        kind = quantised(module)
        check(
            kind is None,
            f"unfreeze: weights in {kind} can't be trained. Leave the language blocks out (parts), place LoRA there, "
            "or set backbone.quantise: null.",
        )
        module.requires_grad_(True)
        self.opened = list(dict.fromkeys([*self.opened, *module.parameters()]))
