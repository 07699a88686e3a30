"""A registered adapter acts in a world."""
