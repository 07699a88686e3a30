"""Where and when: overlaps by hand, tokens in place, a head that learns to point, answers in the data's own units."""

import math

import numpy as np
import pytest
import torch

from fusetune.errors import FusetuneError
from fusetune.tasks.grounding import Grounding, GroundingConfig
from fusetune.tasks.locating_head import NOWHERE, LocatingHead, token_places
from fusetune.tasks.moments import Moments, MomentsConfig
from fusetune.tasks.regions import brought, brought_back, generalised_iou, iou
from fusetune.tasks.task import extent_column
from fusetune.tokens import Lattice, Tokens


def test_overlaps_by_hand():
    some = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    others = torch.tensor([[1.0, 1, 3, 3], [0, 0, 1, 1], [2, 0, 3, 1], [0, 0, 0, 0]])
    assert iou(some, others).tolist() == pytest.approx([1 / 7, 1, 0, 0])
    # around the first two lies a square of 9, of which 7 are covered; around the third 3, of which 2 are
    assert generalised_iou(some, others)[:3].tolist() == pytest.approx([1 / 7 - 2 / 9, 1, -1 / 3])
    spans = torch.tensor([[2.0, 6.0]]), torch.tensor([[4.0, 10.0]])
    assert iou(*spans).item() == pytest.approx(2 / 8)


def test_generalised_iou_is_that_of_torchvision_if_it_is_there():
    ops = pytest.importorskip("torchvision.ops", reason="torchvision is not installed")
    corner = torch.rand(50, 4)
    boxes = torch.cat([corner[:, :2], corner[:, :2] + corner[:, 2:] + 0.01], 1)
    expected = ops.generalized_box_iou(boxes[:25], boxes[25:]).diagonal()
    assert torch.allclose(generalised_iou(boxes[:25], boxes[25:]), expected, atol=1e-5)


def test_a_view_changes_no_overlap_and_comes_back():
    torch.manual_seed(0)
    low = torch.rand(20, 2, dtype=torch.float64) * 100
    some = torch.cat([low, low + 40], -1)
    others = some + torch.rand(20, 4, dtype=torch.float64) * 10
    views = torch.tensor([[80.0, -20, 500, 700]]).repeat(20, 1)
    seen = brought(some, views)
    assert not torch.allclose(seen, some) and (seen < 0).any()  # what was cropped away lies outside
    assert torch.allclose(iou(seen, brought(others, views)), iou(some, others))
    assert torch.allclose(brought_back(seen, views), some)


def task_of(usual, **settings):
    task = Grounding(GroundingConfig(**settings)) if len(usual) == 2 else Moments(MomentsConfig(**settings))
    task.restore({"usual": usual})
    return task


def head_of(dims, lattice, widths):
    torch.manual_seed(0)
    target = "image" if dims == 2 else "video"
    return LocatingHead(target, lattice, [0.25] * dims, widths, torch.nn.Linear)


def test_tokens_stand_where_a_picture_has_them():
    head = head_of(2, Lattice(lead=1, rows=2, columns=3), {"image": 4})
    places, real = token_places("image", torch.ones(1, 7, dtype=torch.bool), head.lattice, 2)
    assert real.tolist() == [[False] + [True] * 6]
    expected = [[x, y] for y in (0.25, 0.75) for x in (1 / 6, 0.5, 5 / 6)]
    assert np.allclose(places[0, 1:], expected)
    with pytest.raises(FusetuneError, match="'image' has 14 tokens where its encoder gives 7 for one picture"):
        token_places("image", torch.ones(1, 14, dtype=torch.bool), head.lattice, 2)


