"""The keys of a service's personal values: found at its start, and deleted with a subject."""

from __future__ import annotations

import logging

import msgspec

from synchromesh.codec import to_datetime
from synchromesh.errors import ActionRefused, PersonalUnreadable
from synchromesh.store import Store, StoreReader, Unit

_KNOWN = "select value from sm_meta where name = 'keys_id'"
_NOTE = (
    "insert into sm_meta(name, value) values ('keys_id', ?) "
    "on conflict(name) do update set value = excluded.value"
)

_log = logging.getLogger("synchromesh.service")


class Erasure(msgspec.Struct, frozen=True):
    """What came of erasing a subject in one service.

    Attributes:
        was: "known" until now, "unknown" here, or "erased" before, by whom this then says.
    """

    service: str
    was: str
    erased_at: str
    who: str
    why: str


async def adopt_keys(store: Store, *, is_wanted: bool) -> None:
    """Find the keys that a database was used with, or begin them where they are wanted.

    Where they are lost the service goes on: what is personal cannot be read or written, which is
    logged here, said by each use, and found by `db verify`.

    Raises:
        StoreError: they cannot be used for another reason.
    """
    keys = store.vault
    keys.expected = await keys_in_use(store)
    if not (keys.expected or keys.is_there or is_wanted):
        return
    try:
        found = keys.prepare()
    except PersonalUnreadable as error:
        _log.error("%s", error.message)
        return
    if found != keys.expected:
        await _note(store, found)


async def keys_in_use(reader: StoreReader) -> str:
    """Return the id of the keys that a database was used with; "" where there were none."""
    rows = await reader.read(_KNOWN)
    return str(rows[0][0]) if rows else ""


async def _note(store: Store, keys_id: str) -> None:
    async def body(unit: Unit) -> None:
        await unit.execute(_NOTE, keys_id)

    await store.write(body, name="note the keys")
    store.vault.expected = keys_id


def erase(store: Store, subject: str, *, now_us: int, who: str, why: str) -> Erasure:
    """Erase a subject in the database of a service, for good.

    Raises:
        PersonalUnreadable: the keys are lost.
        StoreError: they cannot be written; nothing was erased.
    """
    before = store.vault.erase(subject, now_us=now_us, who=who, why=why)
    if before is not None and before.erased_us is not None:
        at = to_datetime(before.erased_us).isoformat()
        return Erasure(store.service, "erased", at, before.who, before.why)
    was = "unknown" if before is None else "known"
    return Erasure(store.service, was, to_datetime(now_us).isoformat(), who, why)


async def give_up_keys(store: Store, *, now_us: int, who: str, why: str) -> str:
    """Take what was sealed with lost keys as erased, and return the id of those that are lost.

    Raises:
        ActionRefused: none are lost.
    """
    lost = store.vault.lost
    if not lost:
        raise ActionRefused(f"no keys of {store.service} are lost; nothing was given up")
    await _note(store, store.vault.give_up(now_us=now_us, who=who, why=why))
    return lost
