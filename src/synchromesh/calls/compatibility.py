"""Whether what is offered still fits what somebody expects of it: a pure comparison.

What one side can send has to be read by the other:

- Arguments are sent as the caller's release has them. The callee's has to read all of it: what it
  did not know would be refused, or lost.
- An answer, or an event, is sent as the callee's release has it. The caller's has to read it; what
  it does not know it ignores, unless its class says `forbid_unknown_fields`.

What a release reads has a default, so it can do without; a default is how both sides live through
a change. A new rejection is tolerated: a caller that does not declare it gets `BadRequest`, which
says, too, that nothing was done. An argument in a path or a query is taken as its JSON, though a
text may happen to be read as another type.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from math import inf
from typing import Any

import msgspec

from synchromesh.calls.description import (
    Described,
    EventDescription,
    FieldNode,
    ObjectNode,
    OperationDescription,
    TypeNode,
)

# What a reader takes beside its own kind.
_ALSO_TAKES: Mapping[str, frozenset[str]] = {
    "float": frozenset({"int"}),
    "decimal": frozenset({"int", "float"}),
    "str": frozenset({"bytes", "datetime", "date", "time", "timedelta", "uuid", "decimal"}),
}
# By limit of the reader: which of the writer's keep it, and how.
_KEEPERS: Mapping[str, tuple[tuple[str, Callable[[Any, Any], bool]], ...]] = {
    "ge": (("ge", operator.ge), ("gt", operator.ge)),
    "gt": (("ge", operator.gt), ("gt", operator.ge)),
    "le": (("le", operator.le), ("lt", operator.le)),
    "lt": (("le", operator.lt), ("lt", operator.le)),
    "min_length": (("min_length", operator.ge),),
    "max_length": (("max_length", operator.le),),
}

Path = tuple[str, ...]
Misfit = tuple[Path, str]


class Difference(msgspec.Struct, frozen=True):
    """One way in which what is offered does not fit what somebody expects.

    Attributes:
        name: the operation or event, such as "inventory.reserve".
        where: the field, such as "argument request.qty"; "" for all of it.
        what: what is the matter there, in words.
        expected_by: the service that expects it.

    Example:
        >>> print(Difference("inventory.reserve", "answer id", "is not sent any more", "orders"))
        inventory.reserve: answer id is not sent any more (expected by orders)
    """

    name: str
    where: str
    what: str
    expected_by: str

    def __str__(self) -> str:
        said = f"{self.where} {self.what}" if self.where else self.what
        return f"{self.name}: {said} (expected by {self.expected_by})"


def differences(
    expects: Described, offered: Described, *, of: str, by: str
) -> tuple[Difference, ...]:
    """Return what of a service's offers does not fit what another expects of it.

    Args:
        of: the service that offers; what is expected of others is left out.
        by: the service that expects.
    """
    found: list[Difference] = []
    pairs: list[tuple[str, Any, Any, Any]] = [
        *_paired(expects.operations, offered.operations, of, _compare_operations),
        *_paired(expects.events, offered.events, of, _compare_events),
    ]
    for name, expected, actual, compare in pairs:
        if actual is None:
            found.append(Difference(name, "", "is not offered", by))
        elif expected != actual:
            found += [
                Difference(name, where, what, by) for where, what in compare(expected, actual)
            ]
    return tuple(dict.fromkeys(found))


def _paired(
    expects: Mapping[str, Any], offered: Mapping[str, Any], of: str, compare: Any
) -> Iterator[tuple[str, Any, Any, Any]]:
    for name, expected in expects.items():
        if name.partition(".")[0] == of:
            yield name, expected, offered.get(name), compare


def _compare_operations(
    expected: OperationDescription, offered: OperationDescription
) -> Iterator[tuple[str, str]]:
    if expected.is_command != offered.is_command:
        kinds = ("query", "command")
        yield "", f"is a {kinds[offered.is_command]}, and was a {kinds[expected.is_command]}"
    before, now = (f"{each.method} {each.path}" for each in (expected, offered))
    if before != now:
        yield "", f"is {now}, and was {before}"
        return
    sent = _Reading(expected.objects, offered.objects, is_lossless=True)
    for here, there in zip(expected.places, offered.places, strict=True):
        yield from _named("argument", sent.texts(here, there))
    query = sent.query(expected.query, offered.query)
    body: Iterable[Misfit] = ()
    if expected.body is not None and offered.body is not None:
        body = sent.misfits(expected.body, offered.body)
    yield from _named("argument", [*query, *body])
    answered = _Reading(offered.objects, expected.objects, is_lossless=False)
    yield from _named("answer", answered.misfits(offered.result, expected.result))
    for code, status in expected.raises.items():
        if code in offered.raises and offered.raises[code] != status:
            yield f"rejection {code}", f"has status {offered.raises[code]}, and had {status}"


def _compare_events(
    expected: EventDescription, offered: EventDescription
) -> Iterator[tuple[str, str]]:
    # Without a key all are in one order, which holds for each key, too.
    if offered.key and expected.key != offered.key:
        before = f"by {expected.key}" if expected.key else "all in one order"
        yield "", f"is ordered by {offered.key}, and was ordered {before}"
    reading = _Reading(offered.objects, expected.objects, is_lossless=False)
    yield from _named("field", reading.misfits(offered.payload, expected.payload))


def _named(what: str, found: Iterable[Misfit]) -> Iterator[tuple[str, str]]:
    for path, said in found:
        yield f"{what} {'.'.join(path)}".strip(), said


class _Reading:
    """Compares what one side can write with what the other can read.

    Args:
        written: the objects of the writer's description.
        read: those of the reader's.
        is_lossless: whether all that is written has to be read.
    """

    def __init__(
        self, written: Sequence[ObjectNode], read: Sequence[ObjectNode], *, is_lossless: bool
    ) -> None:
        self._written = written
        self._read = read
        self._is_lossless = is_lossless
        # Objects within themselves fit where nothing else is the matter with them.
        self._under_way: set[tuple[int, int]] = set()

    def texts(self, written: FieldNode, read: FieldNode) -> list[Misfit]:
        """Return what is the matter with an argument that is sent as a text."""
        kinds = {each.kind for each in read.type.items} or {read.type.kind}
        if written.type.kind == "str" and "str" in kinds and len(kinds - {"null"}) > 1:
            return [((written.name,), f"takes {read.type}: a text could be taken for another type")]
        return _below(written.name, self.misfits(written.type, read.type))

    def query(self, written: Sequence[FieldNode], read: Sequence[FieldNode]) -> list[Misfit]:
        """Return what is the matter with the arguments of a query."""
        names = {field.name for field in read}
        as_object = self._fields(
            ObjectNode(tuple(written)), ObjectNode(tuple(read), is_closed=True), types=False
        )
        both = {field.name: field for field in written if field.name in names}
        texts = [self.texts(both[field.name], field) for field in read if field.name in both]
        return [*as_object, *(each for found in texts for each in found)]

    def misfits(self, written: TypeNode, read: TypeNode) -> list[Misfit]:
        """Return where a value of one type is not read as the other, and why."""
        if read.kind == "any":
            return []
        if written.kind == "union":
            return [each for item in written.items for each in self.misfits(item, read)]
        if written.kind == "literal":
            # Each value may be read by another member of a union.
            unread = tuple(value for value in written.values if not _reads(read, value))
            return _mismatch(TypeNode("literal", values=unread), read) if unread else []
        if read.kind == "union":
            return self._of_union(written, read)
        if written.kind == "object":
            return self._of_object(written, read)
        if read.kind == "object":
            return self._by_object(written, read)
        return self._of_plain(written, read)

    def _by_object(self, written: TypeNode, read: TypeNode) -> list[Misfit]:
        """Compare what is no object with one that reads it."""
        node = self._read[read.place]
        if node.is_array and written.kind == "tuple":
            return self._rows(written, read)
        if node.is_array and written.kind == "array":
            return self._by_row(written, read, node.fields, is_closed=node.is_closed)
        is_partial = node.is_closed or self._is_lossless or _required(node.fields)
        if node.is_array or written.kind != "map" or is_partial:
            return _mismatch(written, read)
        found = [(each.name, self.misfits(written.items[1], each.type)) for each in node.fields]
        return [each for name, misfits in found for each in _below(name, misfits)]

    def _by_row(
        self, written: TypeNode, read: TypeNode, row: Sequence[FieldNode], *, is_closed: bool
    ) -> list[Misfit]:
        """Compare an array of any length with items that have each a type of their own."""
        count_max = len(row) if is_closed or self._is_lossless else inf
        at_least, at_most = (written.limits.get(each) for each in ("min_length", "max_length"))
        if (at_least or 0) < _required(row) or (inf if at_most is None else at_most) > count_max:
            return _mismatch(written, read)
        found = [(each.name, self.misfits(written.items[0], each.type)) for each in row]
        return [each for name, misfits in found for each in _below(name, misfits)]

    def _of_plain(self, written: TypeNode, read: TypeNode) -> list[Misfit]:
        """Compare types that have neither members nor fields."""
        kinds = (written.kind, read.kind)
        if kinds == ("tuple", "tuple"):
            return self._rows(written, read)
        if kinds == ("array", "tuple"):
            return self._by_row(written, read, _row(read, self._read), is_closed=True)
        if kinds == ("tuple", "array"):
            count = len(written.items)
            limits = {"min_length": count, "max_length": count}
            if not _is_within(limits, read.limits):
                return _mismatch(written, read)
            found = [self.misfits(item, read.items[0]) for item in written.items]
            return [each for misfits in found for each in _below("[]", misfits)]
        is_same = written.kind == read.kind
        if not is_same and written.kind not in _ALSO_TAKES.get(read.kind, ()):
            return _mismatch(written, read)
        if not _is_within(written.limits, read.limits):
            return _mismatch(written, read)
        places = ("{key}", "{}") if read.kind == "map" else ("[]",)
        pairs = zip(places, written.items, read.items, strict=False)
        return [each for at, w, r in pairs for each in _below(at, self.misfits(w, r))]

    def _of_union(self, written: TypeNode, read: TypeNode) -> list[Misfit]:
        """Compare with the members of a union: one of them has to read it."""
        objects = [each for each in read.items if each.kind == "object"]
        candidates = list(read.items)
        if written.kind == "object" and len(objects) > 1:
            tag = self._tag_of(self._written[written.place])
            others = [each for each in objects if self._tag_of(self._read[each.place]) != tag]
            candidates = [each for each in candidates if each not in others]
        found = [self.misfits(written, each) for each in candidates]
        if not all(found):
            return []
        alike = [
            misfits
            for each, misfits in zip(candidates, found, strict=True)
            if each.kind == written.kind and each.kind in ("object", "array", "map", "tuple")
        ]
        return alike[0] if len(alike) == 1 else _mismatch(written, read)

    def _tag_of(self, node: ObjectNode) -> tuple[Any, ...]:
        """Return what tells an object from the others of a union."""
        return (node.is_array, node.tag, *(node.fields[0].type.values if node.tag else ()))

    def _of_object(self, written: TypeNode, read: TypeNode) -> list[Misfit]:
        node = self._written[written.place]
        if read.kind == "map" and not node.is_array:
            if read.items[0].kind != "str" or read.limits:
                return _mismatch(written, read)
            found = [(each.name, self.misfits(each.type, read.items[1])) for each in node.fields]
            return [each for name, misfits in found for each in _below(name, misfits)]
        if node.is_array and read.kind in ("tuple", "array"):
            items = tuple(field.type for field in node.fields)
            return self._of_plain(TypeNode("tuple", items=items), read)
        if read.kind != "object" or node.is_array != self._read[read.place].is_array:
            return _mismatch(written, read)
        pair = (written.place, read.place)
        if pair in self._under_way:
            return []
        self._under_way.add(pair)
        try:
            if node.is_array:
                return self._rows(written, read)
            return self._fields(node, self._read[read.place])
        finally:
            self._under_way.discard(pair)

    def _fields(self, written: ObjectNode, read: ObjectNode, *, types: bool = True) -> list[Misfit]:
        found: list[Misfit] = []
        known = {field.name: field for field in read.fields}
        sent = {field.name: field for field in written.fields}
        for name, field in sent.items():
            if name not in known:
                if read.is_closed or (self._is_lossless and name != written.tag):
                    found.append(((name,), "is sent, and is not known"))
                continue
            there = known[name]
            if field.is_left_out and there.is_required:
                found.append(((name,), f"is required, and is left out where it is {_said(field)}"))
            elif field.is_left_out and field.default and not _is_same(field, there):
                read_as = f"is left out where it is {_said(field)}, and read as {_said(there)}"
                found.append(((name,), read_as))
            if types:
                found += _below(name, self.misfits(field.type, there.type))
        found += [
            ((name,), "is required, and is not sent")
            for name, field in known.items()
            if field.is_required and name not in sent
        ]
        return found

    def _rows(self, written: TypeNode, read: TypeNode) -> list[Misfit]:
        """Compare arrays whose items have each a type of their own."""
        sent, known = _row(written, self._written), _row(read, self._read)
        is_closed = read.kind == "tuple" or self._read[read.place].is_closed
        # Those that both know: they must not have changed places.
        names = {each.name for each in sent} & {each.name for each in known}
        found: list[Misfit] = []
        for there, here in zip_longest(sent, known):
            if here is None:
                if is_closed or self._is_lossless:
                    found.append(((there.name,), "is sent, and is not known"))
            elif there is None:
                if here.is_required:
                    found.append(((here.name,), "is required, and is not sent"))
            elif here.name != there.name and {here.name, there.name} & names:
                found.append(((there.name,), f"is sent where {here.name} is read"))
            else:
                found += _below(here.name, self.misfits(there.type, here.type))
        return found


def _row(node: TypeNode, objects: Sequence[ObjectNode]) -> tuple[FieldNode, ...]:
    if node.kind == "object":
        return objects[node.place].fields
    return tuple(FieldNode(f"[{n}]", item, is_required=True) for n, item in enumerate(node.items))


def _required(fields: Iterable[FieldNode]) -> int:
    return sum(each.is_required for each in fields)


def _below(name: str, found: list[Misfit]) -> list[Misfit]:
    return [((name, *path), said) for path, said in found]


def _mismatch(written: TypeNode, read: TypeNode) -> list[Misfit]:
    return [((), f"is sent as {written}, and read as {read}")]


def _is_same(one: FieldNode, other: FieldNode) -> bool:
    """Say whether two fields have the same default; 1 is 1.0."""
    if not other.default:
        return False
    return bool(msgspec.json.decode(one.default) == msgspec.json.decode(other.default))


def _said(field: FieldNode) -> str:
    return field.default or "unset"


def _is_within(limits: Mapping[str, Any], bounds: Mapping[str, Any]) -> bool:
    """Say whether values within some limits are within others."""
    return all(_keeps(limits, name, bound) for name, bound in bounds.items())


def _keeps(limits: Mapping[str, Any], name: str, bound: Any) -> bool:
    if name == "multiple_of":
        return name in limits and limits[name] % bound == 0
    if name in _KEEPERS:
        return any(keeps(limits[by], bound) for by, keeps in _KEEPERS[name] if by in limits)
    return bool(limits.get(name) == bound)


def _reads(read: TypeNode, value: Any) -> bool:
    """Say whether a type reads one value of a literal: a text, a whole number, or None."""
    if read.kind == "union":
        return any(_reads(each, value) for each in read.items)
    if read.kind == "literal":
        return any(type(each) is type(value) and each == value for each in read.values)
    if value is None:
        return read.kind in ("any", "null")
    if isinstance(value, str):
        pattern = read.limits.get("pattern")
        limits = {"min_length": len(value), "max_length": len(value), "pattern": pattern}
        is_alike = pattern is None or re.search(pattern, value) is not None
        return read.kind in ("any", "str") and is_alike and _is_within(limits, read.limits)
    limits = {"ge": value, "le": value, "multiple_of": value}
    return read.kind in ("any", "int", "float", "decimal") and _is_within(limits, read.limits)
