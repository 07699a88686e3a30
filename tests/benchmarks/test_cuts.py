"""Epochs from the cut, from the inputs, and by `Trainer` and `peft`.

`pytest -m benchmark -s tests/benchmarks/test_cuts.py`. Environment: ROUNDS (3), SAMPLES (16), THREADS (1), PLANS
(names, separated by `;`), DEVICE (cpu), SIZE (mid: some 100 M parameters; tiny). Model, pictures, answers, batches of 4
are the same. By two processes, each with half of every batch: `torchrun --nproc_per_node 2 -m pytest ...`; then also
with half of every frozen block (`train.fsdp`). Predicted: what is measured from the inputs gives the rate, beside the
operations that Python launches.
"""

import os
import time
from collections.abc import Callable

import mid_size
import peft
import pytest
import torch
import transformers as tf
from measuring import in_turn, show

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.composite.loading import CompositeSource
from fusetune.config import build
from fusetune.features.index import CacheSettings
from fusetune.plan.cost import LAUNCH
from fusetune.plan.plan import Plan
from fusetune.runs.account import account
from fusetune.runs.experiment import Experiment
from fusetune.training.data import DataSettings, answering
from fusetune.training.distributed import Group, joined
from fusetune.training.epochs import Reporter
from fusetune.training.loop import train
from fusetune.training.settings import TrainSettings

SAMPLES, ROUNDS, BATCH = int(os.environ.get("SAMPLES", "16")), int(os.environ.get("ROUNDS", "3")), 4
CONFIG = {"rank": 8, "targets": ["query", "value"]}
DEVICE = torch.device(os.environ.get("DEVICE", "cpu"))
HEAD = {"where": "head", "adapter": "linear"}
CONNECTOR = {"where": "backbone", "adapter": "unfreeze", "config": {"parts": ["image"], "top_blocks": 1}}


def lora(blocks: int) -> dict:
    return {"where": "trunk", "adapter": "lora", "config": CONFIG, "blocks": {"take": "top", "count": blocks}}


PLANS = {"LoRA, top 2 blocks": lora(2), "LoRA, top half": lora(mid_size.DEPTH // 2), "connector": CONNECTOR}
DATA = build(
    DataSettings,
    {"modalities": {"image": {"kind": "image"}, "text": {"kind": "text"}},
     "task": {"name": "generation", "answer": "said", "max_answer_tokens": 16}},
    "data",
)  # fmt: skip


def ours(folder, table, placement, tmp_path, cut, group: Group, **more) -> tuple[Experiment, Callable[[], float]]:
    """The experiment, and what trains one epoch of it from a cut; seconds of its steps."""
    backbone = Backbone.from_composite(CompositeSource(str(folder)), {"image": "image", "text": "text"})
    plan = build(Plan, {"placements": [placement, HEAD]}, "plan")
    experiment = Experiment(table, answering(backbone, DATA), DATA, plan, 0, "p")
    cache = CacheSettings(dtype="float32", cut=cut, batch_size=4)
    features = experiment.extract(tmp_path / "store", cache, lambda *_: None, DEVICE)
    splits = {name: experiment.split(name, features, tmp_path / "store", DEVICE) for name in ("train", "val")}
    settings = TrainSettings(epochs=1, batch_size=BATCH, device=str(DEVICE), patience=1, autocast=False, **more)

    def epoch() -> float:
        key = group.first_says(str(time.perf_counter()))
        both = splits["train"], splits["val"]
        done = train(experiment.model, *both, settings, key, tmp_path / cut, Reporter(), group=group)
        return SAMPLES / done[0].samples_per_second

    return experiment, epoch


def plain(folder, experiment: Experiment, placement, tmp_path, group: Group) -> Callable[[], float]:
    """The same by `Trainer`: the whole model, in every step."""
    model = tf.LlavaForConditionalGeneration.from_pretrained(folder)
    model.requires_grad_(False)
    if placement is CONNECTOR:
        model.model.multi_modal_projector.requires_grad_(True)
    else:
        first = mid_size.DEPTH - placement["blocks"]["count"]
        numbers = "|".join(str(i) for i in range(first, mid_size.DEPTH))
        targets = rf".*language_model\.layers\.({numbers})\.self_attn\.(q|v)_proj"
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=8, target_modules=targets))
    processor = tf.AutoProcessor.from_pretrained(folder)
    trunk, rows = experiment.model.backbone.trunk, experiment.rows["train"]
    words, seeing = (experiment.model.backbone.tower(name) for name in ("text", "image"))
    pictures, places = experiment.source.decoded("image", rows), seeing.tokens_out(1)
    pixels = processor.image_processor([p[0] for p in pictures], return_tensors="pt")["pixel_values"]
    prompt = words.prepare([mid_size.TEXTS[0]]).values[0, :, 0].tolist()
    asked = [*prompt[: trunk.offset], *[trunk.composite.image_id] * places, *prompt[trunk.offset :]]
    data = []
    for picture, said in zip(pixels, experiment.column("said", "train"), strict=True):
        answer = experiment.task.words.ids(said)
        ids = torch.tensor([*asked, *answer])
        labels = torch.tensor([-100] * len(asked) + answer)
        data.append(
            {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), "pixel_values": picture}
        )

    def collate(batch):
        filled = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        joined = {
            key: torch.nn.utils.rnn.pad_sequence([row[key] for row in batch], True, fill)
            for key, fill in filled.items()
        }
        return joined | {"pixel_values": torch.stack([row["pixel_values"] for row in batch])}

    with torch.no_grad():
        own = model.to(DEVICE).eval()(**{key: value.to(DEVICE) for key, value in collate(data[:BATCH]).items()}).loss
        streams = experiment.model.backbone.prepare(
            {name: experiment.source.decoded(name, rows[:BATCH]) for name in experiment.source.modalities}
        )
        streams = {name: tokens.to(DEVICE) for name, tokens in streams.items()}
        ground = type(experiment.frontier)(dict.fromkeys(streams, 0))
        out = experiment.model(streams, ground)
        torch.testing.assert_close(
            experiment.task.loss(out, experiment.targets(rows[:BATCH]).to(DEVICE)), own, atol=1e-4, rtol=1e-4
        )
    arguments = tf.TrainingArguments(
        str(tmp_path / "trainer"), num_train_epochs=1, per_device_train_batch_size=BATCH // group.size, report_to=[],
        use_cpu=DEVICE.type == "cpu", save_strategy="no", logging_steps=1000, disable_tqdm=True,
        dataloader_pin_memory=False, max_grad_norm=1.0,
    )  # fmt: skip

    def epoch() -> float:
        trainer = tf.Trainer(model, arguments, train_dataset=data, data_collator=collate)
        return float(trainer.train().metrics["train_runtime"])

    return epoch


