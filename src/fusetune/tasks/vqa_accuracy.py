"""The accuracy of VQA v2: how many of ten people gave the same answer (Antol et al., ICCV 2015, arXiv 1505.00468).

Answers are compared as the official evaluation compares them: punctuation is taken out, numbers are digits, articles
go. It takes the tens' answers as they are where all are alike, and changes those of the model alone in their words;
both are kept, since they change the number.
"""

import re
from collections.abc import Sequence

_MARKS = ";:/'[]\"()=+\\_><@`,?"
_PERIOD, _COMMA = re.compile(r"\.(?!\d)"), re.compile(r"\d,\d")
_COUNTED = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_COUNTED)}}
_ARTICLES = {"a", "an", "the"}
# written without their apostrophe they are put right
_SHORT = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "i'm i've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't "
    "should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's "
    "there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's "
    "what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've "
    "wouldn't y'all you'd you'll you're you've"
)
_WITH_APOSTROPHE = {form.replace("'", ""): form for form in _SHORT.split()}


def vqa_accuracy(said: str, people: Sequence[str]) -> float:
    """From 0 to 1: the mean over all but one of `people` of a third for each who said the same, at most 1."""
    answer = _plain_words(_without_marks(" ".join(said.split())))
    theirs = [_without_marks(one) for one in people] if len(set(people)) > 1 else list(people)
    same = [one == answer for one in theirs]
    return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(same)


def _without_marks(text: str) -> str:
    found = text
    for mark in _MARKS:
        at_an_end = f"{mark} " in text or f" {mark}" in text or _COMMA.search(text)
        found = found.replace(mark, "" if at_an_end else " ")
    return _PERIOD.sub("", found)


def _plain_words(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_WITH_APOSTROPHE.get(word, word) for word in words if word not in _ARTICLES)
