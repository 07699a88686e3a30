"""Towers over Hugging Face `transformers`: what encoders of all modalities share."""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.backbones.common_space import Projection, Space, projection_of
from fusetune.backbones.families import FAMILIES, load, load_model, quiet, refuse_random
from fusetune.backbones.replay import Left, entered, left_at
from fusetune.backbones.tower import Tower
from fusetune.config import check
from fusetune.tokens import Tokens


class TransformersTower(Tower):
    """An encoder of `transformers` without a head.

    A family in `families.FAMILIES` is entered and left at every depth. Any other encoder is one block: it works at
    depth 0 and at its last hidden state, which is where most methods start.

    Args:
        model: the encoder.
        processor: its own image processor, tokenizer or feature extractor.
        max_tokens: what is longer is cut; None: as long as the encoder takes. Only where `cuts`.
    """

    processor_class: ClassVar[str]  # one of `transformers`' Auto classes
    cuts: ClassVar[bool] = False

    def __init__(self, model: Any, processor: Any, max_tokens: int | None = None) -> None:
        super().__init__()
        check(
            max_tokens is None or self.cuts,
            f"max_tokens: an input of this encoder of {self.kind} has one size, whatever its length; leave it out.",
        )
        self.model: Any = model.eval()
        self.max_tokens = max_tokens
        self.processor, self.family = processor, FAMILIES.get(model.config.model_type)
        self.projection: Projection | None = None
        self.depth = len(self.blocks())
        self.width = model.config.hidden_size if self.family else 0
        if not self.family:
            with torch.no_grad():
                self.width = self.advance(self.prepare([self.blank()]), 0, 1).width

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        part: str | None = None,
        revision: str | None = None,
        max_tokens: int | None = None,
    ) -> "TransformersTower":
        """Load weights and processor from a local folder or a hub id, as `transformers` does.

        Args:
            part: of a composite model, the kind of encoder; None: this tower's own.

        Raises:
            FusetuneError: nothing there, or weights that the checkpoint lacks and that the outputs depend on.
        """
        import transformers

        model, missing = load_model(source, part or cls.kind, revision)
        tower = cls(model, load(getattr(transformers, cls.processor_class), source, revision), max_tokens)
        tower._settle(missing, source)
        tower.projection = projection_of(source, part or cls.kind, revision)
        return tower

    def space(self) -> Space | None:
        return self.projection.space if self.projection else None

    @classmethod
    @abstractmethod
    def blank(cls) -> Any:
        """A decoded sample with nothing on it, to learn shapes from."""

    def blocks(self) -> nn.ModuleList:
        if self.family:
            return self.model.get_submodule(self.family.blocks)
        return nn.ModuleList([self.model])

    def roles(self) -> Mapping[str, str]:
        return self.family.roles if self.family else {}

    def save_pretrained(self, folder: Path) -> None:
        quiet()
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def nothing(self, tokens: Tokens) -> Tokens:
        """What leaves the tower for a batch in which no sample has this modality."""
        shape, device = (len(tokens.values), self.tokens_out(1)), tokens.mask.device
        empty = torch.zeros(*shape, self.width, device=device, dtype=self.model.dtype)
        return Tokens(empty, torch.zeros(shape, device=device, dtype=torch.bool))

    def _settle(self, missing: set[str], source: str | Path) -> None:
        """Weights that the checkpoint lacks are random: zero where nothing depends on them (a pooler), else refused."""
        parameters = {name: p for name, p in self.model.named_parameters() if name in missing}
        if not parameters:
            return
        with torch.enable_grad():  # whoever loads may have it off
            out = self.advance(self.prepare([self.blank()]), 0, self.depth).values.sum()
        gradients = torch.autograd.grad(out, list(parameters.values()), allow_unused=True)
        used = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
        refuse_random(used, source, type(self.model).__name__)
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.zero_()


class RowTower(TransformersTower):
    """A tower whose model takes rows of one shape; a row is present or it isn't."""

    @abstractmethod
    def _rows(self, tokens: Tokens, start: int) -> tuple[Tensor, Tensor]:
        """Tokens as the model's rows (a picture of a sample is a row), and their mask."""

    @abstractmethod
    def _inputs(self, states: Tensor, mask: Tensor, start: int) -> dict[str, Tensor]:
        """Keyword arguments of the model's forward; placeholders of the right shape where `start` > 0."""

    @abstractmethod
    def _tokens(self, out: Tensor, mask: Tensor, samples: int) -> Tokens:
        """The model's rows as tokens again."""

    def advance(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        if start == stop:
            return tokens
        states, mask = self._rows(tokens, start)  # (rows, tokens or values, ...)
        if mask.is_meta or _recorded(mask):  # shapes alone, or a step that is recorded: every row counts as present
            if not mask.is_meta:
                self.row_samples = torch.arange(len(mask), device=mask.device) // (len(mask) // len(tokens.values))
            return self._tokens(self._run(states, mask, start, stop), mask, len(tokens.values))
        present = mask.any(1)
        rows = present.nonzero().squeeze(1) // (len(mask) // len(tokens.values))
        if not present.any():
            empty, self.row_samples = self.nothing(tokens), rows
            return empty
        self.row_samples = rows
        out = self._run(states[present], mask[present], start, stop)
        if not present.all():
            full = out.new_zeros(len(mask), *out.shape[1:])
            out = full.index_put((present.nonzero().squeeze(1),), out)
        return self._tokens(out, mask, len(tokens.values))

    def embed(self, tokens: Tokens) -> Tensor:
        """Of several pictures, the mean of their directions."""
        projection: Any = self.projection
        states, mask = self._rows(tokens, self.depth)
        rows = F.normalize(projection(self.model, states, mask), dim=-1) * mask.any(1, keepdim=True)
        return rows.unflatten(0, (len(tokens.values), -1)).sum(1)

    def _run(self, states: Tensor, mask: Tensor, start: int, stop: int) -> Tensor:
        with ExitStack() as stack:
            if start and self.family:
                stack.enter_context(entered(self.model, self.family, states, start))
            if stop < self.depth:
                stack.enter_context(left_at(self.blocks()[stop]))
            try:
                return last_hidden_state(self.model(**self._inputs(states, mask, start)))
            except Left as left:
                return left.hidden_states


def _recorded(mask: Tensor) -> bool:
    return mask.is_cuda and torch.cuda.is_current_stream_capturing()


def last_hidden_state(output: Any) -> Tensor:
    """(rows, tokens, width); a feature map (rows, width, height, width) is read as tokens, row by row."""
    states = output.last_hidden_state
    return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states
