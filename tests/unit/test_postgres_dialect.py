"""SQL that is written once, as PostgreSQL gets it; and what is said of its errors and addresses."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from synchromesh.errors import (
    ConstraintFailed,
    StatementFailed,
    StoreBroken,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)
from synchromesh.store.postgres_connection import place_of
from synchromesh.store.postgres_dialect import Translation, Translations, to_postgres
from synchromesh.store.postgres_errors import is_conflict, is_lost, is_own_duplicate, translate


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("select 1", "select 1"),
        ("? ? ?", "$1 $2 $3"),
        ("a = '?' and b = ?", "a = '?' and b = $1"),
        ("a = 'it''s ?' and b = ?", "a = 'it''s ?' and b = $1"),
        ('"why?" = ?', '"why?" = $1'),
        ("-- why?\n?", "-- why?\n$1"),
        ("/* ? */ ?", "/* ? */ $1"),
        ("$$ ? $$ ?", "$$ ? $$ $1"),
        ("$x$ ? $$ ? $x$ ?", "$x$ ? $$ ? $x$ $1"),
        ("'unfinished ?", "'unfinished ?"),
    ],
)
def test_marks_are_numbered_where_they_are_marks(sql: str, expected: str) -> None:
    """Not in quotes, names and comments."""
    assert to_postgres(sql) == expected


def test_a_plan_casts_what_the_server_cannot_tell() -> None:
    """First all but texts, which fit nearly everywhere; one text for values of the same types."""
    plan = Translation("select ?, ?, ?, ?, ?")
    values = (1, "a", 1.5, None, b"x")
    assert plan.text(values) == "select $1, $2, $3, $4, $5"
    assert plan.learn(values, 2)
    assert not plan.learn(values, 2)
    assert plan.text(values) == "select $1, $2, $3::float8, $4, $5"
    assert plan.learn(values)
    assert plan.text(values) == "select $1::int8, $2, $3::float8, $4, $5::bytea"
    assert plan.learn(values)
    assert plan.text(values) == "select $1::int8, $2::text, $3::float8, $4, $5::bytea"
    assert not plan.learn(values)
    assert plan.text(values) is plan.text((2, "b", 2.5, None, b"y"))
    others = plan.text((True, "b", 2.5, 7, None))
    assert others == "select $1::int8, $2::text, $3::float8, $4::int8, $5"


def test_the_plan_of_a_statement_is_made_once() -> None:
    """Also where its text is another object."""
    plans = Translations()
    sql = "select 1"
    assert plans.of(sql, "a read", path="shop") is plans.of(f"{sql[:6]} 1", "a read", path="shop")


@pytest.mark.parametrize(
    "sql", ["set role other", "RESET ALL", "listen x", "start transaction", "copy t from stdin"]
)
def test_what_steers_the_session_is_refused(sql: str) -> None:
    """Beside what every engine's store refuses."""
    with pytest.raises(StatementFailed, match="steers the engine"):
        Translations().of(sql, "a read", path="shop")


def error_of(state: str, message: str, **fields: Any) -> asyncpg.PostgresError:
    made: asyncpg.PostgresError = asyncpg.PostgresError.new({"C": state, "M": message, **fields})
    return made


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("08006", StoreUnavailable),
        ("57P01", StoreUnavailable),
        ("57P03", StoreUnavailable),
        ("53300", StoreUnavailable),
        ("53100", StoreFull),
        ("25006", StoreReadOnly),
        ("42501", StoreReadOnly),
        ("23503", ConstraintFailed),
        ("23514", ConstraintFailed),
        ("42P01", StatementFailed),
        ("22012", StatementFailed),
        ("0A000", StatementFailed),
        ("XX001", StoreBroken),
        ("58030", StoreBroken),
    ],
)
def test_each_class_of_errors_has_its_person(state: str, expected: type[Exception]) -> None:
    """Whoever gave the data, wrote the SQL or runs the server; or it is only a matter of time."""
    told = translate(error_of(state, "it is so"), path="shop", sql="select 1")
    assert type(told) is expected
    assert "it is so" in told.message


def test_what_the_server_says_of_values_is_left_out() -> None:
    """Details, values that do not fit, and what a syntax error stands at if it may be one."""
    duplicate = error_of(
        "23505", 'duplicate key value violates "hold_pkey"', D="Key (id, n)=(secret, 7) is there.",
        t="hold",
    )  # fmt: skip
    said = translate(duplicate, path="shop", sql="insert into hold values (?, ?)").message
    assert "hold.id, hold.n" in said
    misfit = error_of("22P02", 'invalid input syntax for type integer: "secret"')
    sql = "insert into hold values ('secret')"
    assert isinstance(translate(misfit, path="shop", sql=sql), ConstraintFailed)
    at = error_of("42601", "syntax error at or near \"'secret'\"")
    argument = asyncpg.DataError("invalid input for query argument $1: 'secret' (expected int)")
    others = [translate(each, path="shop", sql=sql).message for each in (misfit, at, argument)]
    assert "value 1 does not fit (expected int)" in others[-1]
    assert not [each for each in (said, *others) if "secret" in each]
    assert '"from"' in translate(error_of("42601", 'at or near "from"'), path="shop").message


def test_what_is_run_again_is_known_by_its_state() -> None:
    """A conflict, a deadlock, a stale plan; a duplicate only of a key of our own tables."""
    assert is_conflict(error_of("40001", ""))
    assert is_conflict(error_of("40P01", ""))
    assert is_conflict(asyncpg.InvalidCachedStatementError("cached plan must not change"))
    assert not is_conflict(error_of("23505", ""))
    assert is_own_duplicate(error_of("23505", "", t="sm_inbox"))
    assert not is_own_duplicate(error_of("23505", "", t="hold"))


def test_a_lost_connection_is_known_also_without_a_state() -> None:
    """The driver has words of its own for it; a value that does not fit is none of them."""
    for error in (
        asyncpg.ConnectionDoesNotExistError("gone"),
        asyncpg.InterfaceError("connection is closed"),
        ConnectionRefusedError(),
        TimeoutError(),
    ):
        assert is_lost(error)
    assert not is_lost(asyncpg.DataError("invalid input for query argument $1: 5 (expected str)"))
    assert not is_lost(error_of("57014", "canceling statement due to statement timeout"))


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql://a:secret@db/x", "postgresql://a@db/x"),
        ("postgresql://a:se%40cret@db:5432/x", "postgresql://a@db:5432/x"),
        ("postgresql:///x?host=/run/pg&password=secret", "postgresql:///x?host=/run/pg"),
        ("postgresql://db/x", "postgresql://db/x"),
    ],
)
def test_no_password_is_in_what_is_shown(url: str, place: str) -> None:
    """Neither before the host nor after the name."""
    assert place_of(url) == place
