"""An adapter folded into its base, for whoever serves models of `transformers`."""
