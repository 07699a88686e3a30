"""One method trained, evaluated and registered."""
