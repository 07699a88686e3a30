"""The common space of a dual encoder, as its checkpoint has it: projections, pooling and the scale of its logits.

CLIP (Radford et al., ICML 2021) projects the class token of a picture and the end token of a text; SigLIP (Zhai et al.,
ICCV 2023) pools pictures by attention and takes a text's last token. Nothing of it is trained.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.families import load


@dataclass(frozen=True)
class Space:
    """
    Attributes:
        identity: SHA-256 (hex); two towers are compared in one space if theirs is the same.
        width: of an embedding.
        log_scale: natural logarithm of what cosines are multiplied by.
        bias: added to the logits; SigLIP's.
    """

    identity: str
    width: int
    log_scale: float
    bias: float = 0.0


class Projection(nn.Module):
    """One side's way into the space, for the last hidden states of its encoder.

    Args:
        kind: image or text.
        weight: (width, hidden size); None: the encoder's own head does all of it.
    """

    def __init__(self, space: Space, kind: str, weight: Tensor | None) -> None:
        super().__init__()
        self.space, self.kind = space, kind
        self.register_buffer("weight", weight)

    def forward(self, model: Any, states: Tensor, mask: Tensor) -> Tensor:
        """(rows, width), not normalised.

        Args:
            states: (rows, tokens, hidden size), at the encoder's top.
            mask: (rows, tokens).
        """
        if self.weight is None:
            return model.head(states if self.kind == "image" else states[:, -1])
        if self.kind == "image":
            pooled = model.post_layernorm(states[:, 0])
        else:
            last = (mask.sum(1) - 1).clamp(min=0)  # the end token: texts are padded on the right
            pooled = states[torch.arange(len(states), device=states.device), last]
        return pooled @ self.weight.T


def projection_of(source: str | Path, kind: str, revision: str | None = None) -> Projection | None:
    """A side of the space that a dual encoder's checkpoint holds; None for any other model."""
    from transformers import AutoConfig

    from fusetune.backbones.tower import fingerprint

    config = load(AutoConfig, source, revision)
    if config.model_type not in ("clip", "siglip") or kind not in ("image", "text"):
        return None
    parts, info = load(_parts(config.model_type), source, revision, output_loading_info=True)
    if info["missing_keys"]:
        return None  # an encoder that was saved without its other half
    tensors = {name: value.detach().clone() for name, value in parts.state_dict().items()}
    bias = float(tensors["logit_bias"]) if "logit_bias" in tensors else 0.0
    weight = tensors.get("visual_projection.weight" if kind == "image" else "text_projection.weight")
    width = len(weight) if weight is not None else config.vision_config.hidden_size
    space = Space(fingerprint(tensors), width, float(tensors["logit_scale"]), bias)
    return Projection(space, kind, weight)


@cache
def _parts(model_type: str) -> Any:
    """A model of `transformers` with what a dual encoder has beside its two encoders, under its own names."""
    from transformers import CLIPConfig, PreTrainedModel, SiglipConfig

    class Parts(PreTrainedModel):
        config_class = CLIPConfig if model_type == "clip" else SiglipConfig
        _keys_to_ignore_on_load_unexpected = [r".*"]

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.logit_scale = nn.Parameter(torch.zeros(()))
            if model_type == "clip":
                width = config.projection_dim
                self.visual_projection = nn.Linear(config.vision_config.hidden_size, width, bias=False)
                self.text_projection = nn.Linear(config.text_config.hidden_size, width, bias=False)
            else:
                self.logit_scale, self.logit_bias = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
            self.post_init()

        def _init_weights(self, module: Any) -> None:
            """Everything is loaded, or nobody uses it."""

    return Parts
