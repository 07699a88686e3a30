"""What a node tells MLflow; without an active run (a notebook, a test) it tells nobody."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusetune.pipelines.progress import Bar
from fusetune.training.epochs import Epoch, Reporter
from fusetune.training.settings import TrainSettings

FLUSH_EVERY = 2.0  # seconds: a write to SQLite costs as much as several training steps
MOST_METRICS = 1000  # per batch, MLflow's own limit


def active_run() -> Any:
    """The active MLflow run, if MLflow is loaded at all."""
    mlflow = sys.modules.get("mlflow")
    return mlflow.active_run() if mlflow else None


def log_tags(tags: Mapping[str, Any]) -> None:
    if active_run():
        import mlflow

        mlflow.set_tags({key: str(value) for key, value in tags.items()})


def log_metrics(metrics: Mapping[str, float]) -> None:
    if active_run():
        import mlflow

        mlflow.log_metrics(dict(metrics))


def describe(name: str, text: str, **tags: Any) -> None:
    """What a run is found by in a list: a name with its result, what its page says first, tags to filter by."""
    log_tags({"mlflow.runName": name, "mlflow.note.content": text, **tags})


def log_figures(figures: Any) -> None:
    """The figures of `report.figures.Figures`, in the run's folder of that name."""
    if active_run():
        from tempfile import TemporaryDirectory

        import mlflow

        with TemporaryDirectory() as folder:
            figures.save_pretrained(Path(folder, "figures"))
            mlflow.log_artifacts(str(Path(folder, "figures")), "figures")


def metric_name(text: str) -> str:
    """As MLflow takes it for a metric."""
    return "".join(c if c.isalnum() or c in "_-. /" else " " for c in text)


def log_dict(values: Mapping[str, Any], file: str) -> None:
    if active_run():
        import mlflow

        mlflow.log_dict(dict(values), file)


def log_text(text: str, file: str) -> None:
    if active_run():
        import mlflow

        mlflow.log_text(text, file)


class TrainingReporter(Reporter):
    """A progress bar with loss, metric, samples/s and time left; curves to MLflow in batches."""

    def __init__(self, method: str, metric: str) -> None:
        self.method, self.metric = method, metric
        self._bar = Bar()
        self._buffer: list[Any] = []
        self._flushed = time.perf_counter()
        self._text = ""

    def started(self, settings: TrainSettings, steps: int, resumed_at: int) -> None:
        self._bar.__enter__()
        if resumed_at:
            self._bar.progress.console.log(f"{self.method}: resumed at step {resumed_at} of {steps}")

    def stage(self, text: str) -> None:
        self._bar.progress.console.log(f"{self.method}: {text}")

    def step(self, done: int, steps: int, loss: float) -> None:
        self._bar.show(f"train {self.method}", done, steps, f"loss {loss:.3f} {self._text}")

    def epoch(self, epoch: Epoch, best: bool) -> None:
        self._text = f"{self.metric} {epoch.val_metric:.3f}, {epoch.samples_per_second:.0f} samples/s"
        values = {
            "train_loss": epoch.train_loss,
            "val_loss": epoch.val_loss,
            f"val_{self.metric}": epoch.val_metric,
            "gradient_norm": epoch.gradient_norm,
            "learning_rate": epoch.learning_rate,
            "samples_per_second": epoch.samples_per_second,
            **{f"gradient_norm_{site}": norm for site, norm in epoch.gradient_norms.items()},
        }
        self._buffer += [(name, value, epoch.number) for name, value in values.items()]
        if time.perf_counter() - self._flushed > FLUSH_EVERY:
            self._flush()

    def said(self, epoch: int, right: Mapping[str, float]) -> None:
        told = ", ".join(f"{name} {value:.3f}" for name, value in right.items())
        self._bar.progress.console.log(f"{self.method}: after epoch {epoch}, of what it says by itself: {told}")
        self._buffer += [(metric_name(f"said_{name}"), value, epoch) for name, value in right.items()]

    def ended(self) -> None:
        self._flush()
        self._bar.__exit__()

    def _flush(self) -> None:
        run = active_run()
        if run and self._buffer:
            import mlflow
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            metrics = [Metric(name, value, now, step) for name, value, step in self._buffer]
            for start in range(0, len(metrics), MOST_METRICS):
                mlflow.MlflowClient().log_batch(run.info.run_id, metrics=metrics[start : start + MOST_METRICS])
        self._buffer.clear()
        self._flushed = time.perf_counter()
