"""Features at a method's frontier, written once."""
