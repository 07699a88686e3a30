"""Kedro commands without the seconds of importing: a process that has imported what all of them import forks each.

A command imports for some 10 of its 15 seconds, and the tests run two hundred. What is forked is the same command on
the same files (`kedro.framework.cli.main`), in its folder, with its environment. Kedro itself, whose logging is set up
by where it is imported, and a project's own `fusetune` are not among what is preloaded.
"""

import atexit
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

PRELOADED = [
    "omegaconf", "click", "rich.console", "rich.logging", "fsspec", "pandas", "torch", "torch._dynamo",
    "torch.utils.data", "transformers.modeling_utils", "transformers.models.bert.modeling_bert",
    "transformers.models.vit.modeling_vit", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "peft",
    "mlflow.store.model_registry.sqlalchemy_store", "pandera.pandas", "pyarrow.parquet", "pyarrow.compute",
    "PIL.Image", "sklearn.linear_model", "sklearn.feature_extraction.text", "sklearn.decomposition",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "plotly.offline", "safetensors.torch", "tokenizers",
]  # fmt: skip
LIMIT = 600  # seconds of a command


@cache
def _server() -> subprocess.Popen:
    started = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    atexit.register(started.stdin.close)  # and it ends
    return started


def kedro(folder: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess:
    """`python -m kedro` in a folder, with what it writes."""
    server = _server()
    with TemporaryDirectory() as kept:
        job = {"folder": str(folder), "arguments": arguments, "environment": dict(environment), "kept": kept}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], LIMIT)[0]:
            server.kill()
            _server.cache_clear()
            raise subprocess.TimeoutExpired(["kedro", *arguments], LIMIT, Path(kept, "stderr").read_text())
        code = int(server.stdout.readline())
        out, error = (Path(kept, name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(["kedro", *arguments], code, out, error)


def serve() -> None:
    for name in PRELOADED:
        import_module(name)
    early = [name for name in sys.modules if name.partition(".")[0] in ("kedro", "fusetune")]
    assert not early, f"imported before its time: {early}"
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            become(job)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(job: Mapping) -> None:
    """Run a command as this process, and end with it."""
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(job["kept"], name), os.O_WRONLY | os.O_CREAT), number)
    sys.path[0] = job["folder"]
    sys.argv = ["kedro", *job["arguments"]]
    from kedro.framework.cli import main

    main()
    sys.exit()


if __name__ == "__main__":
    serve()
