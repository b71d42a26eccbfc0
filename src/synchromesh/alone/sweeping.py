"""Forgets what an application has kept long enough: keys, messages, and runs that have ended.

What somebody has not got yet is kept, however old it is. Only a person knows that nobody delivers,
or projects, under a name any more, so that it is said which name it is, and that one is forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from synchromesh.alone.projecting import PREFIX
from synchromesh.clock import loop_clock
from synchromesh.errors import BadRequest, Shed, StoreError
from synchromesh.events.log import RELAY_PREFIX
from synchromesh.events.removal import reached_by_all, remove_each
from synchromesh.messaging.gone import forget_in
from synchromesh.saga.forgetting import ForgottenRuns, ended_runs, forget_runs
from synchromesh.store import Store, Unit, inbox

EVERY_S = 60.0
ROWS_MAX = 500
RUNS_MAX = 50

_SUBSCRIBED = "select exists(select from sm_checkpoint where substr(name, 1, ?) = ?)"
_OLD = (
    "select position from sm_event where is_public = 1 and position <= ? and recorded_us < ? "
    "order by position limit ?"
)
_NEXT = (
    "select recorded_us from sm_event where is_public = 1 and position > ? "
    "order by position limit 1"
)
# Whoever has a lease by the server's clock; nobody else claims the duty before this is over.
_AT_WORK = (
    "select exists(select from sm_replica where id = sm_duty.owner "
    "and until_us > extract(epoch from clock_timestamp()) * 1000000) "
    "from sm_duty where name in (?, ?) order by name for update"
)
_log = logging.getLogger("synchromesh.alone")


async def sweep_for_ever(store: Store, *, keep_s: float) -> None:
    """Sweep now and then until cancelled; one process at a time does it."""
    time = loop_clock(asyncio.get_running_loop())
    swept_s = time()
    told: set[str] = set()
    while True:
        await asyncio.sleep(EVERY_S)
        now_s = time()
        try:
            held_by = await sweep(store, ran_s=now_s - swept_s, keep_s=keep_s)
        except (StoreError, Shed) as error:
            _log.warning("nothing is swept for now: %s", error)
        else:
            swept_s = now_s
            _warn(held_by - told)
            told = held_by


def _warn(held_by: Iterable[str]) -> None:
    for each in sorted(held_by):
        name = each.removeprefix(RELAY_PREFIX).removeprefix(PREFIX)
        does = "project" if each.startswith(PREFIX) else "deliver"
        _log.warning(
            "messages, or runs that have ended, are kept beyond their time for %r, which has not "
            "got them: %s under that name; or, where nobody is to do so any more, forget it: "
            "Alone.forget(store, %r, who=..., why=...)", name, does, name,
        )  # fmt: skip


async def forget(store: Store, name: str, *, who: str, why: str) -> None:
    """Forget a name under which nobody delivers, or projects, any more.

    Raises:
        BadRequest: somebody does, or nothing is kept for it, or it is not said who, or why.
    """
    if not who.strip() or not why.strip():
        raise BadRequest(
            "a name is forgotten for good: say who forgets it, and why; it is recorded"
        )

    async def body(unit: Unit) -> bool:
        duties = f"{RELAY_PREFIX}{name}", f"{PREFIX}{name}"
        if any(is_at_work for (is_at_work,) in await unit.execute(_AT_WORK, *duties)):
            raise BadRequest(
                f"{name!r} is not gone: a process delivers, or projects, under that name, and "
                "nothing was forgotten. End that first; of one that was killed wait for its lease, "
                "some seconds"
            )
        found = [
            await forget_in(unit, name, who=who, why=why, prefix=each)
            for each in (RELAY_PREFIX, PREFIX)
        ]
        return any(found)

    if not await store.write(body, name="forget a name"):
        raise BadRequest(
            f"nothing is kept for {name!r}: nobody has delivered, or projected, under that name"
        )


async def sweep(store: Store, *, ran_s: float, keep_s: float) -> set[str]:
    """Delete what is due, in small units; return the places that keep what would be, too.

    Args:
        ran_s: how long the application was seen running since the last sweep, as `inbox.sweep`
            has it.
        keep_s: how old a message is that is deleted, once all functions have got it; and how long
            ago a run has ended.

    Raises:
        StoreError, Shed: the database refused.
    """

    held_by: set[str] = set()

    async def keys(unit: Unit) -> int:
        return await inbox.sweep(unit, ran_s=ran_s, keep_s=keep_s, rows_max=ROWS_MAX)

    async def messages(unit: Unit) -> int:
        if not (await unit.execute(_SUBSCRIBED, len(RELAY_PREFIX), RELAY_PREFIX))[0][0]:
            return 0  # nobody has got any yet
        reached = await reached_by_all(unit, is_public=True)
        before_us = unit.now_us - int(keep_s * 1e6)
        for (recorded_us,) in await unit.execute(_NEXT, reached.position):
            if isinstance(recorded_us, int) and recorded_us < before_us:
                held_by.add(reached.by)
        found = await unit.execute(_OLD, reached.position, before_us, ROWS_MAX)
        return await remove_each(unit, [int(at) for (at,) in found if isinstance(at, int)])

    for body in (keys, messages):
        while await store.write(body, name=f"sweep {body.__name__}") == ROWS_MAX:
            pass
    by = await _sweep_runs(store, keep_s=keep_s)
    return held_by | ({by} if by else set())


async def _now_us(unit: Unit) -> int:
    return unit.now_us


async def _sweep_runs(store: Store, *, keep_s: float) -> str:
    """Forget the runs that ended long ago, as far as all readers of the log have passed them.

    Returns who has not; "" where all have.
    """
    while True:
        before_us = await store.write(_now_us, name="sweep clock") - int(keep_s * 1e6)
        ids = await ended_runs(store, before_us=before_us, limit=RUNS_MAX)

        async def runs(unit: Unit, ids: list[str] = ids) -> ForgottenRuns:
            reached = await reached_by_all(unit, is_public=False)
            return await forget_runs(unit, ids, reached=reached, rows_max=ROWS_MAX)

        if not ids:
            return ""
        done = await store.write(runs, name="sweep runs")
        if done.rows == 0:
            return done.held_by
