"""Labels in one language, asked in another: adapters of languages are trained, frozen, stacked and swapped."""

import random

import pyarrow as pa
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from fusetune.adapters.language import languages_in
from fusetune.backbones.backbone import Backbone
from fusetune.backbones.bases import save_base
from fusetune.bank.artifact import Artifact
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.features.index import CacheSettings
from fusetune.features.storage import Store
from fusetune.plan.plan import Plan
from fusetune.report.cross_lingual_figure import by_language
from fusetune.runs.cross_lingual import BARE, OWN, SWAPPED, Speakers, cross_lingual, text_of
from fusetune.runs.experiment import Experiment
from fusetune.runs.language_rows import CrossLingualSettings, Languages
from fusetune.runs.workplace import Workplace
from fusetune.tasks.masked_words import NOT_ASKED, masked
from fusetune.training.data import DataSettings, load_backbone
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.settings import TrainSettings

ENGLISH = ["red", "green", "blue", "cat", "dog", "bird", "big", "small"]
GERMAN = ["rot", "gruen", "blau", "katze", "hund", "vogel", "gross", "klein"]
COLOURS, ANIMALS, SIZES = range(3), range(3, 6), range(6, 8)


def tokenizer_in(folder):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ENGLISH, *GERMAN, "k", "##a", "日", "本"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    return BertTokenizer(str(folder / "vocab.txt"))


