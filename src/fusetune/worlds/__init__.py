"""Worlds in which a trained model acts: what it says is carried out, and it sees what came of it.

A third party adds its own (a simulator) by an entry point in the group ``fusetune.worlds``.
"""

from fusetune.registry import Registry

worlds = Registry("worlds", {"glyph_reaching": "fusetune.worlds.glyph_reaching:GlyphReaching"})
