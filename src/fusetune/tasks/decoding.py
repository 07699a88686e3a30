"""How an answer in words is looked for."""

from dataclasses import dataclass

from fusetune.config import check

MOST_BEAMS = 16


@dataclass(frozen=True)
class Decoding:
    """
    Attributes:
        beams: answers that are kept beside one another (beam search); 1: one.
        length_penalty: of beams: their likelihood is divided by their length to this power; above 0 favours long ones.
        temperature: 0: the likeliest token each time; above: tokens are drawn, the higher the less likely ones.
        top_p: tokens are drawn from the smallest set that has this share of the likelihood.
        seed: of what is drawn. The same sample with the same seed has the same answer, whatever it is answered with.
        max_new_tokens: of an answer; None: as many as the task's answers may have. No more than these.
    """

    beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        check(0 < self.beams <= MOST_BEAMS, f"decoding.beams: expected 1 to {MOST_BEAMS}, found {self.beams}.")
        check(self.temperature >= 0, f"decoding.temperature: expected 0 or more, found {self.temperature}.")
        check(0 < self.top_p <= 1, f"decoding.top_p: expected a share above 0, found {self.top_p}.")
        check(
            self.beams == 1 or not self.temperature,
            f"decoding: beams look for the likeliest answer and a temperature draws one; found {self.beams} beams and "
            f"temperature {self.temperature}. Set one of them.",
        )
        most = self.max_new_tokens
        check(most is None or most > 0, f"decoding.max_new_tokens: expected at least 1, found {most}.")
