"""How close what a model has said is to what it should have said.

All but chrF compare words: runs of letters, digits and apostrophes, in lower case; punctuation is left out. The same
words give the same numbers as the field's own code (pycocoevalcap, rouge-score), whose tokenizers differ from this one.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
CIDER_ORDER, CIDER_SIGMA = 4, 6.0


def words(text: str) -> list[str]:
    """Of a text, in order."""
    return _WORD.findall(text.lower())


def per_text(said: Sequence[str], true: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """By metric, one score a text: token_f1, rouge_l and chrf from 0 to 1; cider_d from 0 to 10.

    Args:
        true: of each text, all that would be right; the nearest counts, in CIDEr-D their mean. CIDEr-D weighs words by
            how many of these name them: it depends on which there are.
    """
    from sacrebleu.metrics import CHRF

    characters = CHRF()  # n-grams of characters (Popović 2015)
    pairs = [(words(one), [words(other) for other in several]) for one, several in zip(said, true, strict=True)]
    nearest = [characters.sentence_score(one, list(several)).score for one, several in zip(said, true, strict=True)]
    return {
        "token_f1": np.array([max(_overlap(one, other) for other in several) for one, several in pairs]),
        "rouge_l": np.array([max(_rouge_l(one, other) for other in several) for one, several in pairs]),
        "chrf": np.array(nearest) / 100,
        "cider_d": cider_d([one for one, _ in pairs], [several for _, several in pairs]),
    }


def bleu_4(said: Sequence[str], true: Sequence[Sequence[str]]) -> float:
    """Of all texts together, from 0 to 1 (Papineni et al., ACL 2002), by sacrebleu; `true` as in `per_text`."""
    from sacrebleu.metrics import BLEU

    def joined(text: str) -> str:
        return " ".join(words(text))

    most = max(map(len, true), default=0)
    streams: Any = [[joined(several[i]) if i < len(several) else None for several in true] for i in range(most)]
    return float(BLEU(tokenize="none", force=True).corpus_score([joined(one) for one in said], streams).score) / 100


def cider_d(said: Sequence[Sequence[str]], true: Sequence[Sequence[Sequence[str]]]) -> np.ndarray:
    """CIDEr-D (Vedantam et al., CVPR 2015, arXiv 1411.5726) of texts in words, each against all of its references."""
    references = [[_grams(one) for one in several] for several in true]
    seen = Counter(gram for several in references for gram in {gram for grams in several for gram in grams})
    total = math.log(max(len(true), 1))
    found = np.zeros(len(said))
    for i, several in enumerate(references):
        mine = _weighed(_grams(said[i]), seen, total)
        for grams, reference in zip(several, true[i], strict=True):
            theirs = _weighed(grams, seen, total)
            longer = max(len(said[i]), 1) - max(len(reference), 1)  # in pairs of words, as pycocoevalcap counts
            found[i] += math.exp(-(longer**2) / (2 * CIDER_SIGMA**2)) * _cosines(mine, theirs) / len(several)
    return 10 * found / CIDER_ORDER


def _cosines(mine: Mapping[tuple[str, ...], float], theirs: Mapping[tuple[str, ...], float]) -> float:
    """The sum over orders of the clipped cosines between the weighed n-grams of two texts."""
    found = 0.0
    for order in range(1, CIDER_ORDER + 1):
        x, y = ({gram: w for gram, w in side.items() if len(gram) == order} for side in (mine, theirs))
        norms = math.sqrt(sum(w * w for w in x.values())) * math.sqrt(sum(w * w for w in y.values()))
        same = sum(min(w, y[gram]) * y[gram] for gram, w in x.items() if gram in y)
        found += same / norms if norms else 0.0
    return found


def _grams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(tokens[i : i + order]) for order in range(1, CIDER_ORDER + 1) for i in range(len(tokens) - order + 1)
    )


def _weighed(
    grams: Mapping[tuple[str, ...], int], seen: Mapping[tuple[str, ...], int], total: float
) -> dict[tuple[str, ...], float]:
    return {gram: count * (total - math.log(max(1, seen[gram]))) for gram, count in grams.items()}


def _overlap(said: Sequence[str], true: Sequence[str]) -> float:
    same = sum((Counter(said) & Counter(true)).values())
    return _f1(same, len(said), len(true))


def _rouge_l(said: Sequence[str], true: Sequence[str]) -> float:
    """F1 of the longest common subsequence (Lin 2004)."""
    row = [0] * (len(true) + 1)
    for one in said:
        before = 0
        for j, other in enumerate(true, 1):
            above = row[j]
            row[j] = before + 1 if one == other else max(above, row[j - 1])
            before = above
    return _f1(row[-1], len(said), len(true))


def _f1(same: int, said: int, true: int) -> float:
    if not said or not true:
        return float(said == true)
    return 2 * same / (said + true)
