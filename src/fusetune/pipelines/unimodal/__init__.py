"""What each modality is worth alone: the measure of whether a task needs fusion at all."""
