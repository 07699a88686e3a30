"""Text of one language becomes what an encoder makes of its translation: how a language's adapter is trained.

Reimers and Gurevych, "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation", EMNLP 2020.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.config import check
from fusetune.tasks.task import HeadMaker, Task


@dataclass(frozen=True)
class TranslatedConfig:
    """
    Attributes:
        modality: the text.
        vector: the column with what the encoder makes of the translation, pooled.
    """

    modality: str
    vector: str = "translation: vector"


class OneStream(nn.Module):
    """A head with nothing to train: a pooled stream as it is."""

    def __init__(self, modality: str) -> None:
        super().__init__()
        self.modality = modality

    def forward(self, pooled: Mapping[str, Tensor]) -> Tensor:
        return pooled[self.modality]


class Translated(Task):
    """Squared distance in units of the vectors' spread; `retrieved` is the share of texts whose own translation is the
    nearest of all in the split, by cosine."""

    Config = TranslatedConfig
    metric = "retrieved"
    by_row = False

    def __init__(self, config: TranslatedConfig) -> None:
        self.config = config
        self.spread = 1.0

    def columns(self) -> list[str]:
        return [self.config.vector]

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self.spread = float(self.targets(columns).var(0).mean()) or 1.0

    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        return torch.tensor(np.stack(columns[self.config.vector]), dtype=torch.float32)

    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        del make  # there is nothing to train behind the adapter
        check(self.config.modality in widths, f"'{self.config.modality}': no such modality.")
        return OneStream(self.config.modality)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets.to(outputs)) / self.spread

    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        found, wanted = F.normalize(outputs.double().cpu(), dim=1), F.normalize(targets.double().cpu(), dim=1)
        likeness = found @ wanted.T
        own = likeness.diagonal()
        return {
            "retrieved": (own >= likeness.amax(1) - 1e-9).double().numpy(),  # translations that are the same tie
            "likeness": own.numpy(),
        }

    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, Any]]:
        return [{} for _ in outputs]

    def state(self) -> dict[str, Any]:
        return {"spread": self.spread}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.spread = float(state["spread"])
