"""Classification by prompts: what a dual encoder says of a label's name is where training starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.config import check
from fusetune.manifest.labels import label_text
from fusetune.tasks.joined_head import JoinedHead, frozen
from fusetune.tasks.task import HeadMaker

GAP = "{}"


@dataclass(frozen=True)
class Prompts:
    """
    Attributes:
        templates: texts with {} where a label's words go; of several the mean direction is taken, as CLIP does.
        modality: whose tower is one side of a dual encoder.
        words: by label, what people call it; of others the label itself is read, with spaces for underscores.
    """

    templates: tuple[str, ...] = ("a photo of a {}.",)
    modality: str = "image"
    words: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(len(self.templates) > 0, "prompts.templates: expected at least one text with {} in it.")
        for i, template in enumerate(self.templates):
            check(
                template.count(GAP) == 1,
                f"prompts.templates[{i}]: expected one {GAP}, where a label's words go, found '{template}'.",
            )

    def texts(self, labels: Sequence[str]) -> list[list[str]]:
        """By label, one text a template."""
        called = {label_text(label): words for label, words in self.words.items()}
        words = [called.get(label, label.replace("_", " ")) for label in labels]
        return [[template.replace(GAP, word) for template in self.templates] for word in words]


class PromptedHead(JoinedHead):
    """Cosines with the labels' names in the towers' own space, times its scale, and what is learned beside them.

    Nothing is learned at first: the outputs are the dual encoder's, zero-shot. Linear models of the frozen streams
    stand beside all of it, as in every joined head.

    Attributes:
        embeds: the modalities that it is given in their space.
        labels: directions of their names, (labels, width of the space); zeros until `name`.
    """

    def __init__(self, prompts: Prompts, space: Any, labels: int, widths: Mapping[str, int], make: HeadMaker) -> None:
        super().__init__(widths, labels, make)
        self.embeds, self.space = (prompts.modality,), space
        self.labels = frozen(torch.zeros(labels, space.width))
        self.gain = nn.Parameter(torch.zeros(labels))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.forget()

    @torch.no_grad()
    def name(self, labels: Tensor) -> None:
        """Know the directions of the labels' names, (labels, width)."""
        self.labels.copy_(F.normalize(labels, dim=-1))

    @torch.no_grad()
    def forget(self) -> None:
        """Everything that was learned, the linear models too: the space is as the checkpoint has it."""
        self.gain.zero_()
        self.log_scale.fill_(self.space.log_scale)
        self.shares.copy_(self.shares.new_tensor([0.0, 1.0]))

    def forward(  # type: ignore[override]
        self, pooled: Mapping[str, Tensor], embedded: Mapping[str, Tensor], entered: Mapping[str, Tensor]
    ) -> Tensor:
        """(batch, labels).

        Args:
            pooled: behind the junction.
            embedded: the streams of `embeds` in their space; a row that lacks one is zeros, and its names say nothing.
            entered: in front of the junction.
        """
        learned = self.gain * self.trained(pooled)
        for name in self.embeds:
            if name in embedded:
                learned = learned + self.log_scale.exp() * F.normalize(embedded[name], dim=-1) @ self.labels.T
        return self.shares[0] * self.known(entered) + self.shares[1] * learned
