"""What a notebook needs of this project: its catalog and its parameters, in any environment of conf."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Project:
    """
    Attributes:
        root: the project's folder.
        env: of conf.
        parameters: all of them.
    """

    root: Path
    env: str
    parameters: dict[str, Any]
    catalog: Any

    def load(self, name: str) -> Any:
        """A dataset of the catalog; raises kedro's DatasetError, which says what to run, where it isn't there."""
        return self.catalog.load(name)

    def has(self, name: str) -> bool:
        return self.catalog.exists(name)


def open_project(env: str | None = None) -> Project:
    """The project that the working directory lies in, or the one that this package comes from.

    Args:
        env: folder of conf; by default that of the environment variable KEDRO_ENV, else `base`.
    """
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    from fusetune.pipelines.conf_source import project_root

    root = project_root()
    chosen = env or os.environ.get("KEDRO_ENV") or "base"
    bootstrap_project(root)
    with KedroSession.create(project_path=root, env=chosen) as session:
        context = session.load_context()  # type: ignore[attr-defined]
        return Project(root, chosen, dict(context.params), context.catalog)
