"""One data set's layout = one file; a reader is a function ``read(settings, where) -> pyarrow.Table``."""

from fusetune.registry import Registry

readers = Registry(
    "readers",
    {
        "glyphs": "fusetune.manifest.readers.glyphs:read",
        "manifest": "fusetune.manifest.readers.table:read",
    },
)
