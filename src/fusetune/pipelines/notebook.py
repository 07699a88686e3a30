"""What a notebook needs of this project: its catalog and its parameters, in any environment of conf."""

import base64
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
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


def explorable(function: Callable[..., Any], **controls: Any) -> None:
    """Controls above what a function shows; run without a browser, that of the first choice stays in the notebook.

    Args:
        function: shows text and figures.
        controls: of its arguments, as `ipywidgets.interact` takes them.
    """
    import ipywidgets
    from IPython.display import HTML, display

    widgets = ipywidgets.interactive(lambda **_: None, **controls).kwargs_widgets
    names = [widget.description for widget in widgets]

    def drawn() -> HTML:
        return HTML(_captured(function, {n: widget.value for n, widget in zip(names, widgets, strict=True)}))

    display(ipywidgets.VBox(widgets))
    shown = display(drawn(), display_id=True)
    for widget in widgets:
        widget.observe(lambda _: shown.update(drawn()), "value")


def _captured(function: Callable[..., Any], values: Mapping[str, Any]) -> str:
    """What a call shows, as HTML that needs nothing else."""
    from IPython.utils.capture import capture_output

    with capture_output() as shown:
        function(**values)
    parts = [f"<pre style='font-family: monospace'>{escape(text)}</pre>" for text in (shown.stdout,) if text]
    for output in shown.outputs:
        png = output.data.get("image/png")
        if png is None:
            parts.append(output.data.get("text/html") or f"<pre>{escape(output.data.get('text/plain', ''))}</pre>")
            continue
        coded = png if isinstance(png, str) else base64.b64encode(png).decode()
        parts.append(f"<img src='data:image/png;base64,{coded.strip()}'>")
    return "".join(parts)
