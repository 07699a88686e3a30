"""fusetune: which parameter-efficient method wins on my multimodal data, at what cost, and give me that adapter.

In Python: `adapt` trains one on a table, `load` opens it again; the pipelines of the command line do the rest.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusetune.runs.adapt import Adapted, adapt, load

__version__ = "0.1.0"
__all__ = ["Adapted", "__version__", "adapt", "load"]


def __getattr__(name: str) -> Any:  # torch is imported when somebody uses it, not by `kedro --help`
    if name in ("Adapted", "adapt", "load"):
        from fusetune.runs import adapt as public

        return getattr(public, name)
    raise AttributeError(f"module 'fusetune' has no attribute '{name}'")
