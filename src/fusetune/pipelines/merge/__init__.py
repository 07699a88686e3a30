"""Adapters of one base, merged by their task vectors."""
