"""A head that turns what is seen, what is asked and where the robot is into actions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.tasks.locating_head import NOWHERE, token_places
from fusetune.tasks.task import HeadMaker
from fusetune.tokens import Lattice, Tokens

POINTS = 4  # that are looked for in a picture


class ActionHead(nn.Module):
    """Outputs (batch, numbers): of all pooled streams, and of points in the camera's picture.

    A point is where its attention over the picture's tokens lies on average, two numbers, as in the spatial softmax of
    Finn et al. (ICRA 2016); what it looks for is asked by all pooled streams, the instruction among them. What is seen
    at the points, on average, goes in too.

    Args:
        camera: the stream of pictures.
        lattice: of its tokens.
        plain: streams whose numbers go in as they are: proprioception.

    Attributes:
        takes_tokens: it is given streams token by token.
    """

    takes_tokens = True

    def __init__(
        self, camera: str, lattice: Lattice, plain: list[str], widths: Mapping[str, int], outputs: int, make: HeadMaker
    ) -> None:
        super().__init__()
        self.camera, self.lattice, self.widths = camera, lattice, dict(widths)
        width, asked = widths[camera], sum(widths.values())
        self.norms = nn.ModuleDict(
            {n: nn.Identity() if n in plain else nn.LayerNorm(w, elementwise_affine=False) for n, w in widths.items()}
        )
        self.ask = nn.Linear(asked, POINTS * width)
        self.head: Any = make(asked + width + 2 * POINTS, outputs)

    def forward(self, streams: Mapping[str, Tokens], pooled: Mapping[str, Tensor]) -> Tensor:
        """
        Args:
            streams: behind the junction.
            pooled: the same, pooled; a stream that isn't there is zeros.
        """
        one = next(iter(pooled.values()))
        parts = [
            self.norms[name](pooled[name]) if name in pooled else one.new_zeros(len(one), width)
            for name, width in self.widths.items()
        ]
        asked = torch.cat(parts, -1)
        if self.camera not in streams:
            nothing = asked.new_zeros(len(asked), self.widths[self.camera] + 2 * POINTS)
            return self.head(torch.cat([asked, nothing], -1))
        tokens = streams[self.camera]
        values = self.norms[self.camera](tokens.values)
        places, real = token_places(self.camera, tokens.mask, self.lattice, 2)
        queries = self.ask(asked).unflatten(-1, (POINTS, -1))
        scores = queries @ values.mT / values.shape[-1] ** 0.5
        attention = scores.masked_fill(~real[:, None], NOWHERE).softmax(-1) * real.any(1)[:, None, None]
        points = (attention @ places.to(values)).flatten(1)
        return self.head(torch.cat([asked, (attention @ values).mean(1), 2 * points - 1], -1))
