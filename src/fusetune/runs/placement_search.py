"""What to place where, under a budget: plans are drawn by a multi-objective sampler, trained for a while, and weighed.

A plan is drawn site by site: for each tower and the trunk nothing, LoRA or a bottleneck in its upper blocks, of some
rank; at the junction nothing or a fusion of some rank; a head. Two things count, the validation metric and the cost,
and the sampler (TPE with several objectives, Ozaki et al., GECCO 2020) looks for plans that no other beats in both;
with a budget it looks for the best metric within it, and a plan that costs more is not trained. Each kind of adapter is
tried by itself first, as large as the budget allows, then in the blocks that a guide names (`sensitivity`). The best
plan is then trained whole, with seeds, beside the presets that the budget allows: it is said whether it beats them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow as pa

from fusetune.backbones.backbone import Backbone
from fusetune.config import build, check
from fusetune.errors import FusetuneError
from fusetune.plan.plan import Plan
from fusetune.runs.account import account
from fusetune.runs.drawn_plans import drawn, tried_first
from fusetune.runs.experiment import Experiment
from fusetune.runs.sensitivity import sensitivities, upper_blocks
from fusetune.runs.testing import tested
from fusetune.runs.workplace import Workplace
from fusetune.training.data import DataSettings, load_backbone, make_task
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.settings import of_method

COSTS = ("parameters", "flops")
OVER = "over the budget"


@dataclass(frozen=True)
class SearchSettings:
    """
    Attributes:
        budget: of the cost, at most; None: any.
        cost: parameters (trained ones, the head's included) or flops (of a sample in a training step, above the cut).
        trials: plans that are drawn, those above the budget included.
        startup: of these at random.
        epochs: of a trial.
        inside: adapters that may stand in blocks.
        junction: that may stand at the junction.
        heads: one of which answers.
        ranks: sizes to choose from.
        guide: whether the loss is asked first in which blocks a change would matter.
        presets: methods that stand beside what is found.
        seeds: with which the best of both are trained whole.
        seed: of the sampler and of trials.
    """

    budget: float | None = None
    cost: str = "parameters"
    trials: int = 30
    startup: int = 10
    epochs: int = 5
    inside: tuple[str, ...] = ("lora", "bottleneck")
    junction: tuple[str, ...] = ("wander", "cross_modal", "lmf")
    heads: tuple[str, ...] = ("linear", "mlp")
    ranks: tuple[int, ...] = (4, 8, 16, 32, 64)
    guide: bool = True
    presets: tuple[str, ...] = ("linear_probe", "late_fusion", "wander", "cross_modal", "lora", "adapter")
    seeds: tuple[int, ...] = (0, 1, 2)
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.cost in COSTS, f"cost: expected one of {', '.join(COSTS)}, found '{self.cost}'.")
        check(self.budget is None or self.budget > 0, f"budget: expected a positive number, found {self.budget}.")
        for name in ("trials", "epochs"):
            check(getattr(self, name) > 0, f"{name}: expected at least 1, found {getattr(self, name)}.")
        for name in ("heads", "ranks", "seeds"):
            check(bool(getattr(self, name)), f"{name}: expected at least one.")


@dataclass(frozen=True)
class Ground:
    """What plans are tried on."""

    table: pa.Table
    base: Path
    data: DataSettings
    methods: Mapping[str, Any]
    train: Mapping[str, Any]
    evaluation: EvaluationSettings
    work: Workplace
    lengths: Mapping[str, int] | None = None

    def experiment(self, plan: Plan, seed: int, where: str) -> Experiment:
        return Experiment(self.table, load_backbone(self.base, self.data), self.data, plan, seed, where, self.lengths)

    def cost(self, experiment: Experiment, of: str) -> float:
        if of == "parameters":
            return float(experiment.model.trainable_count())
        return float(account(experiment, self.work.cache).flops)

    def whole(self, name: str, method: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
        """Test and validation metrics of a method by seed, trained as it says itself."""
        plan, found = build(Plan, method, name), {}
        for seed in seeds:
            experiment, settings = (
                self.experiment(plan, seed, name),
                replace(of_method(self.train, method, name), seed=seed),
            )
            splits, epochs = self.work.trained(experiment, settings)
            metrics = tested(experiment, splits, epochs, settings, self.evaluation, name, {}).metrics
            found[str(seed)] = {"test": metrics["test"][metrics["metric"]], "validation": metrics["validation"]}
        return found


def sites(backbone: Backbone, data: DataSettings) -> dict[str, int]:
    """The stacks in whose blocks something can be placed, and how many blocks each has."""
    names = [*data.modalities, *(["trunk"] if backbone.trunk else [])]
    stacks = {name: backbone.stack(name) for name in names}
    return {n: len(s.blocks()) for n, s in stacks.items() if s.roles()}  # type: ignore[operator]


def search(ground: Ground, settings: SearchSettings, tell: Callable[[str], Any] = lambda _: None) -> dict[str, Any]:
    """JSON-ready: every plan that was drawn, the front of those that nothing beats, and the best beside the presets.

    Raises:
        FusetuneError: no plan within the budget could be trained.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    stacks = sites(load_backbone(ground.base, ground.data), ground.data)
    task = make_task(ground.data.task)
    fuses = task.fuses or bool(task.fused_apart())
    budget = settings.budget or float("inf")
    trials: list[dict[str, Any]] = []

    def one(trial: Any) -> float | tuple[float, float]:
        method = drawn(trial, stacks, fuses, settings)
        seen = next((other for other in trials if other["method"] == method), None)
        made = {**(seen or _tried(ground, method, settings, budget)), "number": trial.number}
        trials.append(made)
        if "cost" in made:
            trial.set_constraint(OVER, made["cost"] - budget if settings.budget else -1.0)
        if made["metric"] is None:
            raise optuna.TrialPruned
        what = f"{_short(method)}{' (as before)' if seen else ''}"
        tell(f"trial {trial.number}: {made['metric']:.3f} at {made['cost']:,.0f} {settings.cost}, {what}")
        return made["metric"] if settings.budget else (made["metric"], made["cost"])

    study = optuna.create_study(
        directions=["maximize"] if settings.budget else ["maximize", "minimize"],
        sampler=optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=settings.startup),
    )
    price = partial(_cost, ground, settings.cost)
    shares = _guide(ground, stacks, settings, tell)
    for chosen in tried_first(stacks, fuses, settings, price, budget, upper_blocks(shares)):
        study.enqueue_trial(chosen, skip_if_exists=True)
    study.optimize(one, settings.trials)
    ended = [trial for trial in trials if trial["metric"] is not None]
    check(bool(ended), f"search: none of {len(trials)} plans could be trained: {trials[-1].get('why')}.")
    front = [t["number"] for t in ended if not any(_beats(other, t) for other in ended)]
    best = max(ended, key=lambda trial: (trial["metric"], -trial["cost"]))
    found = ground.whole("found", best["method"], settings.seeds)
    beside = _presets(ground, settings, budget, tell)
    told = {"metric": make_task(ground.data.task).metric, "cost": settings.cost, "budget": settings.budget,
            "sensitivity": shares, "trials": trials, "front": front, "best": best, "found": found,
            "presets": beside}  # fmt: skip
    return told | {"verdict": verdict(told)}


