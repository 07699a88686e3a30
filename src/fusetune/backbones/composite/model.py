"""A composite model that is entered and left at any cut of its one axis: encoder, connector, language blocks."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.composite.cuts import (
    CONNECTOR,
    ENCODER,
    FINAL,
    LANGUAGE,
    MEMORY,
    PLACES,
    QUESTION,
    TOP,
    Carried,
    Cut,
    ranges,
)
from fusetune.backbones.composite.families import CLASSES, class_of, output_of
from fusetune.backbones.composite.family import Inputs
from fusetune.backbones.composite.given import GivenModel
from fusetune.backbones.composite.packing import given_packed, left_packed
from fusetune.backbones.composite.taps import Taps, side_by_side
from fusetune.backbones.families import load, quiet, refuse_random
from fusetune.backbones.replay import STATES, Left, forward_of, left_at, left_behind, put_at, skipped
from fusetune.backbones.tower import fingerprint
from fusetune.config import check
from fusetune.errors import FusetuneError


class CompositeModel(GivenModel):
    """Frozen, and always in eval mode. The model's own forward runs from every cut.

    From a cut, what lies below does nothing: blocks hand on what they get, pictures are blank, and the states that were
    carried are put in front of the block. Masks, positions, norms, the head and the loss are the model's own, so in
    float32 the outputs are those of an undivided pass, bit by bit.

    Args:
        model: of one of the classes in `families.COMPOSITES`.
    """

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None, **options: Any) -> "CompositeModel":
        """Load a local folder or a hub id, as the class that the checkpoint was saved from.

        Args:
            options: for `transformers`, e.g. ``dtype`` or ``quantization_config``.

        Raises:
            FusetuneError: nothing there, no composite model of a known family, or weights that are missing.
        """
        import transformers

        config = load(transformers.AutoConfig, source, revision)
        name = class_of(config)
        check(
            name in CLASSES,
            f"backbone '{source}': its checkpoint is of {name or 'no class that it names'}, no composite model that "
            f"can be entered. Known: {', '.join(CLASSES)}.",
        )
        quiet()
        made, info = load(getattr(transformers, name), source, revision, output_loading_info=True, **options)
        refuse_random(sorted(info["missing_keys"]), source, name)
        return cls(made)

    @cached_property
    def taps(self) -> Taps:
        """What is read of lower depths of the encoder."""
        taps = [(k, self.model.get_submodule(path)) for k, path in self.family.taps(self.model.config)]
        return Taps(taps, self.blocks(ENCODER))

    def train(self, mode: bool = True) -> "CompositeModel":
        return super().train(False)

    def blocks(self, part: str) -> list[nn.Module]:
        """Of the encoder, of what reads the question, or of the language model."""
        paths = {ENCODER: self.family.encoder, QUESTION: self.family.question, LANGUAGE: self.family.language}
        return list(self.model.get_submodule(paths[part]).children())

    @cached_property
    def cuts(self) -> tuple[Cut, ...]:
        """All that a pass may end or begin at, from the inputs upwards."""
        config, blocks = self.model.config, len(self.blocks(ENCODER))
        found = [Cut(ENCODER, k) for k in range(min(self.family.read(config, blocks), blocks))]
        if self.family.entry:
            found.append(Cut(CONNECTOR))
        if self.family.placed:
            found.append(Cut(PLACES))
        if self.family.question:
            found += [Cut(QUESTION, k) for k in range(len(self.blocks(QUESTION)))]
        if self.family.memory:
            found.append(Cut(MEMORY))
        found += [Cut(LANGUAGE, k) for k in range(self.family.first(config), len(self.blocks(LANGUAGE)))]
        return (*found, Cut(TOP))

    def forward(self, inputs: Inputs, start: Cut | None = None, carried: Carried | None = None) -> Any:
        """The model's own output (logits; a loss where `inputs` has labels).

        Args:
            inputs: of its forward; from a cut, media are only asked for their shapes, or not at all.
            start, carried: from there; None: from the inputs.
        """
        with self.entered(inputs, start, carried) as given:
            return self.model(**given)

    def carry(self, inputs: Inputs, stop: Cut, start: Cut | None = None, carried: Carried | None = None) -> Carried:
        """What is known at `stop`, from the inputs or from an earlier cut."""
        if stop.part != FINAL:
            self._check(stop)
        known = carried is not None and carried.memory is not None and start is not None and start.part != QUESTION
        memory: list[Any] = [carried.memory] if carried and known else []
        with self.entered(inputs, start, carried) as given, ExitStack() as stack:
            asks = stop.part == QUESTION and not self.family.placed
            path = self.family.tower if asks else self.family.memory if stop.part in (LANGUAGE, TOP) else ""
            if path and not memory:
                module = self.model.get_submodule(path)
                hook = module.register_forward_hook(lambda _, __, out: memory.append(_rows(out)))
                stack.callback(hook.remove)
            tapped = self.taps.listened(stop, stack)
            stack.enter_context(self._left(stop))
            try:
                self.model(**given)
            except Left as left:
                if stop.part == MEMORY:
                    return Carried(_rows(left.hidden_states), _rows(left.hidden_states))
                return Carried(side_by_side(left.hidden_states, tapped), memory[0] if memory else None)
        raise FusetuneError(f"backbone: {stop} is never reached by these inputs; pictures or sounds are missing.")

    def logits(self, inputs: Inputs, start: Cut | None = None, carried: Carried | None = None) -> Tensor:
        """(rows, tokens, vocabulary), as the head gives them."""
        seen: list[Tensor] = []
        hook = self.model.get_submodule(self.family.head).register_forward_hook(lambda _, __, out: seen.append(out))
        try:
            self(inputs, start, carried)
        finally:
            hook.remove()
        return seen[0]

    def fingerprint(self, cut: Cut | None = None) -> str:
        """SHA-256 (hex) of the weights that the states at a cut depend on; None: of all.

        Below the language blocks these are the encoder's alone: checkpoints that share it share what is cached there.
        """
        state = self.model.state_dict()
        if cut is None or cut.part in (LANGUAGE, TOP):
            return fingerprint(state)
        connector = tuple(f"{path}." for path in self.family.connector)
        own = {n: t for n, t in state.items() if n.startswith(f"{self.family.tower}.") and not n.startswith(connector)}
        return fingerprint(own)

    @contextmanager
    def entered(self, inputs: Inputs, start: Cut | None, carried: Carried | None) -> Iterator[dict[str, Any]]:
        """While this lasts, a pass of the model with the inputs that are given here begins at `start`."""
        if start is None or carried is None:
            yield dict(inputs)
            return
        if not carried.states.is_meta:  # shapes are the same from below, too
            self._check(start)
        with ExitStack() as stack:
            asked = self.family.question and not self.family.placed
            if start.part in (ENCODER, PLACES) or (start.part == CONNECTOR and not asked):
                encoder = self.blocks(ENCODER)
                stack.enter_context(skipped(encoder[: start.block] if start.part == ENCODER else encoder))
                for path in () if start.part == ENCODER else self.family.idle:
                    stack.enter_context(skipped(self.model.get_submodule(path).children()))
                given = self._blank(inputs)
            elif start.part in (CONNECTOR, QUESTION):
                given = self._without_media(inputs, None)
                below = self.blocks(QUESTION)[: start.block]
                stack.enter_context(skipped(self._idle(below), self.family.skip))
                memory = carried.states if start.part == CONNECTOR else carried.memory
                if memory is not None:
                    tower, out = self.model.get_submodule(self.family.tower), output_of(memory)
                    stack.enter_context(forward_of(tower, lambda *_, **__: out))
                if start.part == CONNECTOR:
                    yield given
                    return
            else:
                language = self.blocks(LANGUAGE)
                below = language if start.part == TOP else language[: start.block]  # of the memory: none
                stack.enter_context(skipped(self._idle(below), self.family.skip))
                given = self._without_media(inputs, carried.memory)
                for path, stub in self.family.stubs.items():
                    out = stub(carried.memory)  # type: ignore[arg-type]
                    stack.enter_context(forward_of(self.model.get_submodule(path), lambda *_, out=out, **__: out))
            if start.part == MEMORY:
                yield given
                return
            stack.enter_context(self._given(start, self.taps.given(start, carried.states, stack)))
            yield given

    def _idle(self, below: list[nn.Module]) -> list[nn.Module]:
        """Those of the blocks below a cut that need not run."""
        return [block for number, block in enumerate(below) if number not in self.family.always]

    def _without_media(self, inputs: Inputs, memory: Tensor | None) -> dict[str, Any]:
        given = {name: value for name, value in inputs.items() if name not in self.family.media}
        if self.family.resume:
            self.family.resume(self.model, given, memory, len(inputs[self.family.words[0]]))
        return given

    def _left(self, cut: Cut) -> AbstractContextManager[None]:
        if cut.part == PLACES and self.family.packed:
            return left_packed(self.model, self.family.packed)
        module, argument = self._place(cut)
        return left_behind(module) if cut.part in (PLACES, MEMORY, FINAL) else left_at(module, argument)

    def _given(self, cut: Cut, states: Tensor) -> AbstractContextManager[None]:
        if cut.part == PLACES and self.family.packed:
            return given_packed(self.model, self.family.packed, states)
        module, argument = self._place(cut)
        if cut.part != PLACES:
            return put_at(module, states, argument)
        if not self.family.measured:
            return forward_of(module, lambda *_, **__: states)
        return forward_of(module, lambda blank: states.repeat_interleave(len(blank) // len(states), 0))  # beams

    def _blank(self, inputs: Inputs) -> dict[str, Any]:
        """Media of ones: what is all zeros is no picture to some families."""

        def blank(name: str, value: Any) -> Any:
            media = name in self.family.media and value is not None and value.is_floating_point()
            return torch.ones_like(value[:1]).expand_as(value) if media else value

        return {name: blank(name, value) for name, value in inputs.items()}

    def _place(self, cut: Cut) -> tuple[nn.Module, str]:
        """The module in front of which a cut lies, and the argument that the states are."""
        if cut.part == CONNECTOR:
            assert self.family.entry is not None
            path, argument = self.family.entry
            return self.model.get_submodule(path), argument
        if cut.part == PLACES:
            return self.model.get_submodule(self.family.connector[-1]), STATES
        if cut.part == MEMORY:
            return self.model.get_submodule(self.family.memory), STATES
        if cut.part in (TOP, FINAL):
            return self.model.get_submodule(self.family.top), STATES
        return self.blocks(cut.part)[cut.block], STATES

    def _check(self, cut: Cut) -> None:
        check(
            cut in self.cuts,
            f"backbone: a pass can't begin or end at {cut}. A {type(self.model).__name__} has "
            f"{', '.join(f'{part} {first} to {last}' for part, first, last in ranges(self.cuts))}.",
        )


def _rows(out: Any) -> Tensor:
    """A module's output as (rows, tokens, width)."""
    states = out if isinstance(out, Tensor) else getattr(out, "last_hidden_state", None)
    states = out[0] if states is None else states
    return states.reshape(-1, *states.shape[-2:])
