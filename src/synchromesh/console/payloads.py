"""What a message carries, for people: personal values are not shown."""

from __future__ import annotations

from typing import Any

import msgspec

SHOWN_CHARS_MAX = 20_000
# To show a part of one, all of it is decoded, for what is personal may be anywhere: some 10 ms.
DECODED_CHARS_MAX = 200_000
MASKED = "(personal, not shown here)"
# By this a stored document says that a value is personal; see `synchromesh.sealing`.
_MARK = "$personal"
_DEPTH_MAX = 64


def shown_payload(
    stored: str, chars_max: int = SHOWN_CHARS_MAX, *, decoded_max: int = DECODED_CHARS_MAX
) -> str:
    """Return a stored payload as indented JSON, with a word in place of each personal value.

    The subject that is stored with such a value is not shown either; a field of its own that names
    it is. What cannot be read is not shown at all: it may be personal; nor is what is longer than
    `decoded_max` characters.

    Example:
        >>> shown_payload('{"id":"A-1","email":{"$personal":"c-17","sealed":"AbCd"}}')
        '{\\n  "id": "A-1",\\n  "email": "(personal, not shown here)"\\n}'
    """
    if len(stored) > decoded_max:
        return too_long(len(stored))
    try:
        document = msgspec.json.decode(stored)
        text = msgspec.json.format(msgspec.json.encode(_masked(document, 0)), indent=2).decode()
    except (ValueError, RecursionError):
        return "it is no JSON that can be read, and is not shown"
    if len(text) <= chars_max:
        return text
    return f"{text[:chars_max]}\n... of {len(text)} characters"


def too_long(chars: int) -> str:
    """Say of a payload that it is not shown.

    Example:
        >>> too_long(126_000)
        '126000 characters, too long to be shown here'
    """
    return f"{chars} characters, too long to be shown here"


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
