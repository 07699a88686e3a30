"""A label a segment: tokens in their times and metrics by hand, bad cells by check, a head that hears two streams."""

import numpy as np
import pytest
import torch

from fusetune.errors import FusetuneError
from fusetune.tasks.segments import Segments, SegmentsConfig, SegmentsHead
from fusetune.tasks.token_times import in_segments
from fusetune.tokens import Lattice, Tokens


def tokens(*rows, mask=None):
    values = torch.tensor(rows, dtype=torch.float32)[..., None]
    return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool) if mask is None else torch.tensor(mask))


def test_tokens_go_to_the_segments_that_their_time_lies_in():
    assert in_segments(tokens([1, 2, 3, 4]), None, 2)[0, :, 0].tolist() == pytest.approx([1.5, 3.5])
    assert in_segments(tokens([1, 2, 3, 4]), None, 4)[0, :, 0].tolist() == pytest.approx([1, 2, 3, 4])
    # three tokens over two segments: the middle one lies in both, half of it
    assert in_segments(tokens([1, 2, 3]), None, 2)[0, :, 0].tolist() == pytest.approx([(1 + 0.5 * 2) / 1.5, 4 / 1.5])
    assert in_segments(tokens([1, 5]), None, 4)[0, :, 0].tolist() == pytest.approx([1, 1, 5, 5])
    short = tokens([1, 2, 9, 9], [3, 9, 9, 9], mask=[[True, True, False, False], [False] * 4])
    assert in_segments(short, None, 2)[..., 0].tolist() == [[1, 2], [0, 0]]
    frames = in_segments(tokens([7, 1, 3, 7, 5, 5]), Lattice(lead=1, rows=1, columns=2), 2)
    assert frames[0, :, 0].tolist() == pytest.approx([2, 5]), "class tokens stand for no time"


def made(**settings):
    task = Segments(SegmentsConfig(**settings))
    task.fit({"segments": [["a", "background", "b"], ["background"] * 3]})
    return task


def test_metrics_by_hand():
    for metric in ("segment_accuracy", "event_accuracy"):
        task = made(metric=metric)
        assert task.labels == ["a", "b", "background"]
        targets = task.targets({"segments": [["a", "a", "background"], ["b", "background", "background"]]})
        outputs = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2], [2, 2, 2]]), 3).float()
        found = task.metrics(outputs, targets)
        assert found["segment_accuracy"] == pytest.approx(4 / 6) and found["event_accuracy"] == pytest.approx(1 / 3)
        # F1: a 2/3, b 0 of one asked and one said, background 6/7
        assert found["macro_f1"] == pytest.approx((2 / 3 + 0 + 6 / 7) / 3)
        assert task.decode(outputs)[0] == {"prediction": ["a", "b", "background"]}


def test_what_is_no_list_of_labels_is_told_by_check():
    cells = [["a", "b", "c"], "a", [], ["a", None, "b"], ["a"], None]
    told = Segments(SegmentsConfig()).faults({"segments": cells})
    found = {name: [row for row, text in enumerate(texts) if text] for name, texts in told.items()}
    assert found == {"label.missing": [5], "segments.shape": [1, 2, 3], "segments.count": [4]}
    with pytest.raises(FusetuneError, match="column 'segments', row 0: label 'z' is in no training row"):
        made().targets({"segments": [["a", "z", "b"]]})
    assert made().known({"segments": [["a", "b", "b"], ["a"], ["z", "a", "a"], None]}) == [True, False, False, False]


def test_a_head_hears_both_streams_in_each_segment():
    """Whether two streams agree in a segment; at a rate of their own, and one of them silent for some."""
    torch.manual_seed(0)

    def mlp(width, outputs):
        return torch.nn.Sequential(torch.nn.Linear(width, 32), torch.nn.GELU(), torch.nn.Linear(32, outputs))

    head = SegmentsHead(4, 2, {"seen": None, "heard": None}, {"seen": 4, "heard": 4, "told": 3}, mlp)
    kinds = torch.eye(4)[:3]
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    for _ in range(400):
        seen, heard = torch.randint(3, (64, 4)), torch.randint(3, (64, 4))
        streams = {
            "seen": Tokens(kinds[seen], torch.ones(64, 4, dtype=torch.bool)),
            "heard": Tokens(kinds[heard.repeat_interleave(2, 1)], torch.ones(64, 8, dtype=torch.bool)),
        }
        pooled = {name: stream.pooled() for name, stream in streams.items()} | {"told": torch.zeros(64, 3)}
        outputs = head(streams, pooled)
        loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), (seen == heard).long().flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (outputs.argmax(-1) == (seen == heard)).float().mean() > 0.95
    alone = head({"seen": streams["seen"]}, {"seen": pooled["seen"]})
    assert alone.shape == outputs.shape and not np.allclose(alone.detach(), outputs.detach())


def test_what_suffices_for_an_answer():
    assert made().answers_from({"heard": "audio"}) and made().answers_from({"x": "text", "seen": "sequence"})
    assert not made().answers_from({"x": "text", "y": "vector"})
