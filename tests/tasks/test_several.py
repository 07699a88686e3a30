"""Several tasks of different kinds on the same samples: each has its own outputs, targets, answers and faults."""

import numpy as np
import pytest
import torch

from fusetune.errors import FusetuneError
from fusetune.tasks.multi_task import MultiTask, MultiTaskConfig
from fusetune.tasks.task import extent_column
from fusetune.tokens import Lattice, Tokens

TASKS = {
    "where": {"name": "grounding"},
    "what": {"name": "classification", "label": "action", "metric": "accuracy"},
    "each": {"name": "segments", "labels": "labels"},
}
COLUMNS = {
    "box": [[0, 0, 5, 5], [5, 5, 10, 10], [[0, 0, 5, 5], [5, 0, 10, 5]]],
    "action": ["copy", "turn", "copy"],
    "labels": [["a", "b"], ["b", "b"], ["a", "a"]],
    extent_column("image"): [(10, 10)] * 3,
}


class Seeing:
    kind = "image"

    def lattice(self):
        return Lattice(rows=2, columns=2)

    def view(self, extent):
        return (0, 0, *extent)


class Hearing:
    kind = "sequence"

    def lattice(self):
        return None


@pytest.fixture
def made():
    task = MultiTask(MultiTaskConfig(TASKS))
    task.meet_towers({"image": Seeing(), "sound": Hearing()})
    task.fit(COLUMNS)
    torch.manual_seed(0)
    return task, task.head({"image": 4, "sound": 3}, torch.nn.Linear)


def streams(count):
    return {
        "image": Tokens(torch.randn(count, 4, 4), torch.ones(count, 4, dtype=torch.bool)),
        "sound": Tokens(torch.randn(count, 6, 3), torch.ones(count, 6, dtype=torch.bool)),
    }


def test_each_task_gets_what_is_its_own(made):
    task, head = made
    given, targets = streams(3), task.targets(COLUMNS)
    outputs = head.apart(dict.fromkeys(TASKS, given))
    assert outputs.shape == (3, 4 * 7 + 2 + 2 * 2) and targets.shape == (3, 2 * 4 + 1 + 2)
    total = 0.0
    for name, one in task.tasks.items():
        alone = head.heads[name]
        pooled = {stream: tokens.pooled() for stream, tokens in given.items()}
        out = alone(given, pooled) if hasattr(alone, "takes_tokens") else alone(pooled)
        own = one.targets(COLUMNS)
        found = task.targets_of(name, targets)
        assert found.dtype == own.dtype and torch.equal(found.nan_to_num(-1), own.nan_to_num(-1))
        total += one.loss(out, own)
    torch.testing.assert_close(task.loss(outputs, targets), total)
    kept = task.kept(outputs, targets)
    late = sum(task.tasks[n].loss(o, task.targets_of(n, targets)) for n, o in task._apart(kept) if n != "where")
    torch.testing.assert_close(task.loss(kept, targets), late)
    assert kept.shape == (3, 4 + 2 + 4)
    whole, late = (task.per_sample(values.detach(), targets) for values in (outputs, kept))
    assert all(np.array_equal(whole[name], late[name]) for name in whole)
    decoded = task.decode(kept.detach(), {"image": [(10, 10)] * 3})
    assert set(decoded[0]) == {"where_box", "what_prediction", "what_probability", "each_prediction"}
    fewer = {name: [column[0]] for name, column in COLUMNS.items()}
    assert task.targets(fewer).shape == (1, 4 + 1 + 2), "one region a row is less than two"
    assert task.loss(outputs[:1], task.targets(fewer)).isfinite()


def test_all_right_is_every_task_right_of_the_same_sample(made):
    task, _ = made
    targets = task.targets(COLUMNS)
    boxes = torch.tensor([[0, 0, 0.5, 0.5], [0, 0, 0.1, 0.1], [0.5, 0, 1, 0.5]])
    what = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    each = torch.nn.functional.one_hot(torch.tensor([[0, 1], [1, 1], [0, 0]]), 2).float().flatten(1)
    found = task.per_sample(torch.cat([boxes, what, each], 1), targets)
    assert found["where_accuracy_at_50"].tolist() == [1, 0, 1] and found["what_accuracy"].tolist() == [1, 1, 1]
    assert found["all_right"].tolist() == [1, 0, 1]
    assert found["accuracy"].tolist() == pytest.approx([1, 2 / 3, 1])


def test_all_right_wants_answers_that_are_right_or_wrong():
    tasks = {"what": TASKS["what"], "price": {"name": "regression", "label": "price", "metric": "negative_mae"}}
    task = MultiTask(MultiTaskConfig(tasks, metric="all_right"))
    columns = {"action": ["copy", "turn", "copy"], "price": [1.0, 2.5, 4.0]}
    task.fit(columns)
    head, targets = task.head({"sound": 3}, torch.nn.Linear), task.targets(columns)
    with pytest.raises(FusetuneError, match=r"data.task.metric: 'all_right' wants tasks whose main metric is right"):
        given = {"sound": streams(3)["sound"]}
        task.per_sample(head.apart(dict.fromkeys(tasks, given)).detach(), targets)
    assert task.problems()["price"]("dear") == "'dear' is no number"


def test_a_plain_model_of_several_tasks_is_right_where_it_is_right_of_all():
    """One label is told by the numbers, the other by nothing: 1 and a half, so 3/4 as a mean, and a half together."""
    import pyarrow as pa

    from fusetune.config import build
    from fusetune.runs.baselines import plain_baselines
    from fusetune.training.data import DataSettings, TaskRows

    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(400, 3))
    table = pa.table(
        {"sample_id": [f"s{i}" for i in range(400)], "group_id": [f"s{i}" for i in range(400)],
         "split": ["train"] * 250 + ["val"] * 50 + ["test"] * 100, "numbers": numbers.tolist(),
         "told": ["yes" if row[0] > 0 else "no" for row in numbers], "untold": rng.choice(["a", "b"], 400).tolist()}
    )  # fmt: skip
    found = {}
    for metric in ("accuracy", "all_right"):
        tasks = {name: {"name": "classification", "label": name, "metric": "accuracy"} for name in ("told", "untold")}
        task = {"name": "multi_task", "tasks": tasks, "metric": metric}
        data = build(DataSettings, {"modalities": {"numbers": {"kind": "vector"}}, "task": task}, "data")
        found[metric] = plain_baselines(TaskRows(table, data))["numbers of numbers"]
    assert found["accuracy"] > 0.65 and found["all_right"] == pytest.approx(2 * found["accuracy"] - 1, abs=0.06)
