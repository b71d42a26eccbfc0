"""Forgets what an application has kept long enough: keys, messages, and runs that have ended."""

from __future__ import annotations

import asyncio
import logging

from synchromesh.clock import loop_clock
from synchromesh.errors import Shed, StoreError
from synchromesh.events.log import RELAY_PREFIX
from synchromesh.events.removal import reached_by_all, remove_each
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
_log = logging.getLogger("synchromesh.alone")


async def sweep_for_ever(store: Store, *, keep_s: float) -> None:
    """Sweep now and then until cancelled; one process at a time does it."""
    time = loop_clock(asyncio.get_running_loop())
    swept_s = time()
    while True:
        await asyncio.sleep(EVERY_S)
        now_s = time()
        try:
            await sweep(store, ran_s=now_s - swept_s, keep_s=keep_s)
        except (StoreError, Shed) as error:
            _log.warning("nothing is swept for now: %s", error)
        else:
            swept_s = now_s


async def sweep(store: Store, *, ran_s: float, keep_s: float) -> None:
    """Delete what is due, in small units.

    Args:
        ran_s: how long the application was seen running since the last sweep, as `inbox.sweep`
            has it.
        keep_s: how old a message is that is deleted, once all functions have got it; and how long
            ago a run has ended.

    Raises:
        StoreError, Shed: the database refused.
    """

    async def keys(unit: Unit) -> int:
        return await inbox.sweep(unit, ran_s=ran_s, keep_s=keep_s, rows_max=ROWS_MAX)

    async def messages(unit: Unit) -> int:
        if not (await unit.execute(_SUBSCRIBED, len(RELAY_PREFIX), RELAY_PREFIX))[0][0]:
            return 0  # nobody has got any yet
        reached = await reached_by_all(unit, is_public=True)
        before_us = unit.now_us - int(keep_s * 1e6)
        found = await unit.execute(_OLD, reached.position, before_us, ROWS_MAX)
        return await remove_each(unit, [int(at) for (at,) in found if isinstance(at, int)])

    for body in (keys, messages):
        while await store.write(body, name=f"sweep {body.__name__}") == ROWS_MAX:
            pass
    await _sweep_runs(store, keep_s=keep_s)


async def _now_us(unit: Unit) -> int:
    return unit.now_us


async def _sweep_runs(store: Store, *, keep_s: float) -> None:
    """Forget the runs that ended long ago, as far as all readers of the log have passed them."""
    while True:
        before_us = await store.write(_now_us, name="sweep clock") - int(keep_s * 1e6)
        ids = await ended_runs(store, before_us=before_us, limit=RUNS_MAX)

        async def runs(unit: Unit, ids: list[str] = ids) -> ForgottenRuns:
            reached = await reached_by_all(unit, is_public=False)
            return await forget_runs(unit, ids, reached=reached, rows_max=ROWS_MAX)

        if not ids or (await store.write(runs, name="sweep runs")).rows == 0:
            return
