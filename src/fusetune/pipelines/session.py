"""The session: the incremental runner by default, and errors of the user's as one line."""

from collections.abc import Iterable
from typing import Any

import click
from kedro.config import MissingConfigException
from kedro.framework.session import KedroSession
from kedro.io import DatasetError
from kedro.runner import AbstractRunner, ParallelRunner, SequentialRunner, ThreadRunner

from fusetune.errors import FusetuneError
from fusetune.hooks import AT_ONCE


class FusetuneSession(KedroSession):
    """Kedro's own session, except that a plain `kedro run` skips what is up to date.

    Errors that a user can mend end the command as one line; everything else keeps its traceback.
    """

    def run(
        self,
        pipeline_name: str | None = None,
        pipeline_names: list[str] | None = None,
        tags: Iterable[str] | None = None,
        runner: AbstractRunner | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """See `KedroSession.run`; `pipeline_name` is the older form of `pipeline_names`.

        Raises:
            click.ClickException: something that a user can mend, in one line.
        """
        from fusetune.pipelines.runner import IncrementalRunner

        if isinstance(runner, ParallelRunner | ThreadRunner):
            raise _UserError(AT_ONCE.format(type(runner).__name__))
        if type(runner) in (type(None), SequentialRunner):
            runner = IncrementalRunner()
        names = pipeline_names or ([pipeline_name] if pipeline_name else None)
        try:
            return super().run(None, names, tags, runner, *args, **kwargs)
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
            where = "conf/base/methods and of conf/<env>/methods"
            return f"{link} Methods are the files of {where}; `kedro registry list` shows all pipelines."
        if isinstance(link, OSError) and link.errno == 28:
            return f"{link.filename or 'disk'}: no space left. Free some, and run again: finished work is kept."
        link = link.__cause__ or link.__context__
    return None
