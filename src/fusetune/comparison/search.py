"""The search for a method's settings, by Optuna: one study a method, in a journal of its own beside the cells."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fusetune.comparison.jobs import Shared, Tell, told
from fusetune.comparison.settings import SearchSpace
from fusetune.comparison.variants import Variant
from fusetune.config import digest
from fusetune.errors import FusetuneError
from fusetune.training.epochs import Epoch, Reporter
from fusetune.training.loop import train


def search(shared: Shared, variant: Variant, device: torch.device, tell: Tell) -> Mapping[str, Any]:
    """The best values by path; trials that are in the journal already are not run again.

    A trial trains with the variant's first seed, is judged by its best validation metric, and is pruned where it stays
    below the median of the others in the same epoch. A trial that was killed is run again, from its checkpoint.

    Raises:
        FusetuneError: no trial came to an end.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    wanted, file = shared.settings.search, record_file(shared, variant)
    file.parent.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(file.with_suffix(".journal"))))
    study = optuna.create_study(
        storage=storage,
        study_name=variant.name,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=wanted.startup, n_warmup_steps=wanted.warmup),
    )
    # a resumed study must not draw what it has drawn before
    study.sampler = optuna.samplers.TPESampler(seed=wanted.seed + len(study.trials), n_startup_trials=wanted.startup)
    states = optuna.trial.TrialState
    for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        study.tell(trial.number, state=states.FAIL)
        study.enqueue_trial(trial.params)
    ended = study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))

    def one(trial: Any) -> float:
        values = {path: _suggested(trial, path, space) for path, space in variant.search.items()}
        return _trained(shared, variant.found(values), device, trial, tell)

    def after(_: Any, trial: Any) -> None:
        tell("trial", None, _plain(trial))

    study.optimize(one, max(0, wanted.trials - len(ended)), catch=(Exception,), callbacks=[after])
    trials = [_plain(trial) for trial in study.trials if trial.state != states.WAITING]
    finished = [trial for trial in trials if trial["state"] == "complete"]
    if not finished:
        raise FusetuneError(f"{variant.name}: none of {len(trials)} trials came to an end; see {file.parent}.")
    found = {"best": dict(study.best_params), "trials": trials}
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1) + "\n")
    temporary.replace(file)
    return found["best"]  # type: ignore[return-value]


def finished_search(shared: Shared, variant: Variant) -> dict[str, Any] | None:
    """`best` and `trials` of a search that has come to its end; None where there is something left to do."""
    file = record_file(shared, variant)
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    ended = [trial for trial in found["trials"] if trial["state"] in ("complete", "pruned")]
    return found if len(ended) >= shared.settings.search.trials else None


def record_file(shared: Shared, variant: Variant) -> Path:
    """Named by all that determines a trial's result; the number of trials may grow."""
    settings = shared.training(variant, variant.seeds[0])
    key = digest([shared.code, shared.origin, variant.settings, settings, variant.share, variant.search])
    return shared.folder / "search" / f"{key[:32]}.json"


def _plain(trial: Any) -> dict[str, Any]:
    state, value = trial.state.name.lower(), trial.value
    return {"number": trial.number, "values": trial.params, "metric": value, "state": state}


def _suggested(trial: Any, path: str, space: SearchSpace) -> Any:
    if space.choices:
        return trial.suggest_categorical(path, list(space.choices))
    if space.whole:
        return trial.suggest_int(path, int(space.low or 0), int(space.high or 0), log=space.log)
    return trial.suggest_float(path, space.low, space.high, log=space.log)


def _trained(shared: Shared, variant: Variant, device: torch.device, trial: Any, tell: Tell) -> float:
    import optuna

    class Pruning(Reporter):
        def epoch(self, epoch: Epoch, best: bool) -> None:
            tell("epoch", None, epoch.number, epoch.val_metric)
            trial.report(epoch.val_metric, epoch.number)
            if trial.should_prune():
                raise optuna.TrialPruned

    seed = variant.seeds[0]
    try:
        experiment = shared.experiment(variant, seed)
        features = experiment.extract(shared.store, shared.cache, lambda *_: None, device)
        splits = experiment.splits(features, shared.store, device, ("train", "val"))
        key = shared.key(experiment, features, variant, seed)
        settings = shared.training(variant, seed, str(device))
        folder = shared.folder / "checkpoints" / key[:16]
        epochs = train(experiment.model, splits["train"], splits["val"], settings, key, folder, Pruning())
    except optuna.TrialPruned:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except Exception as error:
        tell("note", None, f"{variant.name}, trial {trial.number} {trial.params}: {told(error)}")
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return max(epoch.val_metric for epoch in epochs)
