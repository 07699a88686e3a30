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
CHALLENGES = "champion_challenges"  # on which data, and how many of them
DESCRIPTION = (
    "Adapters of one experiment, a version each. `champion` beats those before it on validation samples beyond doubt, "
    "`challenger` came last. Asked by `kedro run --pipelines predict`, served by "
    "`mlflow models serve -m 'models:/{name}@champion'`."
)
SCORES = "evaluation.parquet"  # beside the adapter: each validation and test sample's own score


@dataclass(frozen=True)
class RegisterSettings:
    """
    Attributes:
        model_name: the registered model's name; every method of an experiment is a version of it.
        min_gain: how much better than the champion a version has to be on the same validation samples, beyond doubt:
            the lower end of the interval of the difference (paired, over groups of samples, with the confidence that
            `evaluate` names, shared out over all challenges: `comparison.promotion`) has to be above it.
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
        gain, low, high: mean difference to the champion by validation sample, and its interval; None where nothing was
            compared.
        number: of the challenge on these data, from 1.
    """

    version: str
    champion: bool
    reason: str
    held: str | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    number: int | None = None


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
        from fusetune.pipelines.conf_source import project_root

        with database_lock(project_root()):
            yield

    def same_bytes(self, adapter_hash: str) -> Any:
        """The version that holds this very adapter; None if there is none."""
        found = self.client.search_model_versions(f"name = '{self.name}' and tag.adapter_sha256 = '{adapter_hash}'")
        return next(iter(found), None)

    def create(self, model_uri: str, tags: Mapping[str, str]) -> str:
        """A new version of a model that has been logged; returns its number."""
        import mlflow

        version = str(mlflow.register_model(model_uri, self.name, tags=dict(tags)).version)
        if version == "1":
            self.client.update_registered_model(self.name, DESCRIPTION.format(name=self.name))
        return version

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
        metric, data = own.tags["metric"], own.tags.get("validation_data_sha256")
        if data is None or champion.tags.get("validation_data_sha256") != data:
            return Decision(
                version, False, f"champion {held} was validated on other data: no comparison, it stays", held
            )
        try:
            scores = self._scores(version), self._scores(held)
        except FusetuneError as error:
            return Decision(version, False, f"{error} No comparison, champion {held} stays.", held)
        number = self._number(own, held, data)
        found = self._difference(*scores, number)
        wins = found.low > self.settings.min_gain

        def of_both(tag: str) -> str:
            return f"{float(own.tags[tag]):.4f} against champion {held}'s {float(champion.tags[tag]):.4f}"

        reason = (
            f"validation {metric} {of_both('validation_value')}: {found.value:+.4f} ({found.low:+.4f} to "
            f"{found.high:+.4f}, challenge {number}), {'beyond' if wins else 'not beyond'} {self.settings.min_gain:g}; "
            f"test {of_both('value')}"
        )
        return Decision(version, wins, reason, held, found.value, found.low, found.high, number)

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

    def _number(self, own: Any, held: str, data: str) -> int:
        """Which challenge on these data it is that this version makes to champion `held`; the same one counts once."""
        tag = f"challenge_of_{held}_on_{data[:12]}"
        if tag in own.tags:
            return int(own.tags[tag])
        model = self.client.get_registered_model(self.name)
        counts = json.loads(model.tags.get(CHALLENGES, "{}"))
        number = counts[data[:12]] = counts.get(data[:12], 0) + 1
        self.client.set_registered_model_tag(self.name, CHALLENGES, json.dumps(counts))
        self.client.set_model_version_tag(self.name, str(own.version), tag, str(number))
        return number

    def _difference(self, own: Any, theirs: Any, number: int) -> Any:
        """On the validation samples; both tables are sorted by sample."""
        from fusetune.comparison.promotion import challenged
        from fusetune.config import build
        from fusetune.training.evaluation import EvaluationSettings

        confidence = build(EvaluationSettings, self.evaluation, "evaluate").confidence
        return challenged(own["score"].to_numpy(), theirs["score"].to_numpy(), own["group_id"].to_pylist(), number,
                          confidence)  # fmt: skip

    def _scores(self, version: str) -> Any:
        """Of the validation samples, a pyarrow table."""
        import mlflow
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
        from mlflow.exceptions import MlflowException

        try:
            file = mlflow.artifacts.download_artifacts(f"models:/{self.name}/{version}/artifacts/{SCORES}")
        except (MlflowException, OSError):
            raise FusetuneError(f"Version {version} was registered without the scores of its samples.") from None
        table = pq.read_table(file)
        return table.filter(pc.equal(table["split"], "val")).sort_by("sample_id")
