"""Evaluation of trained adapters on other data: another place, another language, another voice, noise."""
