"""Rows as what they are of: structs and dataclasses by the names of columns, or single values."""

from __future__ import annotations

import dataclasses
import datetime as dt
import types
import typing
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from synchromesh.store.statements import refuse
from synchromesh.store.unit import Fetched, SqlValue, StoreReader, Unit

T = TypeVar("T")

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_SHOWN = {str: "text", bytes: "a blob", type(None): "null", int: "int", float: "float"}


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """A field that a column is read into; `name` is what msgspec knows it by."""

    column: str
    name: str
    of: Any
    is_required: bool


async def fetch_as(
    source: Unit | StoreReader, kind: type[T], sql: str, values: tuple[SqlValue, ...]
) -> list[T]:
    """Run one statement, as `fetch` does, and return its rows as `rows_as` does."""
    fetched = await source.fetch(sql, *values)
    return rows_as(kind, fetched, sql, path=f"the database of {source.service!r}")


def rows_as(kind: type[T], fetched: Fetched, sql: str, *, path: str) -> list[T]:
    """Return each row as an instance of a type.

    A msgspec struct or a dataclass takes its fields by the names of the columns; a column without a
    field is left out, so that older code goes on beside a table that has more. Any other type is
    that of the only column. SQLite's 0 and 1 are a `bool`, microseconds since 1970 a `datetime`;
    whatever else msgspec reads from text, such as an `Enum`, a `Decimal` or a date, is read so.

    Raises:
        StatementFailed: a field has no column, or a value does not fit; the column, the row and the
            type are named, the value is not.

    Example:
        >>> class Stock(msgspec.Struct):
        ...     sku: str
        ...     is_sold: bool
        >>> fetched = Fetched(("sku", "is_sold"), [("SX90", 0)])
        >>> rows_as(Stock, fetched, "select sku, is_sold from stock", path="shop.db")
        [Stock(sku='SX90', is_sold=False)]
    """
    of: Any = kind  # a type of any kind, which can be hashed
    fields = _fields_of(of)
    if fields is None:
        return _values_as(kind, fetched, sql, path=path)
    places = _places(kind, fields, fetched.columns, sql, path=path)
    readers = [(field.name, at, _reader_of(field.of)) for field, at in places]
    made = [
        {name: value if (value := row[at]) is None or read is None else read(value)
         for name, at, read in readers}
        for row in fetched.rows
    ]  # fmt: skip
    try:
        return msgspec.convert(made, list[kind])  # type: ignore[valid-type]
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError) as error:
        at = next(n for n, each in enumerate(made) if not _fits(each, kind))
        for field, column in places:
            if not _fits(made[at].get(field.name), field.of):
                raise _misfit(
                    _listed([field.column]), at, fetched.rows[at][column],
                    f"{kind.__qualname__}.{field.column} has {_named(field.of)}", sql, path,
                ) from error  # fmt: skip
        raise refuse(f"row {at + 1} is no {kind.__qualname__}: {error}", sql, path=path) from error


def _values_as(kind: type[T], fetched: Fetched, sql: str, *, path: str) -> list[T]:
    if len(fetched.columns) != 1:
        raise refuse(
            f"{len(fetched.columns)} columns ({_listed(fetched.columns)}) are read as "
            f"{_named(kind)}, which is one value: select one, or read them as a struct",
            sql,
            path=path,
        )
    of: Any = kind
    read = _reader_of(of)
    values: list[Any] = [row[0] for row in fetched.rows]
    if read is not None:
        values = [None if value is None else read(value) for value in values]
    try:
        return msgspec.convert(values, list[kind])  # type: ignore[valid-type]
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError) as error:
        at = next(n for n, each in enumerate(values) if not _fits(each, kind))
        column = _listed(fetched.columns)
        raise _misfit(
            column, at, fetched.rows[at][0], f"{_named(kind)} is wanted", sql, path
        ) from error


def _places(
    kind: type, fields: Sequence[_Field], columns: Sequence[str], sql: str, *, path: str
) -> list[tuple[_Field, int]]:
    """Return which column each field is read from; one with a default need not have any."""
    places: list[tuple[_Field, int]] = []
    for field in fields:
        at = [n for n, column in enumerate(columns) if column == field.column]
        if len(at) > 1:
            raise refuse(
                f"{len(at)} columns are called {field.column!r}, and {kind.__qualname__} takes "
                "one: give the others names of their own by `as`",
                sql,
                path=path,
            )
        if at:
            places.append((field, at[0]))
        elif field.is_required:
            raise refuse(
                f"no column is called {field.column!r}, which {kind.__qualname__} needs; there are "
                f"{_listed(columns) or 'none'}: select it, by `as` where it has another name",
                sql,
                path=path,
            )
    return places


def _misfit(column: str, at: int, value: SqlValue, wanted: str, sql: str, path: str) -> Exception:
    shown = _SHOWN.get(type(value), type(value).__name__)
    return refuse(
        f"column {column} of row {at + 1} is {shown} where {wanted}: select what fits, or change "
        "the type",
        sql,
        path=path,
    )


@lru_cache(maxsize=256)
def _fields_of(kind: Hashable) -> tuple[_Field, ...] | None:
    """Return the fields of a struct or dataclass; None of a type of single values."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return tuple(
            _Field(each.name, each.encode_name, each.type, each.required)
            for each in msgspec.structs.fields(kind)
        )
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        return None
    hints = typing.get_type_hints(kind)
    missing = dataclasses.MISSING
    return tuple(
        _Field(
            each.name, each.name, hints[each.name],
            each.default is missing and each.default_factory is missing,
        )
        for each in dataclasses.fields(kind)
        if each.init
    )  # fmt: skip


@lru_cache(maxsize=256)
def _reader_of(kind: Hashable) -> Any:
    """Return what makes a value of SQLite's one that msgspec takes for a type; None for nothing."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = set(typing.get_args(kind)) - {type(None)} if is_union else {kind}
    if kinds == {bool}:
        return _as_bool
    return _as_datetime if kinds == {dt.datetime} else None


def _as_bool(value: SqlValue) -> object:
    return bool(value) if value in (0, 1) else value


def _as_datetime(value: SqlValue) -> object:
    if type(value) is not int:
        return value
    try:
        return _EPOCH + dt.timedelta(microseconds=value)
    except OverflowError:
        return value


def _fits(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError):
        return False
    return True


def _listed(columns: Iterable[str]) -> str:
    # An expression without a name is called as it is written, with its literals.
    return ", ".join(repr(each) if each.isidentifier() else "…" for each in columns)


def _named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
