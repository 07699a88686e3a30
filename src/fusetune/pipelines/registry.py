"""The registry: an experiment's adapters as versions of one registered model in MLflow, and which one is champion.

A version is made whole or not at all: its files first, then one entry with all its tags. What follows (aliases, the
decision) can be repeated, and a run that was killed before it is made up for by the next. Processes of one project take
turns.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fusetune.config import check
from fusetune.errors import FusetuneError

logger = logging.getLogger(__name__)
CHALLENGER, CHAMPION = "challenger", "champion"
HISTORY = "champion_history"  # versions, the present champion last
SCORES = "evaluation.parquet"  # beside the adapter: each test sample's own score


@dataclass(frozen=True)
class RegisterSettings:
    """
    Attributes:
        model_name: the registered model's name; every method of an experiment is a version of it.
        min_gain: how much better than the champion a version has to be on the same test samples, beyond doubt: the
            lower end of the interval of the difference (paired bootstrap, as `evaluate` says) has to be above it.
    """

    model_name: str
    min_gain: float = 0.0

    def __post_init__(self) -> None:
        check(bool(self.model_name), "register.model_name: expected a name, found ''.")
        check(self.min_gain >= 0, f"register.min_gain: expected a number of at least 0, found {self.min_gain}.")


@dataclass(frozen=True)
class Decision:
    """Whether a version is the champion now, and the numbers behind it.

    Attributes:
        gain, low, high: mean difference to the champion by sample, and its interval; None where nothing was compared.
    """

    version: str
    champion: bool
    reason: str
    held: str | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None


class Registry:
    """One registered model.

    Args:
        evaluation: what `evaluate` says: of the interval of a difference.
    """

    def __init__(self, settings: RegisterSettings, evaluation: Mapping[str, Any]) -> None:
        import mlflow

        self.settings, self.evaluation, self.name = settings, evaluation, settings.model_name
        self.client = mlflow.MlflowClient()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process of this project at a time."""
        from fusetune.hooks import database_lock
        from fusetune.pipelines.parameters import conf_folder

        with database_lock(conf_folder().parent):
            yield

    def same_bytes(self, adapter_hash: str) -> Any:
        """The version that holds this very adapter; None if there is none."""
        found = self.client.search_model_versions(f"name = '{self.name}' and tag.adapter_sha256 = '{adapter_hash}'")
        return next(iter(found), None)

    def create(self, model_uri: str, tags: Mapping[str, str]) -> str:
        """A new version of a model that has been logged; returns its number."""
        import mlflow

        return str(mlflow.register_model(model_uri, self.name, tags=dict(tags)).version)

    def version(self, number_or_alias: str) -> Any:
        """A version by its number or an alias.

        Raises:
            FusetuneError: there is none; it lists what there is.
        """
        found = self._find(number_or_alias)
        if found is None:
            there = sorted(int(v.version) for v in self.client.search_model_versions(f"name = '{self.name}'"))
            raise FusetuneError(
                f"registered model '{self.name}' has no version or alias '{number_or_alias}'. Versions: "
                f"{', '.join(map(str, there)) or 'none, train a method first'}."
            )
        return found

    def challenge(self, version: str) -> Decision:
        """Make a version the challenger, and the champion if it beats the present one beyond doubt, or is the first."""
        self.client.set_registered_model_alias(self.name, CHALLENGER, version)
        decision = self.compare(version)
        if decision.held != version:
            if decision.champion:
                self.crown(version)
            self.client.set_model_version_tag(self.name, version, "champion_decision", decision.reason)
            tags = self.version(version).tags
            told = (
                f"{tags['method']}: {tags['metric']} {float(tags['value']):.3f}, {tags['trainable_parameters']} trained"
            )
            self.client.update_model_version(self.name, version, told)
        return decision

    def compare(self, version: str) -> Decision:
        """What `challenge` would decide."""
        own, champion = self.version(version), self._find(CHAMPION)
        if champion is None:
            return Decision(version, True, "the first champion")
        held = str(champion.version)
        if held == version:
            return Decision(version, True, "the champion already", held)
        metric = own.tags["metric"]
        if champion.tags.get("test_data_sha256") != own.tags["test_data_sha256"]:
            return Decision(version, False, f"champion {held} was tested on other data: no comparison, it stays", held)
        try:
            gain, low, high = self._difference(version, held)
        except FusetuneError as error:
            return Decision(version, False, f"{error} No comparison, champion {held} stays.", held)
        wins = low > self.settings.min_gain
        reason = (
            f"{metric} {float(own.tags['value']):.4f} against champion {held}'s {float(champion.tags['value']):.4f}: "
            f"{gain:+.4f} ({low:+.4f} to {high:+.4f}), {'beyond' if wins else 'not beyond'} {self.settings.min_gain:g}"
        )
        return Decision(version, wins, reason, held, gain, low, high)

    def crown(self, version: str) -> None:
        """Move the alias `champion`, and remember whose it was."""
        history = self.history()
        self.client.set_registered_model_alias(self.name, CHAMPION, version)
        if history[-1:] != [version]:
            self._remember([*history, version])

    def rollback(self) -> str:
        """Give the alias back to the champion before; returns its version. Raises FusetuneError if there was none."""
        history = self.history()
        check(len(history) > 1, f"registered model '{self.name}': no champion before this one to go back to.")
        self.client.set_registered_model_alias(self.name, CHAMPION, history[-2])
        self._remember(history[:-1])
        return history[-2]

    def history(self) -> list[str]:
        """Versions that were champion, the present one last; what was rolled back is gone from it."""
        model = next(iter(self.client.search_registered_models(f"name = '{self.name}'")), None)
        if model and HISTORY in model.tags:
            return json.loads(model.tags[HISTORY])
        champion = self._find(CHAMPION)
        return [str(champion.version)] if champion else []

    def _remember(self, history: list[str]) -> None:
        self.client.set_registered_model_tag(self.name, HISTORY, json.dumps(history))

    def _find(self, number_or_alias: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            if number_or_alias.isdigit():
                return self.client.get_model_version(self.name, number_or_alias)
            return self.client.get_model_version_by_alias(self.name, number_or_alias)
        except MlflowException:
            return None

    def _difference(self, version: str, held: str) -> tuple[float, float, float]:
        """Mean of the differences by sample, and its bootstrap interval."""
        import numpy as np

        from fusetune.config import build
        from fusetune.training.evaluation import EvaluationSettings, bootstrap_interval

        own, theirs = self._scores(version), self._scores(held)
        differences = np.array([own[sample] - theirs[sample] for sample in sorted(own)])
        low, high = bootstrap_interval(differences, build(EvaluationSettings, self.evaluation, "evaluate"))
        return float(differences.mean()), low, high

    def _scores(self, version: str) -> dict[str, float]:
        import mlflow
        import pyarrow.parquet as pq
        from mlflow.exceptions import MlflowException

        try:
            file = mlflow.artifacts.download_artifacts(f"models:/{self.name}/{version}/artifacts/{SCORES}")
        except (MlflowException, OSError):
            raise FusetuneError(f"Version {version} was registered without the scores of its test samples.") from None
        table = pq.read_table(file)
        return dict(zip(table["sample_id"].to_pylist(), table["score"].to_pylist(), strict=True))
