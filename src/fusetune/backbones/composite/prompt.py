"""The prompt of a language model, as text: where a picture's places, a sample's text and the answer stand in it."""

from dataclasses import dataclass
from typing import Any

from fusetune.config import check
from fusetune.manifest.schema import TURN

IMAGE, GAP, BOS, SAID = "{image}", "{}", "{bos}", "{answer}"


@dataclass(frozen=True)
class Prompt:
    """
    Attributes:
        before: the text in front of the picture.
        after: the text behind it, with {} where a sample's own goes.
        adds_bos: whether the tokenizer's first token has to be put in front.
        answer: what stands behind the prompt once it has been answered, with {} where the answer goes.
        between: what stands behind an answer in front of the next question; None: nobody has said.
    """

    before: str
    after: str
    adds_bos: bool
    answer: str
    between: str | None = None

    @classmethod
    def of(
        cls,
        processor: Any,
        image_token: str | None,
        given: str | None,
        default: str,
        around: str = IMAGE,
        system: str | None = None,
        kind: str = "image",
    ) -> "Prompt":
        """The given one, or the checkpoint's own chat template, or the family's.

        Args:
            image_token: that stands at the picture's places; None: the language model keeps none for it.
            around: what a picture's places stand in.
            system: what the chat template is told before anything is asked.
            kind: of what the model sees or hears, as its chat template names it.

        Raises:
            FusetuneError: one without {}, or without a place for the picture, or `system` where there is no chat.
        """
        tokenizer, between = processor.tokenizer, None
        if not given and _has_chat(processor):
            text, answer, between = _chat(processor, system, kind)
        else:
            check(not system, "backbone.system: there is no chat template here; write it into backbone.prompt.")
            text, answer = _divided(given or default)
        bos = tokenizer.bos_token or ""
        if image_token is None:
            text = text.replace(BOS, bos)
            well = text.count(GAP) == 1 and IMAGE not in text
            check(well, f"backbone.prompt: expected one {{}} for a sample's text, and no {IMAGE}, found '{text}'.")
            return cls("", text, False, answer.rstrip(), between)
        text = text.replace(IMAGE, image_token).replace(BOS, bos)
        if around.partition(IMAGE)[0] not in text:
            text = text.replace(image_token, around.replace(IMAGE, image_token))
        for part, name in ((GAP, "{} for a sample's text"), (image_token, f"{IMAGE} for its picture")):
            check(text.count(part) == 1, f"backbone.prompt: expected one {name}, found '{text}'.")
        before, _, after = text.partition(image_token)
        check(GAP in after, f"backbone.prompt: expected {IMAGE} in front of {GAP}, found '{text}'.")
        return cls(before, after, bool(bos) and bos not in text, answer.rstrip(), between)

    def filled(self, text: str) -> str:
        """What stands behind the picture's places, with a sample's text in it, or with all that has been said in turn.

        Raises:
            FusetuneError: several turns where nobody has said what stands between them, or no question at the end.
        """
        start, _, end = self.after.partition(GAP)
        asked, *more = text.split(TURN)
        check(
            not more or self.between is not None,
            "text: several turns of a conversation, but no chat template that says what is between them (a "
            "backbone.prompt stands in its place). Take a checkpoint with one, or single questions.",
        )
        check(len(more) % 2 == 0, "text: expected a question behind the last answer of a conversation, found none.")
        said = f"{start}{asked}{end}"
        for answer, question in zip(more[::2], more[1::2], strict=True):
            said += f"{self.answer.replace(GAP, answer)}{self.between}{question}{end}"
        return said

    @property
    def end(self) -> str:
        """What stands behind a sample's text."""
        return self.after.partition(GAP)[2]


def adjoin(processor: Any, image_token: str, given: str | None) -> bool:
    """Whether a prompt puts nothing between several pictures: one's own doesn't, a chat template may."""
    if given or not _has_chat(processor):
        return True
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": GAP}]}]
    return 2 * image_token in processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)


def _has_chat(processor: Any) -> bool:
    return bool(getattr(processor, "chat_template", None))


def _chat(processor: Any, system: str | None, kind: str) -> tuple[str, str, str | None]:
    """The checkpoint's own way to ask, to answer, and to ask again behind that."""

    def words(text: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": text}]

    asked = [{"role": "system", "content": words(system)}] if system else []
    seen = {"type": kind} | ({"audio_url": ""} if kind == "audio" else {})  # by which templates know a sound
    asked += [{"role": "user", "content": [seen, *words(GAP)]}]
    told = [*asked, {"role": "assistant", "content": words(SAID)}]
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    check(not system or system in prompt, "backbone.system: this checkpoint's chat template leaves it out.")
    whole = processor.apply_chat_template(told, tokenize=False)
    if not (whole.startswith(prompt) and SAID in whole):
        return *_divided(prompt), None
    answer = whole[len(prompt) :].replace(SAID, GAP)
    again = [*told, {"role": "user", "content": words(BOS)}]
    longer = processor.apply_chat_template(again, add_generation_prompt=True, tokenize=False)
    own, end = whole.rstrip(), prompt.partition(GAP)[2]
    follows = longer.startswith(own) and longer.endswith(f"{BOS}{end}")
    return prompt, answer, longer[len(own) : -len(f"{BOS}{end}")] if follows else None


def _divided(text: str) -> tuple[str, str]:
    """The prompt, and what follows it; a blank in front of an answer is the answer's."""
    if SAID not in text:
        return text, GAP if text[-1:].isspace() else f" {GAP}"
    asked, _, end = text.partition(SAID)
    prompt = asked.rstrip(" ")
    return prompt, f"{asked[len(prompt) :]}{GAP}{end}"
