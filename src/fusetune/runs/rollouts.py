"""A trained model in a world: it sees, says what to do, that is done, and it sees what came of it."""

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fusetune.bank.scoring import score
from fusetune.config import build, check
from fusetune.features.source import Source
from fusetune.manifest.schema import Modality
from fusetune.plan.adapted import AdaptedModel
from fusetune.tasks.actions import PREDICTED, Actions
from fusetune.training.evaluation import RolloutSettings
from fusetune.worlds import worlds
from fusetune.worlds.world import SUCCESS, Episode, World

logger = logging.getLogger(__name__)
SHOWN = 3  # episodes of each kind of world that are kept as pictures
Act = Callable[[Sequence[Episode]], list[np.ndarray | None]]  # steps of actions, (steps, numbers), of each; or none


@dataclass(frozen=True)
class RolledOut:
    """
    Attributes:
        numbers: by shift, '' being the world as it is set: success and its interval, by instruction, what went wrong,
            mean steps, and what the world's own policies reach. JSON-ready.
        strips: of a few episodes, what was to be done, what came of it, and a picture a step.
    """

    numbers: Mapping[str, Mapping[str, Any]]
    strips: Sequence[tuple[str, str, Sequence[Any]]] = field(default=())

    def flat(self) -> dict[str, float]:
        """Success rates by the names of metrics."""
        found: dict[str, float] = {}
        for shift, one in self.numbers.items():
            name = f"{SUCCESS}_{shift}" if shift else SUCCESS
            found |= {name: one[SUCCESS], f"{name}_low": one["low"], f"{name}_high": one["high"]}
        return found


def rolled_out(
    model: AdaptedModel,
    modalities: Mapping[str, Modality],
    settings: RolloutSettings,
    confidence: float,
    batch_size: int,
    device: torch.device,
) -> RolledOut | None:
    """Episodes of each shift; None where there is no world.

    Raises:
        FusetuneError: the task says nothing that can be done; an observation lacks a modality.
    """
    if settings.world is None:
        return None
    check(
        isinstance(model.task, Actions),
        f"evaluate.rollouts.world: '{settings.world}' wants actions; expected data.task.name: actions.",
    )
    act = _trained(model, modalities, settings.execute, batch_size, device)
    numbers, strips = {}, []
    for shift, changes in {"": {}, **settings.shifts}.items():
        where = f"evaluate.rollouts.{f'shifts.{shift}' if shift else 'settings'}"
        world = _world(settings, changes, where)
        episodes, shown = _played(world, settings, act)
        found = _told(episodes, confidence)
        for name, policy in world.references.items():
            others, _ = _played(world, settings, _known(policy, random.Random(settings.seed)))
            found[name] = sum(one.outcome == SUCCESS for one in others) / len(others)
        numbers[shift] = found
        strips += [(f"{shift}: {words}" if shift else words, outcome, frames) for words, outcome, frames in shown]
    return RolledOut(numbers, strips)


def success(numbers: Mapping[str, Mapping[str, Any]]) -> str:
    """'success 0.81 (0.75 to 0.86) of 200 episodes; noise 0.60 ...'"""
    return "; ".join(
        f"{shift or SUCCESS} {one[SUCCESS]:.3f} ({one['low']:.3f} to {one['high']:.3f}) of {one['episodes']} episodes"
        for shift, one in numbers.items()
    )


def _world(settings: RolloutSettings, changes: Mapping[str, Any], where: str) -> World:
    cls = worlds.get(settings.world or "")
    return cls(build(cls.Config, {**settings.settings, **changes}, where))


def _played(
    world: World, settings: RolloutSettings, act: Act
) -> tuple[list[Episode], list[tuple[str, str, list[Any]]]]:
    """All episodes, side by side, and the first few as pictures."""
    episodes = [world.episode(f"rollout-{settings.seed}-{number}") for number in range(settings.episodes)]
    frames: dict[int, list[Any]] = {number: [one.picture()] for number, one in enumerate(episodes[:SHOWN])}
    words = [_words(one) for one in episodes[:SHOWN]]
    while alive := [number for number, one in enumerate(episodes) if not one.outcome]:
        for number, steps in zip(alive, act([episodes[number] for number in alive]), strict=True):
            one = episodes[number]
            if steps is None:
                one.outcome = "no answer"
            for step in () if steps is None else steps:
                if not one.outcome:
                    one.act(step)
                    if number in frames:
                        frames[number].append(one.picture())
    return episodes, [(words[number], episodes[number].outcome, own) for number, own in frames.items()]


def _trained(
    model: AdaptedModel, modalities: Mapping[str, Modality], execute: int, batch_size: int, device: torch.device
) -> Act:
    def act(episodes: Sequence[Episode]) -> list[np.ndarray | None]:
        source = Source(pa.Table.from_pylist([one.observation() for one in episodes]), modalities)
        found = score(model, source, range(len(episodes)), batch_size, device)
        for row, error in list(found.errors.items())[:1]:
            logger.warning("rollout: an episode ends without an answer: %s (step %d)", error, episodes[row].steps)
        answers: list[np.ndarray | None] = [None] * len(episodes)
        for row, answer in zip(found.rows, model.task.decode(found.outputs), strict=True):
            steps = np.asarray(answer[PREDICTED], np.float64)
            answers[row] = steps[: execute or len(steps)]
        return answers

    return act


def _known(policy: Any, rng: random.Random) -> Act:
    return lambda episodes: [policy(one, rng)[None] for one in episodes]


def _told(episodes: Sequence[Episode], confidence: float) -> dict[str, Any]:
    right = [one.outcome == SUCCESS for one in episodes]
    low, high = wilson(sum(right), len(right), confidence)
    kinds = sorted({one.kind for one in episodes})
    return {
        SUCCESS: sum(right) / len(right),
        "low": low,
        "high": high,
        "episodes": len(right),
        "steps": float(np.mean([one.steps for one in episodes])),
        "by_kind": {
            kind: float(np.mean([ok for ok, one in zip(right, episodes, strict=True) if one.kind == kind]))
            for kind in kinds
        },
        "outcomes": dict(Counter(one.outcome for one in episodes).most_common()),
    }


def wilson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share (Brown, Cai and DasGupta, Statistical Science 2001)."""
    from statistics import NormalDist

    z, share = NormalDist().inv_cdf((1 + confidence) / 2), successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def _words(episode: Episode) -> str:
    seen = episode.observation()
    return " ".join(value for value in seen.values() if isinstance(value, str))
