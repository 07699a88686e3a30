"""Node functions of `compare`: what is trained."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusetune.pipelines.cache_features.nodes import trained_before

logger = logging.getLogger(__name__)
FAILED = "failed.json"


def make_compare(methods: Sequence[str]):
    """The node function that trains every variant with every seed."""

    def compare_methods(
        manifest: Any,
        base: Path,
        lengths: Mapping[str, int],
        store: Path,
        folder: Path,
        data: Mapping[str, Any],
        cache: Mapping[str, Any],
        train: Mapping[str, Any],
        evaluate: Mapping[str, Any],
        compare: Mapping[str, Any],
        *settings: Any,
    ) -> tuple[dict[str, Any], Any]:
        """Returns what is known of each variant, with its cells' folders, and an index of the cached features."""
        from fusetune.comparison.compare import compare as compared
        from fusetune.comparison.compare import shared_by_all
        from fusetune.comparison.record import record
        from fusetune.features.index import together
        from fusetune.pipelines.compare.watching import CompareWatcher
        from fusetune.pipelines.progress import ExtractionProgress

        code = cell_code(data, settings)
        shared = shared_by_all(
            manifest, base, data, train, cache, evaluate, compare, store, folder, code, lengths
        )  # fmt: skip
        with ExtractionProgress() as progress:
            found = compared(shared, dict(zip(methods, settings, strict=True)), progress, CompareWatcher())
        logger.info("compare: %d cells are new, %d were there", found.computed, found.kept)
        _remember(folder, found.failed())
        return record(shared, found), together(found.features)

    compare_methods.outside = _outside  # type: ignore[attr-defined]
    return compare_methods


def cell_code(*named: Any) -> str:
    """Digest of the code that makes a cell: when it changes all cells are made anew; that of the report is none of it.

    Args:
        named: parameters, which may name what third parties have registered.
    """
    from fusetune.comparison.work import run_job
    from fusetune.config import digest
    from fusetune.pipelines.hashing import code_hash, plugin_hashes

    return digest([code_hash(run_job), plugin_hashes(list(named))])


def _remember(folder: Path, failed: Mapping[str, Any]) -> None:
    """Leave a mark where something failed that may go well another time."""
    mark = folder / FAILED
    if failed:
        mark.write_text(json.dumps(failed, indent=1) + "\n")
    else:
        mark.unlink(missing_ok=True)


def _outside(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Adapters that methods are made of; and while a cell is lacking, the hour: such a cell is tried again."""
    found: dict[str, Any] = dict(trained_before(inputs))
    if Path(inputs["comparison_cells"], FAILED).is_file():
        found["failed cells, tried again at"] = time.time_ns()
    return found
