"""Quoting: prices and lead times, from what others answer; it keeps nothing, and has replicas."""

from services.quoting.service import quoting

__all__ = ["quoting"]
