"""One loop for every method, and what follows it: evaluation."""
