"""Composite models: one checkpoint with an encoder that sees or hears, a connector, and language blocks."""
