"""Compares two answers to one request: by status, and by JSON where both bodies are that.

A pure machine. Source: RFC 6901 for where something differs.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import msgspec

from synchromesh.calls.mistakes import pointer_of

DIFFERENCES_MAX: Final = 16
# A pointer, and a value that is shown.
TEXT_CHARS_MAX: Final = 120
# What a body may come to once it is decoded.
PLAIN_BYTES_MAX: Final = 1024 * 1024
# How many of its values are compared with those of another.
PARTS_MAX: Final = 50_000
ANY_STEP: Final = "*"

Steps = tuple[str, ...]


class AnswerTold(msgspec.Struct, frozen=True):
    """What an upstream has answered, whole.

    Attributes:
        kind: the media type, without parameters and in lower case; "" for none.
        encoding: how the body is encoded; "" for not at all.
    """

    status: int
    body: bytes
    kind: str = ""
    encoding: str = ""


class AnswerDifference(msgspec.Struct, frozen=True):
    """One thing in which two answers differ.

    Attributes:
        where: "status", "type", "body", or a JSON pointer into it.
        why: "status", "value", "type", "length", "only the first" or "only the mirror".
        first, mirror: what each has there, cut; "" where that is not to be kept.
    """

    where: str
    why: str
    first: str = ""
    mirror: str = ""


@dataclass(frozen=True, slots=True)
class Ignored:
    """The places of a body that may differ.

    Example:
        >>> Ignored.of({"/items/*/id"}).below("items").below("0").has("id")
        True
    """

    left: tuple[Steps, ...] = ()

    @classmethod
    def of(cls, pointers: Iterable[str]) -> Ignored:
        """Read pointers, in which `*` is any step.

        Raises:
            ValueError: one is none; the message is that one.
        """
        left = []
        for pointer in sorted(pointers):
            if not pointer.startswith("/"):
                raise ValueError(pointer)
            left.append(tuple(map(_unescaped, pointer.split("/")[1:])))
        return cls(tuple(left))

    def has(self, step: str) -> bool:
        """Tell whether what is at a step, from here, may differ."""
        return any(len(steps) == 1 and steps[0] in (step, ANY_STEP) for steps in self.left)

    def below(self, step: str) -> Ignored:
        """Return what may differ below a step."""
        if not self.left:
            return self
        return Ignored(tuple(s[1:] for s in self.left if len(s) > 1 and s[0] in (step, ANY_STEP)))


# At a step, what each has there, and what may differ below.
_Pair = tuple[str, Any, Any, Ignored]


def compare(
    first: AnswerTold, mirror: AnswerTold, ignored: Ignored = Ignored()
) -> tuple[AnswerDifference, ...] | None:
    """Return in what two answers differ, the first few; () where they are the same.

    None where a body is encoded in a way that is not read here, comes to too much, or holds so many
    values that no difference is among the first `PARTS_MAX`.

    Example:
        >>> one = AnswerTold(200, b'{"sku": "SX90", "left": 7}', "application/json")
        >>> other = AnswerTold(200, b'{"left": 6, "sku": "SX90"}', "application/json")
        >>> compare(one, other)
        (AnswerDifference(where='/left', why='value', first='7', mirror='6'),)
    """
    found: list[AnswerDifference] = []
    if first.status != mirror.status:
        found.append(AnswerDifference("status", "status", str(first.status), str(mirror.status)))
    bodies = _plain(first), _plain(mirror)
    if bodies[0] is None or bodies[1] is None:
        return tuple(found) or None
    if bodies[0] != bodies[1]:
        values = _json(first.kind, bodies[0]), _json(mirror.kind, bodies[1])
        if values[0] is not None and values[1] is not None:
            differences = _differences(values[0][0], values[1][0], ignored)
            if differences is None:
                return tuple(found) or None
            found += differences[: DIFFERENCES_MAX - len(found)]
        else:
            found.append(
                AnswerDifference(
                    "body", "value", f"{len(bodies[0])} bytes", f"{len(bodies[1])} bytes"
                )
            )
    if first.kind != mirror.kind and bool(bodies[0]) and bool(bodies[1]):
        kinds = first.kind[:TEXT_CHARS_MAX], mirror.kind[:TEXT_CHARS_MAX]
        found.append(AnswerDifference("type", "value", *kinds))
    return tuple(found)


def _differences(first: Any, mirror: Any, ignored: Ignored) -> list[AnswerDifference] | None:
    """Return where two values differ, the outermost first; None where that would take too long."""
    found: list[AnswerDifference] = []
    # What it is made of may be long: a pointer is written for a difference alone.
    path: list[str] = []
    levels: list[Iterator[_Pair]] = [iter((("", first, mirror, ignored),))]
    parts = 0
    while levels and len(found) < DIFFERENCES_MAX:
        part = next(levels[-1], None)
        if part is None:
            levels.pop()
            del path[-1:]
            continue
        parts += 1
        if parts > PARTS_MAX:
            return found or None
        step, one, other, left = part
        below = _below(one, other, left)
        why = _why(one, other)
        if why is not None:
            where = pointer_of([*path, step][1:], TEXT_CHARS_MAX)
            show = _length if why == "length" else _shown
            found.append(AnswerDifference(where, why, show(one), show(other)))
        if below is not None:
            levels.append(below)
            path.append(step)
    return found


def _below(one: Any, other: Any, left: Ignored) -> Iterator[_Pair] | None:
    """Return what two values hold at each step, without what may differ; None of what has none."""
    pairs: Iterable[tuple[str, Any, Any]]
    if isinstance(one, dict) and isinstance(other, dict):
        keys = chain(one, (key for key in other if key not in one))
        pairs = ((key, one.get(key, _NONE), other.get(key, _NONE)) for key in keys)
    elif isinstance(one, list) and isinstance(other, list):
        both = zip(one, other, strict=False)
        pairs = ((str(at), a, b) for at, (a, b) in enumerate(both))
    else:
        return None
    if not left.left:
        return ((key, a, b, left) for key, a, b in pairs)
    return ((key, a, b, left.below(key)) for key, a, b in pairs if not left.has(key))


_NONE: Final = object()


def _why(one: Any, other: Any) -> str | None:
    if one is _NONE:
        return "only the mirror"
    if other is _NONE:
        return "only the first"
    if isinstance(one, list) and isinstance(other, list):
        return "length" if len(one) != len(other) else None
    if isinstance(one, dict) and isinstance(other, dict):
        return None  # they differ by what is in them
    is_number = isinstance(one, int | float) and isinstance(other, int | float)
    # In Python `True == 1`; in JSON they are as little of one type as 1 and "1".
    is_alike = is_number and not isinstance(one, bool) and not isinstance(other, bool)
    if not is_alike and type(one) is not type(other):
        return "type"
    return None if one == other else "value"


def _length(value: Any) -> str:
    return str(len(value))


def _shown(value: Any) -> str:
    if value is _NONE:
        return ""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= TEXT_CHARS_MAX else text[:TEXT_CHARS_MAX] + "…"


def _json(kind: str, body: bytes) -> tuple[Any] | None:
    """Return the value of a body of JSON, in a tuple; None where it is none."""
    if kind != "application/json" and not kind.endswith("+json"):
        return None
    try:
        return (msgspec.json.decode(body),)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _plain(told: AnswerTold) -> bytes | None:
    """Return a body as it was before it was encoded; None where that is not known here."""
    if not told.encoding or told.encoding == "identity" or not told.body:
        return told.body
    if told.encoding not in ("gzip", "x-gzip", "deflate"):
        return None
    try:
        inflating = zlib.decompressobj(wbits=47)  # either format, by its head
        plain = inflating.decompress(told.body, PLAIN_BYTES_MAX)
    except zlib.error:
        return None
    return plain if inflating.eof else None


def _unescaped(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")
