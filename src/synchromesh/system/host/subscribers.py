"""Follows in the registry what the running processes of a system take."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import aclosing

from synchromesh.discovery import Registry
from synchromesh.messaging import Declared
from synchromesh.service import Child, Supervisor

CHILD = "registry/subscribers"


async def follow_subscribers(
    registry: Registry, services: Collection[str], declared: Declared, background: Supervisor
) -> None:
    """Note what processes of services take that are listed now, and from then on; may be repeated.

    Raises:
        DiscoveryError: the registry has never answered.
    """
    for service in services:
        declared.note(service, (await registry.resolve(service)).endpoints)
    if CHILD not in background.states:
        background.start(Child(CHILD, lambda: _watch(registry, services, declared)))


async def _watch(registry: Registry, services: Collection[str], declared: Declared) -> None:
    """Note what processes take whenever others are listed; a supervised loop."""

    async def watch(service: str) -> None:
        async with aclosing(registry.watch(service)) as lists:
            async for listed in lists:
                declared.note(service, listed.endpoints)

    try:
        async with asyncio.TaskGroup() as watches:
            for service in services:
                watches.create_task(watch(service))
    except ExceptionGroup as errors:
        # What ended a watch; the supervisor shows its code, not the group's.
        raise errors.exceptions[0] from None
