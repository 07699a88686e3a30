"""The config loader: what the command line says changes single values, whatever environment it is said in."""

from collections.abc import Mapping
from typing import Any

from kedro.config import OmegaConfigLoader


class ConfigLoader(OmegaConfigLoader):
    """Kedro's own, except that `--params` is merged once, into the merged environments.

    Kedro merges it into each environment first, and an environment's key replaces the base's: `--params
    wander.train.epochs=3` in an environment that says nothing of `wander` would leave nothing of it but the epochs.
    """

    def __getitem__(self, key: str) -> dict[str, Any]:
        if key != "parameters":
            return super().__getitem__(key)
        given, self.runtime_params = self.runtime_params, {}
        try:
            found = super().__getitem__(key)
        finally:
            self.runtime_params = given
        return _merged(found, given or {})


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Level by level; what is no mapping is replaced."""
    merged = dict(values)
    for key, change in changes.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(change, Mapping)
        merged[key] = _merged(below, change) if both else change  # type: ignore[arg-type]
    return merged
