"""A sequential runner that leaves out every node whose code, parameters and inputs have not changed.

Behind each node it writes a stamp beside the node's first output: the key of what went in and the hash of what came
out. Stamps hold contents, no times and no paths, so they travel with the outputs through DVC and to other machines.
"""

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner import SequentialRunner
from kedro.runner.task import Task

from fusetune.config import digest
from fusetune.pipelines.hashing import code_hash, plugin_hashes
from fusetune.pipelines.parameters import check_parameters

logger = logging.getLogger(__name__)


class IncrementalRunner(SequentialRunner):
    """Runs the stale nodes in order; says of every other that it is up to date.

    A node without outputs is there to be seen, and always runs; so does one that reads or makes something whose content
    nobody can tell. Values of parameters are checked before the first that runs; the others' were when they ran.
    ``--params force=true`` runs all, ``force=<node>`` one, whatever has changed.
    """

    def _run(
        self, pipeline: Pipeline, catalog: CatalogProtocol, hook_manager: Any = None, run_id: str | None = None
    ) -> None:
        forced, ran = catalog.load("parameters").get("force", False), 0
        check = cache(lambda: check_parameters(catalog, pipeline))
        for node in pipeline.nodes:
            try:
                key = node_key(node, catalog) if node.outputs else None
            except Exception:
                check()  # whose sentence says what is wrong with a value that no key could be made of
                raise
            if key is not None and not _forced(node, forced) and is_fresh(node, catalog, key):
                logger.info("%s: up to date, nothing to do", node.name)
                continue
            check()
            Task(
                node=node, catalog=catalog, hook_manager=hook_manager, is_async=self._is_async, run_id=run_id
            ).execute()
            if key is not None:
                write_stamp(node, catalog, key)
            ran += bool(node.outputs)
        if not ran and any(node.outputs for node in pipeline.nodes):
            logger.info("everything is up to date: %d nodes", len(pipeline.nodes))


def node_key(node: Node, catalog: CatalogProtocol) -> str | None:
    """Digest of all that determines a node's outputs; None where it reads or makes something of unknown content."""
    for name in (*node.inputs, *node.outputs):
        if not _is_parameter(name) and not hasattr(catalog.get(name), "content"):
            kind = type(catalog.get(name)).__name__
            logger.info("%s: runs every time, '%s' (%s) doesn't tell its content", node.name, name, kind)
            return None
    inputs = {name: catalog.load(name) if _is_parameter(name) else _content(name, catalog) for name in node.inputs}
    parameters = [value for name, value in inputs.items() if _is_parameter(name)]
    key = {"node": node.name, "code": code_hash(node.func), "inputs": inputs, "plugins": plugin_hashes(parameters)}
    outside = getattr(node.func, "outside", None)  # what a node reads that no catalog knows: the user's own files
    if outside:
        paths = {n: catalog.get(n).path for n in node.inputs if not _is_parameter(n)}  # type: ignore[union-attr]
        key["outside"] = outside({**inputs, **paths})
    return digest(key)


def is_fresh(node: Node, catalog: CatalogProtocol, key: str) -> bool:
    """Whether the stamp says that the outputs that are there were made from these very inputs."""
    try:
        stamp = json.loads(stamp_path(node, catalog).read_text())
    except (OSError, ValueError):
        return False
    return stamp == {"key": key, "outputs": {name: _content(name, catalog) for name in node.outputs}}


def write_stamp(node: Node, catalog: CatalogProtocol, key: str) -> None:
    stamp = {"key": key, "outputs": {name: _content(name, catalog) for name in node.outputs}}
    stamp_path(node, catalog).write_text(json.dumps(stamp, indent=2) + "\n")


def stamp_path(node: Node, catalog: CatalogProtocol) -> Path:
    """Beside the node's first output: ``<output>.stamp.json``."""
    path = catalog.get(node.outputs[0]).path  # type: ignore[union-attr]
    return path.with_name(f"{path.name}.stamp.json")


def _forced(node: Node, forced: Any) -> bool:
    return forced is True or node.name in (forced if isinstance(forced, list) else [forced])


def _is_parameter(name: str) -> bool:
    return name == "parameters" or name.startswith("params:")


def _content(name: str, catalog: CatalogProtocol) -> str | None:
    return catalog.get(name).content()  # type: ignore[union-attr]
