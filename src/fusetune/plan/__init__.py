"""Where and what: from a method's placements to an adapted model and its frontier."""
