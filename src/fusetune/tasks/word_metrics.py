"""How close what a model has said is to what it should have said.

All but chrF compare words: runs of letters, digits and apostrophes, in lower case; punctuation is left out. The same
words give the same numbers as the field's own code (pycocoevalcap, rouge-score), whose tokenizers differ from this one.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
CIDER_ORDER, CIDER_SIGMA = 4, 6.0


def words(text: str) -> list[str]:
    """Of a text, in order."""
    return _WORD.findall(text.lower())


def per_text(said: Sequence[str], true: Sequence[str]) -> dict[str, np.ndarray]:
    """By metric, one score a text: token_f1, rouge_l and chrf from 0 to 1; cider_d from 0 to 10.

    CIDEr-D weighs words by the texts of `true`: it depends on which there are.
    """
    from sacrebleu.metrics import CHRF

    characters = CHRF()  # n-grams of characters (Popović 2015)
    pairs = [(words(one), words(other)) for one, other in zip(said, true, strict=True)]
    return {
        "token_f1": np.array([_overlap(one, other) for one, other in pairs]),
        "rouge_l": np.array([_rouge_l(one, other) for one, other in pairs]),
        "chrf": np.array([characters.sentence_score(one, [other]).score for one, other in zip(said, true, strict=True)])
        / 100,
        "cider_d": cider_d([one for one, _ in pairs], [other for _, other in pairs]),
    }


def bleu_4(said: Sequence[str], true: Sequence[str]) -> float:
    """Of all texts together, from 0 to 1 (Papineni et al., ACL 2002), by sacrebleu."""
    from sacrebleu.metrics import BLEU

    joined = [[" ".join(words(text)) for text in texts] for texts in (said, true)]
    return float(BLEU(tokenize="none", force=True).corpus_score(joined[0], [joined[1]]).score) / 100


def cider_d(said: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D (Vedantam et al., CVPR 2015, arXiv 1411.5726) of texts against one reference each, in words."""
    mine, theirs = [_grams(one) for one in said], [_grams(one) for one in true]
    seen = Counter(gram for grams in theirs for gram in grams)
    total = math.log(max(len(true), 1))
    found = np.zeros(len(mine))
    for i, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        a, b = _weighed(one, seen, total), _weighed(other, seen, total)
        longer = max(len(said[i]), 1) - max(len(true[i]), 1)  # in pairs of words, as pycocoevalcap counts
        length = math.exp(-(longer**2) / (2 * CIDER_SIGMA**2))
        for order in range(1, CIDER_ORDER + 1):
            x, y = ({gram: w for gram, w in side.items() if len(gram) == order} for side in (a, b))
            norms = math.sqrt(sum(w * w for w in x.values())) * math.sqrt(sum(w * w for w in y.values()))
            same = sum(min(w, y[gram]) * y[gram] for gram, w in x.items() if gram in y)
            found[i] += length * (same / norms if norms else 0.0)
    return 10 * found / CIDER_ORDER


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
