"""Breaks servo-works on purpose and holds it to account: `make demo`."""
