"""A task that has labels in one language, asked in others: adapters of languages below those of the task.

Of each language an adapter is trained once, without labels of the task: on translations (`tasks.translated`: its text
becomes what the bare encoder makes of the source's text of the same sample), or on its text alone
(`tasks.masked_words`). The task's method is then trained on top of the source's, frozen, and asked in another language
with that one's in its place (MAD-X, Pfeiffer et al., EMNLP 2020). Beside it stand the same method without any language
adapter, and what it reaches where labels are in the language itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from fusetune.adapters.language import languages_in
from fusetune.bank.artifact import Artifact
from fusetune.config import build, check, to_plain
from fusetune.features.orders import batches
from fusetune.plan.plan import Plan
from fusetune.runs.baselines import plain_baselines
from fusetune.runs.experiment import Experiment
from fusetune.runs.language_rows import TEXT, CrossLingualSettings, Languages
from fusetune.runs.testing import TrainingResult, tested
from fusetune.runs.workplace import Workplace
from fusetune.tasks.masked_words import MaskedWordsConfig
from fusetune.tasks.translated import TranslatedConfig
from fusetune.training.data import DataSettings, TaskRows, load_backbone
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.predicting import predict
from fusetune.training.settings import TrainSettings

BARE, SWAPPED, OWN = "no language adapter", "language adapters", "labels of the language itself"
BATCH = 256


def text_of(data: DataSettings, settings: CrossLingualSettings) -> tuple[str, DataSettings]:
    """The modality of the text, and the data with it in the column `TEXT`.

    Raises:
        FusetuneError: no text, or several and none is chosen.
    """
    texts = [name for name, modality in data.modalities.items() if modality.kind == "text"]
    text, known = settings.modality or (texts[0] if len(texts) == 1 else ""), ", ".join(texts) or "(there is none)"
    check(text in texts, f"cross_lingual.modality: expected one of the texts {known}, found '{text}'.")
    return text, replace(data, modalities={**data.modalities, text: replace(data.modalities[text], column=TEXT)})


class ByLanguage(dict[str, Artifact]):
    """An adapter a language: the task's, on top of that language's."""

    def save_pretrained(self, folder: Path) -> None:
        for name, artifact in self.items():
            artifact.save_pretrained(folder / name)


@dataclass
class Speakers:
    """One task, one base, several languages.

    Attributes:
        data: of the experiment; its text stands in the column `language_rows.TEXT`.
        plan: the method's.
    """

    languages: Languages
    base: Path
    data: DataSettings
    plan: Plan
    train: TrainSettings
    evaluation: EvaluationSettings
    work: Workplace

    @property
    def settings(self) -> CrossLingualSettings:
        return self.languages.settings

    @property
    def text(self) -> str:
        return self.languages.text

    @property
    def alone(self) -> DataSettings:
        """The text and nothing else."""
        return replace(self.data, modalities={self.text: self.data.modalities[self.text]})

    def stacked(self) -> Plan:
        """The method on top of a frozen language adapter."""
        config = {"bottleneck_dim": self.settings.bottleneck_dim, "frozen": True}
        count = self.settings.blocks
        taken = {"take": "top", "count": count} if count else {"take": "all"}
        blocks = {**taken, "modalities": [self.text]}
        placed = {"where": "towers", "adapter": "language", "blocks": blocks, "config": config}
        return build(Plan, {**to_plain(self.plan), "placements": [placed, *to_plain(self.plan.placements)]}, "plan")

    def language(self, name: str) -> tuple[list[dict[str, Tensor]], dict[str, float]]:
        """The tensors of a language's adapter, a tower's each, and how well it does what it was trained on."""
        alone = self.alone
        if self.settings.objective == "translations":
            table = self.languages.rows(name)
            task = to_plain(TranslatedConfig(self.text))
            table = table.append_column(task["vector"], pa.array(list(self.vectors)))
            alone = replace(alone, task={"name": "translated", **task})
        else:
            tower = load_backbone(self.base, alone).tower(self.text)
            table, left_out = self.languages.masked(name, tower)
            alone = replace(alone, task={"name": "masked_words", **to_plain(MaskedWordsConfig(self.text))})
        placed = to_plain(self.stacked().placements[0])
        placed["config"]["frozen"] = False
        plan = build(Plan, {"placements": [placed, {"where": "head", "adapter": "linear"}]}, "language")
        seed = self.settings.seeds[0]
        experiment = Experiment(table, load_backbone(self.base, alone), alone, plan, seed, f"language {name}")
        settings = replace(self.train, epochs=self.settings.epochs, patience=self.settings.epochs, seed=seed)
        splits, _ = self.work.trained(experiment, settings)
        outputs, _ = predict(experiment.model, splits["val"], BATCH)
        told = experiment.task.metrics(outputs, splits["val"].targets)
        if self.settings.objective == "masked_words":
            told["left_out"] = float(left_out)
        return [
            {key: value.detach().cpu().clone() for key, value in adapter.state_dict().items()}
            for adapter in languages_in(experiment.model)
        ], told

    @cached_property
    @torch.no_grad()
    def vectors(self) -> np.ndarray:
        """(rows, width): what the bare encoder makes of the source's text."""
        backbone = load_backbone(self.base, self.alone).to(self.work.device)
        texts = self.languages.rows(self.settings.source)[TEXT].to_pylist()
        tower, found = backbone.tower(self.text), []
        for index in batches(len(texts), BATCH):
            tokens = tower.prepare([texts[i] for i in index.tolist()]).to(self.work.device)
            found.append(tower.advance(tokens, 0, tower.depth).pooled().float().cpu())
        return torch.cat(found).numpy()

    def taught(
        self,
        table: pa.Table,
        plan: Plan,
        seed: int,
        languages: Sequence[dict[str, Tensor]] = (),
        start: Experiment | None = None,
    ) -> tuple[Experiment, TrainingResult]:
        """An experiment, trained and tested; on top of the given language's adapters, from where another one ended."""
        experiment = Experiment(table, load_backbone(self.base, self.data), self.data, plan, seed, self.settings.method)
        if start is not None:
            go_on(experiment, start)
        take(experiment, languages)
        settings = replace(self.train, seed=seed)
        splits, epochs = self.work.trained(experiment, settings)
        return experiment, tested(experiment, splits, epochs, settings, self.evaluation, self.settings.method, {})

    def asked(self, experiment: Experiment, language: str, tensors: Sequence[dict[str, Tensor]] = ()) -> float:
        """The metric of what was trained, on test rows in another language, by that one's adapters."""
        table, backbone = self.languages.rows(language), load_backbone(self.base, self.data)
        other = Experiment(table, backbone, self.data, experiment.model.plan, 0, language)
        go_on(other, experiment)
        take(other, tensors)
        other.task.restore(experiment.task.state())
        splits, _ = self.work.splits(other)
        outputs, _ = predict(other.model.to(self.work.device), splits["test"], BATCH)
        return float(other.task.metrics(outputs, splits["test"].targets)[other.task.metric])

    def adapter_of(self, artifact: Artifact, language: str, tensors: Sequence[Mapping[str, Tensor]]) -> Artifact:
        """The task's adapter on top of a language's, for a table with that language's column."""
        own = {f"blocks.{i}.{key}": value for i, one in enumerate(tensors) for key, value in one.items()}
        modalities = {**artifact.config["data"]["modalities"]}
        modalities[self.text] = {**modalities[self.text], "column": self.settings.languages[language]}
        config = {**artifact.config, "data": {**artifact.config["data"], "modalities": modalities}}
        return replace(artifact, config=config, tensors={**artifact.tensors, **own})


