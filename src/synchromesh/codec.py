"""JSON by msgspec: the one stored and wire format.

Records and messages are stored in a versioned envelope by the rooms that own them; HTTP
bodies are bare. Values are msgspec structs, dataclasses, named tuples and plain types; mappings are
sorted by key, so that equal values have equal bytes and a digest can tell two inputs apart.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from synchromesh.errors import BadRequest

T = TypeVar("T")

_ENCODER = msgspec.json.Encoder(
    order="deterministic", decimal_format="string", uuid_format="canonical"
)
to_json = _ENCODER.encode
"""Encode what is known to be plain and finite, such as what came from JSON, without a check."""

_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {}

# What a decoder raises where data is not well formed or does not fit its type.
NO_FIT = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# What an encoder or a decoder raises.
NO_JSON = (
    BadRequest,
    TypeError,
    ValueError,
    RecursionError,
    OverflowError,
    msgspec.MsgspecError,
)


def encode(value: object) -> bytes:
    """Encode a value as JSON; equal values have equal bytes.

    Raises:
        BadRequest: the value holds something that JSON cannot carry, such as an open file or NaN.

    Example:
        >>> encode({"b": 1, "a": (2, None)})
        b'{"a":[2,null],"b":1}'
    """
    try:
        try:
            data = _ENCODER.encode(value)
        except TypeError:
            data = _written(value)
    except NO_JSON as error:
        raise BadRequest(
            f"a {type(value).__name__} cannot be sent: {error}; use msgspec structs, dataclasses "
            "and plain values"
        ) from error
    # NaN and the infinities come out as null, which only a look at the value tells from None.
    # `in` would first take the other bytes for a number, and throw that error away: twice the time.
    if data.find(b"null") >= 0 and _has_unbounded(value):
        raise BadRequest(
            f"a {type(value).__name__} cannot be sent: it holds NaN or an infinity, which JSON has "
            "no number for; send None or leave it out"
        )
    return data


def _written(value: object) -> bytes:
    """Return the JSON of a value, whatever the keys of its mappings are. Raises one of NO_JSON."""
    try:
        return _ENCODER.encode(value)
    except TypeError as error:
        try:
            # Mappings are sorted by their keys, and these are texts in JSON.
            plain = msgspec.to_builtins(value, str_keys=True, order="deterministic")
        except NO_JSON:
            raise error from None
        return _ENCODER.encode(plain)


@cache
def encoder_of(kind: Any) -> Callable[[object], bytes]:
    """Return what encodes values that are decoded as a type at once, to see whether they fit it.

    It is `encode`, without its frame where JSON's null has no place in the type, for then the
    decoder refuses what comes of NaN, and all keys of mappings are texts. It raises one of
    `NO_JSON`; `unfit` tells what the matter was.

    Example:
        >>> encoder_of(list[int])([1])
        b'[1]'
    """
    read = inspect.type_info(kind)
    return encode if _takes_null(read, set()) or _has_other_keys(read, set()) else to_json


def writer_of(kind: Any) -> Callable[[object], bytes]:
    """Return what encodes values of a type that came from JSON: `to_json`, where it can.

    Example:
        >>> writer_of(dict[str, int]) is to_json, writer_of(dict[int, int])({2: 1})
        (True, b'{"2":1}')
    """
    return _written if _has_other_keys(inspect.type_info(kind), set()) else to_json


@cache
def keeps_its_form(kind: Any) -> bool:
    """Return whether a value that was decoded is, whatever reads it, the one its own JSON makes.

    Not so where something has an order that JSON does not keep, as a dict, or where code of the
    type's own runs as it is made.

    Example:
        >>> keeps_its_form(list[int | None]), keeps_its_form(dict[str, int]), keeps_its_form(object)
        (True, False, False)
    """
    return _keeps_form(inspect.type_info(kind), set())


def _keeps_form(kind: inspect.Type, seen: set[type]) -> bool:
    if isinstance(kind, inspect.StructType):
        if kind.cls in seen:
            return True
        seen.add(kind.cls)
        if hasattr(kind.cls, "__post_init__"):
            return False
        return all(_keeps_form(field.type, seen) for field in kind.fields)
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        return _keeps_form(kind.item_type, seen)
    if isinstance(kind, inspect.TupleType):
        return all(_keeps_form(each, seen) for each in kind.item_types)
    if isinstance(kind, inspect.UnionType):
        return all(_keeps_form(each, seen) for each in kind.types)
    return isinstance(kind, (inspect.NoneType, *_NEVER_NULL))


def _has_other_keys(kind: inspect.Type, seen: set[type]) -> bool:
    """Return whether a mapping in a type may have keys that are no texts."""
    if isinstance(kind, inspect.DictType) and not isinstance(kind.key_type, inspect.StrType):
        return True
    cls = getattr(kind, "cls", None)
    if cls is not None:
        if cls in seen:
            return False
        seen.add(cls)
    parts = [field.type for field in getattr(kind, "fields", ())]
    for name in ("type", "item_type", "value_type"):
        parts += [getattr(kind, name)] if hasattr(kind, name) else []
    parts += [*getattr(kind, "item_types", ()), *getattr(kind, "types", ())]
    return isinstance(kind, inspect.AnyType) or any(_has_other_keys(each, seen) for each in parts)


def _takes_null(kind: inspect.Type, seen: set[type]) -> bool:
    """Return whether JSON's null may fit somewhere in a type, as far as that is known."""
    if isinstance(kind, inspect.StructType | inspect.DataclassType | inspect.NamedTupleType):
        if kind.cls in seen:
            return False
        seen.add(kind.cls)
        return any(_takes_null(field.type, seen) for field in kind.fields)
    if isinstance(
        kind, inspect.ListType | inspect.SetType | inspect.FrozenSetType | inspect.VarTupleType
    ):
        return _takes_null(kind.item_type, seen)
    if isinstance(kind, inspect.TupleType):
        return any(_takes_null(each, seen) for each in kind.item_types)
    if isinstance(kind, inspect.DictType):
        return _takes_null(kind.value_type, seen)
    if isinstance(kind, inspect.Metadata):
        return _takes_null(kind.type, seen)
    if isinstance(kind, inspect.UnionType):
        return any(_takes_null(each, seen) for each in kind.types)
    return not isinstance(kind, _NEVER_NULL)


