"""Describes operations and public events of a contract as they are sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, get_origin

import msgspec
from msgspec import inspect

from synchromesh.calls.contract import Operation, PublicEvent
from synchromesh.calls.description import (
    Described,
    EventDescription,
    FieldNode,
    ObjectNode,
    OperationDescription,
    TypeNode,
)
from synchromesh.calls.signature import BODILESS
from synchromesh.codec import encode
from synchromesh.errors import BadRequest, ContractError

_LIMITS = (
    "gt", "ge", "lt", "le", "multiple_of", "pattern", "min_length", "max_length", "tz",
)  # fmt: skip
_SCALARS: dict[type[inspect.Type], str] = {
    inspect.AnyType: "any",
    inspect.RawType: "any",
    inspect.NoneType: "null",
    inspect.BoolType: "bool",
    inspect.IntType: "int",
    inspect.FloatType: "float",
    inspect.DecimalType: "decimal",
    inspect.StrType: "str",
    inspect.BytesType: "bytes",
    inspect.ByteArrayType: "bytes",
    inspect.MemoryViewType: "bytes",
    inspect.DateTimeType: "datetime",
    inspect.DateType: "date",
    inspect.TimeType: "time",
    inspect.TimeDeltaType: "timedelta",
    inspect.UUIDType: "uuid",
}
_EMPTY = {list: "[]", tuple: "[]", set: "[]", frozenset: "[]", dict: "{}"}


def describe(
    operations: Iterable[Operation[..., Any]], events: Iterable[PublicEvent[Any]] = ()
) -> Described:
    """Describe operations and events.

    Raises:
        ContractError: an annotation cannot be resolved, or is of no type that can be sent.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, operations_of, query
        >>> class Clock(Contract, Protocol, service="clock", version="1.0"):
        ...     @query("GET /now/{zone}")
        ...     async def now(self, zone: str) -> str: ...
        >>> str(describe(operations_of(Clock).values()).operations["clock.now"].result)
        'str'
    """
    return Described(
        {each.full_name: _describe_operation(each) for each in operations},
        {each.full_name: _describe_event(each) for each in events},
    )


def _describe_operation(operation: Operation[..., Any]) -> OperationDescription:
    shape = operation.shape
    types = dict(zip(shape.hints, _read(operation.full_name, *shape.hints.values()), strict=True))
    (result,) = _read(operation.full_name, shape.result)
    describing = _Describing()
    is_bodiless = operation.method in BODILESS
    defaults = {field.name: field for field in msgspec.structs.fields(shape.canonical)}

    def parameter(name: str) -> FieldNode:
        field = defaults[name]
        return FieldNode(
            name,
            describing.node(types[name]),
            is_required=field.required,
            is_left_out=is_bodiless and name in shape.omitted,
            default=_default_of(field.default, field.default_factory),
        )

    rest = [name for name in shape.hints if name not in operation.places]
    body = None
    if shape.body:
        body = describing.node(types[shape.body])
    elif not is_bodiless:
        body = describing.add(ObjectNode(tuple(map(parameter, rest)), is_closed=True))
    return OperationDescription(
        method=operation.method,
        path=operation.blank_path,
        is_command=operation.is_command,
        places=tuple(map(parameter, operation.places)),
        query=tuple(map(parameter, rest)) if is_bodiless else (),
        body=body,
        result=describing.node(result),
        raises={rejection.code: rejection.status for rejection in operation.raises},
        objects=tuple(describing.objects),
    )


def _describe_event(event: PublicEvent[Any]) -> EventDescription:
    describing = _Describing()
    (payload,) = _read(event.full_name, event.kind)
    return EventDescription(event.key_of or "", describing.node(payload), tuple(describing.objects))


def _read(where: str, *kinds: Any) -> tuple[inspect.Type, ...]:
    try:
        return inspect.multi_type_info(kinds)
    except (TypeError, NameError) as error:
        raise ContractError(f"{where}: {error}") from error


class _Describing:
    """Makes nodes of types; each object is described once, also where it is within itself."""

    def __init__(self) -> None:
        self.objects: list[ObjectNode] = []
        self._places: dict[Any, int] = {}

    def node(self, kind: inspect.Type) -> TypeNode:
        """Describe a type."""
        if isinstance(kind, inspect.Metadata):
            return self.node(kind.type)
        scalar = _SCALARS.get(type(kind))
        if scalar is not None:
            return TypeNode(scalar, _limits_of(kind))
        match kind:
            case inspect.EnumType():
                return TypeNode("literal", values=tuple(each.value for each in kind.cls))
            case inspect.LiteralType():
                return TypeNode("literal", values=tuple(sorted(kind.values, key=repr)))
            case inspect.UnionType():
                return TypeNode("union", items=tuple(map(self.node, kind.types)))
            case inspect.TupleType():
                return TypeNode("tuple", items=tuple(map(self.node, kind.item_types)))
            case inspect.CollectionType():
                return TypeNode("array", _limits_of(kind), items=(self.node(kind.item_type),))
            case inspect.DictType():
                items = (self.node(kind.key_type), self.node(kind.value_type))
                return TypeNode("map", _limits_of(kind), items=items)
        if hasattr(kind, "fields"):
            return self._object(kind)
        cls: type = getattr(kind, "cls", type(kind))
        return TypeNode("any" if cls is object else f"{cls.__module__}.{cls.__qualname__}")

    def add(self, described: ObjectNode) -> TypeNode:
        """Add an object that stands for no class."""
        self.objects.append(described)
        return TypeNode("object", place=len(self.objects) - 1)

    def _object(self, kind: Any) -> TypeNode:
        place = self._places.get(kind.cls)
        if place is None:
            # It may refer to itself.
            place = self._places[kind.cls] = self.add(ObjectNode(())).place
            self.objects[place] = self._object_of(kind)
        return TypeNode("object", place=place)

    def _object_of(self, kind: Any) -> ObjectNode:
        if isinstance(kind, inspect.StructType):
            config = (get_origin(kind.cls) or kind.cls).__struct_config__
            leaves_out, is_array = config.omit_defaults, kind.array_like
        else:
            leaves_out = isinstance(kind, inspect.TypedDictType)
            is_array = isinstance(kind, inspect.NamedTupleType)
        field_of = partial(self._field, leaves_out=leaves_out and not is_array)
        fields = tuple(map(field_of, kind.fields))
        tag = getattr(kind, "tag_field", None) or ""
        if tag:
            tagged = TypeNode("literal", values=(kind.tag,))
            fields = (FieldNode(tag, tagged, is_required=is_array), *fields)
        is_closed = getattr(kind, "forbid_unknown_fields", isinstance(kind, inspect.NamedTupleType))
        return ObjectNode(fields, is_array, is_closed, tag)

    def _field(self, field: inspect.Field, *, leaves_out: bool) -> FieldNode:
        given = (field.default, field.default_factory)
        # What has no default and is not required is `UNSET`, or a key of a `TypedDict`.
        is_unset = not field.required and given == (msgspec.NODEFAULT, msgspec.NODEFAULT)
        # What a function of the user's makes is always sent.
        is_omitted = field.default is not msgspec.NODEFAULT or field.default_factory in _EMPTY
        return FieldNode(
            field.encode_name,
            self.node(field.type),
            is_required=field.required,
            is_left_out=is_unset or (leaves_out and is_omitted),
            default=_default_of(*given),
        )


def _limits_of(kind: inspect.Type) -> dict[str, Any]:
    limits: Mapping[str, Any] = {name: getattr(kind, name, None) for name in _LIMITS}
    return {name: value for name, value in limits.items() if value is not None}


def _default_of(default: Any, factory: Any) -> str:
    if default is msgspec.NODEFAULT:
        return _EMPTY.get(factory, "")
    try:
        return encode(default).decode()
    except BadRequest:
        return ""
