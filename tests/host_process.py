"""An instance on a host of its own: registered on NATS, and telling each time whom it sees."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing

from nats_world import at, credential, registry_at
from synchromesh.discovery import Registration
from synchromesh.errors import StaleIncarnation

SERVICE = "billing"


def say(**told: object) -> None:
    sys.stdout.write(f"{json.dumps(told)}\n")
    sys.stdout.flush()


async def renew(registration: Registration) -> None:
    """Keep the lease, and end once another process has it."""
    try:
        await registration.run()
    except StaleIncarnation as error:
        say(fenced=error.message)
        sys.exit(3)


async def main(url: str, instance: str) -> None:
    registry = registry_at(url)
    await registry.open()
    async with asyncio.TaskGroup() as loops:
        loops.create_task(registry.run())
        await registry.known()
        registration = await registry.register(at(instance), credential=credential())
        loops.create_task(renew(registration))
        async with aclosing(registry.watch(SERVICE)) as lists:
            async for resolved in lists:
                listed = [each.instance for each in resolved.endpoints]
                stale, incarnation = resolved.is_stale, registration.incarnation
                say(listed=listed, is_stale=stale, incarnation=incarnation)


asyncio.run(main(*sys.argv[1:]))
