"""A sequential runner that leaves out every node whose code, parameters and inputs have not changed.

Behind each node it writes a stamp beside the node's first output: the key of what went in and the hash of what came
out. Stamps hold contents, no times and no paths, so they travel with the outputs through DVC and to other machines.
"""

import json
import logging
from pathlib import Path
from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner import SequentialRunner
from kedro.runner.task import Task

from fusetune.config import digest
from fusetune.pipelines.hashing import code_hash
from fusetune.pipelines.parameters import check_parameters

logger = logging.getLogger(__name__)


class IncrementalRunner(SequentialRunner):
    """Runs the stale nodes in order; says of every other that it is up to date.

    A node without outputs is there to be seen, and always runs.
    """

    def _run(
        self, pipeline: Pipeline, catalog: CatalogProtocol, hook_manager: Any = None, run_id: str | None = None
    ) -> None:
        check_parameters(catalog, pipeline)
        ran = 0
        for node in pipeline.nodes:
            if not node.outputs:
                node.run({name: catalog.load(name) for name in node.inputs})
                continue
            key = node_key(node, catalog)
            if is_fresh(node, catalog, key):
                logger.info("%s: up to date, nothing to do", node.name)
                continue
            Task(
                node=node, catalog=catalog, hook_manager=hook_manager, is_async=self._is_async, run_id=run_id
            ).execute()
            write_stamp(node, catalog, key)
            ran += 1
        if not ran:
            logger.info("everything is up to date: %d nodes", len(pipeline.nodes))


def node_key(node: Node, catalog: CatalogProtocol) -> str:
    """Digest of all that determines a node's outputs."""
    inputs = {}
    for name in node.inputs:
        is_parameter = name == "parameters" or name.startswith("params:")
        inputs[name] = catalog.load(name) if is_parameter else _content(name, catalog)
    key = {"node": node.name, "code": code_hash(node.func), "inputs": inputs}
    outside = getattr(node.func, "outside", None)  # what a node reads that no catalog knows: the user's own files
    if outside:
        paths = {n: catalog.get(n).path for n in node.inputs if not n.startswith("params:")}  # type: ignore[union-attr]
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


def _content(name: str, catalog: CatalogProtocol) -> str | None:
    return catalog.get(name).content()  # type: ignore[union-attr]
