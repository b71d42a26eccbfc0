"""Which fields of a type are personal: read once, when the type is declared.

Of a type that has none nothing is asked when its values are stored.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from typing import Annotated, Any, Protocol, TypeAlias

import msgspec
from msgspec import inspect

from synchromesh.codec import to_json
from synchromesh.errors import BadRequest, ContractError
from synchromesh.functions import hints_of
from synchromesh.sealing import ERASED, MARK, MARKED, Erased, Path, Vault, sealed_value

# By these a field is known; they are in the JSON schemas of contracts, too.
PERSONAL = "Personal data of the subject that is named beside it; erased once they are erased."
SUBJECT = "The subject to whom personal data beside it belongs: an id that names nobody by itself."

_Act: TypeAlias = Callable[[Any, Path, str], Any]


class PersonalFields:
    """The personal fields of one type.

    Attributes:
        homeless: the first one to which no field names the subject; "" where there is none. Values
            of such a type can be sent, and not be stored.
    """

    def __init__(self, node: _Node, homeless: str) -> None:
        self._node = node
        self.homeless = homeless

    def check_subject(self, where: str) -> None:
        """Raise `ContractError` where a personal field belongs to nobody."""
        if self.homeless:
            raise ContractError(
                f"{where}: {self.homeless} is Personal, and no field beside or above it says whose "
                "it is; declare one, such as customer_id: Subject"
            )

    def has(self, name: str) -> bool:
        """Return whether a field of the type itself is, or holds, a personal one."""
        return isinstance(self._node, _Fields) and name in self._node.fields

    def seal(self, data: bytes, where: str, vault: Vault) -> bytes:
        """Seal the personal values of a document of this type.

        Args:
            where: what the document is, such as "event/shop.sold": they open nowhere else.

        Raises:
            BadRequest: a subject is empty or too long, or the document holds what only a sealed
                value may.
        """
        if MARKED in data or (b"\\u" in data and MARKED in to_json(msgspec.json.decode(data))):
            # What was encoded elsewhere may have it in escapes, and is stored without them.
            raise BadRequest(f"{where} has a key {MARK!r}, which only a sealed value may have")
        self.check_subject(where)

        def act(value: Any, path: Path, subject: str) -> Any:
            return sealed_value(value, path, subject, where, vault)

        return _walked(self._node, data, act)

    def mask(self, data: bytes) -> bytes:
        """Return a document as if all its subjects were erased: what a digest is made of.

        A digest of personal values would outlive them, and tell them to whoever can guess.
        """
        return _walked(self._node, data, lambda *_: ERASED)

    def __repr__(self) -> str:
        return f"<PersonalFields {self._node!r}>"


def _walked(node: _Node, data: bytes, act: _Act) -> bytes:
    return to_json(node.walk(msgspec.json.decode(data), (), "", act))


class _Node(Protocol):
    """A type on the way to a personal field: walks through a value of it, as JSON has it."""

    def walk(self, value: Any, path: Path, subject: str, act: _Act) -> Any: ...


class _Leaf:
    def walk(self, value: Any, path: Path, subject: str, act: _Act) -> Any:
        return None if value is None else act(value, path, subject)


class _Items:
    """A list or set, a tuple, or the values of a map."""

    def __init__(self, item: _Node | None, items: tuple[_Node | None, ...] = ()) -> None:
        self.item = item
        self.items = items

    def walk(self, value: Any, path: Path, subject: str, act: _Act) -> Any:
        if isinstance(value, list):
            nodes = (*self.items, *[self.item] * (len(value) - len(self.items)))
            return [
                each if node is None else node.walk(each, (*path, n), subject, act)
                for n, (each, node) in enumerate(zip(value, nodes, strict=False))
            ]
        node = self.item
        if isinstance(value, dict) and node is not None:
            return {
                name: node.walk(each, (*path, name), subject, act) for name, each in value.items()
            }
        return value


class _Fields:
    """A struct, dataclass or named tuple; `fields` by name, or by place where it is an array."""

    def __init__(self, tag: tuple[str, Any] | None) -> None:
        self.tag = tag
        self.fields: dict[str | int, _Node] = {}
        self.subject: str | int | None = None

    def walk(self, value: Any, path: Path, subject: str, act: _Act) -> Any:
        if isinstance(value, list):
            changed: Any = list(value)
            names = [each for each in self.fields if isinstance(each, int) and each < len(value)]
        elif isinstance(value, dict):
            changed = dict(value)
            names = [each for each in self.fields if each in value]  # type: ignore[misc]
        else:
            return value
        if self.subject is not None:
            # Left out where it is a default: nobody's data is stored under one.
            subject = str(_at(value, self.subject))
        for name in names:
            changed[name] = self.fields[name].walk(value[name], (*path, name), subject, act)
        return changed

    def is_of(self, value: Any) -> bool:
        if self.tag is None:
            return isinstance(value, dict) == all(isinstance(n, str) for n in self.fields)
        if isinstance(value, dict):
            return bool(value.get(self.tag[0]) == self.tag[1])
        return isinstance(value, list) and value[:1] == [self.tag[1]]


def _at(value: Any, key: str | int) -> object:
    if isinstance(value, dict):
        return value.get(key, "")
    return value[key] if isinstance(key, int) and key < len(value) else ""


class _OneOf:
    def __init__(self, members: tuple[_Node, ...]) -> None:
        self.members = members

    def walk(self, value: Any, path: Path, subject: str, act: _Act) -> Any:
        for each in self.members:
            if isinstance(each, _Fields) and each.is_of(value):
                return each.walk(value, path, subject, act)
        for each in self.members:
            if not isinstance(each, _Fields):
                return each.walk(value, path, subject, act)
        return value


def personal_fields(kind: Any) -> PersonalFields | None:
    """Return the personal fields of a type; None where it has none.

    Raises:
        ContractError: a field is declared so that it cannot be sealed.

    Example:
        >>> print(personal_fields(list[int]))
        None
    """
    return _fields_of(kind)


@lru_cache(maxsize=4096)
def _fields_of(kind: Any) -> PersonalFields | None:
    try:
        info = inspect.type_info(kind)
    except TypeError as error:
        if Erased.__name__ not in str(error):
            return None  # whatever else is wrong with it is told where it is used
        raise ContractError(
            f"{_name_of(kind)} has a Personal field of a list, a tuple or a "
            "union: make it of one type that is a text, a number, a map or a struct; a list goes "
            "into a struct of its own"
        ) from error
    reader = _Reader()
    node = reader.read(info, "", has_subject=False)
    return None if node is None else PersonalFields(node, reader.homeless)


def _name_of(kind: Any) -> str:
    if isinstance(kind, type):
        return kind.__qualname__
    return "a value of a call" if typing.get_origin(kind) is Annotated else str(kind)


def mask_arguments(function: Callable[..., Any]) -> Callable[[bytes], bytes] | None:
    """Return what masks the arguments of a function, behind its first, as a JSON list.

    None where none of them is personal.
    """
    try:
        hints = hints_of(function)
        names = list(signature(function).parameters)[1:]
    except (NameError, TypeError, ValueError):
        return None
    items = [personal_fields(hints[name]) if name in hints else None for name in names]
    if not any(items):
        return None
    node = _Items(None, tuple([None if each is None else each._node for each in items]))
    return PersonalFields(node, "").mask


class _Reader:
    """Reads a type; one that refers to itself is read once."""

    def __init__(self) -> None:
        self.homeless = ""
        self._known: dict[tuple[type, bool], _Fields] = {}

    def read(self, kind: inspect.Type, name: str, *, has_subject: bool) -> _Node | None:
        if isinstance(kind, inspect.Metadata):
            if not _is_said(kind, PERSONAL):
                return self.read(kind.type, name, has_subject=has_subject)
            self._check_leaf(kind.type, name)
            if not has_subject:
                self.homeless = self.homeless or name or "the value itself"
            return _Leaf()
        if isinstance(kind, inspect.StructType | inspect.DataclassType | inspect.NamedTupleType):
            return self._read_fields(kind, has_subject=has_subject)
        if isinstance(kind, inspect.TypedDictType):
            return self._read_fields(kind, has_subject=has_subject)
        if isinstance(kind, inspect.UnionType):
            each = [self.read(one, name, has_subject=has_subject) for one in kind.types]
            members = tuple([node for node in each if node is not None])
            return _OneOf(members) if members else None
        if isinstance(kind, inspect.TupleType):
            items = tuple(
                [self.read(one, name, has_subject=has_subject) for one in kind.item_types]
            )
            return _Items(None, items) if any(items) else None
        item = getattr(kind, "item_type", None) or getattr(kind, "value_type", None)
        node = None if item is None else self.read(item, name, has_subject=has_subject)
        return None if node is None else _Items(node)

    def _read_fields(
        self,
        kind: inspect.StructType
        | inspect.DataclassType
        | inspect.NamedTupleType
        | inspect.TypedDictType,
        *,
        has_subject: bool,
    ) -> _Node | None:
        known = self._known.get((kind.cls, has_subject))
        if known is not None:
            return known
        if not _has_leaf(kind, set()):
            return None
        tag = (
            (str(kind.tag_field), kind.tag)
            if isinstance(kind, inspect.StructType) and kind.tag_field is not None
            else None
        )
        made = self._known[kind.cls, has_subject] = _Fields(tag)
        is_array = isinstance(kind, inspect.NamedTupleType) or getattr(kind, "array_like", False)
        keys: list[str | int] = [
            n + (tag is not None) if is_array else field.encode_name
            for n, field in enumerate(kind.fields)
        ]
        subjects = [key for key, f in zip(keys, kind.fields, strict=True) if _is_subject(f.type)]
        if len(subjects) > 1:
            raise ContractError(
                f"{kind.cls.__qualname__} has {len(subjects)} fields of type Subject; personal "
                "data beside them belongs to one: put that of each into a struct of its own"
            )
        made.subject = subjects[0] if subjects else None
        for key, field in zip(keys, kind.fields, strict=True):
            node = self.read(
                field.type,
                f"{kind.cls.__qualname__}.{field.name}",
                has_subject=has_subject or bool(subjects),
            )
            if node is not None:
                made.fields[key] = node
        return made

    def _check_leaf(self, kind: inspect.Type, name: str) -> None:
        inner = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
        if any(isinstance(each, inspect.AnyType) for each in inner):
            raise ContractError(
                f"{name} is Personal[Any], which cannot be told from Erased; name its type"
            )
        if _has_leaf(kind, set()):
            raise ContractError(f"{name} is Personal, and has Personal fields in it: one is enough")
        if any(_is_subject(each) for each in inner):
            raise ContractError(
                f"{name} is Personal and Subject at once: a subject is named by an id that stays"
            )


def _has_leaf(kind: inspect.Type, seen: set[type]) -> bool:
    """Return whether a personal value may be anywhere in a type."""
    if isinstance(kind, inspect.Metadata):
        return _is_said(kind, PERSONAL) or _has_leaf(kind.type, seen)
    cls = getattr(kind, "cls", None)
    if cls in seen:
        return False
    if cls is not None:
        seen.add(cls)
    parts = [
        *(field.type for field in getattr(kind, "fields", ())),
        *getattr(kind, "types", ()),
        *getattr(kind, "item_types", ()),
        *(getattr(kind, each, None) for each in ("item_type", "value_type")),
    ]
    return any(_has_leaf(each, seen) for each in parts if each is not None)


def _is_said(kind: inspect.Type, what: str) -> bool:
    said = kind.extra_json_schema if isinstance(kind, inspect.Metadata) else None
    return said is not None and said.get("description") == what


def _is_subject(kind: inspect.Type) -> bool:
    return _is_said(kind, SUBJECT)
