"""Manifests to validated manifests."""
