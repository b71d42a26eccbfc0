"""Tuples of a definition: what is given for one, and is none, is said where it is declared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from synchromesh.errors import ContractError

_TEXT_CHARS = 24


def to_tuple(given: object, what: str) -> tuple[Any, ...]:
    """Return what is given for a tuple as one.

    Without its comma `("text")` is a text, and is read letter by letter; `(Name)` is a class.

    Args:
        what: the argument in words, for messages.

    Raises:
        ContractError: it is a text, a class, or nothing that holds others.

    Example:
        >>> to_tuple(["a", "b"], "names")
        ('a', 'b')
        >>> to_tuple(("a"), "names")
        Traceback (most recent call last):
        ...
        synchromesh.errors.ContractError: names is a text; write a tuple: ('a',)
    """
    if isinstance(given, str):
        shown = given if len(given) <= _TEXT_CHARS else f"{given[:_TEXT_CHARS]}..."
        raise ContractError(f"{what} is a text; write a tuple: ({shown!r},)")
    if isinstance(given, type):
        raise ContractError(f"{what} is a class; write a tuple: ({given.__name__},)")
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise ContractError(f"{what} is {given!r:.60}; write a tuple, also of one: (..., )")
    return tuple(given)
