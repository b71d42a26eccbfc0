"""What a message carries, for people: personal values are not shown."""

from __future__ import annotations

from typing import Any

import msgspec

SHOWN_CHARS_MAX = 20_000
MASKED = "(personal, not shown here)"
# By this a stored document says that a value is personal; see `synchromesh.sealing`.
_MARK = "$personal"
_DEPTH_MAX = 64


def shown_payload(stored: str, chars_max: int = SHOWN_CHARS_MAX) -> str:
    """Return a stored payload as indented JSON, with a word in place of each personal value.

    The subject that is stored with such a value is not shown either; a field of its own that names
    it is. What cannot be read is not shown at all: it may be personal.

    Example:
        >>> shown_payload('{"id":"A-1","email":{"$personal":"c-17","sealed":"AbCd"}}')
        '{\\n  "id": "A-1",\\n  "email": "(personal, not shown here)"\\n}'
    """
    try:
        document = msgspec.json.decode(stored)
        text = msgspec.json.format(msgspec.json.encode(_masked(document, 0)), indent=2).decode()
    except (ValueError, RecursionError):
        return "it is no JSON that can be read, and is not shown"
    if len(text) <= chars_max:
        return text
    return f"{text[:chars_max]}\n... of {len(text)} characters"


def _masked(value: Any, depth: int) -> Any:
    if depth > _DEPTH_MAX:
        return "(deeper than is shown)"
    if isinstance(value, list):
        return [_masked(each, depth + 1) for each in value]
    if isinstance(value, dict):
        if _MARK in value:
            return MASKED
        return {name: _masked(each, depth + 1) for name, each in value.items()}
    return value
