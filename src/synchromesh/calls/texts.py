"""Arguments as texts of a path or a query: readable, and nothing is lost on the way.

A `str` is its own text. Any other value is its JSON, and a JSON string that could not be mistaken
for something else loses its quotes: `?limit=5&since=2026-01-01&note=null` says null, and
`note="null"` the word. What is no JSON of the type is read as a bare text, so that people need not
write quotes.
"""

from __future__ import annotations

from typing import Any

import msgspec


def to_text(raw: msgspec.Raw | bytes, kind: Any) -> str:
    """Return the text that carries an argument's JSON.

    Example:
        >>> to_text(b'"SX90"', str), to_text(b'"5"', str | None), to_text(b"5", int)
        ('SX90', '"5"', '5')
    """
    value = msgspec.json.decode(raw)
    if isinstance(value, str) and (kind is str or not _is_json(value)):
        return value
    return bytes(raw).decode()


def from_text(text: str, kind: Any) -> Any:
    """Return the argument that a text carries.

    Raises:
        msgspec.ValidationError: it does not fit the type.

    Example:
        >>> from_text("5", str), from_text("5", int), from_text('"5"', str | None)
        ('5', 5, '5')
    """
    if kind is str:
        return text
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError):
        return msgspec.convert(text, kind, strict=False)


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
