"""The configuration of a system: its schema, its layers, its secrets, and the run directory."""
