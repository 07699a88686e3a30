"""Kedro's project settings."""

from fusetune.hooks import MLflowHook
from fusetune.pipelines.config_loader import ConfigLoader
from fusetune.pipelines.session import FusetuneSession

HOOKS = (MLflowHook(),)
SESSION_CLASS = FusetuneSession
CONFIG_LOADER_CLASS = ConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"parameters": ["parameters*", "parameters*/**", "methods/*"]},
}
