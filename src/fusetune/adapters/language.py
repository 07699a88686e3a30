"""A language's own adapter in a text encoder, below those of a task.

Pfeiffer et al., "MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer", EMNLP 2020, arXiv
2005.00052: bottlenecks (`bottleneck`, behind the MLP) that are trained on text of one language, then frozen; a task's
adapters are trained on top of those of the language that has labels, and at test time another language's take their
place. It acts before what a plan places after it. The paper's invertible adapters at the embeddings aren't here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fusetune.adapters.adapter import Block, Stack
from fusetune.adapters.bottleneck import BottleneckAdapter, BottleneckConfig
from fusetune.adapters.trained import read_folder
from fusetune.config import check
from fusetune.errors import FusetuneError

FIRST = "blocks.0."  # in a trained adapter's tensors: of what it places first


@dataclass(frozen=True)
class LanguageConfig(BottleneckConfig):
    """
    Attributes:
        trained: folder of an adapter that places a `language` first, which is taken, frozen.
        frozen: not trained; what `trained` becomes in an artifact, which holds the tensors itself.
    """

    bottleneck_dim: int = 48
    trained: str | None = None
    frozen: bool = False


class LanguageAdapter(BottleneckAdapter):
    """A bottleneck that leaves room for a task's own behind it."""

    Config = LanguageConfig

    def __init__(self, config: LanguageConfig, stack: Stack, blocks: Sequence[Block]) -> None:
        super().__init__(config, stack, blocks)
        if config.trained:
            self.take(_of_folder(config.trained), config.trained)
        if config.trained or config.frozen:
            self.requires_grad_(False)

    def claims(self) -> list[str]:
        return [f"{name} (language)" for name in super().claims()]

    def take(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Be another language's; raises FusetuneError for one of another shape."""
        try:
            self.load_state_dict(dict(tensors))
        except RuntimeError as error:
            told = " ".join(str(error).split())[:200]
            raise FusetuneError(
                f"{where}: no language adapter of these blocks and this width ({told}). Expected one that was trained "
                "on the same encoder with the same bottleneck_dim."
            ) from None


def _of_folder(folder: str) -> dict[str, Tensor]:
    config, tensors = read_folder(folder)
    placements = [p["adapter"] for p in config["plan"]["placements"]]
    check(placements[0] == "language", f"{folder}: it places {', '.join(placements)}; expected a `language` first.")
    return {name.removeprefix(FIRST): value for name, value in tensors.items() if name.startswith(FIRST)}


def languages_in(model: Any) -> list[LanguageAdapter]:
    """The language adapters of a model, in the order of their towers."""
    return [adapter for adapter in model.blocks if isinstance(adapter, LanguageAdapter)]
