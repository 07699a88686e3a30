"""Adapters after training: on disk, in memory, served."""
