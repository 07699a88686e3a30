"""Against the field's own code: pycocoevalcap 1.2 (CIDEr-D), rouge-score 0.1.2 (ROUGE-L), sacrebleu 2.6 (chrF)."""

import numpy as np
import pytest

from fusetune.tasks.word_metrics import bleu_4, per_text, words

SAID = ["a cat sits on the mat", "two dogs run in the park", "a man rides a wave", "", "the red car", "a cat"]
TRUE = [
    "a cat is sitting on the mat",
    "two dogs are running through the park",
    "a man is riding a wave on a surfboard",
    "a bird in a tree",
    "the red car",
    "a cat on a small red mat in the sun",
]
GOLDEN = {
    "cider_d": [2.89252, 2.353718, 1.892473, 0.0, 7.5, 0.606798],  # of three words, a quarter of 10 can't be reached
    "rouge_l": [0.769231, 0.615385, 0.571429, 0.0, 1.0, 0.333333],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_scores_are_those_of_the_fields_own_code(name):
    np.testing.assert_allclose(per_text(SAID, TRUE)[name], GOLDEN[name], atol=1e-6)


def test_chrf_and_bleu_are_sacrebleus():
    from sacrebleu.metrics import BLEU, CHRF

    expected = [CHRF().sentence_score(one, [other]).score / 100 for one, other in zip(SAID, TRUE, strict=True)]
    np.testing.assert_allclose(per_text(SAID, TRUE)["chrf"], expected)
    assert len({round(value, 6) for value in expected}) > 4
    assert bleu_4(SAID, TRUE) == pytest.approx(BLEU(tokenize="none").corpus_score(SAID, [TRUE]).score / 100)
    assert 0 < bleu_4(SAID, TRUE) < bleu_4(TRUE, TRUE) == pytest.approx(1)


def test_words_are_what_counts():
    assert words("It's a CAT, isn't it? (no. 2)") == ["it's", "a", "cat", "isn't", "it", "no", "2"]
    scores = per_text(["The cat!", "cat the"], ["the cat", "the cat"])
    assert scores["token_f1"].tolist() == [1, 1] and scores["rouge_l"].tolist() == [1, 0.5]


def test_saying_nothing_is_worth_nothing():
    scores = per_text(["", "..."], ["a cat", "a dog"])
    assert all(not values.any() for name, values in scores.items() if name != "chrf"), scores
    assert per_text([""], ["a cat"])["chrf"].tolist() == [0]
