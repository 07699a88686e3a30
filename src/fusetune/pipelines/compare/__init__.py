"""Which method wins on these data, at what cost."""
