"""Against the field's own code: pycocoevalcap 1.2 (CIDEr-D), rouge-score 0.1.2 (ROUGE-L), sacrebleu 2.6 (chrF)."""

import numpy as np
import pytest

from fusetune.tasks.vqa_accuracy import vqa_accuracy
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
EACH = [[text] for text in TRUE]
GOLDEN = {
    "cider_d": [2.89252, 2.353718, 1.892473, 0.0, 7.5, 0.606798],  # of three words, a quarter of 10 can't be reached
    "rouge_l": [0.769231, 0.615385, 0.571429, 0.0, 1.0, 0.333333],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_scores_are_those_of_the_fields_own_code(name):
    np.testing.assert_allclose(per_text(SAID, EACH)[name], GOLDEN[name], atol=1e-6)


def test_chrf_and_bleu_are_sacrebleus():
    from sacrebleu.metrics import BLEU, CHRF

    expected = [CHRF().sentence_score(one, [other]).score / 100 for one, other in zip(SAID, TRUE, strict=True)]
    np.testing.assert_allclose(per_text(SAID, EACH)["chrf"], expected)
    assert len({round(value, 6) for value in expected}) > 4
    assert bleu_4(SAID, EACH) == pytest.approx(BLEU(tokenize="none").corpus_score(SAID, [TRUE]).score / 100)
    assert 0 < bleu_4(SAID, EACH) < bleu_4(TRUE, EACH) == pytest.approx(1)


def test_words_are_what_counts():
    assert words("It's a CAT, isn't it? (no. 2)") == ["it's", "a", "cat", "isn't", "it", "no", "2"]
    scores = per_text(["The cat!", "cat the"], [["the cat"], ["the cat"]])
    assert scores["token_f1"].tolist() == [1, 1] and scores["rouge_l"].tolist() == [1, 0.5]


def test_saying_nothing_is_worth_nothing():
    scores = per_text(["", "..."], [["a cat"], ["a dog"]])
    assert all(not values.any() for name, values in scores.items() if name != "chrf"), scores
    assert per_text([""], [["a cat"]])["chrf"].tolist() == [0]


SEVERAL = [
    ["a cat is sitting on the mat", "the cat sits on a mat"],
    ["two dogs are running through the park"],
    ["a man is riding a wave on a surfboard", "a surfer rides a big wave", "man on a wave"],
    ["a bird in a tree", "small bird on a branch"],
    ["the red car", "a red car parked"],
]


def test_several_references_as_pycocoevalcap_takes_them():
    said = ["a cat sits on the mat", "two dogs run in the park", "a man rides a wave", "a bird", "the red car"]
    found = per_text(said, SEVERAL)
    np.testing.assert_allclose(found["cider_d"], [3.8756767, 2.2707373, 2.22465505, 1.82892682, 5.23225328], atol=1e-6)
    alone = [
        per_text(said, [[several[i]] if i < len(several) else [several[0]] for several in SEVERAL]) for i in range(3)
    ]
    for name in ("token_f1", "rouge_l", "chrf"):
        np.testing.assert_allclose(found[name], np.max([one[name] for one in alone], axis=0))
        assert (found[name] > alone[0][name]).any(), "the nearest counts"
    assert bleu_4(said, SEVERAL) > bleu_4(said, [[several[0]] for several in SEVERAL]) > 0


VQA = [  # by the official evaluation (GT-Vision-Lab/VQA)
    ("two", ["2"] * 3 + ["two"] * 7, 0.9),
    ("a dog", ["dog"] * 2 + ["puppy"] * 8, 0.6),
    ("The Dog.", ["dog"] * 10, 1.0),
    ("yes, it is", ["yes it is"] * 4 + ["no"] * 6, 1.0),
    ("1000", ["1,000"] * 9 + ["x"], 1.0),
    ("don't know", ["don't know"] + ["dont know"] * 9, 0.3),
    ("dont know", ["dont know"] * 9 + ["no"], 0.0),
    ("red/blue", ["red blue"] * 3 + ["red and blue"] * 7, 0.9),
    ("3.5", ["3.5"] * 4 + ["35"] * 6, 1.0),
    ("st.", ["st"] * 2 + ["street"] * 8, 0.6),
    ("one", ["one"] * 10, 0.0),  # all alike are taken as they are
    ("", ["nothing"] * 10, 0.0),
]


@pytest.mark.parametrize(("said", "people", "expected"), VQA)
def test_the_accuracy_of_vqa_is_the_official_ones(said, people, expected):
    assert vqa_accuracy(said, people) == pytest.approx(expected)
