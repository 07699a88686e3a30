"""A trained model in a world: what was learned from demonstrations is done there, and counted."""

import random
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import binomtest

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.given_features import TOWERS
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.features.index import CacheSettings
from fusetune.features.storage import Store
from fusetune.plan.plan import Plan
from fusetune.report.rollout_figure import strips
from fusetune.runs.experiment import Experiment
from fusetune.runs.rollouts import rolled_out, success, wilson
from fusetune.runs.workplace import Workplace
from fusetune.training.data import DataSettings
from fusetune.training.evaluation import RolloutSettings
from fusetune.training.settings import TrainSettings
from fusetune.worlds import worlds
from fusetune.worlds.glyph_reaching import GlyphReaching, ReachingSettings, any_character, expert
from fusetune.worlds.world import SUCCESS, Episode, World


@dataclass(frozen=True)
class LineSettings:
    steps: int = 4
    push: float = 0.0


class Line(Episode):
    """Somewhere in a plane; the goal is seen, and so is where one is."""

    def __init__(self, config, seed):
        rng = np.random.default_rng([ord(c) for c in seed])
        self.config, self.kind = config, "left" if rng.random() < 0.5 else "right"
        self.at, self.goal = rng.uniform(-1, 1, 2), rng.uniform(0.2, 1, 2) * [1 if self.kind == "right" else -1, 1]

    def observation(self):
        return {"state": self.at.tolist(), "goal": self.goal.tolist()}

    def act(self, action):
        self.at = self.at + np.clip(action, -0.8, 0.8) + self.config.push
        self.steps += 1
        if self.steps == self.config.steps:
            self.outcome = SUCCESS if np.abs(self.at - self.goal).max() < 0.15 else "missed"

    def picture(self):
        from PIL import Image

        return Image.new("L", (8, 8), int(255 * abs(self.at[0]) % 255))


class LineWorld(World):
    Config = LineSettings
    references = {"an expert": lambda episode, rng: episode.goal - episode.at}

    def __init__(self, config):
        self.config = config

    def episode(self, seed):
        return Line(self.config, seed)


worlds.register("line", f"{__name__}:LineWorld")
MODALITIES = {"state": {"kind": "vector"}, "goal": {"kind": "vector"}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("line"), []
    for split, count in (("train", 200), ("val", 30), ("test", 30)):
        for number in range(count):
            episode = Line(LineSettings(), f"{split}{number}")
            for step in range(4):
                action = np.clip(episode.goal - episode.at, -0.8, 0.8)
                told = {"sample_id": f"{split}{number}-{step}", "split": split, "group_id": f"{split}{number}"}
                rows.append({**told, **episode.observation(), "action": [action.tolist(), action.tolist()]})
                episode.act(action * 0.6)
    table = pa.Table.from_pylist(rows)
    task = {"name": "actions", "camera": None}
    data = build(DataSettings, {"modalities": MODALITIES, "task": task, "use_trunk": False}, "data")
    vectors = {name: [np.array([row[name]], np.float32) for row in rows[:800]] for name in MODALITIES}
    backbone = Backbone({name: TOWERS["vector"].fitted(vectors[name], name) for name in MODALITIES})
    plan = build(Plan, {"placements": [{"where": "head", "adapter": "mlp"}]}, "plan")

    def made():
        return Experiment(table, backbone, data, plan, 0, "policy")

    fresh, experiment = made(), made()
    work = Workplace(Store(folder), CacheSettings(dtype="float32"), folder / "ck", lambda *_: None, torch.device("cpu"))
    work.trained(experiment, TrainSettings(epochs=40, batch_size=32, learning_rate=0.01, patience=40))
    return fresh, experiment


def played(experiment, **settings):
    chosen = build(RolloutSettings, {"world": "line", "episodes": 60, **settings}, "evaluate.rollouts")
    return rolled_out(experiment.model, experiment.data.modalities, chosen, 0.9, 16, torch.device("cpu"))


def test_what_was_learned_is_done_and_what_was_not_is_not(trained):
    fresh, experiment = trained
    found = played(experiment, execute=1, shifts={"pushed": {"push": 0.3}})
    whole, pushed = found.numbers[""], found.numbers["pushed"]
    assert whole[SUCCESS] > 0.8 > 0.3 > played(fresh).numbers[""][SUCCESS]
    assert pushed[SUCCESS] < 0.2, "a push in every step ends beside the goal"
    assert whole["an expert"] == 1 and whole["outcomes"][SUCCESS] == round(60 * whole[SUCCESS]) and whole["steps"] == 4
    weights = [sum(Line(LineSettings(), f"rollout-0-{i}").kind == kind for i in range(60)) for kind in whole["by_kind"]]
    assert np.average(list(whole["by_kind"].values()), weights=weights) == pytest.approx(whole[SUCCESS])
    assert found.flat()["success_pushed"] == pushed[SUCCESS] and found.flat()["success_low"] == whole["low"]
    assert success(found.numbers).startswith(f"success {whole[SUCCESS]:.3f} (")
    _, outcome, frames = found.strips[0]
    assert outcome in whole["outcomes"] and len(frames) == 5 and len(found.strips) == 6
    assert strips(found.strips, found.numbers, "policy").get_axes()
    again = played(experiment, execute=1, shifts={"pushed": {"push": 0.3}})
    assert again.numbers == found.numbers


def test_all_steps_of_an_answer_or_some_are_carried_out(trained):
    _, experiment = trained
    whole, one = (played(experiment, execute=execute).numbers[""] for execute in (0, 1))
    assert one[SUCCESS] > whole[SUCCESS] + 0.1, "a second step without looking goes past the goal"


def test_what_cannot_act_is_refused(trained, toy):
    _, experiment = trained
    assert rolled_out(experiment.model, {}, RolloutSettings(), 0.9, 4, torch.device("cpu")) is None
    with pytest.raises(FusetuneError, match="worlds: 'mars' is unknown. Known: .*glyph_reaching"):
        played(experiment, world="mars")
    with pytest.raises(FusetuneError, match=r"evaluate.rollouts.shifts.odd: unknown key 'pull'"):
        played(experiment, shifts={"odd": {"pull": 1}})
    with pytest.raises(FusetuneError, match=r"'line' wants actions; expected data.task.name: actions"):
        played(toy.experiment())


@pytest.mark.parametrize(("right", "of"), [(0, 20), (7, 20), (20, 20), (150, 200)])
def test_intervals_are_wilsons(right, of):
    expected = binomtest(right, of).proportion_ci(0.9, method="wilson")
    assert wilson(right, of, 0.9) == pytest.approx((expected.low, expected.high))


def test_the_world_of_characters_is_won_by_who_knows_and_by_chance_in_a_quarter():
    world = GlyphReaching(ReachingSettings(("DejaVuSerif", "STIXGeneral")))
    for policy, low, high in ((expert, 0.99, 1.0), (any_character, 0.15, 0.35)):
        outcomes = []
        for number in range(200):
            episode, rng = world.episode(f"e{number}"), random.Random(number)
            while not episode.outcome:
                episode.act(policy(episode, rng))
            outcomes.append(episode.outcome)
        assert low <= outcomes.count(SUCCESS) / 200 <= high, policy
    one, again = world.episode("e1"), world.episode("e1")
    assert one.observation() == again.observation() != world.episode("e2").observation()
    noisy = GlyphReaching(ReachingSettings(("DejaVuSerif", "STIXGeneral"), noise=0.2)).episode("e1")
    assert noisy.instruction == one.instruction and noisy.observation()["image"] != one.observation()["image"]
