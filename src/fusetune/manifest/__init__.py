"""From raw data to a validated manifest."""