def _guide(
    ground: Ground, stacks: Mapping[str, int], settings: SearchSettings, tell: Callable[[str], Any]
) -> dict[str, list[float]]:
    """What the loss says of the blocks that something may stand in; {} where nothing may or no bottleneck fits."""
    if not (settings.guide and settings.inside and stacks):
        return {}
    chosen = replace(of_method(ground.train, {}, "search"), epochs=settings.epochs, seed=settings.seed)
    try:
        shares = sensitivities(ground.experiment, ground.work, stacks, chosen)
    except FusetuneError as error:
        tell(f"no guide: {error}")
        return {}
    tell("sensitivity, bottom to top: " + "; ".join(
        f"{name} {' '.join(f'{share:.0%}' for share in own)}" for name, own in shares.items()
    ))  # fmt: skip
    return shares


def _cost(ground: Ground, of: str, method: Mapping[str, Any]) -> float:
    """Infinite, of a plan that doesn't fit the data."""
    try:
        return ground.cost(ground.experiment(build(Plan, method, "search"), 0, "search"), of)
    except FusetuneError:
        return float("inf")


def _tried(ground: Ground, method: dict[str, Any], settings: SearchSettings, budget: float) -> dict[str, Any]:
    """A plan's cost and, within the budget, the validation metric that it reaches in a few epochs; why not, if not."""
    made: dict[str, Any] = {"method": method, "metric": None}
    try:
        experiment = ground.experiment(build(Plan, method, "search"), settings.seed, "search")
        made["cost"] = ground.cost(experiment, settings.cost)
        if made["cost"] > budget:
            return {**made, "why": "above the budget"}
        chosen = replace(of_method(ground.train, {}, "search"), epochs=settings.epochs, seed=settings.seed)
        epochs = ground.work.trained(experiment, chosen)[1]
    except FusetuneError as error:
        return {**made, "why": str(error)}
    return {**made, "metric": max(epoch.val_metric for epoch in epochs)}


