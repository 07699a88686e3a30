"""A run from features to a result; `python -m fusetune.runs` on a machine without Kedro."""
