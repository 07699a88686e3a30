"""The session: the incremental runner by default, and errors of the user's as one line."""

from typing import Any

import click
from kedro.config import MissingConfigException
from kedro.framework.session import KedroSession
from kedro.io import DatasetError
from kedro.runner import SequentialRunner

from fusetune.errors import FusetuneError


class FusetuneSession(KedroSession):
    """Kedro's own session, except that a plain `kedro run` skips what is up to date.

    Errors that a user can mend end the command as one line; everything else keeps its traceback.
    """

    def run(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        from fusetune.pipelines.runner import IncrementalRunner

        if type(kwargs.get("runner")) in (type(None), SequentialRunner):
            kwargs["runner"] = IncrementalRunner()
        kwargs.pop("pipeline_name", None)
        try:
            return super().run(*args, **kwargs)
        except Exception as error:
            line = _user_line(error)
            if line is None:
                raise
            raise _UserError(line) from error


class _UserError(click.ClickException):
    """Printed by click as 'Error: ...', exit code 1."""


def _user_line(error: BaseException) -> str | None:
    """The message for the user, wherever in the chain of causes it stands."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, FusetuneError | MissingConfigException | DatasetError):
            return str(link)
        if isinstance(link, ValueError) and "pipeline named" in str(link):
            return f"{link} Methods are the files of conf/*/methods; `kedro registry list` shows all pipelines."
        if isinstance(link, OSError) and link.errno == 28:
            return f"{link.filename or 'disk'}: no space left. Free some, and run again: finished work is kept."
        link = link.__cause__ or link.__context__
    return None
