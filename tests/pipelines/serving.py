"""A registered model behind `mlflow models serve`, as a user starts it, and requests to it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(project: Path, model: str) -> Iterator[Callable[..., tuple[int, str]]]:
    """Yields `ask(rows, **params)`, which answers a status and a text."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    log = (project / "serve.log").open("w")
    server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def ask(rows, **params) -> tuple[int, str]:
        body = json.dumps({"dataframe_records": rows, **({"params": params} if params else {})}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    try:
        deadline = time.time() + 120
        while time.time() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except OSError:
                assert server.poll() is None, (project / "serve.log").read_text()
                time.sleep(0.5)
        yield ask
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        log.close()
