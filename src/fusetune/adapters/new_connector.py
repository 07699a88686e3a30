"""A connector in place of that of a model that speaks: from its encoder's states to the picture's places in the text.

With the states X (T x d) that the model's own connector reads, and the m places that it fills, of width e (LLaVA-NeXT
asks it once for each tile of a picture, and packs the places behind it):

    linear:     Z = [X] W + b                               [X]: m x (T/m d), neighbours side by side
    mlp:        Z = gelu([X] W_1 + b_1) W_2 + b_2           LLaVA-1.5, arXiv 2310.03744
    resampler:  m queries read X, layer by layer            Flamingo, arXiv 2204.14198; see `connectors`

It begins at random: the language blocks are blind until it has learned to speak to them. Fewer places than the model's
own: a `perceiver_resampler` behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.adapters.adapter import Block, BlockAdapter, Stack
from fusetune.adapters.connectors import ResamplerLayer
from fusetune.adapters.parts import Instead, name_in
from fusetune.config import check

KINDS = ("linear", "mlp", "resampler")


@dataclass(frozen=True)
class NewConnectorConfig:
    """
    Attributes:
        kind: linear, mlp, resampler.
        hidden: width inside, of a resampler a multiple of `heads`; 0: that of the language blocks.
        layers: of a resampler.
        heads: of its attention.
    """

    kind: str = "mlp"
    hidden: int = 0
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        check(self.kind in KINDS, f"kind: expected one of {', '.join(KINDS)}, found '{self.kind}'.")
        check(self.hidden >= 0, f"hidden: expected 0 or more, found {self.hidden}.")
        for name in ("layers", "heads"):
            check(getattr(self, name) > 0, f"{name}: expected at least 1, found {getattr(self, name)}.")


class NewConnector(BlockAdapter):
    """See the module's docstring. `blocks` holds the model's own connector."""

    Config = NewConnectorConfig
    sites = ("connector",)

    def __init__(self, config: NewConnectorConfig, stack: Stack, blocks: Sequence[Block]) -> None:
        super().__init__(config, stack, blocks)
        tower: Any = stack.module
        self._own = [block.module for block in blocks]  # in a list: it is the base's
        self._name = name_in(stack, self._own[0])
        width, out = tower.inside, tower.width
        self.read, self.places = tower.connected
        hidden = config.hidden or out
        self.queries: nn.Parameter | None = None
        if config.kind == "resampler":
            check(hidden % config.heads == 0, f"hidden: expected a multiple of heads ({config.heads}), found {hidden}.")
            self.queries = nn.Parameter(torch.randn(self.places, hidden))
            self.enter, self.norm = nn.Linear(width, hidden), nn.LayerNorm(hidden)
            self.layers = nn.ModuleList(ResamplerLayer(hidden, config.heads) for _ in range(config.layers))
            self.out = nn.Linear(hidden, out)
            return
        check(
            self.read % self.places == 0,
            f"new_connector: {self.read} states of a picture don't divide into its {self.places} places. Expected "
            "kind: resampler.",
        )
        side_by_side = width * (self.read // self.places)
        self.first = nn.Linear(side_by_side, out if config.kind == "linear" else hidden)
        self.second = nn.Linear(hidden, out) if config.kind == "mlp" else None

    def forward(self, states: Tensor) -> Tensor:
        """(pictures, T, d) to (pictures, m, e)."""
        if self.queries is None:
            first = self.first(states.reshape(len(states), self.places, -1))
            return first if self.second is None else self.second(F.gelu(first))
        entered, latents = self.norm(self.enter(states)), self.queries.expand(len(states), -1, -1)
        seen = torch.ones(entered.shape[:2], dtype=torch.bool, device=states.device)
        for layer in self.layers:
            latents = layer(latents, entered, seen)
        filled: Tensor = self.out(latents)
        return filled

    def claims(self) -> list[str]:
        return [f"{self._name} output"]

    def attach(self) -> None:
        for module in self._own:
            own = module.forward

            def forward(states: Tensor, *more: Any, own: Any = own, **named: Any) -> Tensor:
                if not self.active:
                    out: Tensor = own(states, *more, **named)
                    return out
                made = self(states.reshape(-1, self.read, states.shape[-1]))
                return made if states.ndim == 3 else made.flatten(0, 1)

            self._handles.append(Instead(module, forward))
