"""Small towers without labels: what two views of a sample share comes out, and missing views are no obstacle."""

import numpy as np
import pytest
import torch
from encoders import pictures, sounds

from fusetune.backbones.alignment import AlignSettings, align
from fusetune.backbones.backbone import Backbone
from fusetune.errors import FusetuneError


def views(count: int = 400):
    """Two views that share nothing but one of four classes, each behind a rotation and much noise of its own."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, count)
    made = {}
    for name in ("one", "two"):
        centers = rng.standard_normal((4, 20)) * 0.5
        made[name] = [row[None].astype(np.float32) for row in centers[classes] + rng.standard_normal((count, 20))]
    return made, classes


def nearest_center_accuracy(values: torch.Tensor, classes) -> float:
    """Of centres of five labelled samples a class."""
    labels = torch.tensor(classes)
    centers = torch.stack([values[torch.nonzero(labels == c)[:5, 0]].mean(0) for c in range(4)])
    return float((torch.cdist(values, centers).argmin(1) == labels).float().mean())


def test_alignment_finds_what_the_views_share_and_is_the_same_twice(tmp_path):
    samples, classes = views()
    kinds = {"one": "vector", "two": "vector"}
    made = [align(samples, kinds, AlignSettings(steps=steps), lambda *_: None) for steps in (0, 200, 200)]
    found = []
    for backbone in made:
        tower = backbone.tower("one")
        with torch.no_grad():
            tokens = tower.advance(tower.prepare(samples["one"]), 0, tower.depth)
        assert tokens.values.shape == (400, 1, 64) and not any(p.requires_grad for p in backbone.parameters())
        found.append(nearest_center_accuracy(tokens.values[:, 0], classes))
    assert found[1] > found[0] + 0.1 and found[1] == found[2]
    assert made[1].fingerprint() == made[2].fingerprint() != made[0].fingerprint()
    made[1].save_pretrained(tmp_path / "base")
    assert Backbone.from_pretrained(tmp_path / "base").fingerprint() == made[1].fingerprint()


def test_every_kind_has_a_tower_and_a_missing_sample_stays_missing():
    samples = {
        "image": pictures(1, 1, 0, 1),
        "sound": sounds(800, 0, 1600, 40),
        "points": [np.ones((n, 3), np.float32) * n if n else None for n in (1, 40, 7, 0)],
    }
    kinds = {"image": "image", "sound": "audio", "points": "sequence"}
    backbone = align(samples, kinds, AlignSettings(steps=2, batch_size=4), lambda *_: None)
    for name, missing in (("image", 2), ("sound", 1), ("points", 3)):
        tower = backbone.tower(name)
        tokens = tower.advance(tower.prepare(samples[name]), 0, 2)
        assert [not m for m in tokens.mask[:, 0].tolist()] == [row == missing for row in range(4)]
        assert torch.isfinite(tokens.values).all() and not tokens.values[missing].any()
    with pytest.raises(FusetuneError, match="clip: there is no small tower for video; expected one of vector"):
        align({"clip": []}, {"clip": "video"}, AlignSettings(), lambda *_: None)
    with pytest.raises(FusetuneError, match="data.modalities.image: no training row has this modality"):
        align({"image": [None]}, {"image": "image"}, AlignSettings(), lambda *_: None)
