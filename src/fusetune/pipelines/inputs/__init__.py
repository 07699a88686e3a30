"""What of the samples reaches the base: lengths, and what its tokenizer cuts, doesn't know, or makes the same."""
