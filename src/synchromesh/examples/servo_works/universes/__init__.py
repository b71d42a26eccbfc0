"""Universes of servo-works: the whole system under a seed's faults, and what must hold then."""

from universes.universe import Universe

__all__ = ["Universe"]
