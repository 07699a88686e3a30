"""How a comparison goes: a live table on a terminal, lines in a log where there is none, nested runs in MLflow."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusetune.comparison.cells import Cell, read_cell
from fusetune.comparison.compare import Row, Watcher
from fusetune.comparison.jobs import Job, Place
from fusetune.hooks import MOST_PARAMS, flattened
from fusetune.pipelines.tracking import active_run

logger = logging.getLogger(__name__)
LINE_EVERY = 20.0  # seconds, between log lines of progress


class CompareWatcher(Watcher):
    """See the module's docstring."""

    def begun(self, rows: Sequence[Row], jobs: Sequence[Job]) -> None:
        from rich import get_console
        from rich.live import Live

        self.rows, self.jobs = rows, {id(job): job for job in jobs}
        self.done: dict[int, float] = {}  # epochs, by job
        self.latest: dict[str, str] = {}  # by variant
        self.begun_at = self.noted = time.perf_counter()
        self.terminal = get_console().is_terminal and bool(jobs)
        self.live = Live(get_renderable=self._table, refresh_per_second=2, console=get_console(), transient=True)
        if self.terminal:
            self.live.start()
        if jobs:
            count = sum(len(job.places()) for job in jobs)
            logger.info("compare: %d variants, %d cells to train in %d jobs", len(rows), count, len(jobs))
        for row in rows:
            if row.errors:
                logger.warning("%s does not fit: %s", row.variant.name, next(iter(row.errors.values())))

    def heard(self, job: Job, kind: str, place: Place | None, details: tuple[Any, ...]) -> None:
        name = f"{place[0]}, seed {place[1]}" if place else job.name
        if kind == "epoch":
            number, metric = details
            self.done[id(job)] = self.done.get(id(job), 0) + 1
            self.latest[place[0] if place else job.name] = f"epoch {number}, validation {metric:.3f}"
            if not self.terminal and time.perf_counter() - self.noted > LINE_EVERY:
                logger.info("compare: %s, %s", name, self._left())
                self.noted = time.perf_counter()
        elif kind == "started":
            self.latest |= {part.variant.name: f"started on {details[0]}" for part in job.parts}
        elif kind == "ended":
            for part in job.parts:
                self.latest.pop(part.variant.name, None)
            self.done[id(job)] = float("inf")
        elif kind == "failed":
            logger.error("%s failed: %s", name, details[0])
            _log_run(name, {}, {}, {"error": details[0]}, "FAILED")
        elif kind == "trial":
            trial = details[0]
            values = {"value": trial["metric"]} if trial.get("metric") is not None else {}
            status = {"complete": "FINISHED", "fail": "FAILED"}.get(trial["state"], "KILLED")
            _log_run(f"{name}, trial {trial['number']}", trial["values"], values, {"state": trial["state"]}, status)
            logger.info("%s: trial %d %s, %s", name, trial["number"], trial["state"], trial["values"])
        elif kind == "cell" and place:
            cell = read_cell(Path(details[0]))
            if cell:
                logger.info("%s: %s", name, _sentence(cell))
                _log_cell(place, cell)
        elif kind == "note":
            logger.info("%s", details[0])

    def ended(self) -> None:
        if self.terminal:
            self.live.stop()

    def _left(self) -> str:
        """Share of the work that is done, and the time that the rest will take at this rate."""
        whole = sum(job.seconds for job in self.jobs.values())
        done = sum(min(1.0, self.done.get(key, 0.0) / _epochs(job)) * job.seconds for key, job in self.jobs.items())
        spent = time.perf_counter() - self.begun_at
        left = f"{spent * (whole - done) / done / 60:.1f} min left" if done else "time left unknown"
        return f"{100 * done / max(whole, 1e-9):.0f}% done, {spent / 60:.1f} min, {left}"

    def _table(self) -> Any:
        from rich.table import Table

        table = Table(title=f"compare: {self._left()}")
        for heading, justify in (("variant", "left"), ("seeds", "right"), ("test", "right"), ("now", "left")):
            table.add_column(heading, justify=justify)  # type: ignore[arg-type]
        for row in self.rows:
            scores = [_score(cell) for cell in row.cells.values()]
            mean = f"{sum(scores) / len(scores):.3f}" if scores else ""
            wrong = "; ".join(dict.fromkeys(row.errors.values()))[:60]
            now = self.latest.get(row.variant.name, wrong)
            table.add_row(row.variant.name, f"{len(row.cells)}/{len(row.variant.seeds)}", mean, now)
        return table


def _epochs(job: Job) -> float:
    """Epochs of all its members, at most."""
    return job.epochs * len(job.places())


def _score(cell: Cell) -> float:
    metrics = cell.results["metrics"]
    return metrics["test"][metrics["metric"]]


def _sentence(cell: Cell) -> str:
    metrics, cost = cell.results["metrics"], cell.cost
    return f"test {metrics['metric']} {_score(cell):.3f}, {cost['train_seconds']:.0f} s, {cost['how']}"


def _log_cell(place: Place, cell: Cell) -> None:
    metrics, curve = cell.results["metrics"], cell.results["curve"]
    values = {f"test_{n}": v for n, v in metrics["test"].items() if isinstance(v, float)}
    values |= {n: float(v) for n, v in cell.cost.items() if isinstance(v, int | float)}
    values["trainable_parameters"] = float(metrics["trainable_parameters"])
    if cell.results["calibration"]:
        values["test_ece"] = cell.results["calibration"]["ece"]
    of_ways = cell.results["continual"].items()
    values |= {f"forgetting_{way}": one["forgetting"] for way, one in of_ways if "forgetting" in one}
    params = flattened(cell.results["settings"]) | {"seed": place[1], "share": cell.results["share"]}
    tags = {"method": metrics["method"], "variant": place[0], "metric": metrics["metric"], "cell": cell.folder.name}
    _log_run(f"{_score(cell):.3f} {place[0]}, seed {place[1]}", params, values, tags, "FINISHED", curve)


def _log_run(
    name: str,
    params: dict[str, Any],
    metrics: dict[str, float],
    tags: dict[str, str],
    status: str,
    curve: Sequence[dict[str, Any]] = (),
) -> None:
    """A run below the active one."""
    parent = active_run()
    if not parent:
        return
    import mlflow
    from mlflow.entities import Metric, Param, RunTag

    client, now = mlflow.MlflowClient(), int(time.time() * 1000)
    run = client.create_run(parent.info.experiment_id, run_name=name, tags={"mlflow.parentRunId": parent.info.run_id})
    logged = [Metric(key, value, now, 0) for key, value in metrics.items()]
    logged += [
        Metric(key, row[key], now, row["epoch"]) for row in curve for key in ("train_loss", "val_loss", "val_metric")
    ]
    given = [Param(key, str(value)[:500]) for key, value in list(params.items())[:MOST_PARAMS]]
    client.log_batch(run.info.run_id, logged[:1000], given, [RunTag(k, str(v)[:5000]) for k, v in tags.items()])
    client.set_terminated(run.info.run_id, status)
