"""Rows on their way to PostgreSQL: each value as the server reads it, or why it cannot hold it.

A table's columns say how. What has a type of its own there (a date, jsonb) is written by the server
in its own way: such a value is given as a text, and afterwards it is looked whether there is one.
All others come back as they went, so that both sides have one sum.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeAlias

import msgspec

from synchromesh.store.unit import SqlValue

_ESCAPES = {ord("\\"): "\\\\", ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}
_ODD = re.compile(r"[\\\t\n\r]")
_NULL = "\\N"
_SUM_BYTES = 16
_EXACT = 2**53
_INTEGERS = {"smallint": 15, "integer": 31, "bigint": 63}

Read: TypeAlias = Callable[[Any], object]
Write: TypeAlias = Callable[[Any], tuple[str, object]]


class Misfit(Exception):
    """Signal that PostgreSQL cannot hold a value as it is.

    Attributes:
        column: its column.
    """

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column


class _NotHeld(Exception):
    """Signal why a value cannot be held by its column."""


@dataclass(frozen=True, slots=True)
class CopiedColumn:
    """A column: its names in the file and on the server, and its type there."""

    source: str
    name: str
    type: str


class RowSum:
    """The sum of rows, in whatever order they come.

    Example:
        >>> one, other = RowSum(), RowSum()
        >>> one.add([1, "a"]); one.add([2, None]); other.add([2, None]); other.add([1, "a"])
        >>> one.text() == other.text(), one.rows
        (True, 2)
    """

    def __init__(self) -> None:
        self.rows = 0
        self._total = 0

    def add(self, values: Sequence[object]) -> None:
        """Add a row."""
        digest = blake2b(msgspec.msgpack.encode(values), digest_size=_SUM_BYTES).digest()
        self._total = (self._total + int.from_bytes(digest)) % 2 ** (8 * _SUM_BYTES)
        self.rows += 1

    def text(self) -> str:
        """Return it as hexadecimal digits."""
        return f"{self._total:0{2 * _SUM_BYTES}x}"


class TableLines:
    """The rows of a table as lines of COPY, and their sum.

    Example:
        >>> lines = TableLines([CopiedColumn("n", "n", "integer"), CopiedColumn("t", "t", "text")])
        >>> lines.write([(1, "a\\tb"), (None, "")])
        b'1\\ta\\\\tb\\n\\\\N\\t\\n'
        >>> lines.sum.rows
        2
    """

    def __init__(self, columns: Sequence[CopiedColumn]) -> None:
        self.sum = RowSum()
        self._columns = columns
        self._writes = [_writer(each.type) for each in columns]

    def write(self, rows: Iterable[Sequence[SqlValue]]) -> bytes:
        """Return the lines of some more rows.

        Raises:
            Misfit: a value cannot be held; `sum.rows` of the table came before its row.
        """
        lines = []
        for row in rows:
            texts: list[str] = []
            kept: list[object] = []
            for at, value in enumerate(row):
                if value is None:
                    texts.append(_NULL)
                    kept.append(None)
                    continue
                try:
                    text, same = self._writes[at](value)
                except _NotHeld as error:
                    raise Misfit(self._columns[at].source, str(error)) from error
                texts.append(text)
                kept.append(same)
            self.sum.add(kept)
            lines.append("\t".join(texts))
        return "".join(f"{each}\n" for each in lines).encode()


class TableSum:
    """The sum of a table's rows as the server gives them, by `columns_to_sum`."""

    def __init__(self, columns: Sequence[CopiedColumn]) -> None:
        self.sum = RowSum()
        self._reads = [_READS.get(each.type, bool) for each in columns]

    def add(self, rows: Iterable[Sequence[object]]) -> None:
        """Add some more rows."""
        for row in rows:
            pairs = zip(self._reads, row, strict=True)
            self.sum.add([None if each is None else read(each) for read, each in pairs])


