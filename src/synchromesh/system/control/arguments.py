"""Parses the arguments of an operation from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from synchromesh.calls import Operation
from synchromesh.codec import encode
from synchromesh.errors import BadRequest
from synchromesh.system.config.descriptions import describe_error


class CallRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /call`: one call, its arguments as texts by name, as the command line has them."""

    operation: str
    arguments: dict[str, str] = {}
    key: str = ""
    timeout_s: float = 10.0
    principal: str = ""
    scopes: frozenset[str] = frozenset()


def arguments_from_texts(operation: Operation[..., Any], texts: Mapping[str, str]) -> bytes:
    """Parse the arguments of an operation from `name=value` texts.

    Where the operation takes one struct, its fields may be named directly.

    Raises:
        BadRequest: a name is unknown, one is missing, or a text does not fit its type.
    """
    shape = operation.shape
    kind: Any = shape.arguments
    is_flat = False
    if shape.body and shape.body not in texts and len(kind.__struct_fields__) == 1:
        body: Any = msgspec.structs.fields(kind)[0].type
        is_flat = bool(_field_names(body))
        kind = body if is_flat else kind
    known = _field_names(kind)
    unknown = next((name for name in texts if name not in known), None)
    if unknown is not None:
        raise BadRequest(
            f"{operation.full_name} has no argument {unknown!r}; it takes "
            f"{', '.join(known) or 'none'}"
        )
    try:
        value = _converted(texts, kind)
    except msgspec.ValidationError as error:
        message = describe_error(str(error), operation.full_name, thing="argument")
        raise BadRequest(message) from error
    return operation.canonical(encode({shape.body: value} if is_flat else value))


def _field_names(kind: Any) -> tuple[str, ...]:
    fields: Any = getattr(kind, "__struct_fields__", None)
    return tuple(fields or getattr(kind, "__dataclass_fields__", ()))


def _converted(texts: Mapping[str, str], kind: Any) -> object:
    """Convert texts to values of a type; a text that begins like JSON is parsed as JSON."""
    plain = {name: _plain(text) for name, text in texts.items()}
    try:
        value: object = msgspec.convert(plain, kind, strict=False)
    except msgspec.ValidationError:
        if plain == texts:
            raise
        value = msgspec.convert(texts, kind, strict=False)
    return value


def _plain(text: str) -> object:
    """Parse a text that is a JSON object or list; anything else stays a text."""
    if text[:1] in ("{", "["):
        try:
            plain: object = msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text
        return plain
    return text
