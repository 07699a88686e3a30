"""What a robot does next: units, tokens and metrics by hand, bad cells by check, a head that looks where it is told."""

import numpy as np
import pytest
import torch

from fusetune.errors import FusetuneError
from fusetune.tasks.action_head import ActionHead
from fusetune.tasks.actions import PREDICTED, Actions, ActionsConfig
from fusetune.tokens import Lattice, Tokens


def made(cells=None, **settings):
    task = Actions(ActionsConfig(camera=None, **settings))
    task.fit({"action": cells or [[0.0, 10.0], [4.0, 30.0], [2.0, 20.0]]})
    return task


def test_numbers_are_brought_to_their_range_and_back():
    cells = [[float(i), float(i == 50)] for i in range(101)]
    task = made(cells)
    assert task.low == pytest.approx([1, 0]) and task.high == pytest.approx([99, 1]), "what is rare keeps its range"
    targets = task.targets({"action": cells})
    brought = task.standardised(targets.double())
    assert brought[50].tolist() == pytest.approx([0, 1]) and brought[100, 0] > 1, "nothing is clipped"
    assert np.allclose([row[PREDICTED][0] for row in task.decode(brought)], cells, atol=1e-5)
    again = Actions(ActionsConfig(camera=None))
    again.restore(task.state())
    assert again.decode(brought) == task.decode(brought)


def test_metrics_by_hand():
    task = made([[0.0, 0.0], [100.0, 10.0]])
    task.low, task.high = [0.0, 0.0], [100.0, 10.0]
    outputs = torch.tensor([[0.0, 0.0], [0.05, 1.0]])
    targets = torch.tensor([[50.0, 5.0], [50.0, 0.0]])
    found = task.metrics(outputs, targets)
    assert found["negative_l1"] == pytest.approx(-(0 + 0 + 0.05 + 2) / 4)
    assert found["within_tolerance"] == 0.5
    assert found["mae_0"] == pytest.approx(1.25) and found["mae_1"] == pytest.approx(5)
    assert task.loss(outputs, targets).item() == pytest.approx(-found["negative_l1"])


def test_tokens_are_bins_of_the_range():
    task = made([[0.0], [100.0]], bins=4)
    task.low, task.high = [0.0], [100.0]
    targets = torch.tensor([[-3.0], [30.0], [99.0], [140.0]])
    assert task._tokens(task.standardised(targets)).flatten().tolist() == [0, 1, 3, 3]
    scores = torch.nn.functional.one_hot(torch.tensor([0, 1, 3, 3]), 4).float() * 50
    assert [row[PREDICTED][0][0] for row in task.decode(scores)] == [12.5, 37.5, 87.5, 87.5]
    assert task.loss(scores, targets) < 1e-6 < task.loss(scores.flip(0), targets)
    plain = torch.tensor([[-0.4], [0.2], [1.0], [1.0]])
    assert task.decode(plain)[1][PREDICTED] == [[pytest.approx(60)]], "numbers that a plain model predicts"


def test_what_is_no_action_is_told_by_check():
    cells = [[1.0, 2.0], [3.0, float("nan")], [1.0, 2.0, 3.0], "go", [[1.0, 2.0], [3.0]], None, [], [4.0, 5.0]]
    told = made().faults({"action": cells})
    found = {name: [row for row, text in enumerate(texts) if text] for name, texts in told.items()}
    assert found == {"label.missing": [5], "action.shape": [3, 4, 6], "action.width": [2], "action.finite": [1]}
    assert told["action.width"][2] == "1 step of 3 numbers where others have 1 step of 2 numbers"
    assert made().known({"action": cells}) == [True, False, False, False, False, False, False, True]
    with pytest.raises(
        FusetuneError, match=r"column 'action', row 1: \[3.0, nan\]. Expected finite numbers, 1 step of 2"
    ):
        made().targets({"action": cells[:2]})
    with pytest.raises(FusetuneError, match="column 'action', number 1: 7 in all training rows"):
        made([[1.0, 7.0], [2.0, 7.0]])


def test_steps_of_a_chunk_are_answered_in_order():
    task = made([[[0.0, 1.0], [1.0, 2.0]], [[1.0, 3.0], [0.0, 0.0]]])
    assert task.steps == 2 and task.numbers == 4
    targets = task.targets({"action": [[[0.25, 1.0], [0.5, 2.0]]]})
    assert np.allclose(task.decode(task.standardised(targets))[0][PREDICTED], [[0.25, 1.0], [0.5, 2.0]])


def test_a_head_finds_what_is_asked_for_and_says_how_far_it_is():
    """One token of a picture carries what a text asks for; the action is the way there from where the robot is."""
    torch.manual_seed(0)
    task = Actions(ActionsConfig(camera="image"))
    task.fit({"action": [[-1.0, -1.0], [1.0, 1.0]]})
    lattice, count = Lattice(rows=3, columns=3), 600
    names = torch.eye(9)[torch.stack([torch.randperm(9) for _ in range(count)])]  # (count, place, name)
    wanted, at = torch.randint(9, (count,)), torch.rand(count, 2)
    place = names.argmax(-1).eq(wanted[:, None]).int().argmax(1)
    targets = torch.stack([(place % 3 + 0.5) / 3, (place // 3 + 0.5) / 3], -1) - at
    head = ActionHead("image", lattice, ["state"], {"image": 9, "text": 9, "state": 2}, 2, torch.nn.Linear)
    streams = {"image": Tokens(3 * names, torch.ones(count, 9, dtype=torch.bool))}
    pooled = {"image": 3 * names.mean(1), "text": torch.eye(9)[wanted], "state": at}
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    before = task.loss(head(streams, pooled), targets).item()
    for _ in range(400):
        optimizer.zero_grad()
        task.loss(head(streams, pooled), targets).backward()
        optimizer.step()
    after = task.loss(head(streams, pooled), targets).item()
    assert after < 0.2 * before
    blind = head({}, {"text": pooled["text"], "state": at})
    assert blind.isfinite().all() and task.loss(blind, targets) > 2 * after, (
        "without a picture it is an answer, a worse one"
    )
