"""A task that has labels in one language, asked in others."""
