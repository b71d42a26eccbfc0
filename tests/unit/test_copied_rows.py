"""Values on their way to PostgreSQL: what each becomes, and which cannot be held."""

from __future__ import annotations

import pytest

from synchromesh.store.copied_rows import (
    CopiedColumn,
    Misfit,
    TableLines,
    TableSum,
    columns_to_sum,
)
from synchromesh.store.unit import SqlValue


@pytest.mark.parametrize(
    ("type_", "value", "line", "back"),
    [
        ("text", "a\\b\tc\nd\re", b"a\\\\b\\tc\\nd\\re", "a\\b\tc\nd\re"),
        ("text", "\\N", b"\\\\N", "\\N"),
        ("text", "", b"", ""),
        ("text", "\U0001f6e0 é", "\U0001f6e0 é".encode(), "\U0001f6e0 é"),
        ("character", "ab ", b"ab ", "ab   "),
        ("bytea", b"\x00\\\n", b"\\\\x005c0a", b"\x00\\\n"),
        ("bigint", -(2**63), b"-9223372036854775808", -(2**63)),
        ("boolean", 1, b"1", True),
        ("double precision", 1e300, b"1e+300", 1e300),
        ("double precision", 3, b"3", 3.0),
        ("double precision", float("-inf"), b"-inf", float("-inf")),
        ("real", 0.5, b"0.5", 0.5),
        ("numeric", 1.5, b"1.5", 1.5),
        ("numeric", 2.0, b"2.0", 2),
        ("numeric", 1e300, b"1e+300", 10**300),
        ("jsonb", 5, b"5", True),
        ("jsonb", '{"a":1}', b'{"a":1}', True),
    ],
)
def test_what_is_held_comes_back_as_it_was(
    type_: str, value: SqlValue, line: bytes, back: object
) -> None:
    """The line is what the server reads, and its answer has the same sum."""
    columns = [CopiedColumn("c", "c", type_)]
    lines, answered = TableLines(columns), TableSum(columns)
    assert lines.write([(value,), (None,)]) == line + b"\n\\N\n"
    answered.add([(None,), (back,)])
    assert answered.sum.text() == lines.sum.text()
    answered.add([(None,)])
    assert answered.sum.text() != lines.sum.text()


@pytest.mark.parametrize(
    ("type_", "value", "told"),
    [
        ("text", "a\0b", "NUL"),
        ("text", "\udcff", "no UTF-8"),
        ("text", b"a", "bytes, and the column holds texts"),
        ("text", 1, "a whole number, and the column holds texts"),
        ("bytea", "a", "a text, and the column holds bytes"),
        ("smallint", 2**15, "more than 16 bits"),
        ("integer", -(2**31) - 1, "more than 32 bits"),
        ("integer", 1.0, "a number, and the column holds whole numbers"),
        ("boolean", 2, "other than 0 and 1"),
        ("boolean", 1.0, "other than 0 and 1"),
        ("double precision", 2**53 + 1, "more digits"),
        ("real", 0.1, "more digits than real holds"),
        ("real", 1e300, "more digits than real holds"),
        ("numeric", "1", "a text, and the column holds numbers"),
        ("date", b"x", "bytes, and the column holds none"),
        ("date", "\0", "NUL"),
    ],
)
def test_what_would_come_back_as_another_is_refused(type_: str, value: SqlValue, told: str) -> None:
    """It says which column, and of which row: that after those which were counted."""
    lines = TableLines([CopiedColumn("n", "n", "bigint"), CopiedColumn("Odd", "odd", type_)])
    with pytest.raises(Misfit, match=told) as caught:
        lines.write([(1, None), (2, value)])
    assert (caught.value.column, lines.sum.rows) == ("Odd", 1)


def test_names_are_quoted() -> None:
    """Whatever is in them."""
    columns = [CopiedColumn("a", 'a"b', "text"), CopiedColumn("d", "d", "date")]
    assert columns_to_sum(columns) == '"a""b", nullif("d" is not null, false)'
