"""Artifacts whose every trained tensor is random (a new adapter often changes nothing), and their answers alone."""

import encoders
import torch

from fusetune.adapters.adapter import Stream
from fusetune.backbones.backbone import Frontier
from fusetune.bank.artifact import Artifact
from fusetune.config import build
from fusetune.plan.adapted import AdaptedModel
from fusetune.plan.frontier import frontier
from fusetune.plan.plan import Plan
from fusetune.training.data import make_task

GROUND = Frontier({"left": 0, "right": 0})
HEAD = {"where": "head", "adapter": "linear"}
SAMPLES = {"image": encoders.pictures(2, 1, 0, 3), "text": encoders.TEXTS, "sound": encoders.waves()}


def made(toy, name, *placements, seed=0, **data):
    """An artifact whose every trained tensor is random: a new adapter often changes nothing."""
    experiment = toy.experiment(*placements, seed=seed, **data)
    model = experiment.model
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.fold()
    folder = toy.folder / name
    Artifact.of(model, experiment.data, name, "", experiment.frontier).save_pretrained(folder)
    return folder


def samples(toy, rows):
    experiment = toy.experiment()
    columns = {m: experiment.source.decoded(m, rows) for m in ("left", "right")}
    columns["left"][1] = columns["right"][2] = None
    return columns


def alone(toy, folder, columns, row):
    model = Artifact.from_pretrained(folder).build(toy.base)
    return of_row(model, columns, row)


def of_row(model, columns, row):
    streams = model.backbone.prepare({m: [column[row]] for m, column in columns.items()})
    with torch.no_grad():
        return model(streams, GROUND)[0]


def model_of(backbone, settings, *placements, seed=0, samples=SAMPLES):
    """A model whose trained tensors are random, and its frontier."""
    torch.manual_seed(seed)
    task = make_task(settings.task)
    task.restore({"labels": ["a", "b", "c"]})
    streams = {n: Stream(32, 256) for n in settings.modalities}
    plan = build(Plan, {"placements": [*placements, HEAD]}, "plan")
    made = AdaptedModel(backbone, plan, task, streams)
    with torch.no_grad():
        for parameter in made.trainable().values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    inputs = backbone.prepare({n: [samples[n][0]] for n in settings.modalities})
    return made.eval(), frontier(made, inputs)
