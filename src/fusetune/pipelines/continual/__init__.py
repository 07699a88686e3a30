"""One task after another on one backbone."""
