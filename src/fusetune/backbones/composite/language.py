"""The language blocks of a composite model as a backbone's trunk.

The streams stay apart at every depth: states at the picture's places, at the text's, and at the answer's where one is
learned. With their masks they say how the sequence was laid out, so a pass begins at any depth from them alone. What
the language model needs besides (positions, masks) it rebuilds from stand-in ids, of which the places alone count.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.composite.cuts import FINAL, LANGUAGE, PLACES, Carried, Cut
from fusetune.backbones.composite.given import counted
from fusetune.backbones.composite.layout import FRONT, Layout, blank_words
from fusetune.backbones.composite.model import CompositeModel
from fusetune.backbones.composite.quantising import quantise
from fusetune.backbones.composite.words import AnswerTower, PromptTower, WordTower, positions, room
from fusetune.backbones.tower import fingerprint
from fusetune.backbones.trunk import Change
from fusetune.config import check, digest
from fusetune.tokens import Tokens


class LanguageTrunk(nn.Module):
    """The language blocks, over the streams of a picture and a text; depth 0 takes its places and the text's ids.

    Args:
        words: of the prompt.
        image, text: the names of the two streams; '' where the data has none.

    Attributes:
        answer: the name of the stream of answers; '' where nobody asks for any.
        one_sequence: whether it holds all that is read and said.
    """

    answer, one_sequence = "", True
    own_widths: Mapping[str, int] = MappingProxyType({})

    def __init__(self, composite: CompositeModel, words: WordTower, image: str, text: str) -> None:
        super().__init__()
        family = composite.family
        self._composite = (composite,)
        self.language = composite.model.get_submodule(family.language.rpartition(".")[0])
        self.head = composite.model.get_submodule(family.head)
        self._words = (words,)
        self.offset, self.image, self.text = words.offset, image, text
        self._layout = Layout({}, torch.empty(0), torch.empty(0))
        self.prompt: Callable[[], Tensor | None] = lambda: None
        self._goes_on = False  # a pass that goes on behind a prompt that has been read
        self._name = ""  # a fingerprint that weights can't give any more
        self.depth = len(composite.blocks(LANGUAGE))
        self.width = composite.model.config.get_text_config().hidden_size
        self.first = family.first(composite.model.config)  # below it, states alone are not enough

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights; of quantised ones, of those that were given and of what was made of them."""
        return self._name or fingerprint(self.state_dict())

    def quantise(self, kind: str) -> None:
        """The blocks' weights in few bits from now on; see `quantising`."""
        self._name = digest([self.fingerprint(), kind])
        quantise(self.blocks(), kind)

    @property
    def most_tokens(self) -> int:
        """Tokens that the language model takes."""
        return positions(self.composite)

    @property
    def composite(self) -> CompositeModel:
        return self._composite[0]

    def blocks(self) -> nn.ModuleList:
        blocks: Any = self.composite.model.get_submodule(self.composite.family.language)
        return blocks

    def modules_of_whole(self) -> dict[str, str]:
        """Where its modules stand in the whole model."""
        family = self.composite.family
        return {"language": family.language.rpartition(".")[0], "head": family.head}

    def roles(self) -> Mapping[str, str]:
        return self.composite.family.language_roles

    def advance(self, streams: Mapping[str, Tokens], start: int, stop: int) -> dict[str, Tokens]:
        """Run the blocks from depth `start` to depth `stop`; behind the last one the norm runs too."""
        if start == stop:
            return dict(streams)
        own = self._in_sequence(streams, start)
        self._lay_out(own, start)
        inputs = self._inputs(own if start == 0 else {})
        if start or self._layout.which.is_meta:  # without weights nothing can be looked up
            blank = {} if start else blank_words(self._layout, own, self.image, self.width, self.prompt())
            carried = Carried(self._layout.joined(blank or own))
            return self._apart(self.composite.carry(inputs, self._cut(stop), Cut(LANGUAGE, start), carried).states)
        return self._apart(self._carried(inputs, streams, self._cut(stop)).states)

    def _carried(self, inputs: dict[str, Any], streams: Mapping[str, Tokens], stop: Cut) -> Carried:
        """What is known at `stop`, from the words of the inputs and what is seen."""
        shown = self._shown(streams, joint=True)
        if shown is None:
            return self.composite.carry(self.composite.unseen(inputs), stop)
        more, start, carried = shown
        return self.composite.carry(inputs | more, stop, start, carried)

    def _shown(self, streams: Mapping[str, Tokens], joint: bool = False) -> tuple[dict[str, Any], Cut, Carried] | None:
        """Further inputs, the cut at which a pass begins with what is seen, and that; None: no row has any.

        Args:
            joint: whether what several pictures of a row give may stand one behind another.
        """
        states = self.composite.pictures(streams.get(self.image))
        if states is None:
            return None
        if joint and self.composite.family.several:  # a row has as many as it has
            states = states.flatten(0, 1)[None]
        more, carried = self.composite.shown(states, counted(streams[self.image]))
        return more, Cut(PLACES), carried

    def lengths(self, streams: Mapping[str, Tokens]) -> list[int]:
        """Tokens of each sample in the one sequence."""
        masks = [tokens.mask.sum(1) for tokens in self._in_sequence(streams).values()]
        return torch.stack(masks).sum(0).tolist() if masks else [0]

    @contextmanager
    def prompted(self, streams: Mapping[str, Tokens]) -> Iterator[dict[str, Any]]:
        """While this lasts, the inputs given here are what the model's own `generate` goes on from.

        Prompts end where answers begin: shorter ones are padded in front. Adapters change the prompt's places as they
        do in training, in the first pass alone.

        Args:
            streams: at depth 0, without an answer.
        """
        own = self._in_sequence(streams)
        self._lay_out(own)
        self._layout = self._layout.padded_in_front()
        with self._followed(), self._read(self._inputs(own), streams) as given:
            yield given

    @contextmanager
    def _followed(self) -> Iterator[None]:
        """While this lasts, places are those of a prompt in the first pass, then those of one token after another."""

        def begin(_: nn.Module, args: Any, kwargs: Any) -> None:
            if self._goes_on:
                return
            words = next(x for x in (*args, kwargs.get("inputs_embeds"), kwargs.get("input_ids")) if x is not None)
            self._layout = self._layout.repeated(len(words))

        def end(*_: Any) -> None:
            self._goes_on = True

        first, later = self.language.register_forward_pre_hook, self.language.register_forward_hook
        try:
            with first(begin, with_kwargs=True), later(end):
                yield
        finally:
            self._goes_on = False

    def _in_sequence(self, streams: Mapping[str, Tokens], start: int = 0) -> Mapping[str, Tokens]:
        """Those that have places in the one sequence, in front of the block at depth `start`."""
        return streams

    @contextmanager
    def _read(self, inputs: dict[str, Any], streams: Mapping[str, Tokens]) -> Iterator[dict[str, Any]]:
        """The inputs of a prompt, with what it has to see."""
        shown = self._shown(streams)
        if shown is None:
            yield self.composite.unseen(inputs)
            return
        more, start, carried = shown
        with self.composite.entered(inputs | more, start, carried) as given:
            yield given

    def said(self, streams: Mapping[str, Tokens]) -> Tensor:
        """The model's own logits, of streams at the top: (rows, 1 + longest answer, vocabulary).

        The first is of what comes behind the prompt, each further one of what comes behind a token of the answer;
        nothing else is given to the head.
        """
        self._lay_out(streams, self.depth)
        joint, masks = self._layout.joined(streams), self._layout.masks
        asked = [mask.sum(1, keepdim=True) for name, mask in masks.items() if name != self.answer]
        last = torch.stack(asked).sum(0) - 1
        longest = masks[self.answer].shape[1] if self.answer in masks else 0
        at = last.clamp(min=0) + torch.arange(1 + longest, device=last.device)
        at = at.clamp(max=joint.shape[1] - 1)
        return self.composite.said(joint.gather(1, at[..., None].expand(*at.shape, joint.shape[-1])))

    def take_answers(self, name: str, most: int) -> WordTower:
        """From now on a stream of this name holds answers, of at most so many tokens; returns its tower."""
        kept = room(self.composite)
        check(most <= kept, f"data.task.max_answer_tokens: expected at most {kept} with this model, found {most}.")
        self.answer, (words,) = name, self._words
        return AnswerTower(words, most) if isinstance(words, PromptTower) else WordTower(self.width)

    def behind(self, number: int, change: Change) -> Any:
        """As `trunk.Trunk.behind`: of the one sequence, the picture's places and the text's are told apart for it."""
        if number + 1 < self.depth:
            return self._in_front_of(self.blocks()[number + 1], change)
        return self.blocks()[number].register_forward_hook(lambda _, args, out: self._changed(change, out))

    def _in_front_of(self, block: nn.Module, change: Change) -> Any:
        def before(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            return (self._changed(change, args[0]), *args[1:]), kwargs

        return block.register_forward_pre_hook(before, with_kwargs=True)

    @property
    def told_apart(self) -> list[str]:
        """The streams that have places in the sequence."""
        return [name for name in (self.image, self.text) if name]

    def places(self) -> dict[str, Tensor]:
        """By stream, (rows, tokens): its places in the pass that runs; answers and what is in front are text."""
        if self._goes_on:
            said = torch.ones_like(self._layout.real[:, :1])
            return {name: said if name == self.text else ~said for name in self._layout.masks}
        found: dict[str, Tensor] = {}
        for name, own in self._layout.places().items():
            key = self.text if name in (self.answer, FRONT) else name
            found[key] = found[key] | own if key in found else own
        return found

    def present(self) -> dict[str, Tensor]:
        """By stream in the sequence, (rows,): whether a sample has any of it; words are there where one is answered."""
        masks = {name: mask for name, mask in self._layout.masks.items() if name != FRONT}
        return {name: mask.any(1) | bool(self.answer and name == self.text) for name, mask in masks.items()}

    def prompted_by(self, prompt: Callable[[], Tensor | None]) -> ExitStack:
        """Until the stack is closed, trained tokens, (tokens, width), are in front of all; None: for now none."""

        def put(_: nn.Module, args: Any, out: Tensor) -> Tensor:
            layout = self._layout
            if self._goes_on or FRONT not in layout.masks or out.shape[1] != layout.which.shape[1]:
                return out
            layout = layout.repeated(len(out))  # beams, which the layout doesn't know of yet
            tokens: Any = prompt()
            own = tokens.to(out.dtype)[layout.which.clamp(max=len(tokens) - 1)]
            return torch.where(layout.places()[FRONT][..., None], own, out)

        self.prompt, before, stack = prompt, self.prompt, ExitStack()
        stack.callback(setattr, self, "prompt", before)
        hook = self.composite.model.get_input_embeddings().register_forward_hook(put)
        stack.callback(hook.remove)
        return stack

    def _changed(self, change: Change, joint: Tensor) -> Tensor:
        """The prompt's streams are changed; the answer comes later than they do, and is no part of what they read."""
        if self._goes_on:
            return joint
        apart = self._layout.apart(joint)
        asked = {name: tokens for name, tokens in apart.items() if name not in (self.answer, FRONT)}
        return self._layout.joined({**apart, **change(asked)})

    def _apart(self, joint: Tensor) -> dict[str, Tokens]:
        return {name: tokens for name, tokens in self._layout.apart(joint).items() if name != FRONT}

    def _lay_out(self, streams: Mapping[str, Tokens], depth: int = 0) -> None:
        """Keeps how they lie in the one sequence, in front of the block at `depth`."""
        unknown = [name for name in streams if name not in (self.text, self.image, self.answer)]
        check(not unknown, f"the language model takes a picture and a text, no stream '{', '.join(unknown)}'.")
        prompt = self.prompt() if depth == 0 else None  # what follows it is answered by its own streams alone
        masks, front = {name: tokens.mask for name, tokens in streams.items()}, 0 if prompt is None else len(prompt)
        layout = Layout.of(masks, self.text, self.image, self.answer, self.offset, front)
        most = self.most_tokens
        check(
            layout.real.is_meta or layout.real.shape[1] <= most,
            f"the language model takes {most} tokens; prompt, pictures and answer of a sample have "
            f"{layout.real.shape[1]}. Expected fewer pictures, or shorter texts (max_tokens).",
        )
        self._layout = layout

    def _inputs(self, streams: Mapping[str, Tokens]) -> dict[str, Any]:
        """Of the pass over what was laid out, with the ids of those streams that are given; else places alone count."""
        layout, places, none = self._layout, self._layout.places(), torch.zeros_like(self._layout.real)
        ids = torch.full_like(layout.which, self.composite.stand_in_id)
        if streams:
            words = [
                streams[name].values.squeeze(-1).long()
                if name in (self.text, self.answer)
                else torch.full_like(mask, self.composite.stand_in_id, dtype=ids.dtype)
                for name, mask in layout.masks.items()
            ]
            ids = torch.where(layout.real, torch.cat(words, 1).gather(1, layout.which), ids)
        if self.composite.image_id is not None:
            ids = ids.masked_fill(places.get(self.image, none), self.composite.image_id)
        return self.composite.worded(ids, layout.real, places.get(self.answer, none))

    def _cut(self, stop: int) -> Cut:
        return Cut(FINAL) if stop == self.depth else Cut(LANGUAGE, stop)

    def save_pretrained(self, folder: Path) -> None:
        raise TypeError("these blocks belong to their composite model, which is saved by reference")
