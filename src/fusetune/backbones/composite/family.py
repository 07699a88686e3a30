"""What has to be known of a composite family: where it keeps its parts, and what a pass from a cut has to be given."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Inputs = Mapping[str, Any]  # of a model's forward, by name
Resume = Callable[[Any, dict[str, Any], Tensor | None, int], None]  # model, inputs to change, memory, rows
PICTURES = ("pixel_values", "pixel_attention_mask")


@dataclass(frozen=True)
class CompositeFamily:
    """
    Attributes:
        tower: path of the encoder that sees or hears.
        encoder: path of its blocks.
        connector: paths of the modules between, in the order in which they run; (): cross-attention reads the encoder.
        language: path of the language blocks.
        top: path of the module behind the last language block: a final norm, or the head.
        head: path of the module that gives logits.
        media: inputs with pictures or sounds, left out of a pass that starts behind them.
        memory: path of the module whose output cross-attention reads at every depth of the language blocks.
        question: path of the blocks that read a text with its picture, where those at `language` answer from what they
            give; '': the same do both.
        words: names of the inputs that are ids, and which of them are real.
        resume: changes the inputs of a pass from a language block, where leaving `media` out is not all.
        stubs: modules that must not run in such a pass, with what they give instead, from the memory.
        read: depth of the encoder that the connector reads, from the configuration and the number of blocks.
        taps: blocks of the encoder whose states language blocks are given too, and the path of what reads them; or of
            the block itself, where the connector reads them too.
        first: first language block that states alone are enough for.
        entry: the module of the connector at which a pass may start, and the argument that the encoder's states are;
            None: the connector reads more than one depth of the encoder.
        idle: further blocks below the entry, which need not run then.
        skip: what a language block does in a pass from a later one; None: hand on the states.
        always: language blocks that make something for later ones, so that they run in every pass.
        encoder_roles, language_roles: what the parts of their blocks are for -> their paths in a block.
        prompt: what a text is put into where the checkpoint has no chat template: {image}, {} for the text, {bos} for
            the tokenizer's first token, {answer}.
        around: what stands for a picture in a prompt, {image} for its places.
        side: pixels of the side that pictures are brought to, where their size would decide how many places they take;
            None: the image processor makes them alike.
        taken: from the configuration, the shape of a picture or sound as the model takes it.
        process: image processor and pictures to (pictures, *shape of one).
        flat: whether states of several pictures lie one behind another, in the encoder and behind the connector.
        grid: further inputs of a pass, from the shape of one picture, its side in pixels, and which rows have one.
        marked: whether a picture's places are marked in a text, and their grid is told where the text is.
        packed: path of a method that packs what the connector gives of a picture's tiles into its places.
        measured: further inputs of a pass over sounds of their own length, from how many frames each has and how many
            there are at most; None: all are of one length.
        instructed: whether the connector reads the text with the picture, by a tokenizer of its own.
        apart: path of a parameter of the connector that is in none of its modules.
        by_parts: whether tokenizer and image processor are loaded apart: their processor wants one of videos too.
        padding: sides on which rows of unequal length may be padded.
        crossed: what a token reads of a picture by cross-attention, as further inputs of a pass, from (rows, tokens),
            whether it stands behind its row's, the shape of one and its side; then a word of its own stands for a
            picture in the text. None: every token reads it, and no word stands for it.
        mend: puts right what a model's own forward does wrong, for as long as the model lives.
        speak: the model's own `generate`, from the model and the inputs of a prompt.
        several: whether a sample may have several pictures, one's places right behind another's.
        causal: whether states at picture places are the same whatever text comes behind them.
    """

    tower: str
    encoder: str
    connector: tuple[str, ...]
    language: str
    top: str
    head: str = "lm_head"
    media: tuple[str, ...] = PICTURES
    memory: str = ""
    question: str = ""
    words: tuple[str, str] = ("input_ids", "attention_mask")
    resume: Resume | None = None
    stubs: Mapping[str, Callable[[Tensor], Any]] = field(default_factory=dict)
    read: Callable[[Any, int], int] = lambda config, blocks: blocks
    taps: Callable[[Any], Sequence[tuple[int, str]]] = lambda config: ()
    first: Callable[[Any], int] = lambda config: 0
    entry: tuple[str, str] | None = None
    idle: tuple[str, ...] = ()
    skip: Callable[..., Any] | None = None
    always: tuple[int, ...] = ()
    encoder_roles: Mapping[str, str] = field(default_factory=dict)
    language_roles: Mapping[str, str] = field(default_factory=dict)
    prompt: str = "{image}{bos}{} {answer}"
    around: str = "{image}"
    side: Callable[[Any], int] | None = None
    taken: Callable[[Any], Sequence[int]] = lambda config: (
        getattr(config.vision_config, "num_channels", 3),
        *(config.vision_config.image_size,) * 2,
    )
    process: Callable[[Any, Any], Tensor] | None = None
    flat: bool = False
    grid: Callable[[Any, int | None, Tensor], dict[str, Tensor]] | None = None
    marked: bool = False
    packed: str = ""
    apart: str = ""
    instructed: bool = False
    measured: Callable[[Tensor, int], dict[str, Tensor]] | None = None
    by_parts: bool = False
    crossed: Callable[[Tensor, Any, int | None], dict[str, Tensor]] | None = None
    padding: tuple[str, ...] = ("right", "left")
    mend: Callable[[Any], None] = lambda model: None
    speak: Callable[..., Tensor] = lambda model, given, **options: model.generate(**given, **options)
    several: bool = False
    causal: bool = True

    @property
    def placed(self) -> bool:
        """Whether a picture has places of its own in the text."""
        return bool(self.connector) and (not self.memory or bool(self.question))

    @property
    def kind(self) -> str:
        """Of what the encoder takes."""
        return "audio" if "input_features" in self.media else "image"
