"""JSON Schemas of the types that contracts send, under names that depend on each type alone.

A class is named by its module and its own name, whatever other classes meet it in one document. One
that cannot be found there (made in a function, or since replaced) is told apart by a digest of what
it describes. A schema says what the codec takes and writes; where JSON Schema has no word for it,
as for an integer that is not written 1.0, it says the nearest wider thing.

Source: JSON Schema 2020-12, as OpenAPI 3.1 has it.
"""

from __future__ import annotations

import inspect as introspection
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from enum import Enum
from functools import reduce
from typing import Any, Final, TypeAlias, get_args, get_origin

import msgspec
from msgspec import inspect

from synchromesh.codec import digest, encode
from synchromesh.errors import BadRequest

Schema: TypeAlias = dict[str, Any]

PLACE: Final = "#/components/schemas/"

_LIMITS: Final = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum",
                  "le": "maximum", "multiple_of": "multipleOf", "pattern": "pattern"}  # fmt: skip
_LENGTHS: Final = {"string": "Length", "array": "Items", "object": "Properties"}
_DATE: Final = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_TIME: Final = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
_ZONE: Final = r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_SECONDS: Final = r"T[0-9]{1,5}(\.[0-9]{1,6})?S"
_INT_KEY: Final = r"^(0|-?[1-9][0-9]*)$"
_FLOAT_KEY: Final = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_BASE64: Final = {
    "type": "string", "contentEncoding": "base64",
    "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
}  # fmt: skip
# Of texts that have a form. Formats alone say nothing where a value may have no zone.
_FORMS: Final[Mapping[type[inspect.Type], Schema]] = {
    inspect.DateType: {"type": "string", "format": "date"},
    inspect.UUIDType: {"type": "string", "format": "uuid"},
    inspect.TimeDeltaType: {
        "type": "string", "pattern": f"^-?P([0-9]{{1,9}}D({_SECONDS})?|{_SECONDS})$",
    },
    inspect.DecimalType: {
        "type": "string", "format": "decimal",
        "pattern": r"^-?([0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,6})?|Infinity|s?NaN[0-9]*)$",
    },
    inspect.BytesType: _BASE64,
    inspect.ByteArrayType: _BASE64,
    inspect.MemoryViewType: _BASE64,
}  # fmt: skip
_PLAIN: Final[Mapping[type[inspect.Type], str]] = {
    inspect.NoneType: "null",
    inspect.BoolType: "boolean",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.StrType: "string",
}
_EMPTY: Final[Mapping[Any, Any]] = {list: [], tuple: [], set: [], frozenset: [], dict: {}}
_OBJECTS: Final = (
    inspect.StructType, inspect.DataclassType, inspect.TypedDictType, inspect.NamedTupleType,
)  # fmt: skip