@torch.no_grad()
def go_on(experiment: Experiment, start: Experiment) -> None:
    """Have what another model of the same plan has come to."""
    known = start.model.kept()
    for name, value in experiment.model.kept().items():
        check(
            value.shape == known[name].shape,
            f"cross_lingual.labels: '{name}' has shape {tuple(value.shape)}, {tuple(known[name].shape)} where "
            "labels are many: the few rows don't have every one. Expected a larger share.",
        )
        value.copy_(known[name])


def take(experiment: Experiment, tensors: Sequence[Mapping[str, Tensor]]) -> None:
    """Let a model's language adapters be another language's."""
    for adapter, own in zip(languages_in(experiment.model), tensors, strict=False):
        adapter.take(own, "cross_lingual")


def cross_lingual(speakers: Speakers, tell: Callable[[str], Any] = lambda _: None) -> tuple[dict[str, Any], ByLanguage]:
    """JSON-ready results by language, arm and seed, and an adapter of each language."""
    settings, source = speakers.settings, speakers.settings.source
    others = [name for name in settings.languages if name != source]
    trained: dict[str, list[dict[str, Tensor]]] = {}
    told: dict[str, Any] = {"source": source, "objective": settings.objective, "adapters": {}, "languages": {}}
    for name in settings.languages:
        if name == source and settings.objective == "translations":
            continue  # nothing would change: it is what the others come to
        trained[name], told["adapters"][name] = speakers.language(name)
        tell(f"adapter of {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in told["adapters"][name].items()))
    artifacts = ByLanguage()
    for name in settings.languages:
        baselines = plain_baselines(TaskRows(speakers.languages.asked_in(name), speakers.data))
        told["languages"][name] = {"plain": baselines, BARE: {}, SWAPPED: {}, OWN: {}}
    here = trained.get(source, ())
    for seed in settings.seeds:
        of_source = speakers.languages.rows(source)
        bare, _ = speakers.taught(of_source, speakers.plan, seed)
        stacked, result = speakers.taught(of_source, speakers.stacked(), seed, here)
        told["metric"] = result.metrics["metric"]
        for name in settings.languages:
            own, there = told["languages"][name], trained.get(name, ())
            plain, swapped, final = bare, stacked, result
            if settings.labels and name in others:
                plain, _ = speakers.taught(speakers.languages.with_labels(name), speakers.plan, seed)
                few = speakers.languages.labelled(name)
                swapped, final = speakers.taught(few, speakers.stacked(), seed, there, stacked)
            own[BARE][str(seed)] = speakers.asked(plain, name)
            own[SWAPPED][str(seed)] = speakers.asked(swapped, name, there)
            if name in others:
                itself, _ = speakers.taught(speakers.languages.rows(name), speakers.plan, seed)
                own[OWN][str(seed)] = speakers.asked(itself, name)
            if seed == settings.seeds[0]:
                artifacts[name] = speakers.adapter_of(final.artifact, name, there)
            reached = (f"{arm} {own[arm][str(seed)]:.3f}" for arm in (BARE, SWAPPED, OWN) if own[arm])
            tell(f"{name}, seed {seed}: {', '.join(reached)}")
    return told, artifacts
