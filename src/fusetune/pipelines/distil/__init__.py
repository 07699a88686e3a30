"""A student learns from a trained adapter."""
