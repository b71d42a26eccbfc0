"""What somebody may have meant who wrote a name that is not known."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that looks most like one that is not known; "" where none does.

    Example:
        >>> nearest("ordres", ("orders", "billing"))
        'orders'
    """
    from difflib import get_close_matches  # only where there is a mistake

    return next(iter(get_close_matches(name, known, n=1)), "")
