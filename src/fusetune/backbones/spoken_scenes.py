"""Scenes of four characters, two above two, and what is said of them: what `pretraining_llava` learns from."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.backbones.characters import Characters
from fusetune.backbones.cloze import CELLS, IGNORED, ORDINALS
from fusetune.backbones.composite.words import ids_of
from fusetune.config import check
from fusetune.manifest.readers.glyph_faces import CELL
from fusetune.manifest.readers.glyphs import SEPARATOR

SIDE = 2 * CELL  # pixels of a scene
OF_ALL = ("describe the characters", "what stands in this picture", "list what you see")
OF_ONE = ("describe the {} character", "what is the {} character", "say what stands at the {} place")


class Scenes:
    """Pictures of four characters of one typeface."""

    def __init__(self, rows: Characters, processor: Any, seed: int, device: torch.device) -> None:
        self.rng, self.rows, self.device = random.Random(seed + 1), rows, device
        cells = np.stack([np.asarray(picture.convert("L")) for picture in rows.pictures])
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
        self._cells, self._mean, self._std = torch.from_numpy(cells), mean, std
        self.faces = [members for _, members in sorted(rows.by_face().items())]

    def draw(self, count: int) -> Tensor:
        """(count, 4) rows of characters."""
        return torch.tensor([self.rng.sample(face, CELLS) for face in self.rng.choices(self.faces, k=count)])

    def apart(self, count: int) -> Tensor:
        """The same, no character twice."""
        fewest = min(map(len, self.faces))
        check(
            CELLS * count <= fewest,
            f"pretrain_llava.sight_batch: a typeface has {fewest} characters; expected at most {fewest // CELLS} "
            f"scenes, found {count}.",
        )
        return torch.tensor(self.rng.sample(self.rng.choice(self.faces), CELLS * count)).view(count, CELLS)

    def pixels(self, scenes: Tensor) -> Tensor:
        """(count, 3, 64, 64), as the image processor gives them."""
        pictures = self._cells[scenes].view(-1, 2, 2, CELL, CELL).permute(0, 1, 3, 2, 4).reshape(-1, 1, SIDE, SIDE)
        return ((pictures / 255 - self._mean) / self._std).to(self.device)


class Conversations:
    """What is asked and said of scenes."""

    def __init__(self, descriptions: Sequence[str], words: Any, seed: int) -> None:
        self.descriptions, self.words, self.rng = descriptions, words, random.Random(seed + 2)
        self._known: dict[str, list[int]] = {}

    def of(self, scenes: Tensor, of_all: bool) -> tuple[Tensor, Tensor]:
        """Ids of the sequences without the picture, (scenes, tokens), the first token in front of it; and the token to
        say behind each place, IGNORED where none is asked for."""
        spoken = [self._said(scene, of_all) for scene in scenes.tolist()]
        longest = max(len(asked) + len(said) for asked, said in spoken)
        ids = torch.full((len(spoken), longest), self.words.pad_token_id)
        targets = torch.full((len(spoken), longest), IGNORED)
        for row, (asked, said) in enumerate(spoken):
            ids[row, : len(asked) + len(said)] = torch.tensor(asked + said)
            targets[row, len(asked) - 1 : len(asked) + len(said) - 1] = torch.tensor(said)
        return ids, targets

    def _said(self, scene: Sequence[int], of_all: bool) -> tuple[list[int], list[int]]:
        texts = [self.descriptions[row] for row in scene]
        if of_all:
            asked, answer = self.rng.choice(OF_ALL), SEPARATOR.join(texts)
        else:
            place = self.rng.randrange(CELLS)
            asked, answer = self.rng.choice(OF_ONE).format(ORDINALS[place]), texts[place]
        begin, end = self.words.bos_token, self.words.eos_token
        return self._ids(f"{begin}user: {asked} assistant:"), self._ids(f" {answer}{end}")

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = ids_of(self.words, text)
        return self._known[text]
