"""Which instance each attempt of a call goes to: those that failed it come last.

While none is ready the call is held, for a part of its time.
"""

from __future__ import annotations

import asyncio

from synchromesh.calls.holding import Holds
from synchromesh.clock import loop_now
from synchromesh.discovery import Balancer, Endpoint, Member, Resolver, WatchableResolver
from synchromesh.errors import DiscoveryError, NoInstance


class Finder:
    """Finds the instances of services for one caller, and holds calls while there are none.

    Args:
        resolver: knows what is listed; calls are held only where it is a `WatchableResolver`.
        holds: which calls are held, and for how long.
    """

    def __init__(self, resolver: Resolver, holds: Holds) -> None:
        self._resolver = resolver
        self._announcing = resolver if isinstance(resolver, WatchableResolver) else None
        self._holds = holds

    async def listed(self, service: str) -> tuple[Endpoint, ...]:
        """Return what is listed.

        Raises:
            NoInstance: the registry cannot be asked and never could.
        """
        try:
            resolved = await self._resolver.resolve(service)
        except (DiscoveryError, OSError) as error:
            raise NoInstance(
                f"the instances of service {service!r} are not known: {error}"
            ) from error
        return resolved.endpoints

    async def held(
        self, service: str, gone: set[Endpoint], deadline_s: float | None
    ) -> tuple[Endpoint, ...]:
        """Return what is listed, once that has more than what is `gone`, or the hold is over.

        Raises:
            NoInstance: the registry cannot be asked and never could.
        """
        listed = await self.listed(service)
        announcing = self._announcing
        if announcing is None:
            return listed
        now = loop_now()
        until_s = self._holds.begin(service, now=now, deadline_s=deadline_s)
        if until_s is None:
            return listed
        is_bridged = False
        try:
            async with asyncio.timeout_at(until_s):
                while gone.issuperset(listed):
                    await announcing.changed(service)
                    listed = await self.listed(service)
            is_bridged = True
        except TimeoutError:
            pass  # what is listed is tried for want of anything better
        finally:
            self._holds.end(service, is_bridged=is_bridged)
        return listed

    def note_found(self, service: str) -> None:
        """Take note that a service has an instance: the next time that it has none is a new one."""
        self._holds.found(service)

    def __repr__(self) -> str:
        return f"<Finder {self._resolver!r}, {self._holds!r}>"


class Choice:
    """Chooses the instances of one call, an attempt at a time.

    Args:
        finder: knows what is listed, and may hold the call while nothing is.
        service: whose instances.
        balancer: whose turn it is.
        noted: what the span will say: what was chosen, and how long the call was held.

    Attributes:
        member: what the balancer gave last, to be told of the attempt's end; None where a single
            instance was listed, for it has every turn.
    """

    __slots__ = ("_balancer", "_finder", "_gone", "_noted", "_service", "_tried", "member")

    def __init__(
        self,
        finder: Finder,
        service: str,
        balancer: Balancer,
        noted: dict[str, str],
    ) -> None:
        self._finder = finder
        self._service = service
        self._balancer = balancer
        self._noted = noted
        self._tried: set[str] = set()
        self.member: Member | None = None
        # What refused a connection in this call: as good as not listed.
        self._gone: set[Endpoint] = set()

    async def next(self, deadline_s: float | None) -> Endpoint:
        """Choose an instance; one that failed this call already only where there is no other.

        Raises:
            NoInstance: none is ready, nor was while the call was held.
        """
        self.member = None
        listed = await self._finder.listed(self._service)
        if self._gone.issuperset(listed):
            began_s = loop_now()
            listed = await self._finder.held(self._service, self._gone, deadline_s)
            held_s = loop_now() - began_s
            if held_s > 0:
                self._noted["held_ms"] = str(round(held_s * 1000))
        else:
            self._finder.note_found(self._service)
        if len(listed) == 1:
            endpoint = listed[0]
        else:
            now = loop_now()
            self.member = self._balancer.pick(listed, now, frozenset(self._tried))
            endpoint = self.member.endpoint
        self.note_tried(endpoint)
        return endpoint

    def note_tried(self, endpoint: Endpoint) -> None:
        """Take note of the instance of an attempt: it comes last from now on."""
        self._tried.add(endpoint.instance)
        self._noted["instance"] = endpoint.instance

    def give_up(self, endpoint: Endpoint) -> None:
        """Take note that an instance refused the connection."""
        self._gone.add(endpoint)

    def __repr__(self) -> str:
        return f"<Choice {self._service}, {len(self._tried)} tried, {len(self._gone)} gone>"
