"""What the trunk is pretrained on: scenes of four characters, captions that name one of them, and hidden words."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusetune.tokens import Tokens

CELLS = 4  # characters of a scene
MASKED, REPLACED = 0.6, 0.3  # of the words that the trunk has to guess; the rest of them stay
IGNORED = -100  # cross_entropy's own mark for positions without a target
ORDINALS = ("first", "second", "third", "fourth")
# {} {}: ordinal and name; none of the other words stands in a name
CAPTIONS = (
    "{0} {1}",
    "the {0} character is {1}",
    "{1} is the {0} character",
    "what stands at the {0} place is {1}",
    "{1} stands at the {0} place",
)


def scenes(
    images: Tokens,
    names: Sequence[str],
    by_face: Mapping[str, Sequence[int]],
    captions: Sequence[str],
    count: int,
    rng: random.Random,
) -> tuple[Tokens, list[str]]:
    """Draw `count` scenes: four characters of one typeface, and a caption that names one of them.

    Args:
        images: encoded characters, (characters, tokens, width).
        names: one a character.
        by_face: rows of `images` by typeface.

    Returns:
        (count, 4 * tokens, width) and the captions.
    """
    faces, cells, texts = sorted(by_face), [], []
    for _ in range(count):
        members = by_face[rng.choice(faces)]
        scene = [rng.choice(members) for _ in range(CELLS)]
        position = rng.randrange(CELLS)
        cells.append(scene)
        texts.append(rng.choice(captions).format(ORDINALS[position], names[scene[position]]))
    index = torch.tensor(cells, device=images.values.device)  # (count, 4)
    return Tokens(images.values[index].flatten(1, 2), images.mask[index].flatten(1, 2)), texts


def hide_words(
    text: Tokens, tokenizer: Any, rate: float, rng: random.Random, skip: frozenset[int] = frozenset()
) -> tuple[Tokens, Tensor]:
    """Hide words as BERT does: most become [MASK], some another word, some stay, so every word is read for itself.

    Returns:
        The text, and the word to guess at each hidden place, IGNORED elsewhere: (batch, tokens).
    """
    ids = text.values.squeeze(-1).clone()
    target = torch.full_like(ids, IGNORED)
    for row, (words, real) in enumerate(zip(ids.tolist(), text.mask.sum(1).tolist(), strict=True)):
        for i in range(1, real - 1):  # not [CLS], not [SEP]
            if words[i] in skip or rng.random() >= rate:
                continue
            target[row, i] = words[i]
            draw = rng.random()
            if draw < MASKED:
                ids[row, i] = tokenizer.mask_token_id
            elif draw < MASKED + REPLACED:
                ids[row, i] = rng.randrange(len(tokenizer))
    return Tokens(ids.unsqueeze(-1), text.mask), target


def caption_words(tokenizer: Any) -> frozenset[int]:
    """Ids of what is never hidden: ordinals, the captions' own words, and words that the tokenizer doesn't know."""
    words = {word for caption in CAPTIONS for word in caption.split() if "{" not in word}
    return frozenset(tokenizer.convert_tokens_to_ids([*ORDINALS, *sorted(words), "[UNK]"]))


def take(tokens: Tokens, index: Tensor) -> Tokens:
    """Some rows, without the padding that they don't need."""
    mask = tokens.mask[index]
    longest = int(mask.sum(1).max())
    return Tokens(tokens.values[index, :longest], mask[:, :longest])
