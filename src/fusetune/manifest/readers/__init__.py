"""One data set's layout = one file; a reader is a function ``read(settings, where) -> pyarrow.Table``."""

from fusetune.registry import Registry

readers = Registry(
    "readers",
    {
        "glyphs": "fusetune.manifest.readers.glyphs:read",
        "manifest": "fusetune.manifest.readers.table:read",
        "food101": "fusetune.manifest.readers.food101:read",
        "mmsa": "fusetune.manifest.readers.mmsa:read",
        "iemocap": "fusetune.manifest.readers.iemocap:read",
        "msrvtt": "fusetune.manifest.readers.msrvtt:read",
        "vqav2": "fusetune.manifest.readers.vqav2:read",
        "karpathy": "fusetune.manifest.readers.karpathy:read",
        "ave": "fusetune.manifest.readers.ave:read",
        "digits6": "fusetune.manifest.readers.digits6:read",
        "refcoco": "fusetune.manifest.readers.refcoco:read",
        "charades_sta": "fusetune.manifest.readers.charades_sta:read",
        "qvhighlights": "fusetune.manifest.readers.qvhighlights:read",
        "digit_strips": "fusetune.manifest.readers.digit_strips:read",
        "glyph_moments": "fusetune.manifest.readers.glyph_moments:read",
        "spoken_commands": "fusetune.manifest.readers.spoken_commands:read",
        "spoken_moments": "fusetune.manifest.readers.spoken_moments:read",
        "glyph_boxes": "fusetune.manifest.readers.glyph_boxes:read",
        "glyph_reaching": "fusetune.manifest.readers.glyph_reaching:read",
        "lerobot": "fusetune.manifest.readers.lerobot:read",
        "avdigits": "fusetune.manifest.readers.avdigits:read",
        "conversations": "fusetune.manifest.readers.conversations:read",
        "hf": "fusetune.manifest.readers.hf:read",
    },
)
