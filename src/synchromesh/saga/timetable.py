"""When runs wake, what wakes them sooner, and what is said of runs beside their records."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

import msgspec

from synchromesh.codec import encode
from synchromesh.errors import UnknownSaga
from synchromesh.events import append_each
from synchromesh.personal_types import personal_fields
from synchromesh.saga import tables
from synchromesh.saga.records import ENDED, Nap, SagaStatus
from synchromesh.saga.seals import signal_place
from synchromesh.saga.shards import RunFence
from synchromesh.saga.tables import SagaRow
from synchromesh.sealing import Vault, open_if_ours
from synchromesh.store import Row, SqlValue, Store, StoreReader, Unit

_DUE = f"select id from sm_saga where wake_us <= ? and {tables.OWN} order by wake_us limit ?"
_NEXT_DUE = (
    f"select wake_us from sm_saga where wake_us is not null and {tables.OWN} "
    "order by wake_us limit 1"
)

_NEWS = (
    f"select 1 from sm_saga where {tables.UNFINISHED_SQL} and status = 'queued' and {tables.OWN} "
    f"union all select 1 from sm_saga where wake_us = 0 and {tables.OWN} limit 1"
)

TOPIC = "saga signals"
"""What the engine listens to: a run that sleeps has been told something."""


class SagaMark(msgspec.Struct, frozen=True):
    """What is said of a run beside its records: that it waits for other code, or no longer does."""

    row: SagaRow
    status: SagaStatus
    reason: str
    nap: Nap | None = None


async def mark(unit: Unit, marks: Sequence[SagaMark], fence: RunFence) -> None:
    """Say of runs that they wait for other code, or that they no longer do; no record says it.

    A run that has changed meanwhile is left as it is; so is one that another engine has.
    """
    lost = await fence.lost(unit)
    for each in marks:
        row, status, reason = each.row, each.status, each.reason
        if row.shard in lost:
            continue
        changed = await unit.execute(
            "update sm_saga set status = ?, reason = ?, wake_us = null where id = ? and status = ? "
            "returning 1",
            status._value_,
            reason,
            row.id,
            row.status._value_,
        )
        if changed and (nap := each.nap) is not None:
            values = (reason, nap.awaits, nap.awaits, nap.wake_us, row.id)
            await unit.execute(tables.SLEEP, *values)
        if changed and row.status is not status:
            name = "waiting" if status is SagaStatus.WAITING else "resumed"
            await append_each(unit, [tables.milestone(unit, row, name, status, reason)])


async def due(store: StoreReader, now_us: int, mask: int, limit: int) -> list[str]:
    """Return the ids of the runs of own shards that sleep and are due, the longest due first."""
    rows = await store.read(_DUE, now_us, mask, limit)
    return [str(each) for (each,) in rows]


async def next_due(store: StoreReader, mask: int) -> int | None:
    """Return when the next run of own shards wakes; None where none sleeps."""
    rows = await store.read(_NEXT_DUE, mask)
    return rows[0][0] if rows and isinstance(rows[0][0], int) else None


async def has_news(store: StoreReader, mask: int) -> bool:
    """Return whether runs of own shards are in the queue, or were told what they sleep for."""
    return bool(await store.read(_NEWS, mask, mask))


class Signal(msgspec.Struct, frozen=True):
    """What a run was told and has not taken yet; `seq` is its number."""

    seq: int
    body: bytes


class TellingUnit(Protocol):
    """What telling a run takes of a unit; the `Transaction` that users see has it, too."""

    @property
    def now_us(self) -> int:
        """When the unit began."""
        ...

    @property
    def vault(self) -> Vault:
        """The keys of the service's subjects."""
        ...

    def execute(self, sql: str, *values: SqlValue) -> Awaitable[list[Row]]:
        """Run one statement."""
        ...

    def notify(self, topic: str) -> None:
        """Wake those who listen to a topic, once the unit is committed."""
        ...


async def tell(unit: TellingUnit, saga: str, id: str, event: object) -> bool:  # noqa: A002
    """Tell a run of a saga something, within a unit; return False where it has ended.

    It is kept until the run asks for an event of this class, and wakes it if it sleeps for one.

    Raises:
        UnknownSaga: no run of this saga has this id.
        BadRequest: the event cannot be stored.
    """
    found = await unit.execute("select status from sm_saga where id = ? and name = ?", id, saga)
    if not found:
        raise UnknownSaga(f"no run of saga {saga!r} has the id {id!r}: nobody was told")
    if found[0][0] in [status.value for status in ENDED]:
        return False
    name, body = type(event).__name__, encode(event)
    if (personal := personal_fields(type(event))) is not None:
        body = personal.seal(body, signal_place(id, name), unit.vault)
    await unit.execute(
        "insert into sm_saga_signal(saga, name, body, at_us) values (?, ?, ?, ?)",
        id, name, body, unit.now_us,
    )  # fmt: skip
    await unit.execute(
        "update sm_saga set wake_us = 0 where id = ? and status = 'sleeping' and awaits = ?",
        id, name,
    )  # fmt: skip
    unit.notify(TOPIC)
    return True


async def next_signal(
    store: Store,
    id: str,  # noqa: A002
    name: str,
    after: int,
) -> Signal | None:
    """Return the first thing of a class that a run was told after what it has taken."""
    rows = await store.read(
        "select seq, body from sm_saga_signal where saga = ? and name = ? and seq > ? "
        "order by seq limit 1",
        id, name, after,
    )  # fmt: skip
    if not rows:
        return None
    ((seq, body),) = rows
    assert isinstance(seq, int)
    told = body if isinstance(body, bytes) else str(body).encode()
    return Signal(seq, open_if_ours(told, signal_place(id, name), store.vault))
