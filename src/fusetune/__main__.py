"""The packaged project, outside of its repository: what `kedro run` is inside.

    python -m fusetune run --conf-source /where/conf --env mine --pipelines train_wander

Data, MLflow's database and features lie below the working directory. The conf is a folder, or the archive that `kedro
package` makes.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(*arguments: Any, **options: Any) -> Any:
    """Kedro's `run` command on this package; a leading ``run`` may be said or not."""
    os.environ.setdefault("KEDRO_DISABLE_TELEMETRY", "true")
    given = list(arguments[0]) if arguments else sys.argv[1:]
    if given[:1] == ["run"]:
        given = given[1:]
    _use_logging(_conf_source(given))
    from kedro.framework.cli.utils import find_run_command
    from kedro.framework.project import configure_project

    configure_project("fusetune")
    options.setdefault("standalone_mode", not hasattr(sys, "ps1"))
    return find_run_command("fusetune")(given, **options)


def _conf_source(given: list[str]) -> Path:
    for option, value in zip(given, [*given[1:], ""], strict=True):
        if option.startswith("--conf-source"):
            return Path(option.partition("=")[2] or value)
    return Path("conf")


def _use_logging(conf: Path) -> None:
    """Kedro looks for logging.yml in ./conf only; its own default takes paths in messages for markup."""
    from fusetune.pipelines.conf_source import read_file

    text = read_file(conf, "logging.yml")
    if text and "KEDRO_LOGGING_CONFIG" not in os.environ:
        with tempfile.NamedTemporaryFile("w", suffix=".yml", delete=False) as file:
            file.write(text)
        os.environ["KEDRO_LOGGING_CONFIG"] = file.name


if __name__ == "__main__":
    main()
