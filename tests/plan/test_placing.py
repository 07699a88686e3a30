"""Which blocks a placement means, and what it says when it means none."""

import pytest

from conftest import WANDER
from fusetune.errors import FusetuneError
from fusetune.plan.placing import Choice, choose

CLIP = [Choice("image", "image", 12), Choice("text", "text", 12)]
SMALL = [Choice("image", "image", 3), Choice("text", "text", 2), Choice("outline", "sequence", 2)]


def picked(blocks, offered=CLIP):
    return {name: list(ranks.items()) for name, ranks in choose(blocks, offered, "p").items()}


def numbers(blocks, offered=CLIP):
    return {name: [n for n, _ in ranks] for name, ranks in picked(blocks, offered).items()}


@pytest.mark.parametrize(
    ("blocks", "image", "text"),
    [
        ("all", list(range(12)), list(range(12))),
        ({"take": "top", "count": 3}, [9, 10, 11], [9, 10, 11]),
        ({"take": "bottom", "count": 3}, [0, 1, 2], [0, 1, 2]),
        ({"take": "sparse", "every": 4}, [3, 7, 11], [3, 7, 11]),
        ("vision_only", list(range(12)), None),
        ("language_only", None, list(range(12))),
        ({"take": "explicit", "explicit": {"text": [0, 5]}}, None, [0, 5]),
        ({"modalities": ["text"], "take": "top"}, None, [10, 11]),
        ("visual_grounding", [0, 1, 2, 3, 4, 5], [10, 11]),
        ("image_captioning", [10, 11], list(range(12))),
        ("vqa", [1, 3, 5, 7, 9, 11], [1, 3, 5, 7, 9, 11]),
    ],
)
def test_names_mean_these_blocks(blocks, image, text):
    expected = {name: found for name, found in (("image", image), ("text", text)) if found}
    assert numbers(blocks) == expected


def test_presets_scale_with_depth_and_leave_other_towers_alone():
    assert numbers("visual_grounding", SMALL) == {"image": [0, 1], "text": [1]}
    assert numbers("image_captioning", SMALL) == {"image": [2], "text": [0, 1]}
    assert numbers("vqa", SMALL) == {"image": [0, 2], "text": [1]}
    assert numbers("visual_grounding", [Choice("image", "image", 24)]) == {"image": list(range(12))}


def test_presets_bring_their_ranks_and_a_user_may_say_otherwise():
    assert {rank for _, rank in picked("visual_grounding")["image"]} == {32}
    assert {rank for _, rank in picked("image_captioning")["text"]} == {16}
    assert {rank for _, rank in picked("vqa")["text"]} == {24}
    given = picked({"take": "top", "ranks": {"image": 4, "text": [2, 8]}})
    assert given == {"image": [(10, 4), (11, 4)], "text": [(10, 2), (11, 8)]}


def test_adaptive_rank_follows_depth():
    ranks = [rank for _, rank in picked({"adaptive_rank": {}})["image"]]
    assert ranks == [8] * 3 + [32] * 6 + [16] * 3
    own = picked({"adaptive_rank": {"until": [0.5], "ranks": [1, 2]}}, SMALL)
    assert own["image"] == [(0, 1), (1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("topmost", "'topmost' is unknown. Known: all, top, bottom"),
        ({"modalities": ["audio"]}, r"there is no 'audio' here. There is image \(image, blocks 0 to 11\), text"),
        ({"take": "explicit", "explicit": {"text": [12]}}, "'text' has no block 12"),
        ({"take": "explicit"}, "`take: explicit` needs block numbers"),
        ({"take": "top", "ranks": {"image": [1, 2, 3]}}, "one for each of the 2 chosen blocks, found \\[1, 2, 3\\]"),
        ({"take": "top", "ranks": {"image": 0}}, "a positive whole number"),
        ({"cuont": 3}, "unknown key 'cuont'. Did you mean 'count'"),
        ({"adaptive_rank": {"until": [0.5], "ranks": [1]}}, "expected 2, one more than `until`"),
    ],
)
def test_what_makes_no_sense_is_named(blocks, message):
    with pytest.raises(FusetuneError, match=message):
        choose(blocks, CLIP, "p")


def test_a_rule_that_matches_nothing_lists_what_is_there():
    with pytest.raises(FusetuneError, match="'vision_only' matches no block. There is outline \\(sequence"):
        choose("vision_only", SMALL[2:], "p")


def lora(**more):
    return {"where": "towers", "adapter": "lora", **more}


@pytest.mark.parametrize(
    ("placements", "message"),
    [
        (
            [lora(), lora()],
            r"placements\[1\]: 'left: layers.0.attention.query.weight' is taken by placement 0 \(lora\)",
        ),
        (
            [{"where": "backbone", "adapter": "unfreeze"}, lora()],
            "'left: layers.0.attention.query.weight' is taken by placement 0",
        ),
        (
            [{"where": "towers", "adapter": "bitfit"}, {"where": "backbone", "adapter": "unfreeze"}],
            "is taken by placement 0 \\(bitfit\\)",
        ),
        ([lora(config={"targets": ["query", "valeu"]})], "no chosen block has valeu.*left: attention, query, key"),
        ([lora(blocks={"modalities": ["right"]})], "no chosen block has query or value"),
        ([{**WANDER, "blocks": "top"}], "blocks are chosen in towers and trunk, not at 'junction'"),
        (
            [{"where": "towers", "adapter": "bitfit", "blocks": {"ranks": {"left": 3}}}],
            "'bitfit' has no size that a rank could set",
        ),
        (
            [{"where": "connector", "adapter": "linear_connector", "config": {"source": "left", "target": "right"}}],
            "entered at depths 1 to 0, found 1",
        ),
        ([{**WANDER, "task": "script"}], "no task 'script'. Known: one task only"),
    ],
)
def test_a_placement_that_does_not_fit_says_why(toy, placements, message):
    with pytest.raises(FusetuneError, match=message):
        toy.experiment(*placements)


def test_without_a_trunk_there_is_no_place_in_it(toy):
    with pytest.raises(FusetuneError, match="there is no trunk here. Use a backbone with one and data.use_trunk: true"):
        toy.experiment({**WANDER, "where": "trunk"}, use_trunk=False)


def test_what_a_placement_came_to_mean_is_said(toy):
    model = toy.experiment(lora(blocks={"take": "top", "count": 1, "modalities": ["left"]}), WANDER).model
    assert model.resolved == ["lora in left blocks 1 (2 places)", "wander at the junction"]


def test_ranks_reach_the_adapters(toy):
    ranks = {"modalities": ["left"], "ranks": {"left": [2, 5]}}
    shapes = {p.shape[0] for n, p in toy.experiment(lora(blocks=ranks)).model.trainable().items() if "lora_A" in n}
    assert shapes == {2, 5}
    model = toy.experiment({"where": "towers", "adapter": "bottleneck", "blocks": ranks}).model
    assert {p.shape[0] for n, p in model.trainable().items() if "down.weight" in n} == {2, 5}
    trunk = {"explicit": {"trunk": [1]}, "take": "explicit", "ranks": {"trunk": 3}}
    model = toy.experiment({"where": "trunk", "adapter": "wander", "blocks": trunk}).model
    assert {p.shape[0] for n, p in model.trainable().items() if "bias_row" in n} == {3}
