"""An answer in words by `transformers`' own `generate`: greedy, by beams, or drawn, with a cache of keys and values."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusetune.backbones.composite.language import LanguageTrunk
from fusetune.tasks.decoding import Decoding
from fusetune.tokens import Tokens


@torch.no_grad()
def decode(
    trunk: LanguageTrunk, streams: Mapping[str, Tokens], stops: Sequence[int], most: int, how: Decoding
) -> list[list[int]]:
    """What the model says behind each prompt: ids up to the end of an answer, that included.

    Towers have run; the language model reads the prompt once, and each further token costs a pass of that token alone.

    Args:
        streams: in front of the language blocks, without an answer.
        stops: the ids that end an answer.
        most: tokens of an answer.
    """
    said: dict[int, list[int]] = {}
    for rows in _alike(trunk, streams):
        one = {name: Tokens(t.values[rows], t.mask[rows]) for name, t in streams.items()}
        with trunk.prompted(one) as inputs:
            found = _generated(trunk, inputs, stops, most, how)
        said |= dict(zip(rows, found.tolist(), strict=True))
    return [_ended(said[row], stops) for row in range(len(said))]


def _alike(trunk: LanguageTrunk, streams: Mapping[str, Tokens]) -> Iterator[list[int]]:
    """Rows that may be answered together: all, or those of one length where nothing can be padded in front."""
    if "left" in trunk.composite.family.padding:
        yield list(range(len(next(iter(streams.values())).mask)))
        return
    lengths = trunk.lengths(streams)
    for length in sorted(set(lengths)):
        yield [row for row, own in enumerate(lengths) if own == length]


def _generated(trunk: LanguageTrunk, inputs: dict[str, Any], stops: Sequence[int], most: int, how: Decoding) -> Tensor:
    """(rows, new tokens): ids."""
    from transformers import GenerationConfig

    model, family, image = trunk.composite.model, trunk.composite.family, trunk.composite.image_id
    config = GenerationConfig(
        max_new_tokens=most,
        num_beams=how.beams,
        length_penalty=how.length_penalty,
        do_sample=False,
        eos_token_id=list(stops),
        pad_token_id=stops[0],
        suppress_tokens=None if image is None else [image],  # a place for a picture is no word
    )
    speakers = [m for m in model.modules() if hasattr(m, "generation_config")]
    before = [speaker.generation_config for speaker in speakers]
    for speaker in speakers:
        speaker.generation_config = GenerationConfig()  # the checkpoint's own defaults are not what was asked for
    try:
        out = family.speak(model, inputs, generation_config=config, logits_processor=_drawn(how))
    finally:
        for speaker, own in zip(speakers, before, strict=True):
            speaker.generation_config = own
    return out[:, inputs[family.words[0]].shape[1] :]


def _drawn(how: Decoding) -> Any:
    """Noise by which the likeliest token is one that has been drawn (the Gumbel-max trick), the same in every row."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    if not how.temperature:
        return LogitsProcessorList()
    generator = torch.Generator().manual_seed(how.seed)

    def noisy(_: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.rand(scores.shape[-1], generator=generator, dtype=torch.float64).clamp(min=1e-300)
        return scores.double() - (-uniform.log()).log().to(scores.device)

    several = [TemperatureLogitsWarper(how.temperature), TopPLogitsWarper(how.top_p), noisy]
    return LogitsProcessorList(several if how.top_p < 1 else [several[0], noisy])


def _ended(ids: list[int], stops: Sequence[int]) -> list[int]:
    return ids[: next((i + 1 for i, number in enumerate(ids) if number in stops), len(ids))]
