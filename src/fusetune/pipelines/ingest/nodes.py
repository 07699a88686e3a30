"""Node functions; imports of what is heavy stand inside, so that listing pipelines stays cheap."""

from collections.abc import Mapping
from typing import Any


def read_manifest(ingest: Mapping[str, Any]) -> Any:
    """The manifest that the named reader makes, a pyarrow Table."""
    from fusetune.config import build
    from fusetune.manifest.readers import readers
    from fusetune.pipelines.parameters import ReaderSettings

    settings = build(ReaderSettings, ingest, "ingest")
    return readers.get(settings.reader)(settings.settings, "ingest.settings")