def test_tokens_stand_when_a_clip_has_them():
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    places, _ = token_places("video", mask, None, 1)
    assert np.allclose(places[..., 0], [[0.125, 0.375, 0.625, 0.875], [0.25, 0.75, 1.25, 1.75]])
    frames = Lattice(lead=1, rows=1, columns=2)  # two pictures of three tokens each
    places, real = token_places("video", torch.ones(1, 6, dtype=torch.bool), frames, 1)
    assert np.allclose(places[0, :, 0], [0.25] * 3 + [0.75] * 3) and real.tolist() == [[False, True, True] * 2]
    tubes = Lattice(times=2, rows=1, columns=2)
    places, _ = token_places("video", torch.ones(1, 8, dtype=torch.bool), tubes, 1)
    assert np.allclose(places[0, :, 0], [0.125, 0.125, 0.375, 0.375, 0.625, 0.625, 0.875, 0.875])


def test_the_loss_is_what_its_definition_says():
    """Two tokens of a strip of time; the second stands in the right span."""
    task = task_of([0.5])
    outputs = torch.tensor([[[0.3, 0.0, 0.5, 0.25], [0.7, 0.4, 0.9, 0.75]]])
    target = torch.tensor([[[0.5, 1.0]]])
    likelihood = math.log(math.exp(0.3) + math.exp(0.7)) - 0.7
    overlap = 0.4 / 0.6  # [0.4, 0.9] and [0.5, 1.0]; what is around both they cover
    expected = likelihood + 5 * 0.1 + 2 * (1 - overlap)
    assert task.loss(outputs, target).item() == pytest.approx(expected, rel=1e-5)
    none_inside = torch.tensor([[[0.30, 0.35]]])  # the nearest token's, the first
    apart = 5 * (0.30 + 0.15) / 2 + 2 * (1 - 0.05 / 0.5)
    expected = math.log(math.exp(0.3) + math.exp(0.7)) - 0.3 + apart
    assert task.loss(outputs, none_inside).item() == pytest.approx(expected, rel=1e-5)


def test_of_several_moments_the_best_overlap_counts():
    task = task_of([0.2])
    nan = math.nan
    targets = torch.tensor([[[0.0, 0.2], [0.6, 1.0]], [[0.0, 0.2], [nan, nan]]])
    outputs = torch.tensor([[0.6, 0.9], [0.6, 0.9]])
    found = task.per_sample(outputs, targets)
    assert found["mean_iou"].tolist() == pytest.approx([0.75, 0]) and found["recall_at_1_iou_70"].tolist() == [1, 0]
    full = torch.tensor([[[0.0, 0.6, 0.9, 0.8], [1.0, 0.1, 0.3, 0.2]]])
    assert np.allclose(task.kept(full, None), [[0.1, 0.3]])
    assert task.loss(full, targets[1:]).isfinite()


def test_where_nothing_is_given_all_is_answered_and_nothing_is_learned():
    task, head = task_of([0.25, 0.25]), head_of(2, Lattice(rows=2, columns=2), {"image": 4, "text": 3})
    image = Tokens(torch.randn(2, 4, 4), torch.tensor([[True] * 4, [False] * 4]))
    outputs = head({"image": image}, {"image": image.pooled(), "text": torch.randn(2, 3)})
    assert (outputs[1, :, 0] == NOWHERE).all() and (outputs[0, :, 0] > NOWHERE).all()
    assert task.kept(outputs, None)[1].tolist() == [0, 0, 1, 1]
    target = torch.tensor([[[0.1, 0.1, 0.4, 0.4]]]).repeat(2, 1, 1)
    both, first = task.loss(outputs, target), task.loss(outputs[:1], target[:1])
    assert first.item() > 0 and both.item() == pytest.approx(first.item() / 2, rel=1e-5)


