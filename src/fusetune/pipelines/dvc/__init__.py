"""Stages of DVC, written from the pipelines and the catalog."""
