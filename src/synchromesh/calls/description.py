"""What a contract says, as plain data: its operations and events, each with a digest.

Processes of different releases tell each other by it what they offer and what they expect. It
describes what is sent: names of classes are not part of it, and neither are names of parameters
that HTTP does not carry. `compatibility` compares two.
"""

from __future__ import annotations

from typing import Any

import msgspec

from synchromesh.codec import digest, to_json


class TypeNode(msgspec.Struct, frozen=True, omit_defaults=True):
    """A type as JSON carries it.

    Attributes:
        kind: "any", "null", "bool", "int", "float", "decimal", "str", "bytes", "datetime", "date",
            "time", "timedelta", "uuid", "literal", "union", "array", "tuple", "map", "object", or
            the class of anything else.
        limits: of numbers, lengths and texts, as msgspec names them.
        values: of a literal or an enumeration.
        items: the members of a union or a tuple; the item of an array; key and value of a map.
        place: of an object, its place in the description's `objects`.
    """

    kind: str
    limits: dict[str, Any] = {}
    values: tuple[Any, ...] = ()
    items: tuple[TypeNode, ...] = ()
    place: int = -1

    def __str__(self) -> str:
        if self.kind == "literal":
            text = "one of " + ", ".join(map(repr, self.values))
        elif self.kind == "union":
            text = " or ".join(map(str, self.items))
        elif self.kind in ("array", "tuple"):
            text = f"{self.kind} of {', '.join(map(str, self.items)) or 'nothing'}"
        elif self.kind == "map":
            text = f"map to {self.items[1]}"
        else:
            text = self.kind
        limits = ", ".join(f"{name} {value}" for name, value in sorted(self.limits.items()))
        return f"{text} ({limits})" if limits else text


class FieldNode(msgspec.Struct, frozen=True, omit_defaults=True):
    """A field of an object, or a parameter.

    Attributes:
        name: as it is sent.
        is_required: whoever reads it needs it.
        is_left_out: whoever sends it leaves it out where it is the default.
        default: as JSON; "" where there is none, or it is made anew each time.
    """

    name: str
    type: TypeNode
    is_required: bool = False
    is_left_out: bool = False
    default: str = ""


class ObjectNode(msgspec.Struct, frozen=True, omit_defaults=True):
    """An object of fields; a tag is its first field.

    Attributes:
        is_array: it is sent as an array of its fields.
        is_closed: fields that it does not know are refused.
        tag: the name of the field that distinguishes it in a union; "" where there is none.
    """

    fields: tuple[FieldNode, ...]
    is_array: bool = False
    is_closed: bool = False
    tag: str = ""


class OperationDescription(msgspec.Struct, frozen=True):
    """An operation as it is called.

    Attributes:
        path: of its route, with `{}` for each place.
        places: the parameters in the path, in order.
        query: the parameters in the query; None where the method has a body.
        body: what the body is; None where there is none.
        raises: the status of each rejection, by code.
        objects: what the types refer to.
    """

    method: str
    path: str
    is_command: bool
    places: tuple[FieldNode, ...]
    query: tuple[FieldNode, ...]
    body: TypeNode | None
    result: TypeNode
    raises: dict[str, int]
    objects: tuple[ObjectNode, ...]

    @property
    def digest(self) -> str:
        """The same for what is the same to a caller."""
        return digest(to_json(self))


class EventDescription(msgspec.Struct, frozen=True):
    """A public event as it is delivered.

    Attributes:
        key: the field of the payload that orders it; "" where all are in one order.
        objects: what the type refers to.
    """

    key: str
    payload: TypeNode
    objects: tuple[ObjectNode, ...]

    @property
    def digest(self) -> str:
        """The same for what is the same to a subscriber."""
        return digest(to_json(self))


class Described(msgspec.Struct, frozen=True):
    """Operations and events by full name, such as "inventory.reserve"."""

    operations: dict[str, OperationDescription] = {}
    events: dict[str, EventDescription] = {}

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each operation and event, by full name."""
        return {
            **{name: each.digest for name, each in self.operations.items()},
            **{name: each.digest for name, each in self.events.items()},
        }


class ContractsOfPart(msgspec.Struct, frozen=True):
    """What a service, or the gateway, offers to others and expects of them."""

    offers: Described = Described()
    expects: Described = Described()
