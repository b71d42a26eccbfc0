"""Writes YAML 1.2 in block style, of what JSON has; quoted wherever a reader might see no text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
# What YAML 1.1, which many still read, takes for something else than a text.
_NO_TEXT = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}


def to_yaml(value: Any) -> str:
    """Return a value as a YAML document.

    Example:
        >>> print(to_yaml({"a": ["b", {"c": "1", "d": 1}], "e": {}}), end="")
        a:
          - b
          - c: "1"
            d: 1
        e: {}
    """
    return "".join(f"{line}\n" for line in _lines(value))


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            if isinstance(inner, (dict, list)) and inner:
                yield f"{_scalar(key)}:"
                yield from (f"  {line}" for line in _lines(inner))
            else:
                yield f"{_scalar(key)}: {_scalar(inner)}"
    elif isinstance(value, list) and value:
        for inner in value:
            first, *rest = _lines(inner)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _NO_TEXT:
        return value
    return json.dumps(value, ensure_ascii=False)
