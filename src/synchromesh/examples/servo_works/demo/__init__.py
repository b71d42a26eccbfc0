"""Breaks servo-works on purpose and holds it to account: `python -m ....servo_works.demo`."""
