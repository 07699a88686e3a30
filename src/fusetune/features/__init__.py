"""The cache of activations at the frontier."""