def columns_to_sum(columns: Sequence[CopiedColumn]) -> str:
    """Return what to select for a `TableSum`.

    Example:
        >>> columns_to_sum([CopiedColumn("n", "n", "integer"), CopiedColumn("d", "d", "date")])
        '"n", nullif("d" is not null, false)'
    """
    return ", ".join(
        quoted(each.name)
        if each.type in _READS
        else f"nullif({quoted(each.name)} is not null, false)"
        for each in columns
    )


def quoted(name: str) -> str:
    """Return a name as SQL has it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def _text(value: object) -> tuple[str, object]:
    if not isinstance(value, str):
        raise _NotHeld(f"{_kind(value)}, and the column holds texts")
    if "\0" in value:
        raise _NotHeld("a text with a NUL character; keep it as bytes")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _NotHeld("a text that is no UTF-8; keep it as bytes") from None
    return (value.translate(_ESCAPES) if _ODD.search(value) else value), value


def _padded(value: object) -> tuple[str, object]:
    text, same = _text(value)
    return text, str(same).rstrip(" ")


def _bytes(value: object) -> tuple[str, object]:
    if not isinstance(value, bytes):
        raise _NotHeld(f"{_kind(value)}, and the column holds bytes")
    return f"\\\\x{value.hex()}", value


def _whole(bits: int) -> Write:
    low, high = -(2**bits), 2**bits

    def write(value: object) -> tuple[str, object]:
        if not isinstance(value, int):
            raise _NotHeld(f"{_kind(value)}, and the column holds whole numbers")
        if not low <= value < high:
            raise _NotHeld(f"more than {bits + 1} bits hold; make the column bigint in a migration")
        return str(value), value

    return write


def _truth(value: object) -> tuple[str, object]:
    if value not in (0, 1) or not isinstance(value, int):
        raise _NotHeld(f"{_kind(value)} other than 0 and 1, and the column is boolean")
    return str(value), value


def _float(value: object) -> tuple[str, object]:
    if not isinstance(value, int | float):
        raise _NotHeld(f"{_kind(value)}, and the column holds numbers")
    same = float(value)
    if same != value:
        raise _NotHeld("more digits than the column holds; make it bigint in a migration")
    return repr(value), same


def _short_float(value: object) -> tuple[str, object]:
    text, same = _float(value)
    try:
        is_same = struct.unpack("f", struct.pack("f", same)) == (same,)
    except OverflowError:
        is_same = False
    if not is_same:
        raise _NotHeld(
            "more digits than real holds on PostgreSQL; make the column double precision in a "
            "migration"
        )
    return text, same


def _decimal(value: object) -> tuple[str, object]:
    if not isinstance(value, int | float):
        raise _NotHeld(f"{_kind(value)}, and the column holds numbers")
    return repr(value), _plain(value)


def _other(value: object) -> tuple[str, object]:
    if isinstance(value, bytes):
        raise _NotHeld("bytes, and the column holds none")
    if not isinstance(value, str):
        return repr(value), True
    return _text(value)[0], True


def _kind(value: object) -> str:
    return {int: "a whole number", float: "a number", bytes: "bytes"}.get(type(value), "a text")


def _plain(value: float) -> object:
    """Return a decimal number so that both sides have the same: a whole one, or a float."""
    if abs(value) < _EXACT and value == int(value):
        return int(value)
    return float(value)


def _writer(type_: str) -> Write:
    if type_ in _INTEGERS:
        return _whole(_INTEGERS[type_])
    return _WRITES.get(type_, _other)


_WRITES: dict[str, Write] = {
    "text": _text,
    "character varying": _text,
    "character": _padded,
    "bytea": _bytes,
    "boolean": _truth,
    "double precision": _float,
    "real": _short_float,
    "numeric": _decimal,
}
_READS: dict[str, Read] = {
    "text": str,
    "character varying": str,
    "character": lambda value: str(value).rstrip(" "),
    "bytea": bytes,
    "boolean": int,
    "double precision": float,
    "real": float,
    "numeric": _plain,
    **dict.fromkeys(_INTEGERS, int),
}
