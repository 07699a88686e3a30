"""Which method wins on these data, at what cost, and how sure one can be."""
