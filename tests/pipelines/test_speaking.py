"""A model that sees and speaks (LLaVA) as the base of an experiment, from raw data to a served version."""

import base64
import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from serving import served
from speaking import TEXTS, saved_blip, saved_llava

from conftest import copy_project, experiment_in, kedro, ran

LORA = {
    "placements": [
        {"where": "trunk", "adapter": "lora", "blocks": {"take": "top", "count": 2}, "config": {"rank": 4}},
        {"where": "head", "adapter": "linear"},
    ]
}  # fmt: skip
# a head that has never learned to say anything is hard to steer: every linear layer of the blocks, and more steps
EVERYWHERE = {
    "rank": 16,
    "targets": ["query", "key", "value", "attention_output", "mlp_input", "mlp_gate", "mlp_output"],
}
WORDS = {
    "placements": [
        {"where": "trunk", "adapter": "lora", "blocks": {"take": "top", "count": 2}, "config": EVERYWHERE},
        {"where": "head", "adapter": "linear"},
    ],
    "train": {"epochs": 40, "patience": 40, "learning_rate": 0.01, "weight_decay": 0.0, "modality_dropout": 0.0},
}
READING = {
    "placements": [
        {
            "where": "trunk",
            "adapter": "lora",
            "config": {"rank": 16, "targets": ["cross_query", "cross_value", "query"]},
        },
        {"where": "trunk", "adapter": "vl_adapter", "config": {"behind": ["cross_attention", "mlp"]}},
        {"where": "head", "adapter": "linear"},
    ],
    "train": {**WORDS["train"], "learning_rate": 0.003, "batch_size": 16},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A grey, and a question that asks for it or for the opposite: neither side answers alone."""
    project = copy_project(tmp_path_factory.mktemp("speaking"))
    saved_llava(project / "llava")
    saved_blip(project / "blip")
    (project / "pictures").mkdir()
    rng, rows = np.random.default_rng(0), []
    for i in range(240):
        light, turned = int(rng.integers(2)), int(rng.integers(2))
        values = (40 + 150 * light + rng.integers(0, 40, (32, 32, 3))).astype(np.uint8)
        Image.fromarray(values).save(project / f"pictures/{i}.png")
        asked = TEXTS[2] if turned else TEXTS[0]
        split = "train" if i < 140 else "val" if i < 190 else "test"
        said = "it is light" if light ^ turned else "dark, isn't it"
        caption = "light picture" if light else "dark picture"
        rows.append(f'{i}.png,{split},{asked},{"ab"[light ^ turned]},"{said}",{caption}')
    (project / "samples.csv").write_text("file,split,question,answer,said,caption\n" + "\n".join(rows) + "\n")
    parameters = {
        "ingest": {"reader": "manifest", "settings": {"file": "samples.csv", "sample_id": "file"}},
        "backbone": {"source": str(project / "llava")},
        "data": {"modalities": {"image": {"kind": "image", "column": "file", "root": "pictures"},
                                "text": {"kind": "text", "column": "question"}},
                 "task": {"name": "classification", "label": "answer"}, "use_trunk": True},
        "validate": {"min_rows_per_split": 10, "severity": {"content.duplicate": "off"}},
        "train": {"epochs": 12, "patience": 12},
    }  # fmt: skip
    in_words = {"modalities": parameters["data"]["modalities"], "use_trunk": True,
                "task": {"name": "generation", "answer": "said", "metric": "exact_match"}}  # fmt: skip
    captions = {"modalities": {**parameters["data"]["modalities"], "text": {"kind": "text", "constant": "this is"}},
                "task": {"name": "generation", "answer": "caption"}, "use_trunk": True}  # fmt: skip
    turns = [
        {
            "id": name,
            "image": name,
            "conversations": [
                {"from": "human", "value": f"<image>\n{asked}"},
                {"from": "gpt", "value": said},
                {"from": "human", "value": "which one"},
                {"from": "gpt", "value": caption},
            ],
        }
        for name, _, asked, _, said, caption in csv.reader(rows[:120])
    ] + [{"id": "broken", "image": "0.png", "conversations": [{"from": "human", "value": "<image><image> which"}]}]
    (project / "talks.json").write_text(json.dumps(turns))
    talking = {"ingest": {"reader": "conversations", "settings": {"file": "talks.json"}, "split": {"seed": 1}},
               "data": {"modalities": {"image": {"kind": "image", "root": "pictures"}, "text": {"kind": "text"}},
                        "task": {"name": "generation", "answer": "answer"}, "use_trunk": True},
               "evaluate": {"answered": 4}}  # fmt: skip
    by_blip = {"data": captions, "backbone": {"source": str(project / "blip")}}
    talks = WORDS | {"train": WORDS["train"] | {"epochs": 2}}
    experiments = (
        ("talks", talking, talks),
        ("greys", {}, LORA),
        ("words", {"data": in_words}, WORDS),
        ("captions", by_blip, READING),
    )
    for name, changed, method in experiments:
        folder = experiment_in(project, name, parameters | changed)
        (folder / "methods").mkdir()
        (folder / "methods/lora.yml").write_text(yaml.safe_dump({"lora": method}, sort_keys=False))
    return project


def told(project, column):
    """A column of the samples, by picture."""
    with (project / "samples.csv").open() as file:
        return {row["file"]: row[column] for row in csv.DictReader(file)}


def requests(project, names):
    asked = told(project, "question")
    pictures = {name: base64.b64encode((project / "pictures" / name).read_bytes()).decode() for name in names}
    return [{"image": pictures[name], "text": asked[name]} for name in names]


def test_lora_in_the_language_blocks_from_raw_data_to_a_served_version(project):
    text = ran(project, "greys", "--pipelines", "train_lora")
    reported = project / "data/08_reporting/greys/lora"
    metrics = json.loads((reported / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] > 0.9 and max(metrics["unimodal"].values()) < 0.75, metrics
    adapter = project / "data/06_models/greys/lora/adapter_config.json"
    assert json.loads(adapter.read_text())["frontier"]["trunk"] == 2, "cached below the upper two of four blocks"
    assert "champion" in text and "up to date" in ran(project, "greys", "--pipelines", "train_lora")
    ran(project, "greys", "--pipelines", "predict")
    scored = pq.read_table(project / "data/07_model_output/greys/scored.parquet").to_pylist()
    expected = {row["sample_id"]: row["prediction"] for row in scored}
    names = list(expected)[:4]
    assert len({expected[name] for name in list(expected)}) == 2
    with served(project, "models:/fusetune-greys@champion") as ask:
        status, answer = ask(requests(project, names))
        assert status == 200, answer
        assert [a["prediction"] for a in json.loads(answer)["predictions"]] == [expected[n] for n in names]
    told_ = kedro(project, "run", "--env", "greys", "--pipelines", "export")
    text = " ".join((told_.stdout + told_.stderr).split())
    assert told_.returncode != 0 and "'lora' answers by a head of its own" in text, text


def test_answers_in_words_are_learned_from_the_cache(project):
    """The same pictures and questions; the model's own head says it, word by word."""
    ran(project, "words", "--pipelines", "train_lora", "--params", "evaluate.watched=20,evaluate.every=3")
    reported, truth = project / "data/08_reporting/words/lora", told(project, "said")
    metrics = json.loads((reported / "metrics.json").read_text())
    assert metrics["test"]["exact_match"] > 0.9 and metrics["test"]["perplexity"] < 2, metrics
    assert metrics["unimodal"] == {} and metrics["plain"] == {}
    assert len(metrics["shown"]) == 4, "the same samples after every epoch"
    curve = metrics["said_by_epoch"]
    assert [one["epoch"] for one in curve] == [3 * (i + 1) for i in range(len(curve))] and len(curve) > 1
    assert curve[-1]["exact_match"] > 0.8 and curve[-1]["exact_match"] >= curve[0]["exact_match"] >= 0
    for one in metrics["shown"]:
        assert next(iter(one["said"])) == "1" and len(one["said"]) > 5 and len(set(one["said"].values())) > 1
        assert one["right"] == [truth[one["sample_id"]]] and one["asked"]
    assert (reported / "figures/answers.png").is_file() and not (reported / "figures/confusion_matrix.png").exists()
    adapter = json.loads((project / "data/06_models/words/lora/adapter_config.json").read_text())
    assert adapter["frontier"] == {"towers": {"image": 3, "text": 0, "answer": 0}, "trunk": 2}
    assert set(adapter["streams"]) == {"image", "text"}
    ran(project, "words", "--pipelines", "predict")
    said = pq.read_table(project / "data/07_model_output/words/scored.parquet").to_pylist()
    expected = {row["sample_id"]: row["prediction"] for row in said}
    right = sum(row["prediction"] == truth[row["sample_id"]] for row in said) / len(said)
    assert right == pytest.approx(metrics["test"]["exact_match"]), "greedy decoding says what teacher forcing counts"
    names = list(expected)[:4]
    with served(project, "models:/fusetune-words@champion") as ask:
        status, answer = ask(requests(project, names))
        assert status == 200, answer
        assert [a["prediction"] for a in json.loads(answer)["predictions"]] == [expected[n] for n in names]
        drawn = [ask(requests(project, names), temperature=50.0, seed=seed) for seed in (1, 1, 2)]
        assert {status for status, _ in drawn} == {200} and drawn[0] == drawn[1] != drawn[2]
        assert ask(requests(project, names), beams=2, max_new_tokens=2)[0] == 200
        for wrong, told_ in (
            ({"max_new_tokens": 10_000}, "max_new_tokens: expected at most 64, what an answer has here"),
            ({"beams": 1000}, "decoding.beams: expected 1 to 16, found 1000"),
            ({"beams": 2, "temperature": 1.0}, "found 2 beams and temperature 1.0"),
        ):
            status, answer = ask(requests(project, names), **wrong)
            assert status == 400 and told_ in answer, answer
        assert ask(requests(project, names))[0] == 200
    rows = pq.read_table(project / "data/07_model_output/words/lora/predictions.parquet").to_pylist()
    assert {row["teacher_forced"] for row in rows if row["score"] == 1} == {"it is light", "dark, isn't it"}
    ran(project, "words", "--pipelines", "export")
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    exported = project / "data/06_models/words/exported"
    report = json.loads((exported / "fusetune_export.json").read_text())
    assert report["same_answers"] == report["samples"] == 50 and report["dtype"] == "float32"
    model = LlavaForConditionalGeneration.from_pretrained(exported).eval()
    processor = AutoProcessor.from_pretrained(exported)
    for name in names:
        asked = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": told(project, "question")[name]}]}
        ]
        prompt = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        picture = Image.open(project / "pictures" / name).convert("RGB")
        inputs = processor(text=[prompt], images=[picture], return_tensors="pt", add_special_tokens=False)
        out = model.generate(**inputs, max_new_tokens=20, do_sample=False, eos_token_id=2, pad_token_id=0)
        words = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert words.strip() == expected[name]
    assert "export: up to date" in ran(project, "words", "--pipelines", "export")
    done = kedro(project, "run", "--env", "words", "--pipelines", "train_wander")
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and "behind the last language block nothing reads what 'wander' makes" in text, text


