"""One class serves readers, towers, adapters and tasks."""

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from fusetune.errors import FusetuneError


class Registry:
    """Names to import paths; nothing is imported before it is asked for.

    A third party adds its own by an entry point in the group ``fusetune.<kind>``.

    Args:
        kind: what is registered, in the plural as users read it: ``adapters``.
        builtin: name -> ``package.module:attribute``.
    """

    def __init__(self, kind: str, builtin: dict[str, str]) -> None:
        self.kind = kind
        self._paths: dict[str, str] = {}
        self._entry_points_read = False
        for name, path in builtin.items():
            self.register(name, path)

    def register(self, name: str, path: str) -> None:
        """Raises FusetuneError if the name is taken by another object."""
        if self._paths.get(name, path) != path:
            raise FusetuneError(
                f"{self.kind}: the name '{name}' is registered twice, as {self._paths[name]} and as {path}."
            )
        self._paths[name] = path

    def names(self) -> list[str]:
        if not self._entry_points_read:
            self._entry_points_read = True
            for point in entry_points(group=f"fusetune.{self.kind}"):
                self.register(point.name, point.value)
        return sorted(self._paths)

    def companion(self, name: str, attribute: str) -> Any:
        """Another attribute of the module that `name` stands in; None where it has none."""
        module = import_module(self.get(name).__module__)
        return getattr(module, attribute, None)

    def get(self, name: str) -> Any:
        """Import and return what `name` stands for; raises FusetuneError that lists the choices."""
        if name not in self._paths and name not in self.names():
            raise FusetuneError(f"{self.kind}: '{name}' is unknown. Known: {', '.join(self.names())}.")
        module, _, attribute = self._paths[name].partition(":")
        return getattr(import_module(module), attribute)
