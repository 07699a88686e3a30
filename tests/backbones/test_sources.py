"""A backbone is put together from any sources: kept by reference where they are others', found again, exact."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from encoders import bert, floats, pictures, sounds, tokenizer, vit, wave, whisper

from fusetune.backbones.alignment import AlignSettings
from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.given_features import CLIP, FeaturesVector
from fusetune.backbones.pretraining import PretrainSettings
from fusetune.backbones.sources import EMBEDDED, BackboneSettings, TowerSource, from_source, kinds_of
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.features.composing import FittingRows, compose
from fusetune.features.inputs import input_report
from fusetune.features.source import Source
from fusetune.manifest.checks import ValidationSettings
from fusetune.manifest.schema import Modality
from fusetune.tasks.classification import Classification, ClassificationConfig


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Folders as a hub has them, one an encoder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub")
    makers = {"vit": vit, "bert": bert, "wav2vec2": wave("Wav2Vec2", "group", False), "whisper": whisper}
    for name, make in makers.items():
        make().save_pretrained(folder / name)
    return folder


def settings(**chosen):
    return build(BackboneSettings, chosen, "backbone")


def rows(width=5, count=40):
    rng = np.random.default_rng(0)
    labels = [i % 2 for i in range(count)]
    vectors = [(rng.normal(0, 1, width) + 3 * label).tolist() for label in labels]
    points = [rng.normal(0, 1, (1 + i % 4, 3)).tolist() for i in range(count)]
    names = [str(i) for i in range(count)]
    table = pa.table(
        {"group_id": names, "prosody": vectors, "points": points, "text": ["the first", "one"] * (count // 2)}
    )
    kinds = {"prosody": "vector", "points": "sequence", "text": "text"}
    source = Source(table, {name: Modality(kind) for name, kind in kinds.items()})
    train = list(range(count * 3 // 4))
    task = Classification(ClassificationConfig("label"))
    task.fit({"label": ["0", "1"]})
    val = list(range(len(train), count))
    part = task.linear_parts()[""]
    return FittingRows(source, train, val, part, lambda at: torch.tensor([labels[i] for i in at]))


def composed(chosen, fitting):
    kinds = {name: m.kind for name, m in fitting.source.modalities.items()}
    return compose(chosen.sources(kinds), fitting, lambda: None, AlignSettings(steps=5), lambda *_: None)


def test_every_mixture_is_exact_at_every_depth_and_found_again(hub, tmp_path):
    """Towers of a hub, of extracted numbers and of `align` in one backbone: max abs difference 0 from any frontier."""
    fitting = rows()
    for number, towers in enumerate([
        {"text": {"source": str(hub / "bert")}, "points": {"source": "features", "max_tokens": 3}},
        {"text": {"source": str(hub / "bert"), "max_tokens": 3}, "points": {"source": "align"}},
        {"text": {"source": "align"}, "prosody": {"source": "align"}, "points": {"source": "features"}},
    ]):  # fmt: skip
        backbone = composed(settings(source="features", towers=towers), fitting)
        folder = tmp_path / str(number)
        backbone.save_pretrained(folder)
        again = Backbone.from_pretrained(folder)
        assert again.fingerprint() == backbone.fingerprint()
        foreign = [name for name, chosen in towers.items() if chosen["source"].startswith("/")]
        assert list(again.sources()) == foreign and not any((folder / "towers" / name).exists() for name in foreign)
        names = list(fitting.source.modalities)
        inputs = again.prepare({name: fitting.source.decoded(name, [0, 1, 2, 3]) for name in names})
        ground, top = Frontier(dict.fromkeys(names, 0)), again.full_depth(names)
        with torch.no_grad():
            whole = backbone.advance(inputs, ground, top)
            assert all(tokens.values.abs().sum() > 0 for tokens in whole.values())
            for name in names:
                for depth in range(again.tower(name).depth + 1):
                    middle = Frontier(dict.fromkeys(names, 0) | {name: depth})
                    out = again.advance(again.advance(inputs, ground, middle), middle, top)
                    assert all((out[n].values - whole[n].values).abs().max() == 0 for n in names), (name, depth)


def test_features_are_standardised_by_the_training_rows_alone_and_nothing_is_lost():
    rng = np.random.default_rng(1)
    values = (rng.normal(0, 1, (5000, 3)) * [1, 1e4, 1] + [0, 1e6, 7]).astype(np.float32)
    values[:, 2] = 7
    values[7, 0] = 1e5  # an outlier
    tower = FeaturesVector.fitted([[row[None] for row in values]], "numbers")
    out = tower.advance(tower.prepare([row[None] for row in values]), 0, 1).values[:, 0]
    expected = ((values[:, 1] - values[:, 1].mean(dtype=np.float64)) / values[:, 1].std(dtype=np.float64, ddof=1)).clip(
        -5, 5
    )
    np.testing.assert_allclose(out[:, 1], expected, atol=2e-3)
    assert out[7, 0] == CLIP and tower.constant == 1 and not out[:, 2].any(), "a channel without spread says nothing"
    other = FeaturesVector.fitted([[row[None] for row in values[:100]]], "numbers")
    assert other.fingerprint() != tower.fingerprint(), "the statistics are part of what the base is"
    with pytest.raises(FusetuneError, match="numbers: sample 1 has 4 floats a token, expected 3"):
        FeaturesVector.fitted([[np.zeros((1, 3)), np.zeros((1, 4))]], "numbers")


def test_sequences_keep_their_masks_and_are_cut_where_it_is_said(hub):
    fitting = rows()
    backbone = composed(settings(source="features", towers={
        "points": {"source": "features", "max_tokens": 3}, "text": {"source": str(hub / "bert"), "max_tokens": 3}
    }), fitting)  # fmt: skip
    tokens = backbone.tower("points").prepare([*floats(4, 2, width=3), None])
    assert tokens.mask.tolist() == [[True, True, True], [True, True, False], [False, False, False]]
    report = input_report(fitting.source, backbone, ValidationSettings())
    checks = {(c["column"], c["check"]): c for c in report["checks"]}
    assert checks["points", "input.truncated"]["rows"] == 10
    assert checks["points", "input.truncated"]["examples"][0]["value"] == "4 tokens, 3 are read"
    assert checks["text", "text.truncated"]["rows"] == 20 and report["lengths"]["text"] == 3


@torch.no_grad()
def test_a_sound_is_cut_to_so_many_frames(hub):
    tower = from_source(TowerSource(str(hub / "wav2vec2"), max_tokens=20), "audio", "speech")
    whole = from_source(TowerSource(str(hub / "wav2vec2")), "audio", "speech")
    out = tower.advance(tower.prepare(sounds(1600, 120)), 0, tower.depth)
    assert out.mask.sum(1).tolist()[0] == 20 and tower.fingerprint() != whole.fingerprint()
    assert whole.advance(whole.prepare(sounds(1600)), 0, whole.depth).mask.sum() > 20
    assert tower.most_seconds == pytest.approx((20 + 10 + 20 * 9 - 1) / 16_000, abs=3e-3)
    with pytest.raises(FusetuneError, match="max_tokens: an input of this encoder of image has one size"):
        from_source(TowerSource(str(hub / "vit"), max_tokens=20), "image", "photo")
    with pytest.raises(FusetuneError, match="max_tokens: an input of this encoder of audio has one size"):
        from_source(TowerSource(str(hub / "whisper"), max_tokens=20), "audio", "speech")


def test_a_wrong_source_says_what_it_has_and_what_to_write(hub):
    vision = TowerSource(str(hub / "vit"))
    assert kinds_of(vision) == ["image"] and kinds_of(TowerSource(str(hub / "whisper"))) == ["audio"]
    told = (
        r"backbone\.towers\.title: '.*vit' has image, not text; modality 'title' is of kind text.*"
        r"this one goes to backbone\.towers: \{<your image modality>: \{source: .*vit\}\}"
    )
    with pytest.raises(FusetuneError, match=told):
        from_source(vision, "text", "title")
    kinds = {"photo": "image", "speech": "audio", "numbers": "vector"}
    with pytest.raises(FusetuneError, match=r"backbone\.towers\.speach: data\.modalities has no 'speach'"):
        settings(towers={"speach": {"source": "features"}}).sources(kinds)
    with pytest.raises(
        FusetuneError, match=r"towers\.photo: 'features' are given as numbers.*'photo' is of kind image"
    ):
        settings(source="features").sources(kinds)
    with pytest.raises(FusetuneError, match=r"towers\.speech: the embedded base has image.*nothing for 'speech'"):
        settings().sources(kinds)
    with pytest.raises(FusetuneError, match="'pretrain' is called 'embedded' now"):
        settings(source="pretrain").sources(kinds)
    with pytest.raises(FusetuneError, match="towers.image: embedded_llava is one model of pictures and texts"):
        settings(towers={"image": {"source": "embedded_llava"}}).sources({"image": "image", "text": "text"})
    with pytest.raises(
        FusetuneError, match="reads one modality of pictures and one of texts; 'sound' is of kind audio"
    ):
        settings(source="embedded_llava").sources({"image": "image", "sound": "audio"})
    with pytest.raises(FusetuneError, match=r"backbone\.towers\.photo: unknown key 'sorce'. Did you mean 'source'"):
        settings(towers={"photo": {"sorce": "x"}})


def test_the_short_form_takes_numbers_as_they_are_and_the_embedded_base_as_a_whole():
    kinds = {"photo": "image", "numbers": "vector"}
    found = settings(source="openai/clip").sources(kinds)
    assert found["photo"] == TowerSource("openai/clip") and found["numbers"] == TowerSource("features")
    assert settings().is_embedded({"outline": "sequence", "image": "image"})
    assert not settings().is_embedded({"outline": "vector", "image": "image"})
    assert not settings().is_embedded(kinds)
    assert settings().sources(kinds) == {"photo": TowerSource("embedded"), "numbers": TowerSource("features")}


def test_the_embedded_base_has_the_towers_that_sources_count_on(base):
    towers = Backbone.from_pretrained(base).towers
    assert {name: tower.kind for name, tower in towers.items()} == EMBEDDED and PretrainSettings()


def test_align_goes_without_its_mlp_where_a_linear_probe_finds_less_behind_it(caplog):
    """Of two classes that lie apart in the plain numbers nothing is left behind an MLP fitted in no step at all."""
    fitting = rows(width=40, count=200)
    fitting.source.modalities.pop("text")
    fitting.source.modalities.pop("points")
    chosen = {"prosody": TowerSource("align")}
    with caplog.at_level("INFO"):
        better = compose(chosen, fitting, lambda: None, AlignSettings(steps=0), lambda *_: None)
    always = compose(chosen, fitting, lambda: None, AlignSettings(steps=0, keep="always"), lambda *_: None)
    assert always.tower("prosody").depth == 2
    assert "align, prosody: a linear probe on validation rows scores 1.000 behind it" in caplog.text
    assert better.tower("prosody").depth == 1 and better.fingerprint() != always.fingerprint()
    assert "the tower gives the plain numbers" in caplog.text


def test_two_sources_of_one_family_are_told_apart(tmp_path):
    torch.manual_seed(1)
    vit().save_pretrained(tmp_path / "a")
    vit().save_pretrained(tmp_path / "b")
    one, other = (from_source(TowerSource(str(tmp_path / n)), "image", n) for n in "ab")
    assert one.fingerprint() != other.fingerprint()
    backbone = Backbone({"left": one, "right": other})
    out = backbone.prepare({"left": pictures(1), "right": pictures(1)})
    assert torch.equal(out["left"].values, out["right"].values) and len(tokenizer()) > 4