class Schemas:
    """Makes the schemas of types, and keeps those of classes as components.

    Attributes:
        components: the schemas of classes, by name.

    Example:
        >>> Schemas().of(list[int])
        {'type': 'array', 'items': {'type': 'integer'}}
    """

    def __init__(self) -> None:
        self.components: dict[str, Schema] = {}
        self._names: dict[Any, str] = {}

    def of(self, kind: Any) -> Schema:
        """Return the schema of a type, which refers to the components."""
        return self._schema(inspect.type_info(kind))

    def add(self, cls: type, described: Schema) -> Schema:
        """Keep the schema of a class that is no type of data; return what refers to it."""
        name = component_name(cls)
        if not _is_found(cls):
            name = f"{name}.{_short(described)}"
        self.components[name] = described
        return {"$ref": PLACE + name}

    def _schema(self, kind: inspect.Type) -> Schema:
        if isinstance(kind, inspect.Metadata):
            return {**self._schema(kind.type), **(kind.extra_json_schema or {})}
        if isinstance(kind, (*_OBJECTS, inspect.EnumType)):
            return self._component(kind)
        if type(kind) in _PLAIN:
            return _limited({"type": _PLAIN[type(kind)]}, kind)
        if type(kind) in _FORMS:
            return _limited(dict(_FORMS[type(kind)]), kind)
        match kind:
            case inspect.DateTimeType():
                return _moment(f"{_DATE}T{_TIME}", "date-time", kind.tz)
            case inspect.TimeType():
                return _moment(_TIME, "time", kind.tz)
            case inspect.LiteralType():
                return _one_of(sorted(kind.values, key=repr))
            case inspect.UnionType():
                return self._union(kind)
            case inspect.TupleType():
                items = [self._schema(each) for each in kind.item_types]
                return _row(items, len(items), is_closed=True)
            case inspect.CollectionType():
                array: Schema = {"type": "array", "items": self._schema(kind.item_type)}
                return _limited(array, kind)
            case inspect.DictType():
                return self._map(kind)
        return {}

    def _union(self, kind: inspect.UnionType) -> Schema:
        tagged = [
            each
            for each in kind.types
            if isinstance(each, inspect.StructType) and each.tag_field and not each.array_like
        ]
        rest = [each for each in kind.types if len(tagged) < 2 or each not in tagged]
        members = [self._schema(each) for each in rest if not isinstance(each, inspect.NoneType)]
        if len(tagged) > 1:
            refs = {str(each.tag): self._schema(each) for each in tagged}
            mapping = {tag: ref["$ref"] for tag, ref in refs.items()}
            discriminator = {"propertyName": tagged[0].tag_field, "mapping": mapping}
            members.insert(0, {"oneOf": list(refs.values()), "discriminator": discriminator})
        if not any(isinstance(each, inspect.NoneType) for each in kind.types):
            return members[0] if len(members) == 1 else {"anyOf": members}
        if (
            len(members) == 1
            and isinstance(members[0].get("type"), str)
            and not (members[0].keys() & {"enum", "const"})
        ):
            # Every other keyword is about values of its own type alone.
            return {**members[0], "type": [members[0]["type"], "null"]}
        return {"anyOf": [*members, {"type": "null"}]}

    def _map(self, kind: inspect.DictType) -> Schema:
        schema: Schema = {"type": "object", "additionalProperties": self._schema(kind.value_type)}
        names = self._key(kind.key_type)
        if names not in ({}, {"type": "string"}):
            schema["propertyNames"] = names
        return _limited(schema, kind)

    def _key(self, kind: inspect.Type) -> Schema:
        """Return the schema of the names that keys of a type are written as."""
        match kind:
            case inspect.Metadata():
                return self._key(kind.type)
            case inspect.IntType():
                return {"pattern": _INT_KEY}
            case inspect.FloatType():
                return {"pattern": _FLOAT_KEY}
            case inspect.LiteralType():
                return {"enum": sorted(map(str, kind.values))}
            case inspect.EnumType():
                return {"enum": [str(each.value) for each in kind.cls]}
            case inspect.UnionType():
                return {"anyOf": [self._key(each) for each in kind.types]}
        return self._schema(kind)

    # -- components ----------------------------------------------------------------------------

    def _component(self, kind: Any) -> Schema:
        name = self._names.get(kind.cls)
        if name is None:
            # It may refer to itself.
            name = self._names[kind.cls] = self._name(kind)
            self.components.setdefault(name, {})
            self.components[name] = self._described(kind)
        return {"$ref": PLACE + name}

    def _name(self, kind: Any) -> str:
        cls, args = get_origin(kind.cls) or kind.cls, get_args(kind.cls)
        name = component_name(cls)
        if args:
            name = f"{name}-of-{'-and-'.join(map(self._argument, args))}"
        if _is_found(cls):
            return name
        numbered = _Numbered()
        numbered._component(kind)
        return f"{name}.{_short(numbered.components)}"

    def _argument(self, kind: Any) -> str:
        """Return the name of a type that a generic one is made with."""
        read = inspect.type_info(kind)
        if isinstance(read, (*_OBJECTS, inspect.EnumType)):
            name = self._name(read)
            return f"{name}-end" if get_args(read.cls) else name
        origin, args = get_origin(kind), get_args(kind)
        if isinstance(origin, type) and args and Ellipsis not in args:
            inner = "-and-".join(map(self._argument, args))
            return f"{_escaped(origin.__qualname__)}-of-{inner}-end"
        if isinstance(kind, type):
            return _escaped(kind.__qualname__)
        return f"any.{_short(_Numbered().of(kind))}"

    def _described(self, kind: Any) -> Schema:
        about = {"title": title_of(kind.cls)} | doc_of(kind.cls)
        if isinstance(kind, inspect.EnumType):
            return {**about, **_one_of([each.value for each in kind.cls])}
        tag_field = getattr(kind, "tag_field", None)
        tag = {} if tag_field is None else {tag_field: {"const": kind.tag}}
        fields = {**tag, **{each.encode_name: self._field(each) for each in kind.fields}}
        needed = [*tag, *(each.encode_name for each in kind.fields if each.required)]
        is_closed = bool(getattr(kind, "forbid_unknown_fields", False))
        if isinstance(kind, inspect.NamedTupleType) or getattr(kind, "array_like", False):
            is_closed = is_closed or isinstance(kind, inspect.NamedTupleType)
            return {**about, **_row([*fields.values()], len(needed), is_closed=is_closed)}
        schema: Schema = {**about, "type": "object", "properties": fields}
        if needed:
            schema["required"] = needed
        if is_closed:
            schema["additionalProperties"] = False
        return schema

    def _field(self, field: inspect.Field) -> Schema:
        return with_default(self._schema(field.type), field.default, field.default_factory)

    def __repr__(self) -> str:
        return f"<Schemas {len(self.components)} components>"


