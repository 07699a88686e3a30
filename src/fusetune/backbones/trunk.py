"""The trunk: co-attention blocks in which every modality's stream attends to all the others."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fusetune.backbones.blocks import MLP, Attention, attention_roles
from fusetune.config import build, to_plain
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens

Change = Callable[[Mapping[str, Tokens]], Mapping[str, Tokens]]  # of streams

POSITION_SCALE = 0.7  # against features of unit scale: strong enough to tell the cells of a scene apart early
LONGEST_WAVE = 200.0  # tokens


@dataclass(frozen=True)
class StreamSettings:
    """What a stream brings to the trunk: its tower's width and the largest number of tokens of a sample."""

    width: int
    max_tokens: int


@dataclass(frozen=True)
class TrunkSettings:
    """
    Attributes:
        streams: by modality.
        width: floats per token inside.
        depth: number of blocks.
        heads: attention heads.
    """

    streams: Mapping[str, StreamSettings]
    width: int = 96
    depth: int = 2
    heads: int = 4


def sinusoids(tokens: int, width: int) -> Tensor:
    """Position codes of Vaswani et al. 2017, section 3.5, (tokens, width): near tokens begin with near codes."""
    frequencies = torch.exp(-torch.arange(0, width, 2) / width * math.log(LONGEST_WAVE))
    angles = torch.arange(tokens)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


TRUNK_ROLES = (
    attention_roles("self_attention")
    | attention_roles("cross_attention", "cross_")
    | {"mlp_input": "mlp.0", "mlp_output": "mlp.2"}
)


class CoAttentionBlock(nn.Module):
    """Self-attention, attention to the other streams, MLP; one set of weights serves every modality.

    Attributes:
        stream: the stream that is being computed, for adapters that tell streams apart.
        context: names and numbers of tokens of the streams that its attention reads.
    """

    stream: str = ""
    context: tuple[tuple[str, int], ...] = ()

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, streams: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
        attended = {}
        for name, states in streams.items():
            self.stream, self.context = name, ((name, states.shape[1]),)
            normed = self.self_norm(states)
            attended[name] = states + self.self_attention(normed, normed, masks[name])
        normed = {name: self.cross_norm(states) for name, states in attended.items()}
        mixed = {}
        for name, states in attended.items():
            others = [other for other in streams if other != name]
            self.stream, self.context = name, tuple((other, normed[other].shape[1]) for other in others)
            if others:
                context = torch.cat([normed[other] for other in others], 1)
                allowed = torch.cat([masks[other] for other in others], 1)
                states = states + self.cross_attention(normed[name], context, allowed)
            mixed[name] = states + self.mlp(self.mlp_norm(states))
        return mixed


class Trunk(nn.Module):
    """Frozen fusion blocks over any number of streams.

    Depth 0 is the towers' output; the projection to the common width belongs to the first block. A stream that is
    absent is simply not in the dict; a sample without a modality has an empty mask row.
    """

    def __init__(self, settings: TrunkSettings) -> None:
        super().__init__()
        self.settings, self.depth, self.width = settings, settings.depth, settings.width
        self.inputs = nn.ModuleDict({name: nn.Linear(s.width, settings.width) for name, s in settings.streams.items()})
        self.positions = nn.ParameterDict(
            {
                name: nn.Parameter(POSITION_SCALE * sinusoids(s.max_tokens, settings.width))
                for name, s in settings.streams.items()
            }
        )
        self.layers = nn.ModuleList(CoAttentionBlock(settings.width, settings.heads) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(settings.width)

    def blocks(self) -> nn.ModuleList:
        return self.layers

    def roles(self) -> Mapping[str, str]:
        return TRUNK_ROLES

    def advance(self, streams: Mapping[str, Tokens], start: int, stop: int) -> dict[str, Tokens]:
        """Run the blocks from depth `start` to depth `stop`; raises FusetuneError for a stream that it can't take."""
        if start == stop:
            return dict(streams)
        values = {name: tokens.values for name, tokens in streams.items()}
        masks = {name: tokens.mask for name, tokens in streams.items()}
        if start == 0:
            values = {name: self._enter(name, states) for name, states in values.items()}
        for block in self.layers[start:stop]:
            values = block(values, masks)
        if stop == self.depth:
            values = {name: self.norm(states) for name, states in values.items()}
        return {name: Tokens(values[name], masks[name]) for name in values}

    def behind(self, number: int, change: Change) -> Any:
        """Put `change` behind a block, in front of the next one, so that what the block puts out can still be cached.

        Returns:
            The hook's handle, whose `remove` takes it away again.
        """

        def changed(values: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
            streams = change({name: Tokens(states, masks[name]) for name, states in values.items()})
            return {name: tokens.values for name, tokens in streams.items()}

        if number + 1 < self.depth:
            following = self.layers[number + 1]
            return following.register_forward_pre_hook(lambda _, args: (changed(*args), args[1]))
        return self.layers[number].register_forward_hook(lambda _, args, out: changed(out, args[1]))

    def _enter(self, name: str, states: Tensor) -> Tensor:
        if name not in self.inputs:
            raise FusetuneError(f"the trunk has no stream '{name}'; it knows {', '.join(self.inputs)}.")
        tokens, longest = states.shape[1], self.settings.streams[name].max_tokens
        if tokens > longest:
            raise FusetuneError(f"stream '{name}': {tokens} tokens, but the trunk takes at most {longest}.")
        return self.inputs[name](states) + self.positions[name][:tokens]

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(to_plain(self.settings), indent=2) + "\n")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path) -> "Trunk":
        settings = json.loads((folder / "config.json").read_text())
        trunk = cls(build(TrunkSettings, settings, str(folder / "config.json")))
        trunk.load_state_dict(load_file(folder / "model.safetensors"))
        return trunk.eval()
