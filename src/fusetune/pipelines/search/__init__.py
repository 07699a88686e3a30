"""What to place where, under a budget."""
