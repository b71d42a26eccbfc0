"""Fleet: the drives in the field, by what they report of themselves."""

from services.fleet.service import fleet

__all__ = ["fleet"]