class _Numbered(Schemas):
    """Names classes by their turn: what is alike in all but its names has equal components."""

    def _name(self, kind: Any) -> str:  # noqa: ARG002 - by its turn alone
        return f"T{len(self.components)}"


# -- names -----------------------------------------------------------------------------------------


def component_name(cls: type) -> str:
    """Return the name of a class in a document, of letters, digits and `._-`.

    Example:
        >>> component_name(BadRequest)
        'synchromesh.errors.BadRequest'
    """
    return _escaped(f"{cls.__module__}.{cls.__qualname__}")


def title_of(cls: Any) -> str:
    """Return how people call a class."""
    args = ", ".join(title_of(each) for each in get_args(cls))
    name = str(getattr(get_origin(cls) or cls, "__name__", cls))
    return f"{name}[{args}]" if args else name


def doc_of(cls: Any) -> Schema:
    """Return the docstring of a class as its description, where somebody wrote one."""
    cls = get_origin(cls) or cls
    text = vars(cls).get("__doc__") or ""
    is_made = (
        (is_dataclass(cls) or issubclass(cls, tuple)) and text.startswith(f"{cls.__name__}(")
    ) or (issubclass(cls, Enum) and text == "An enumeration.")
    return {} if is_made or not text else {"description": introspection.cleandoc(text)}


def _is_found(cls: type) -> bool:
    """Tell whether a class is what its module has under its name."""
    try:
        found: object = reduce(getattr, cls.__qualname__.split("."), sys.modules[cls.__module__])
    except (AttributeError, KeyError):
        return False
    return found is cls


def _escaped(name: str) -> str:
    name = name.replace("<locals>", "-locals-")
    is_plain: Callable[[str], bool] = lambda c: c.isascii() and (c.isalnum() or c in "._-")  # noqa: E731
    return "".join(c if is_plain(c) else f"-{ord(c):x}-" for c in name)


def _short(described: object) -> str:
    return digest(encode(described))[:8]


# -- parts of schemas ------------------------------------------------------------------------------


def with_default(schema: Schema, default: Any, factory: Any = msgspec.NODEFAULT) -> Schema:
    """Return the schema of what may be left out, with the value that it has then."""
    if factory in _EMPTY:
        default = _EMPTY[factory]
    if default is msgspec.NODEFAULT:
        return schema
    try:
        return {**schema, "default": msgspec.json.decode(encode(default))}
    except BadRequest:
        return schema


def _limited(schema: Schema, kind: inspect.Type) -> Schema:
    for name, keyword in _LIMITS.items():
        limit = getattr(kind, name, None)
        if limit is not None:
            schema[keyword] = limit
    suffix = _LENGTHS.get(schema["type"])
    for name, keyword in (("min_length", "min"), ("max_length", "max")):
        length = getattr(kind, name, None)
        if length is not None and suffix is not None:
            # Of bytes it is that of what is encoded, four characters for three.
            is_encoded = "contentEncoding" in schema
            schema[keyword + suffix] = 4 * ((length + 2) // 3) if is_encoded else length
    return schema


def _moment(form: str, standard: str, tz: bool | None) -> Schema:
    if tz:
        return {"type": "string", "format": standard}
    zone = f"{_ZONE}?" if tz is None else ""
    return {"type": "string", "pattern": f"^{form}{zone}$"}


def _one_of(values: list[Any]) -> Schema:
    if len(values) == 1:
        return {"const": values[0]}
    kinds = {type(value) for value in values}
    names: dict[type, str] = {str: "string", int: "integer", bool: "boolean"}
    kind = names.get(kinds.pop()) if len(kinds) == 1 else None
    return {"type": kind, "enum": values} if kind else {"enum": values}


def _row(items: list[Schema], needed: int, *, is_closed: bool) -> Schema:
    schema: Schema = {"type": "array", "minItems": needed}
    if items:
        schema["prefixItems"] = items
    if is_closed:
        schema["maxItems"] = len(items)
    return schema
