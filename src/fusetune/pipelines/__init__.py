"""Kedro only: pipelines, datasets, and what decides that a node need not run again."""
