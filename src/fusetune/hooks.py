"""The MLflow record of a run: one Kedro run that has something to do is one MLflow run.

MLflow is imported when the first stale node starts, so a run with nothing to do costs nothing. Every way a run can end
is recorded: FINISHED, FAILED with the error, KILLED on SIGINT and SIGTERM.
"""

import atexit
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl

logger = logging.getLogger(__name__)
DATABASE = "mlflow.db"
PATIENCE = 60  # seconds that SQLite waits for a database which another process has locked
AT_ONCE = (
    "runner {}: nodes run one after the other here, each with all cores, and one MLflow run for all of them. Leave "
    "--runner out; what runs side by side is said in compare.workers."
)
MOST_PARAMS, LONGEST_PARAM = 100, 6000  # per batch and per value, MLflow's own limits


class MLflowHook:
    """Starts, fills and ends the run."""

    def __init__(self) -> None:
        self._run_params: dict[str, Any] = {}
        self._catalog: Any = None
        self._pipeline: Any = None
        self._mlflow: Any = None

    @hook_impl
    def after_context_created(self, context: Any) -> None:
        """Methods, and so pipelines, come from the conf in use; Kedro makes the pipelines right behind this."""
        from fusetune.pipelines.conf_source import use_conf

        loader = context.config_loader
        use_conf(loader.conf_source, context.env or loader.default_run_env)

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Any, catalog: Any) -> None:
        """Also checks the parameters; a mistake is a failed run. Values are left to our runner, which imports what they
        become where something is to be done at all."""
        from fusetune.errors import FusetuneError
        from fusetune.pipelines.parameters import check_names, check_parameters

        self._run_params, self._catalog, self._pipeline = run_params, catalog, pipeline
        runner = str(run_params.get("runner"))
        at_once = next((name for name in ("ParallelRunner", "ThreadRunner") if name in runner), None)
        if at_once:
            raise FusetuneError(AT_ONCE.format(at_once))
        ours = "IncrementalRunner" in runner
        if not ours:  # a plain KedroSession, or a runner of the user's
            logger.warning("runner %s: nothing is skipped, up to date or not; FusetuneSession does", runner)
        try:
            check_names(catalog)
            if not ours:
                check_parameters(catalog, pipeline)
        except FusetuneError as error:
            self.on_pipeline_error(error)
            raise

    @hook_impl
    def before_node_run(self, node: Any) -> None:
        if self._mlflow is None and node.outputs:  # a node without is there to be seen
            self._start()

    @hook_impl
    def after_pipeline_run(self) -> None:
        self._end("FINISHED")

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        if self._mlflow is None and not any(node.outputs for node in self._pipeline.nodes):
            return  # nothing of it is a run
        if self._mlflow is None:
            self._start()
        self._mlflow.set_tags({"error": f"{type(error).__name__}: {error}"[:LONGEST_PARAM]})
        self._end("FAILED")

    def _start(self) -> None:
        root = Path(self._run_params["project_path"])
        parameters = self._catalog.load("parameters")
        mlflow = use_tracking(root)
        mlflow.set_experiment(f"fusetune-{parameters.get('experiment', 'none')}")
        names = ",".join(self._run_params.get("pipeline_names") or ["__default__"])
        run = mlflow.start_run(run_name=names, tags=self._tags(root, names, str(parameters.get("experiment", "none"))))
        self._mlflow = mlflow
        # registered after MLflow's own handler, so it runs before it: an interrupted run is KILLED, not FINISHED
        atexit.register(self._end, "KILLED")
        in_main = threading.current_thread() is threading.main_thread()  # nobody else may set signals
        if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        flat = {key: str(value)[:LONGEST_PARAM] for key, value in flattened(self._own(parameters)).items()}
        items = list(flat.items())
        for start in range(0, len(items), MOST_PARAMS):
            mlflow.log_params(dict(items[start : start + MOST_PARAMS]))
        logger.info("MLflow run %s, see `mlflow ui`", run.info.run_id)

    def _own(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """What the pipeline reads; where it could train any method, those that it is told to."""
        inputs = {name.removeprefix("params:") for name in self._pipeline.inputs() if name.startswith("params:")}
        own = {name: value for name, value in parameters.items() if name in inputs}
        named: set[str] = set()
        for value in own.values():
            if isinstance(value, dict):
                named |= {value["method"]} if isinstance(value.get("method"), str) else set()
                named |= {*(value.get("methods") or ()), *(value.get("presets") or ())}
        methods = {name for name, value in own.items() if isinstance(value, dict) and "placements" in value}
        left_out = methods - named if len(methods) > 1 and named else set()
        return {name: value for name, value in own.items() if name not in left_out}

    def _end(self, status: str) -> None:
        if self._mlflow is not None and self._mlflow.active_run() is not None:
            self._mlflow.end_run(status)
        if self._mlflow is not None:
            atexit.unregister(self._end)
        self._mlflow = None

    def _tags(self, root: Path, pipelines: str, experiment: str) -> dict[str, str]:
        tags = {
            "experiment": experiment,
            "kedro.pipelines": pipelines,
            "kedro.env": str(self._run_params.get("env") or "local"),
            "kedro.run_id": str(self._run_params.get("run_id")),
            "dvc.stage": os.environ.get("DVC_STAGE", "none"),
        }
        commit = _git(root, "rev-parse", "HEAD")
        if commit:
            tags |= {"git.commit": commit, "git.dirty": str(bool(_git(root, "status", "--porcelain"))).lower()}
        return tags


def tracking_uri(root: Path) -> str:
    """`MLFLOW_TRACKING_URI` if it is set, else a SQLite database in the project's root, as an absolute address."""
    database = f"sqlite:///{(root / DATABASE).resolve().as_posix()}?timeout={PATIENCE}"
    return os.environ.get("MLFLOW_TRACKING_URI") or database


def use_tracking(root: Path) -> Any:
    """MLflow, pointed to this project's records."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # a schema that follows from type hints knows no optional columns; MLflow's own models have none either
    logging.getLogger("py.warnings").addFilter(lambda record: "Add type hints" not in record.getMessage())
    import mlflow

    own = not os.environ.get("MLFLOW_TRACKING_URI")  # asked first: set_tracking_uri sets the variable too
    mlflow.set_tracking_uri(tracking_uri(root))
    if own:
        create_database(root)
    return mlflow


def database_lock(root: Path) -> Any:
    """Held by one process of this project at a time."""
    from filelock import FileLock

    return FileLock(root / f"{DATABASE}.lock")


def create_database(root: Path) -> None:
    """Make the database once, under a lock: two processes that create it at the same time would break it."""
    import mlflow

    database = root / DATABASE
    with database_lock(root):  # looked at under the lock: a database half made is there already
        if not database.exists() or not database.stat().st_size:
            logger.info("MLflow: creating %s, once, some seconds", DATABASE)
            mlflow.search_experiments(max_results=1)


def flattened(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one level of dotted keys."""
    if isinstance(values, dict):
        pairs = list(values.items())
    elif isinstance(values, list) and any(isinstance(value, dict) for value in values):
        pairs = list(enumerate(values))
    else:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in pairs:
        flat |= flattened(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