@pytest.mark.benchmark
def test_epochs_from_the_cut_beside_trainer_and_peft(tmp_path):
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    tf.logging.set_verbosity_error()
    folder, table = mid_size.saved(tmp_path / "llava"), mid_size.manifest(SAMPLES)
    with joined() as group:
        measured(folder, table, tmp_path, group)


def measured(folder, table, tmp_path, group: Group) -> None:
    rows = []
    for name in os.environ.get("PLANS", ";".join(PLANS)).split(";"):
        placement = PLANS[name]
        experiment, cached = ours(folder, table, placement, tmp_path, "frontier", group)
        whole, uncached = ours(folder, table, placement, tmp_path, "inputs", group)
        costs = account(whole, CacheSettings(dtype="float32"), BATCH)
        ways = {"cut": cached, "inputs": uncached, "Trainer": plain(folder, whole, placement, tmp_path, group)}
        if group.size > 1:
            ways |= {
                f"{cut}, divided": ours(folder, table, placement, tmp_path, cut, group, fsdp=True)[1]
                for cut in ("frontier", "inputs")
            }
        found = in_turn(ways, ROUNDS)
        batches = SAMPLES / BATCH
        arithmetic = found["inputs"] - costs.launches_uncached * LAUNCH * batches
        predicted = arithmetic * costs.flops / costs.flops_uncached + costs.launches * LAUNCH * batches
        times = found["inputs"] / found["cut"]
        rows.append(
            [name, str(experiment.frontier).replace("image ", "im ").replace(", text 0, answer 0", ""),
             f"{costs.flop_ratio:.2f}", f"{found['inputs']:.2f}", f"{found['cut']:.2f}", f"{times:.2f}",
             f"{times / costs.flop_ratio:.0%}", f"{predicted:.2f} ({predicted / found['cut'] - 1:+.0%})",
             f"{found['Trainer']:.2f}", f"{found['Trainer'] / found['cut']:.2f}",
             *(f"{seconds:.2f}" for way, seconds in found.items() if "divided" in way)]
        )  # fmt: skip
    headings = [
        "plan",
        "cut",
        "FLOP ratio",
        "inputs, s",
        "cut, s",
        "ratio",
        "of FLOPs'",
        "predicted, s",
        "Trainer, s",
        "x",
        *(["cut, divided, s", "inputs, divided, s"] if group.size > 1 else []),
    ]
    if group.rank == 0:
        show(f"An epoch of {SAMPLES} samples by {group.size}, medians of {ROUNDS}", headings, rows)
