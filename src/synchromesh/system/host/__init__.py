"""The only place that wires: makes running parts out of a configuration."""
