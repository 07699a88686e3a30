"""What each method costs: on your data and base, or on a model that is known by its configuration."""
