"""Restarts replicas that nobody supervises, one by one: each ends, and its successor is waited for.

Whoever runs a replica starts the next one, here or on another host; that it registers is all that
is known of it. Where none does in time, the others are left as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from synchromesh.errors import ConnectFailed, SynchromeshError, UnknownOperation
from synchromesh.system.control.replicas import DRAIN, Replica


class Followed(msgspec.Struct, frozen=True):
    """A replica that was restarted.

    Attributes:
        by: what is registered in its place: of the same name, or from another host.
        pid, node: its process.
    """

    instance: str
    by: str
    pid: int | None
    node: str


class RestartReport(msgspec.Struct, frozen=True):
    """What became of a restart.

    Attributes:
        stopped: why it went no further; "" where it has ended.
        left: those that were not touched.
    """

    name: str
    followed: list[Followed]
    stopped: str = ""
    left: list[str] = []


async def restart_replicas(
    find: Callable[[], Sequence[Replica]],
    changed: Callable[[], Awaitable[None]],
    name: str,
    *,
    within_s: float,
    note: Callable[[Followed], None],
) -> RestartReport:
    """Restart the replicas of a service, or of the gateway, or one of them by its name.

    A background child is restarted with its replica, as in "orders#1@web1/relay/billing".

    Args:
        find: returns who is registered now.
        changed: waits until that may have changed.
        within_s: how long each successor is waited for.
        note: told of each that was restarted.

    Raises:
        UnknownOperation: there is none of this name.
        ConnectFailed: one of them cannot be asked from here; none was restarted.
    """
    there = find()
    targets = [each for each in there if each.is_named(name.partition("/")[0])]
    if not targets:
        known = sorted({each.service for each in there} | {each.instance for each in there})
        raise UnknownOperation(f"no replica is called {name[:80]!r}; there are {', '.join(known)}")
    for each in targets:
        if why := each.why_not():
            raise ConnectFailed(f"nothing was restarted: {each.instance}: {why}")
    followed: list[Followed] = []
    for number, target in enumerate(targets):
        after = [each.instance for each in targets[number + 1 :]]
        # Of now: others may have come and gone meanwhile.
        before = [each for each in find() if each.service == target.service]
        if why := _why_needed(target, before):
            return RestartReport(name, followed, why, [target.instance, *after])
        try:
            await target.ask("POST", DRAIN, msgspec.Raw, b"{}")
        except ConnectFailed as error:
            why = f"{target.instance} was not reached: {error.message}"
            return RestartReport(name, followed, why, [target.instance, *after])
        except SynchromeshError as error:
            why = f"{target.instance} has not ended: {error.message}"
            return RestartReport(name, followed, why, after)
        holders = {each.entry.holder for each in before}
        try:
            async with asyncio.timeout(within_s):
                successor = await _successor(find, changed, target.service, holders)
        except TimeoutError:
            why = (
                f"{target.instance} leaves, and no successor of it has registered within "
                f"{within_s:g} s: whoever runs it has to start the next one, so look at its unit, "
                "its container, and their logs"
            )
            return RestartReport(name, followed, why, after)
        told = Followed(target.instance, successor.instance, successor.pid, successor.node)
        followed.append(told)
        note(told)
    return RestartReport(name, followed)


def _why_needed(target: Replica, there: Sequence[Replica]) -> str:
    """Return why a replica is not to leave now; "" where it may."""
    others = [each for each in there if each.instance != target.instance]
    if target.entry.is_draining or not others or any(not e.entry.is_draining for e in others):
        return ""
    names = ", ".join(each.instance for each in others)
    return (
        f"{target.instance} is the only one that takes calls, and {names} takes none: wait for it"
    )


async def _successor(
    find: Callable[[], Sequence[Replica]],
    changed: Callable[[], Awaitable[None]],
    service: str,
    holders: set[str],
) -> Replica:
    """Return the first replica of a service that none of those processes has registered."""
    while True:
        for each in find():
            is_new = each.entry.holder not in holders and not each.entry.is_draining
            if each.service == service and is_new:
                return each
        await changed()