def test_captions_of_a_model_that_reads_by_cross_attention(project):
    """BLIP; every sample is asked the same, which no column and no request has to say."""
    ran(project, "captions", "--pipelines", "train_lora")
    metrics = json.loads((project / "data/08_reporting/captions/lora/metrics.json").read_text())
    assert metrics["test"]["exact_match"] > 0.9, metrics
    ran(project, "captions", "--pipelines", "predict")
    said = pq.read_table(project / "data/07_model_output/captions/scored.parquet").to_pylist()
    expected, truth = {row["sample_id"]: row["prediction"] for row in said}, told(project, "caption")
    assert sum(expected[name] == truth[name] for name in expected) / len(expected) > 0.9
    names = list(expected)[:4]
    with served(project, "models:/fusetune-captions@champion") as ask:
        status, answer = ask([{"image": row["image"]} for row in requests(project, names)])
        assert status == 200, answer
        assert [a["prediction"] for a in json.loads(answer)["predictions"]] == [expected[n] for n in names]
        assert ask([{"image": None}])[0] == 400


def test_adapters_at_the_junction_stand_behind_the_language_blocks(project):
    ran(project, "greys", "--pipelines", "train_wander")
    adapter = json.loads((project / "data/06_models/greys/wander/adapter_config.json").read_text())
    assert adapter["frontier"]["trunk"] == 4
    entries = {folder.name.rpartition("-")[0] for folder in (project / "data/04_feature/store").iterdir()}
    assert {"image-trunk4", "text-trunk4"} <= entries


