"""Chance, as machines are handed it."""

from __future__ import annotations

from typing import Protocol


class Chance(Protocol):
    """Generates random numbers; `random.Random` is one. Handed in, so that a seed decides."""

    def random(self) -> float:
        """Return a number from 0.0 up to, but not, 1.0."""
        ...
