"""A head over the tokens of one stream: each scores whether the answer is where it stands, and says what it spans."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.config import check
from fusetune.tasks.task import HeadMaker
from fusetune.tasks.token_times import token_times
from fusetune.tokens import Lattice, Tokens

NOWHERE = -1e4  # score of a token that stands for no place
MOST_GROWTH = 4.0  # of the logarithm of a size, in both directions


class LocatingHead(nn.Module):
    """Outputs (batch, tokens, 1 + 3d): a score, a region in shares of what is seen, and where the token itself stands.

    What is asked is the pooled other streams, brought to the width of the tokens; a token meets it as it is, beside it
    and multiplied with it, so that a linear head is bilinear in the two. Regions are those of anchors (Ren et al.,
    NeurIPS 2015): an offset of a token's own place in units of the usual size, and the logarithm of how much larger.

    Args:
        target: the stream that is looked through.
        lattice: of its tokens; None: they follow one another in time.
        usual: the mean size of a region in each direction, in shares; its length is d, 1 for time, 2 for a picture.

    Attributes:
        takes_tokens: it is given streams token by token.
    """

    takes_tokens = True

    def __init__(
        self, target: str, lattice: Lattice | None, usual: list[float], widths: Mapping[str, int], make: HeadMaker
    ) -> None:
        super().__init__()
        self.target, self.lattice, self.widths = target, lattice, dict(widths)
        width, asked = widths[target], sum(widths.values())
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.asked_norm = nn.LayerNorm(asked, elementwise_affine=False)
        self.ask = nn.Linear(asked, width)
        self.head: Any = make(3 * width, 1 + 2 * len(usual))
        self.register_buffer("usual", torch.tensor(usual), persistent=False)

    def forward(self, streams: Mapping[str, Tokens], pooled: Mapping[str, Tensor]) -> Tensor:
        """
        Args:
            streams: behind the junction.
            pooled: the same, pooled; a stream that isn't there is zeros.
        """
        tokens = streams[self.target]
        one = tokens.pooled()
        parts = [pooled[n] if n in pooled else one.new_zeros(len(one), width) for n, width in self.widths.items()]
        asked = self.ask(self.asked_norm(torch.cat(parts, -1)))[:, None]
        values = self.norm(tokens.values)
        raw = self.head(torch.cat([values, asked.expand_as(values), values * asked], -1))
        places, real = token_places(self.target, tokens.mask, self.lattice, len(self.usual))  # type: ignore[arg-type]
        usual: Any = self.usual
        offset, growth = raw[..., 1:].chunk(2, -1)
        middle = places.to(raw) + offset * usual
        half = usual * (MOST_GROWTH * (growth / MOST_GROWTH).tanh()).exp() / 2
        scores = raw[..., :1].masked_fill(~real[..., None], NOWHERE)
        return torch.cat([scores, middle - half, middle + half, places.to(raw).expand_as(middle)], -1)


def token_places(stream: str, mask: Tensor, lattice: Lattice | None, dims: int) -> tuple[Tensor, Tensor]:
    """Where tokens stand in shares of what is seen, (batch or 1, tokens, d), and which of them do, (batch, tokens).

    Args:
        stream: whose tokens they are.
        lattice: of the stream's tokens; None: they follow one another in time.
        dims: d, 1 for time, 2 for a picture.

    Raises:
        FusetuneError: there are other tokens than the encoder's own, or several pictures where one is looked through.
    """
    lattice = lattice or Lattice()
    count, each = mask.shape[1], lattice.tokens
    check(
        count % each == 0 and (dims == 1 or count == each),
        f"data.task: '{stream}' has {count} tokens where its encoder gives {each} for one picture; what stands for no "
        "place can't be located. Expected one picture a sample, and a method that adds no tokens.",
    )
    if dims == 1:
        middle, _, real = token_times(mask, lattice)
        return middle[..., None], real
    inside = torch.arange(count, device=mask.device) - lattice.lead
    row, column = inside // lattice.columns, inside % lattice.columns
    places = torch.stack([(column + 0.5) / lattice.columns, (row + 0.5) / lattice.rows], -1)
    return places[None], mask & (inside >= 0)