def sentence(words, numbers):
    return " ".join(words[i] for i in numbers)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Things of a size, a colour and a kind, named in two languages; the label is the kind."""
    folder = tmp_path_factory.mktemp("languages")
    model = folder / "bert"
    model.mkdir()
    tokenizer_in(model).save_pretrained(model)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=25, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=16, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(model)
    rng, rows = random.Random(0), []
    for i in range(420):
        numbers = [rng.choice(kind) for kind in (SIZES, COLOURS, ANIMALS)]
        rng.shuffle(numbers)
        split = "train" if i < 300 else "val" if i < 360 else "test"
        kind = next(i for i in numbers if i in ANIMALS)
        rows.append({"sample_id": f"s{i}", "split": split, "group_id": f"g{i}", "label": ENGLISH[kind],
                     "english": sentence(ENGLISH, numbers), "german": sentence(GERMAN, numbers)})  # fmt: skip
    data = build(
        DataSettings,
        {
            "modalities": {"name": {"kind": "text", "column": "english"}},
            "task": {"name": "classification", "label": "label", "metric": "accuracy"},
            "use_trunk": False,
        },
        "data",
    )
    base = save_base(Backbone.from_pretrained(model, {"name": "text"}), folder / "bases")
    return folder, pa.Table.from_pylist(rows), base, data


def speakers(made, **settings):
    folder, table, base, data = made
    languages = {"en": "english", "de": "german"}
    chosen = build(CrossLingualSettings, {"languages": languages, "seeds": [0], **settings}, "cross_lingual")
    text, own = text_of(data, chosen)
    plan = build(Plan, {"placements": [{"where": "head", "adapter": "linear"}]}, "linear_probe")
    work = Workplace(Store(folder), CacheSettings(dtype="float32"), folder / "ck", lambda *_: None, torch.device("cpu"))
    train = TrainSettings(epochs=40, batch_size=32, learning_rate=0.02, patience=25)
    return Speakers(Languages(table, chosen, text), base, own, plan, train, EvaluationSettings(), work)


@pytest.fixture(scope="module")
def found(made):
    return cross_lingual(speakers(made, bottleneck_dim=24, epochs=60))


def test_by_its_adapter_another_language_is_understood(found):
    told, _ = found
    english, german = (told["languages"][name] for name in ("en", "de"))
    assert min(english[BARE]["0"], english[SWAPPED]["0"]) > 0.8, "a source's own adapter changes nothing"
    assert german[OWN]["0"] > 0.8 > 0.6 > german[BARE]["0"], "its words are strangers"
    assert german[SWAPPED]["0"] > german[BARE]["0"] + 0.1
    assert told["adapters"]["de"]["retrieved"] > 0.5 and set(told["adapters"]) == {"de"}
    assert english["plain"]["TF-IDF of name"] > 0.95 > 0.7 > german["plain"]["TF-IDF of name"]
    assert by_language(told).get_axes()


def test_an_adapter_a_language_answers_in_its_own_column(made, found, tmp_path):
    _, table, base, _ = made
    told, artifacts = found
    artifacts.save_pretrained(tmp_path)
    for name, column in (("en", "english"), ("de", "german")):
        artifact = Artifact.from_pretrained(tmp_path / name)
        assert artifact.data().modalities["name"].column == column
        model = artifact.build(base)
        plan = model.plan
        assert [p.adapter for p in plan.placements] == ["language", "linear"] and plan.placements[0].config["frozen"]
        test = table.slice(360)
        outputs = model(model.backbone.prepare({"name": test[column].to_pylist()}), _ground(model))
        right = (outputs.argmax(1) == model.task.targets({"label": test["label"].to_pylist()})).float().mean()
        assert right.item() == pytest.approx(told["languages"][name][SWAPPED]["0"], abs=1e-6)
    with pytest.raises(FusetuneError, match="no language adapter of these blocks and this width"):
        language(made, {"trained": str(tmp_path / "de"), "bottleneck_dim": 8})
    trained = language(made, {"trained": str(tmp_path / "de"), "bottleneck_dim": 24})
    (frozen,) = languages_in(trained.model)
    assert not any(p.requires_grad for p in frozen.parameters()) and trained.model.trainable_count() > 0
    assert not set(frozen.parameters()) & set(trained.model.trainable().values())
    own = Artifact.from_pretrained(tmp_path / "de").tensors
    state = trained.model.state_dict()
    shared = [name for name in own if name.startswith("blocks.0.")]
    assert shared and all(torch.equal(state[name], own[name]) for name in shared)


def language(made, config):
    _, table, base, data = made
    placed = {"where": "towers", "adapter": "language", "config": config}
    task = {"where": "towers", "adapter": "bottleneck", "config": {"bottleneck_dim": 4}}
    plan = build(Plan, {"placements": [placed, task, {"where": "head", "adapter": "linear"}]}, "stacked")
    return Experiment(table, load_backbone(base, data), data, plan, 0, "stacked")


def _ground(model):
    from fusetune.backbones.backbone import Frontier

    model.eval()
    return Frontier({"name": 0})


def test_on_text_alone_and_with_a_few_labels(made, found):
    told, _ = cross_lingual(speakers(made, objective="masked_words", bottleneck_dim=8, epochs=6, blocks=1, labels=0.2))
    assert set(told["adapters"]) == {"en", "de"} and told["adapters"]["de"]["left_out"] == 0
    assert told["adapters"]["de"]["accuracy"] > 0.2, "of eight words, that stand in classes of three"
    assert told["languages"]["en"][BARE]["0"] > 0.7, "with or without labels elsewhere"
    assert told["languages"]["de"][SWAPPED]["0"] > 0.45, "goes on with the few, on top of its adapter"
    assert told["languages"]["de"][BARE]["0"] > found[0]["languages"]["de"][BARE]["0"] + 0.1, "labels in German help"


def test_too_few_labels_are_told(made):
    with pytest.raises(
        FusetuneError, match="labels: 0.001 of the (train|val) rows is none of them. Expected a larger share"
    ):
        cross_lingual(speakers(made, bottleneck_dim=4, epochs=1, labels=0.001))


def test_masks_stand_where_their_words_stood(tmp_path):
    tokenizer, rng = tokenizer_in(tmp_path), random.Random(0)
    text, asked = masked("red ka small cat dog", tokenizer, rng)
    ids = tokenizer(text)["input_ids"]
    assert asked[0] == NOT_ASKED and sum(token != NOT_ASKED for token in asked) in (1, 2)
    original = tokenizer("red ka small cat dog")["input_ids"]
    for place, token in enumerate(asked):
        assert (ids[place] == tokenizer.mask_token_id and original[place] == token) if token != NOT_ASKED else True
    assert [i for i, token in enumerate(ids) if token == tokenizer.mask_token_id] == [
        i for i, token in enumerate(asked) if token != NOT_ASKED
    ]
    lengths = {len([t for t in masked("日本", tokenizer, random.Random(i))[1] if t != NOT_ASKED]) for i in range(9)}
    assert lengths == {1}, "characters that are written without blanks are words"
    assert masked("", tokenizer, rng) is None


def test_what_does_not_fit_is_told(made):
    with pytest.raises(FusetuneError, match="cross_lingual.languages.fr: the manifest has no column 'french'. It has"):
        speakers(made, languages={"en": "english", "fr": "french"})
    with pytest.raises(FusetuneError, match="cross_lingual.source: 'fr' is none of the languages. Known: en, de"):
        speakers(made, source="fr")
    with pytest.raises(FusetuneError, match="cross_lingual.modality: expected one of the texts name, found 'title'"):
        speakers(made, modality="title")