def test_a_trunk_that_is_switched_off_is_told(project):
    done = kedro(project, "run", "--env", "greys", "--pipelines", "train_wander", "--params", "data.use_trunk=false")
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and "data.use_trunk: expected true" in text, text


def test_conversations_in_turns_from_json_to_answers(project):
    """A broken one is set aside by name; the second answer is given behind the first turn."""
    text = " ".join(ran(project, "talks", "--pipelines", "train_lora").split())
    told_ = "validation: 1 of 241 rows set aside (quarantine.parquet): "
    assert told_ in text and "conversation.answer (conversation) 1, e.g. row 240: item 120, turn 0: expected an" in text
    assert "row 0: " in text, "what is shown and what is learned of some samples"
    aside = pq.read_table(project / "data/08_reporting/talks/quarantine.parquet").to_pylist()
    assert {row["check"] for row in aside if row["sample_id"] == "broken"} >= {"conversation.answer"}
    page = (project / "data/08_reporting/talks/validation_with_base.html").read_text()
    assert "what is learned" in page and "user: " in page
    ran(project, "talks", "--pipelines", "predict")
    rows = pq.read_table(project / "data/07_model_output/talks/scored.parquet").to_pylist()
    assert {row["sample_id"].rpartition("-")[2] for row in rows} == {"0", "1"} and all(r["prediction"] for r in rows)


@pytest.mark.slow
def test_two_devices_that_hold_a_half_of_the_blocks_each_say_the_same(project, tmp_path):
    report = project / "data/08_reporting/talks/lora/metrics.json"
    found = []
    for fsdp in ("true", "false"):
        text = ran(project, "talks", "--pipelines", "train_lora", "--params",
                   f"train.devices=2,train.device=cpu,train.seed=3,train.fsdp={fsdp}")  # fmt: skip
        assert ("of blocks lie in 2 parts" in text) == (fsdp == "true") and "lora: test " in text
        found.append(json.loads(report.read_text()))
    assert found[0] == found[1] and found[0]["said"]["samples"] == 4 and found[0]["shown"]