def _presets(ground: Ground, settings: SearchSettings, budget: float, tell: Callable[[str], Any]) -> dict[str, Any]:
    """Those that fit data and budget, each with its cost and metrics by seed; why not, for the others."""
    beside: dict[str, Any] = {}
    for name in settings.presets:
        check(name in ground.methods, f"search.presets: no method '{name}'. Known: {', '.join(ground.methods)}.")
        try:
            experiment = ground.experiment(build(Plan, ground.methods[name], name), settings.seed, name)
            cost = ground.cost(experiment, settings.cost)
            beside[name] = {"cost": cost}
            if cost > budget:
                beside[name]["why"] = "above the budget"
                continue
            beside[name]["seeds"] = ground.whole(name, ground.methods[name], settings.seeds)
            tell(f"{name}: {_mean(beside[name]['seeds'], 'test'):.3f} on test at {cost:,.0f} {settings.cost}")
        except FusetuneError as error:
            beside[name] = {"why": str(error)}
    return beside


def verdict(told: Mapping[str, Any]) -> str:
    """Whether what was found beats the best preset, which validation chooses, on test samples."""
    own = _mean(told["found"], "test")
    fitting = {name: one["seeds"] for name, one in told["presets"].items() if "seeds" in one}
    if not fitting:
        return f"found {own:.3f} on test; no preset fits data and budget"
    name = max(fitting, key=lambda n: _mean(fitting[n], "validation"))
    other = _mean(fitting[name], "test")
    spread = [abs(one["test"] - own) for one in told["found"].values()]
    spread += [abs(one["test"] - other) for one in fitting[name].values()]
    said = "beats" if own - other > max(spread) else "does not beat"
    return (
        f"what was found, {_short(told['best']['method'])}, {own:.3f} on test, {said} the best preset within the "
        f"budget, {name}, {other:.3f}, beyond the spread of seeds ({max(spread):.3f})"
    )


def _mean(seeds: Mapping[str, Mapping[str, float]], split: str) -> float:
    return mean(one[split] for one in seeds.values())


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """In one of the two at least, and in none the other way round."""
    better = one["metric"] >= other["metric"] and one["cost"] <= other["cost"]
    return better and (one["metric"] > other["metric"] or one["cost"] < other["cost"])


def _short(method: Mapping[str, Any]) -> str:
    """'lora in image (top 2), wander at the junction, mlp'."""
    parts = []
    for placement in method["placements"]:
        blocks = placement.get("blocks", {})
        at = ", ".join(blocks.get("modalities", ["trunk"])) if blocks else placement["where"]
        parts.append(
            f"{placement['adapter']} in {at} (top {blocks['count']})" if blocks else f"{placement['adapter']} at {at}"
        )
    return ", ".join(parts)
