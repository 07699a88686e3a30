"""A look at a table of one's own, and the conf for it."""