_NEVER_NULL = (
    inspect.BoolType,
    inspect.IntType,
    inspect.FloatType,
    inspect.StrType,
    inspect.BytesType,
    inspect.DateTimeType,
    inspect.DateType,
    inspect.UUIDType,
    inspect.DecimalType,
    inspect.EnumType,
)


def unfit(value: object, error: Exception) -> Exception:
    """Return what is wrong with a value that `encoder_of` or the decoder behind it refused."""
    try:
        encode(value)
    except BadRequest as unsendable:
        return unsendable
    return error


def _has_unbounded(value: object) -> bool:
    """Return whether an encoded value contains a float that is not finite."""
    # Structs and dataclasses become dicts here; JSON that is carried as it is has its nulls.
    left = [msgspec.to_builtins(value, enc_hook=_nothing)]
    while left:
        each = left.pop()
        if isinstance(each, float):
            if not math.isfinite(each):
                return True
        elif isinstance(each, dict):
            left.extend(each.values())
        elif isinstance(each, list | tuple | set | frozenset):
            left.extend(each)
    return False


def _nothing(_: object) -> None:
    return None


def decode(data: bytes, kind: type[T]) -> T:
    """Decode JSON as a value of a type, fully validated.

    Raises:
        BadRequest: the JSON is not well formed or does not fit the type; the message names where.

    Example:
        >>> decode(b'[1,2]', tuple[int, ...])
        (1, 2)
    """
    try:
        return decoder_of(kind)(data)
    except NO_FIT as error:
        raise BadRequest(f"the data does not fit: {error}") from error


def decoder_of(kind: type[T]) -> Callable[[bytes], T]:
    """Return a decoder of a type, called without a frame of ours: it raises one of `NO_FIT`.

    Example:
        >>> decoder_of(list[int])(b"[1]")
        [1]
    """
    # Keyed by the type itself: annotations such as `list[int]` hash and compare by value.
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.json.Decoder(kind)
    return decoder.decode


def convert(value: object, kind: type[T], *, from_text: bool = False) -> T:
    """Convert plain data to a value of a type; `from_text` also parses numbers from strings.

    Raises:
        BadRequest: it does not fit; the message names where.

    Example:
        >>> convert({"n": "3"}, dict[str, int], from_text=True)
        {'n': 3}
    """
    try:
        return msgspec.convert(value, kind, strict=not from_text)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the data does not fit: {error}") from error


def digest(data: bytes) -> str:
    """Return the digest of an input as 32 hex digits (BLAKE2b, 128 bits)."""
    return blake2b(data, digest_size=16).hexdigest()


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def to_datetime(at_us: int) -> dt.datetime:
    """Convert stored microseconds to an aware datetime.

    Example:
        >>> to_datetime(1_500_000).isoformat()
        '1970-01-01T00:00:01.500000+00:00'
    """
    return _EPOCH + dt.timedelta(microseconds=at_us)
