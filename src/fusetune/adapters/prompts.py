"""Prompts: trained tokens among those that a frozen model reads.

`prompt_tuning`, after Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021, arXiv
2104.08691. In front of everything that a language model reads stand n trained input embeddings:

    [P; X] -> language blocks        P: n x d, from embeddings of the vocabulary

`deep_prompts`, after Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119, section 3.2 (VPT-Deep). Each
chosen block of a tower reads trained tokens of its own, and what becomes of them there is thrown away:

    [_; X_i] = block_i([P_i; X_{i-1}])        P_i: n x d

Neither begins as the identity: attention sees more tokens from the first step on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.adapters.adapter import Block, BlockAdapter, Stack
from fusetune.adapters.parts import Instead, has_parts, linear, name_in
from fusetune.config import check

INITIAL_STD = 0.02
WIDTHS = ("query", "qkv")  # parts of a block that take its states' width
MASKS = ("attention_mask", "mask")


@dataclass(frozen=True)
class PromptConfig:
    """
    Attributes:
        length: n.
    """

    length: int = 16

    def __post_init__(self) -> None:
        check(self.length > 0, f"length: expected at least 1, found {self.length}.")


class PromptTuning(BlockAdapter):
    """Trained input embeddings in front of the language blocks; see the module's docstring."""

    Config = PromptConfig
    sites = ("trunk",)

    def __init__(self, config: PromptConfig, stack: Stack, blocks: Sequence[Block]) -> None:
        super().__init__(config, stack, blocks)
        trunk: Any = stack.module
        check(hasattr(trunk, "prompted_by"), "prompt_tuning: expected a model that speaks, found a trunk of streams.")
        check(
            trunk.one_sequence,
            "prompt_tuning: this model answers from what an encoder of its own has read, where trained tokens have no "
            "place. Expected prefixes (prefix, modality_prefix), or a model whose one sequence holds all.",
        )
        self._trunk, count = (trunk,), len(trunk.blocks())  # in a tuple: it is not this adapter's
        check(
            len(blocks) == count,
            f"prompt_tuning: what stands in front is read by all {count} blocks, found {len(blocks)} chosen. Expected "
            "blocks: all.",
        )
        embedding = trunk.composite.model.get_input_embeddings()
        words = torch.randint(embedding.num_embeddings, (config.length,))
        with torch.no_grad():
            self.prompt = nn.Parameter(embedding(words.to(embedding.weight.device)).float())

    def claims(self) -> list[str]:
        return ["tokens in front"]

    def attach(self) -> None:
        self._prompting = self._trunk[0].prompted_by(lambda: self.prompt if self.active else None)

    def detach(self) -> None:
        self._prompting.close()


class DeepPrompts(BlockAdapter):
    """Trained tokens that one block reads; see the module's docstring."""

    Config = PromptConfig
    sites = ("towers",)
    rank_key = "length"

    def __init__(self, config: PromptConfig, stack: Stack, blocks: Sequence[Block]) -> None:
        super().__init__(config, stack, blocks)
        check(
            not hasattr(stack.module, "prompted_by"),
            "deep_prompts: language blocks count places; found them among the blocks. Expected towers alone (blocks: "
            "vision_only), and prompt_tuning or a prefix in language blocks.",
        )
        self._stack = stack
        self._blocks = [b for b in blocks if any(has_parts(stack, b, [role]) for role in WIDTHS)]
        self.missing = frozenset() if self._blocks else frozenset(WIDTHS[:1])
        self.prompts = nn.ParameterDict()
        for block in self._blocks:
            role = next(role for role in WIDTHS if has_parts(stack, block, [role]))
            width = linear(stack, block, role).in_features
            self.prompts[str(block.number)] = nn.Parameter(
                torch.randn(block.rank or config.length, width) * INITIAL_STD
            )

    def claims(self) -> list[str]:
        return [f"{name_in(self._stack, block.module)} tokens" for block in self._blocks]

    def attach(self) -> None:
        for block in self._blocks:
            self._handles.append(Instead(block.module, self._reading(block.module, str(block.number))))

    def _reading(self, block: nn.Module, number: str) -> Callable[..., Any]:
        """The block's forward with its tokens; whatever enters or leaves the model at the block doesn't see them."""
        own = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.active:
                return own(*args, **kwargs)
            states = args[0] if args else kwargs["hidden_states"]
            check(
                states.ndim == 3 and kwargs.get("position_embeddings") is None,
                f"deep_prompts: blocks of a {type(block).__name__} count the places of their tokens. Expected an "
                "encoder whose blocks don't (CLIP, SigLIP, ViT, BLIP, Whisper ...), or another method.",
            )
            prompt = self.prompts[number]
            longer = torch.cat([prompt.to(states.dtype).expand(len(states), -1, -1), states], 1)
            masks = [_longer(mask, len(prompt)) for mask in args[1:]]
            named = {k: _longer(v, len(prompt)) if k in MASKS else v for k, v in kwargs.items()}
            out = own(longer, *masks, **named) if args else own(**named | {"hidden_states": longer})
            if isinstance(out, Tensor):
                return out[:, len(prompt) :]
            return (out[0][:, len(prompt) :], *out[1:])

        return forward


def _longer(mask: Any, added: int) -> Any:
    """Who may attend to whom, (batch, tokens) or (batch, heads, tokens, tokens): everybody to what is in front."""
    if not isinstance(mask, Tensor):
        return mask
    seen: Any = 0.0 if mask.is_floating_point() else True
    square = mask.ndim == 4 and mask.shape[-2] > 1
    return F.pad(mask, (added, 0, added, 0) if square else (added, 0), value=seen)
