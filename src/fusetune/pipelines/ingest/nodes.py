"""Node functions; imports of what is heavy stand inside, so that listing pipelines stays cheap."""

from collections.abc import Mapping
from typing import Any


def files_read(inputs: Mapping[str, Any]) -> list[str]:
    """Hashes of the files that the readers among a node's parameters say they read (their modules' `sources`)."""
    from pathlib import Path

    from fusetune.filehash import remembered_sha256
    from fusetune.manifest.readers import readers

    found = []
    for settings in inputs.values():
        sources = readers.companion(settings["reader"], "sources") if "reader" in settings else None
        for file in map(Path, sources(settings.get("settings") or {}) if sources else ()):
            found.append(remembered_sha256(file) if file.is_file() else "not there")
    return found


def read_manifest(ingest: Mapping[str, Any]) -> Any:
    """The manifest that the named reader makes, a pyarrow Table."""
    from fusetune.config import build
    from fusetune.errors import FusetuneError
    from fusetune.manifest.few_shot import few_shot
    from fusetune.manifest.readers import readers
    from fusetune.manifest.splits import with_splits
    from fusetune.pipelines.parameters import ReaderSettings

    settings = build(ReaderSettings, ingest, "ingest")
    table = readers.get(settings.reader)(settings.settings, "ingest.settings")
    if settings.split is not None:
        table = with_splits(table, settings.split)
    if "split" not in table.column_names:
        raise FusetuneError(
            "ingest: the data has no column `split`. Name the one that plays this part (ingest.settings.split), or "
            "have splits drawn: ingest.split: {train: 0.8, val: 0.1, test: 0.1, stratify: <label>, seed: 0}."
        )
    return table if settings.few_shot is None else few_shot(table, settings.few_shot)


read_manifest.outside = files_read  # type: ignore[attr-defined]
