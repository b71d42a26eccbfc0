"""The scheduler: sends a command each time that a schedule is due.

The key of the command is made of the schedule and the time, so that one time has one effect,
however often it is sent: after a crash between its answer and the record that it is done, too.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from synchromesh.calls import Call, Caller
from synchromesh.codec import to_datetime
from synchromesh.errors import (
    BadRequest,
    CallError,
    ContractError,
    Forbidden,
    KeyReused,
    KeyUndone,
    Rejection,
    SynchromeshError,
    UnknownOperation,
)
from synchromesh.runtime import Runtime
from synchromesh.service.schedule import ScheduleDefinition
from synchromesh.store import NO_FENCE, Migration, Schema, Store, StoreReader, Unit, fetch_as

SCHEMA = Schema(
    "synchromesh.schedule",
    (
        Migration(
            1,
            (
                (
                    "create table sm_schedule(name text primary key, expression text not null, "
                    "zone text not null, last_us bigint not null, next_us bigint not null, "
                    "failed text not null)"
                ),
            ),
            readable_by_min=1,
        ),
    ),
)

TIMEOUT_S = 30.0
# A wall clock that jumps is noticed at the latest then.
LOOK_EVERY_S = 30.0
LATE_US = 60_000_000
BACKOFF_BASE_S, BACKOFF_CAP_S = 1.0, 60.0

# Asking again under the same key would be answered the same.
_FINAL = (BadRequest, Forbidden, KeyReused, KeyUndone, UnknownOperation)

_log = logging.getLogger("synchromesh.service")


class ScheduleState(msgspec.Struct, frozen=True):
    """A schedule as it is stored: when it was done last, when it is next, and how it failed last.

    Times are microseconds since 1970 UTC; `failed` is "" where the last time was answered.
    """

    name: str
    expression: str
    zone: str
    last_us: int
    next_us: int
    failed: str


async def list_schedules(reader: StoreReader) -> list[ScheduleState]:
    """Return the schedules of a service, by name."""
    return await fetch_as(
        reader,
        ScheduleState,
        "select name, expression, zone, last_us, next_us, failed from sm_schedule order by name",
        (),
    )


class Scheduler:
    """Runs one schedule; `run` is a supervised child.

    Args:
        keep_s: how long the inbox of the callee remembers; an older time is not sent, for it might
            have been sent before.
    """

    def __init__(
        self,
        definition: ScheduleDefinition,
        store: Store,
        caller: Caller,
        *,
        runtime: Runtime,
        keep_s: float,
    ) -> None:
        self._definition = definition
        self._store = store
        self._caller = caller
        self._runtime = runtime
        self._keep_us = int(keep_s * 1e6)
        self._fence = NO_FENCE

    @property
    def duty(self) -> str:
        """What it is called among the duties of a service."""
        return f"schedule/{self._definition.name}"

    async def run(self) -> None:
        """Send until cancelled. A supervised child.

        Raises:
            StoreError: the database failed.
            Fenced: another process runs the schedule now.
        """
        self._fence = self._store.owners.fence((self.duty,))
        definition, now_us = self._definition, self._runtime.wall_us
        last_us = await self._begin()
        while True:
            schedule = definition.schedule
            due_us = schedule.due(last_us, now_us(), definition.missed, late_us=LATE_US)
            if due_us is None:
                left_s = (schedule.next_after(max(last_us, now_us() - LATE_US)) - now_us()) / 1e6
                await asyncio.sleep(min(max(left_s, 0.001), LOOK_EVERY_S))
                continue
            if due_us < now_us() - self._keep_us:
                failed = "missed: an inbox might have forgotten it"
            else:
                failed = await self._send(due_us)
            if failed:
                _log.error("schedule %s failed at %s: %s", definition.name, _text(due_us), failed)
            last_us = due_us
            await self._save(last_us, failed)

    async def _begin(self) -> int:
        """Return when it was done last; a new schedule begins now, not in the past."""
        definition = self._definition
        rows = await self._store.read(
            "select last_us, failed from sm_schedule where name = ?", definition.name
        )
        last_us, failed = rows[0] if rows else (self._runtime.wall_us(), "")
        # Also where its expression was changed.
        await self._save(int(last_us or 0), str(failed))
        return int(last_us or 0)

    async def _send(self, due_us: int) -> str:
        """Send the command until it is answered; return why it was not, or was refused."""
        definition = self._definition
        try:
            call: object = definition.function(to_datetime(due_us))
        except Exception as error:  # noqa: BLE001  what a user's function raises is its failure
            _log.exception("schedule %s cannot make its call", definition.name)
            return f"its function raised {type(error).__name__}"
        if not isinstance(call, Call):
            return f"{definition.name} returned a {type(call).__name__}; return a Call"
        next_us = definition.schedule.next_after(due_us)
        pause_s = BACKOFF_BASE_S
        while True:
            # A durable boundary starts a new call tree with a deadline of its own (D1).
            context = self._caller.root(key=f"schedule/{definition.name}/{_text(due_us)}")
            try:
                await self._caller.call(call, context=context, timeout_s=TIMEOUT_S)
            except Rejection as error:
                return f"{error.code}: {error.message}"
            except ContractError as error:
                return error.message
            except CallError as error:
                failed = f"{error.code}: {error.message}"
                if error.is_final or isinstance(error, _FINAL):
                    return failed
                if self._runtime.wall_us() >= next_us:
                    return f"{failed}; given up, for the next time is due"
            except SynchromeshError as error:
                return f"{error.code}: {error.message}"
            else:
                return ""
            await asyncio.sleep(self._runtime.rng.uniform(pause_s / 2, pause_s))
            pause_s = min(2 * pause_s, BACKOFF_CAP_S)

    async def _save(self, last_us: int, failed: str) -> None:
        definition = self._definition
        schedule = definition.schedule

        async def body(unit: Unit) -> None:
            await self._fence.check(unit)
            await unit.execute(
                "insert into sm_schedule(name, expression, zone, last_us, next_us, failed) "
                "values (?, ?, ?, ?, ?, ?) on conflict(name) do update set "
                "expression = excluded.expression, zone = excluded.zone, "
                "last_us = excluded.last_us, next_us = excluded.next_us, failed = excluded.failed",
                definition.name,
                schedule.expression,
                schedule.zone,
                last_us,
                schedule.next_after(last_us),
                failed[:500],
            )

        await self._store.write(body, name=f"schedule {definition.name}")

    def __repr__(self) -> str:
        return f"<Scheduler {self._definition.name}: {self._definition.schedule!r}>"


def _text(due_us: int) -> str:
    return to_datetime(due_us).strftime("%Y-%m-%dT%H:%M:%SZ")