@pytest.mark.parametrize("dims", [1, 2])
def test_a_head_learns_to_find_what_is_asked(dims):
    """One of sixteen tokens is like the text; its place and a size that it tells are the answer."""
    torch.manual_seed(0)
    lattice = Lattice(rows=4, columns=4) if dims == 2 else None
    name = "image" if dims == 2 else "video"
    kinds = torch.randn(6, 8)

    def batch(count):
        which = torch.stack([torch.randperm(6)[:1].expand(16) for _ in range(count)])
        other = (which + torch.randint(1, 6, which.shape)) % 6
        at = torch.randint(16, (count,))
        rows = torch.arange(count)
        shown = other.clone()
        shown[rows, at] = which[rows, at]
        size = torch.rand(count) * 0.2 + 0.1
        values = kinds[shown]
        values[rows, at, -1] = size * 10
        places = token_places(head.target, torch.ones(count, 16, dtype=torch.bool), head.lattice, dims)[0].expand(
            count, 16, dims
        )[rows, at]
        region = torch.cat([places - size[:, None] / 2, places + size[:, None] / 2], -1)[:, None]
        tokens = Tokens(values, torch.ones(count, 16, dtype=torch.bool))
        return tokens, kinds[which[:, 0]], region

    head, task = head_of(dims, lattice, {name: 8, "text": 8}), task_of([0.2] * dims)
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    scores = []
    for step in range(400):
        tokens, text, region = batch(64)
        outputs = head({name: tokens}, {name: tokens.pooled(), "text": text})
        loss = task.loss(outputs, region)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (0, 399):
            scores.append(task.metrics(outputs.detach(), region)["mean_iou"])
    assert scores[0] < 0.2 and scores[1] > 0.7, scores


class Cropping:
    """An encoder that sees the middle square of a picture of 640 x 480."""

    def view(self, extent):
        assert list(extent) == [640, 480]
        return 80.0, 0.0, 560.0, 480.0


def test_boxes_go_through_a_crop_and_back_to_the_datas_own_pixels():
    columns = {"box": [[100, 50, 200, 150.5], [0, 0, 640, 480]], extent_column("image"): [(640, 480)] * 2}
    task = Grounding(GroundingConfig())
    task.meet_towers({"image": Cropping()})
    targets = task.targets(columns)
    assert targets[0, 0].tolist() == pytest.approx([20 / 480, 50 / 480, 120 / 480, 150.5 / 480])
    assert targets[1, 0].tolist() == pytest.approx([-80 / 480, 0, 560 / 480, 1])  # beyond what is seen
    answers = task.decode(targets[:, 0], task.contents(columns))
    assert np.allclose([row["box"] for row in answers], columns["box"], atol=1e-3)
    assert task.decode(targets[:1, 0]) == [{"box": None}]  # of a picture whose size nobody knows
    as_coco = Grounding(GroundingConfig(format="xywh"))
    as_coco.meet_towers({"image": Cropping()})
    same = {**columns, "box": [[100, 50, 100, 100.5], [0, 0, 640, 480]]}
    assert torch.equal(as_coco.targets(same), targets)


def test_what_is_no_region_is_told_by_check():
    sizes = {extent_column("image"): [(100, 50)] * 8}
    cells = [[10, 10, 20, 20], [20, 10, 10, 20], [10, 10, 10, 20], [90, 10, 120, 20], [1, 2, 3], [1, 2, math.nan, 4],
             "box", None]  # fmt: skip
    told = Grounding(GroundingConfig()).faults({"box": cells, **sizes})
    found = {name: [row for row, text in enumerate(texts) if text] for name, texts in told.items()}
    regions = {"box.shape": [4, 5, 6], "box.order": [1, 2], "box.outside": [3], "box.extent": []}
    assert found == {"label.missing": [7], **regions}
    assert told["box.outside"][3] == "[90.0, 10.0, 120.0, 20.0]: not within 100 x 50 pixels"
    with pytest.raises(FusetuneError, match=r"column 'box', row 1: .* Expected left, top, right, bottom in pixels"):
        Grounding(GroundingConfig()).targets({"box": cells, **sizes})
    spans = {"span": [[1, 5], [5, 1], [0, 31], [[0, 2], [4, 3]]], "seconds": [30.0, 30.0, 30.0, 30.0]}
    told = Moments(MomentsConfig(duration="seconds")).faults(spans)
    found = {name: [row for row, text in enumerate(texts) if text] for name, texts in told.items()}
    assert {k: v for k, v in found.items() if v} == {"span.order": [1, 3], "span.outside": [2]}
