"""The keys of a service's personal values: found at its start, and deleted with a subject."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from synchromesh.codec import to_datetime
from synchromesh.errors import ActionRefused, PersonalUnreadable
from synchromesh.sealing import SubjectKeys
from synchromesh.store import Store, StoreReader, Unit
from synchromesh.store.vault import KNOWN_ID, NOTE_ID

# A backup of keys takes a moment.
_AGAIN_S = 1.0

_log = logging.getLogger("synchromesh.service")


class Erasure(msgspec.Struct, frozen=True):
    """What came of erasing a subject in one service.

    Attributes:
        was: "known" until now, "unknown" here, or "erased" before, by whom this then says.
        left_over: why bytes of erased keys are still on the disk; "" where none are. That is tried
            again until none are.
    """

    service: str
    was: str
    erased_at: str
    who: str
    why: str
    left_over: str = ""


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
    rows = await reader.read(KNOWN_ID)
    return str(rows[0][0]) if rows else ""


async def _note(store: Store, keys_id: str) -> None:
    async def body(unit: Unit) -> None:
        await unit.execute(NOTE_ID, keys_id)

    await store.write(body, name="note the keys")
    store.vault.expected = keys_id


def erase(store: Store, subject: str, *, now_us: int, who: str, why: str) -> Erasure:
    """Erase a subject in the database of a service, for good.

    Nothing is waited for: where somebody reads the keys, the last bytes go once they end.

    Raises:
        PersonalUnreadable: the keys are lost.
        StoreError: they cannot be written; nothing was erased.
    """
    keys = store.vault
    before = keys.erase(subject, now_us=now_us, who=who, why=why)
    if before is not None and before.erased_us is not None:
        at = to_datetime(before.erased_us).isoformat()
        return Erasure(store.service, "erased", at, before.who, before.why, keys.left_over)
    was = "unknown" if before is None else "known"
    at = to_datetime(now_us).isoformat()
    return Erasure(store.service, was, at, who, why, keys.left_over)


async def keep_overwriting(keys: SubjectKeys) -> None:
    """Overwrite what is left over of erased keys, once nobody reads them; until it is cancelled."""
    is_asked = asyncio.Event()
    keys.on_left_over = is_asked.set
    while True:
        if keys.overwrite():
            await is_asked.wait()
            is_asked.clear()
        await asyncio.sleep(_AGAIN_S)


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
