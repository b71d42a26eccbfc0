"""The tables beside an application's own, as statements that its migrations run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType

import msgspec

from synchromesh.errors import ContractError, MissingExtra
from synchromesh.events import SCHEMA as EVENTS_SCHEMA
from synchromesh.messaging import SCHEMA as MESSAGING_SCHEMA
from synchromesh.saga.schema import SCHEMA as SAGA_SCHEMA
from synchromesh.store import Schema
from synchromesh.store.migrations import TABLE, render
from synchromesh.store.postgres_dialect import TOKENS

SCHEMAS = (EVENTS_SCHEMA, MESSAGING_SCHEMA, SAGA_SCHEMA)
"""The tables that a store needs beside those of the store itself."""

PREFIX = "sm_"
"""How the names of all of our tables begin."""

# What each version of these statements brings: the migrations of each owner, up to which one.
_VERSIONS: dict[int, Mapping[str, int]] = {
    0: {},
    1: {"synchromesh.store": 1, "synchromesh.events": 1, "messaging": 1, "synchromesh.saga": 1},
}
VERSION = max(_VERSIONS)
"""The newest version of the statements."""

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_MADE = re.compile(r"create table (?:if not exists )?(\w+)")


def upgrade_statements(name: str, version: int = VERSION) -> tuple[str, ...]:
    """Return the statements that bring a PostgreSQL database from the version before to this one.

    They are of one transaction, take no values, and stay what they are, so that a migration that
    says its version may be kept for ever. Versions follow one another, from 1 on.

    Args:
        name: that of the `Alone` whose tables they are.

    Raises:
        ContractError: there is no such version, or the name is none.
        MissingExtra: asyncpg is not installed.

    Example:
        >>> statements = upgrade_statements("shop", 1)
        >>> any(each.startswith("create table sm_event(") for each in statements)
        True
    """
    check_name(name)
    if version < 1 or version not in _VERSIONS:
        raise ContractError(
            f"there is no version {version!r} of the tables; this release has 1 to {VERSION}"
        )
    before, after = _VERSIONS[version - 1], _VERSIONS[version]
    made = [render(TABLE, TOKENS)] if version == 1 else []
    for schema in (_postgres().STORE_SCHEMA, *SCHEMAS):
        for each in schema.migrations:
            if before.get(schema.owner, 0) < each.version <= after[schema.owner]:
                made += [render(statement, TOKENS) for statement in each.statements]
                texts = msgspec.json.encode(each.statements).decode()
                made.append(
                    "insert into sm_migration(owner, version, readable_by_min, statements) values "
                    f"({_text(schema.owner)}, {each.version}, {each.readable_by_min}, "
                    f"{_text(texts)})"
                )
    if version == 1:
        made += [
            "create index sm_event_waiting on sm_event(sm_order) where position is null",
            "insert into sm_log(name, last) values ('sm_event', 0)",
            f"insert into sm_meta(name, value) values ('service', {_text(name)})",
            "insert into sm_meta(name, value) values ('log_id', cast(gen_random_uuid() as text))",
        ]
    return tuple(made)


def downgrade_statements(version: int = VERSION) -> tuple[str, ...]:
    """Return the statements that take away what a version has brought, with all that is in it.

    Raises:
        ContractError: there is no such version.

    Example:
        >>> "drop table sm_event" in downgrade_statements(1)
        True
    """
    tables = [
        found[1] for each in upgrade_statements("any", version) if (found := _MADE.match(each))
    ]
    return tuple(f"drop table {each}" for each in reversed(tables))


def include_name(name: str | None, type_: str, parent_names: object) -> bool:  # noqa: ARG001
    """Return whether Alembic may look at a name: not at our tables, which it would drop.

    It is what `context.configure(include_name=include_name)` takes; call it from a hook of your own
    where you have one.

    Example:
        >>> include_name("sm_event", "table", {}), include_name("orders", "table", {})
        (False, True)
    """
    return not (type_ == "table" and (name or "").startswith(PREFIX))


def check_name(name: object) -> None:
    """Raise `ContractError` for what is no name of an application, or of who gets messages."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ContractError(
            f"{name!r:.80} is no name: give one of lower-case letters, digits, - and _, which "
            'begins with a letter, such as "shop"'
        )


def all_schemas() -> tuple[Schema, ...]:
    """Return the tables of the store and of all rooms that are used alone."""
    return (_postgres().STORE_SCHEMA, *SCHEMAS)


def _postgres() -> ModuleType:
    try:
        from synchromesh.store import postgres
    except ImportError as error:
        raise MissingExtra("postgres", needed_for="a pattern alone") from error
    return postgres


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
