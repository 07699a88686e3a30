"""Batch scoring with a registered or a local adapter."""
