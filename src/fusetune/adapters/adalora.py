"""AdaLoRA, by Hugging Face `peft`: low-rank changes whose ranks move to the layers that need them.

Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", ICLR 2023, arXiv 2303.10512. With
y = W x + b of a chosen layer:

    y <- y + (alpha / r) P L Q x        P: d_out x r, L: r x r diagonal, Q: r x d_in

Every so many steps the entries of L with the least smoothed sensitivity are set to zero, over all layers of a stack
together, down to a budget (section 3.2). P and Q are kept near orthogonal by a penalty. L starts at zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusetune.adapters.peft_tuners import PeftTuner
from fusetune.config import check


@dataclass(frozen=True)
class AdaLoRAConfig:
    """
    Attributes:
        rank: of each layer on average, at the end.
        initial_rank: of each layer, at the beginning.
        alpha: the change is scaled by alpha / r; None: alpha = the initial rank.
        warmup, final: shares of the steps before the first and after the last pruning.
        every: steps between two prunings.
        orthogonality: weight of the penalty ||P'P - I|| + ||QQ' - I||.
        dropout: of what the change reads.
        targets: roles or paths of linear layers in a block.
    """

    rank: int = 4
    initial_rank: int = 8
    alpha: float | None = None
    warmup: float = 0.1
    final: float = 0.3
    every: int = 10
    orthogonality: float = 0.5
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "key", "value", "attention_output", "mlp_input", "mlp_output")

    def __post_init__(self) -> None:
        check(
            0 < self.rank < self.initial_rank,
            f"rank: expected at least 1 and less than initial_rank ({self.initial_rank}), found {self.rank}.",
        )
        check(
            self.warmup >= 0 and self.final >= 0 and self.warmup + self.final < 1,
            f"warmup, final: expected shares that leave room between them, found {self.warmup} and {self.final}.",
        )


class AdaLoRA(PeftTuner):
    """LoRA whose ranks move to the layers that need them, by sensitivity; the loop tells it of every step."""

    Config = AdaLoRAConfig
    tuner = "AdaLoraModel"

    def peft_config(self) -> Any:
        from peft import AdaLoraConfig

        return AdaLoraConfig(
            init_r=self.config.initial_rank,
            target_r=self.config.rank,
            lora_alpha=self.config.alpha or self.config.initial_rank,
            lora_dropout=self.config.dropout,
            deltaT=self.config.every,
            orth_reg_weight=self.config.orthogonality,
            total_step=1,  # `on_start` knows
        )

    def low_rank(self) -> Mapping[str, tuple[Tensor, Tensor]] | None:
        changes = {}
        for name, layer in self._layers.items():
            scale = layer.scaling["adalora"] / (layer.ranknum["adalora"] + 1e-5)
            down = layer.lora_A["adalora"] * layer.lora_E["adalora"]
            changes[name] = (down, layer.lora_B["adalora"] * scale)
        return changes

    def on_start(self, steps: int) -> None:
        if self._tuner:
            config = self._tuner[0].rankallocator.peft_config
            config.total_step = steps
            config.tinit, config.tfinal = int(self.config.warmup * steps), int(self.config.final * steps)

    def on_step(self, step: int) -> None:
        if self._tuner and self.active:
            self._tuner[0].update_and_allocate(step)

    def penalty(self) -> Tensor | None:
        terms = []
        for layer in self._layers.values():
            for p in (layer.lora_A["adalora"], layer.lora_B["adalora"].T):  # (r, d)
                terms.append(torch.linalg.matrix_norm(p @ p.T - torch.eye(len(p), device=p.device)))
        return self.config.orthogonality * torch.stack(terms).mean() if terms and self.active else None

    def training_state(self) -> dict[str, Tensor]:
        if not self._tuner:
            return {}
        allocator = self._tuner[0].rankallocator
        state = {f"{kind}.{n}": v for kind in self._SCORES for n, v in getattr(allocator, kind).items()}
        kept = allocator.peft_config.rank_pattern or {}
        return state | {f"kept.{name}": torch.tensor(mask) for name, mask in kept.items()}

    def restore_training_state(self, state: Mapping[str, Tensor]) -> None:
        allocator = self._tuner[0].rankallocator
        kept: dict[str, list[bool]] = {}
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if kind == "kept":
                kept[name] = value.tolist()
            else:
                getattr(allocator, kind)[name] = value.to(self._trained[0].device)
        allocator.peft_config.rank_pattern = kept or None

    _SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
