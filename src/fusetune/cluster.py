"""Ray: a cluster of machines, or this one (extra ``ray``)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fusetune.errors import FusetuneError


@contextmanager
def cluster(key: str, store: Any) -> Iterator[Any]:
    """Ray, connected: to the cluster that `RAY_ADDRESS` names or this process is in, else to one that is started here.

    Args:
        key: what asked for it, for error messages.
        store: of features.

    Raises:
        FusetuneError: Ray is not installed, or the store can't be seen from other processes.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")  # nice workers starve beside anything else
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise FusetuneError(f"{key}: Ray is not installed. `pip install 'fusetune[ray]'`.") from error
    if str(store).startswith("memory://"):
        raise FusetuneError(f"{key}: no other process sees the store {store}. Use a folder or a bucket.")
    here = not ray.is_initialized()
    if here:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield ray
    finally:
        if here:
            ray.shutdown()
