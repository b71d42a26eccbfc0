"""Arguments of an HTTP request: from path, query and body to their canonical form.

What does not fit is refused with the first mistake in words, and all of them by their places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

import msgspec

from synchromesh.calls.mistakes import (
    MISTAKES_MAX,
    Mistake,
    cut,
    duplicates_in,
    mistakes_in,
    pointer_of,
    unknown_in,
)
from synchromesh.calls.signature import BODILESS, Signature
from synchromesh.calls.texts import from_text
from synchromesh.codec import NO_FIT, decode, encode
from synchromesh.errors import BadRequest


class HttpOperation(Protocol):
    """Is what arguments are read for: an `Operation`."""

    method: str
    places: tuple[str, ...]

    @property
    def full_name(self) -> str:
        """`service.name`."""
        ...

    @property
    def shape(self) -> Signature:
        """The types of the arguments."""
        ...

    def from_http(self, places: Mapping[str, str], query: str, body: bytes) -> bytes:
        """Return the canonical arguments of an HTTP request."""
        ...


def read_arguments(
    operation: HttpOperation, shape: Signature, places: Mapping[str, str], query: str, body: bytes
) -> bytes:
    """Return the canonical arguments of an HTTP request; `places` are still percent-encoded.

    `shape` is that of the operation, which has it at hand.

    Raises:
        BadRequest: path, query or body do not fit the contract.
    """
    try:
        values = _from_texts(operation, shape.hints, places, query)
        if body or shape.body:
            values |= _from_body(operation, shape, body)
        struct = shape.canonical(**values)
    except UnicodeDecodeError as error:
        raise BadRequest(f"{operation.full_name}: path or query is not UTF-8") from error
    except (BadRequest, TypeError) as error:
        # The struct's own words tell of an argument that is missing.
        words = error.message if isinstance(error, BadRequest) else str(error)
        refused = BadRequest(f"{operation.full_name}: {cut(words)}")
        refused.mistakes = (
            *_mistakes_of_texts(operation, places, query),
            *_mistakes_of_body(operation, body),
        )[:MISTAKES_MAX]
        raise refused from error.__cause__
    return encode(struct)


def read_strictly(
    operation: HttpOperation, places: Mapping[str, str], query: str, body: bytes
) -> bytes:
    """Return the same as `from_http`, of a body without fields that are unknown or stand twice.

    Raises:
        BadRequest: path, query or body do not fit the contract, or the body is loose; `mistakes`
            name both.
    """
    try:
        arguments = operation.from_http(places, query, body)
    except BadRequest as error:
        with suppress(BadRequest):  # what cannot be read is refused for that
            loose = [each for each in _loose_in(operation, body) if each not in error.mistakes]
            error.mistakes = (*error.mistakes, *loose)[:MISTAKES_MAX]
        raise
    refuse_loose(operation, body)
    return arguments


def refuse_loose(operation: HttpOperation, body: bytes) -> None:
    """Refuse a body that fits, and has fields that are unknown or stand twice in an object.

    Raises:
        BadRequest: it has some; its `mistakes` say where.
    """
    mistakes = _loose_in(operation, body)
    if mistakes:
        first = mistakes[0]
        refused = BadRequest(f"the field {first['pointer']!r} {first['detail']}")
        refused.mistakes = tuple(mistakes[:MISTAKES_MAX])
        raise refused


def _loose_in(operation: HttpOperation, body: bytes) -> list[Mistake]:
    """Return which fields of a body are unknown, or stand twice in an object.

    Raises:
        BadRequest: the body is no JSON, or nested too deeply.
    """
    if not body:
        return []
    shape = operation.shape
    try:
        value = msgspec.json.decode(body)
        mistakes = list(duplicates_in(body))
    except RecursionError as error:
        # What is any JSON to its type may be as deep as a decoder takes; the next one takes less.
        raise BadRequest("the body is nested too deeply") from error
    except NO_FIT as error:
        # Unknown fields are skipped where arguments are read, whatever they hold.
        refused = BadRequest(f"a field that is unknown cannot be read: {error}")
        refused.mistakes = ({"detail": f"is no JSON: {error}", "pointer": ""},)
        raise refused from error
    if shape.body:
        return [*mistakes, *unknown_in(value, shape.hints[shape.body])]
    # Of the arguments themselves none is unknown: it would not fit.
    for name, each in value.items() if isinstance(value, dict) else ():
        if name in shape.hints:
            mistakes += unknown_in(each, shape.hints[name], f"/{name}")
    return mistakes


def _from_texts(
    operation: HttpOperation, hints: Mapping[str, Any], places: Mapping[str, str], query: str
) -> dict[str, Any]:
    texts = {name: unquote(value, errors="strict") for name, value in places.items()}
    if query and operation.method not in BODILESS:
        raise BadRequest("takes no query; send the arguments in the body")
    for name, text in parse_qsl(query, keep_blank_values=True, errors="strict"):
        if name not in hints:
            raise BadRequest(f"unknown argument {cut(name)!r}; {_known(hints)}")
        if name in texts:
            raise BadRequest(f"argument {name!r} is given twice")
        texts[name] = text
    values = {}
    for name, text in texts.items():
        try:
            values[name] = from_text(text, hints[name])
        except msgspec.ValidationError as error:
            raise BadRequest(f"argument {name!r}: {error}") from error
    return values


def _from_body(operation: HttpOperation, shape: Signature, body: bytes) -> dict[str, Any]:
    if shape.body:
        return {shape.body: decode(body, shape.hints[shape.body])}
    if operation.method in BODILESS:
        raise BadRequest(f"{operation.method} takes no body")
    values: dict[str, Any] = {}
    for name, raw in decode(body, dict[str, msgspec.Raw]).items():
        if name not in shape.hints or name in operation.places:
            allowed = {n: h for n, h in shape.hints.items() if n not in operation.places}
            raise BadRequest(f"unknown argument {cut(name)!r} in the body; {_known(allowed)}")
        try:
            values[name] = decode(bytes(raw), shape.hints[name])
        except BadRequest as error:
            raise BadRequest(f"argument {name!r}: {error.message}") from error.__cause__
    return values


# -- every mistake, once there is one --------------------------------------------------------------


def _mistakes_of_texts(
    operation: HttpOperation, places: Mapping[str, str], query: str
) -> Iterator[Mistake]:
    """Yield what is wrong with path and query, which are UTF-8."""
    hints, given = operation.shape.hints, dict.fromkeys(places, "path")
    texts = [("path", name, unquote(value)) for name, value in places.items()]
    for name, text in parse_qsl(query, keep_blank_values=True):
        texts.append(("query", name, text))
    for where, name, text in texts:
        if where == "query" and operation.method not in BODILESS:
            yield _of_text(where, name, "is not taken here; send it in the body")
        elif name not in hints:
            yield _of_text(where, name, f"is unknown; {_known(hints)}")
        elif where == "query" and name in given:
            yield _of_text(where, name, "is given twice")
        else:
            given[name] = where
            try:
                from_text(text, hints[name])
            except msgspec.ValidationError as error:
                yield _of_text(where, name, cut(str(error)))
    if operation.method in BODILESS:
        for name in _needed(operation):
            if name not in given:
                yield _of_text("query", name, "is missing")


def _mistakes_of_body(operation: HttpOperation, body: bytes) -> tuple[Mistake, ...]:
    """Return what is wrong with a body."""
    shape, method = operation.shape, operation.method
    if method in BODILESS:
        return ({"detail": f"{method} takes no body", "pointer": ""},) if body else ()
    value: Any = {}
    if body or shape.body:
        try:
            value = msgspec.json.decode(body)
        except NO_FIT as error:
            return ({"detail": f"is no JSON: {error}", "pointer": ""},)
    if shape.body:
        return mistakes_in(value, shape.hints[shape.body])
    if not isinstance(value, dict):
        return ({"detail": "is no object of arguments", "pointer": ""},)
    hints = {name: hint for name, hint in shape.hints.items() if name not in operation.places}
    mistakes: list[Mistake] = []
    for name, each in value.items():
        if name in hints:
            mistakes += mistakes_in(each, hints[name], f"/{name}")
        else:
            unknown = f"is unknown; {_known(hints)}"
            mistakes.append({"detail": unknown, "pointer": pointer_of([name])})
        if len(mistakes) >= MISTAKES_MAX:
            break
    for name in _needed(operation):
        if name in hints and name not in value:
            mistakes.append({"detail": "is missing", "pointer": f"/{name}"})
    return tuple(mistakes)


def _needed(operation: HttpOperation) -> Iterator[str]:
    for name, parameter in operation.shape.signature.parameters.items():
        if parameter.default is parameter.empty:
            yield name


def _of_text(where: str, name: str, detail: str) -> Mistake:
    return {"detail": detail, "in": where, "name": cut(name)}


def _known(hints: Mapping[str, Any]) -> str:
    return f"known: {', '.join(hints)}" if hints else "it takes none"
