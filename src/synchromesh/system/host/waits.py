"""Waits for the first of several events, or for all of several tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any

_log = logging.getLogger("synchromesh.system")


async def first_of(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def unless(stop: asyncio.Event, starting: Coroutine[Any, Any, object]) -> bool:
    """Wait for the end of a start; False where `stop` came first, and it was cancelled."""
    task, stopped = asyncio.ensure_future(starting), asyncio.ensure_future(stop.wait())
    await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not task.done():
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


async def all_of(steps: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Run all steps of a shutdown at once; one that fails is logged and stops no other."""
    for outcome in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(outcome, Exception):
            _log.error("a step of stopping failed", exc_info=outcome)
