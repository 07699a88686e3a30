"""What a student learns: divergences by hand, labels it does not know, geometry of features, the head that is kept."""

import math

import pytest
import torch

from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.tasks.distilled import Distilled, DistilledConfig, _distances
from fusetune.training.data import make_task

COLUMNS = {
    "label": ["a", "b", "a", "b"],
    "teacher: outputs": [[2.0, 0.0], [0.0, 1.0], [0.5, 0.5], [3.0, 3.0]],
    "teacher: label known": [True, False, True, False],
    "teacher: features": [[0.0, 0.0, 1.0], [1.0, 0.0, 1.5], [0.0, 2.0, 2.0], [3.0, 1.0, 0.5]],
}


def made(task=None, **settings):
    shares = {"labels": 0.0, "outputs": 0.0, **settings.pop("shares", {})}
    inner = task or {"name": "classification", "label": "label"}
    found = Distilled(build(DistilledConfig, {"task": inner, "shares": shares, **settings}, "data.task"))
    found.fit(COLUMNS)
    return found


def test_softened_answers_of_a_teacher_by_hand():
    task = made(shares={"outputs": 1.0}, temperature=2.0)
    targets = task.targets(COLUMNS)[:1]
    teacher = 1 / (1 + math.exp(-1.0))  # of logits 2 and 0 at a temperature of 2
    student = 0.5
    expected = teacher * math.log(teacher / student) + (1 - teacher) * math.log((1 - teacher) / student)
    assert task.loss(torch.zeros(1, 2), targets).item() == pytest.approx(4 * expected, rel=1e-5)
    assert task.loss(torch.tensor([[2.0, 0.0]]), targets).item() == pytest.approx(0, abs=1e-6)
    assert task.loss(torch.tensor([[7.0, 5.0]]), targets).item() == pytest.approx(0, abs=1e-5), "softmax knows no shift"


def test_labels_that_the_student_does_not_know_change_nothing():
    task, outputs = made(shares={"labels": 1.0}), torch.randn(4, 2)
    loss = task.loss(outputs, task.targets(COLUMNS))
    by_hand = torch.nn.functional.cross_entropy(outputs[[0, 2]], torch.tensor([0, 0])) * 2 / 4
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    unknown, known = {**COLUMNS, "label": ["a", "a", "a", "a"]}, {**COLUMNS, "label": ["b", "b", "a", "b"]}
    assert task.loss(outputs, task.targets(unknown)).item() == loss.item()
    assert task.loss(outputs, task.targets(known)).item() != pytest.approx(loss.item())
    none = {**COLUMNS, "teacher: label known": [False] * 4}
    assert task.loss(outputs, task.targets(none)).item() == 0
    assert task.metrics(outputs, task.targets(none)) == task.metrics(outputs, task.targets(COLUMNS))


def test_features_and_relations_are_of_a_projection_that_is_dropped():
    task = made(shares={"features": 1.0})
    head = task.head({"image": 5}, torch.nn.Linear)
    outputs = head({"image": torch.randn(4, 5)})
    assert outputs.shape == (4, 2 + 3) and task.kept(outputs, None).shape == (4, 2)
    targets = task.targets(COLUMNS)
    standardised = targets[:, -3:]
    assert torch.allclose(standardised.mean(0), torch.zeros(3), atol=1e-6)
    right = torch.cat([outputs[:, :2], standardised], 1)
    assert task.loss(right, targets).item() < 1e-9 < task.loss(outputs, targets).item()
    task = made(shares={"relations": 1.0})
    moved = torch.cat([outputs[:, :2], 7 * standardised + 3], 1)  # the same geometry elsewhere, at another scale
    assert task.loss(moved, task.targets(COLUMNS)).item() == pytest.approx(0, abs=1e-6)
    assert task.loss(outputs, task.targets(COLUMNS)).item() > 0.001
    assert made(shares={"outputs": 1.0}).head({"image": 5}, torch.nn.Linear)({"image": torch.randn(4, 5)}).shape == (
        4,
        2,
    )


def test_distances_are_in_units_of_their_mean():
    found = _distances(torch.tensor([[0.0, 0], [3, 4], [0, 8]]))
    assert found.tolist() == pytest.approx([5 / 6, 8 / 6, 5 / 6])


def test_what_can_not_be_taught_is_said():
    with pytest.raises(FusetuneError, match="a student learns classes, labels or numbers from a teacher"):
        make_task({"name": "distilled", "task": {"name": "retrieval"}})
    with pytest.raises(FusetuneError, match="shares: expected numbers from 0, not all 0"):
        made(shares={"labels": 0.0})
    with pytest.raises(FusetuneError, match=r"column 'teacher: outputs', row 1: expected the teacher's 2 outputs"):
        made(shares={"outputs": 1.0}).targets({**COLUMNS, "teacher: outputs": [[1, 2], [1], [1, 2], [1, 2]]})


@pytest.mark.parametrize("settings", [{"name": "regression", "label": "y"}, {"name": "multi_label", "label": "tags"}])
def test_numbers_and_several_labels_are_taught_too(settings):
    columns = {**COLUMNS, "y": [1.0, 2.0, 4.0, 3.0], "tags": ["p", "p|q", "q", "p"]}
    if settings["name"] == "multi_label":
        settings = {**settings, "separator": "|", "min_rows": 1}
    else:
        columns["teacher: outputs"] = [[-1.0], [0.0], [1.5], [0.5]]
    task = Distilled(build(DistilledConfig, {"task": settings, "shares": {"labels": 0.5, "outputs": 0.5}}, "x"))
    task.fit(columns)
    targets = task.targets(columns)
    taught = torch.tensor(columns["teacher: outputs"])
    assert task.loss(taught, targets) < task.loss(-taught - 1, targets)
    assert task.metrics(taught, targets) == task.task.metrics(taught, task.task.targets(columns))
