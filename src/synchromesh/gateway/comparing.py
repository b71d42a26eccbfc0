"""Compares two answers to one request: by status, and by JSON where both bodies are that.

A pure machine. Source: RFC 6901 for where something differs.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

DIFFERENCES_MAX: Final = 16
# A pointer, and a value that is shown.
TEXT_CHARS_MAX: Final = 120
# What a body may come to once it is decoded.
PLAIN_BYTES_MAX: Final = 1024 * 1024
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


def compare(
    first: AnswerTold, mirror: AnswerTold, ignored: Ignored = Ignored()
) -> tuple[AnswerDifference, ...] | None:
    """Return in what two answers differ, the first few; () where they are the same.

    None where a body is encoded in a way that is not read here, or comes to too much.

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
            for difference in _differences(values[0][0], values[1][0], ignored):
                found.append(difference)
                if len(found) >= DIFFERENCES_MAX:
                    break
        else:
            found.append(
                AnswerDifference(
                    "body", "value", f"{len(bodies[0])} bytes", f"{len(bodies[1])} bytes"
                )
            )
    if first.kind != mirror.kind and bool(bodies[0]) and bool(bodies[1]):
        found.append(AnswerDifference("type", "value", first.kind, mirror.kind))
    return tuple(found)


def _differences(first: Any, mirror: Any, ignored: Ignored) -> Iterator[AnswerDifference]:
    """Yield where two values differ, the outermost first."""
    waiting: list[tuple[str, Any, Any, Ignored]] = [("", first, mirror, ignored)]
    while waiting:
        where, one, other, left = waiting.pop()
        if isinstance(one, dict) and isinstance(other, dict):
            steps = [*one, *(key for key in other if key not in one)]
            below = [(key, one.get(key, _NONE), other.get(key, _NONE)) for key in steps]
        elif isinstance(one, list) and isinstance(other, list):
            if len(one) != len(other):
                yield AnswerDifference(where, "length", str(len(one)), str(len(other)))
            both = zip(one, other, strict=False)
            below = [(str(at), a, b) for at, (a, b) in enumerate(both)]
        else:
            if (why := _why(one, other)) is not None:
                yield AnswerDifference(where[:TEXT_CHARS_MAX], why, _shown(one), _shown(other))
            continue
        waiting += reversed([
            (f"{where}/{_escaped(key)}", a, b, left.below(key))
            for key, a, b in below
            if not left.has(key)
        ])  # fmt: skip


_NONE: Final = object()


def _why(one: Any, other: Any) -> str | None:
    if one is _NONE:
        return "only the mirror"
    if other is _NONE:
        return "only the first"
    is_number = isinstance(one, int | float) and isinstance(other, int | float)
    # In Python `True == 1`; in JSON they are as little of one type as 1 and "1".
    is_alike = is_number and not isinstance(one, bool) and not isinstance(other, bool)
    if not is_alike and type(one) is not type(other):
        return "type"
    return None if one == other else "value"


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


def _escaped(step: str) -> str:
    return step.replace("~", "~0").replace("/", "~1")


def _unescaped(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")
