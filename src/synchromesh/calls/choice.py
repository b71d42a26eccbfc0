"""Which instance each attempt of a call goes to: those that failed it come last."""

from __future__ import annotations

import asyncio
from typing import Protocol

from synchromesh.calls.holding import Holds
from synchromesh.discovery import Endpoint, RoundRobin
from synchromesh.telemetry import Span


class Lists(Protocol):
    """Knows the instances of services; a `Caller` does."""

    holds: Holds

    async def endpoints(self, service: str) -> tuple[Endpoint, ...]:
        """Return what is listed. Raises NoInstance."""
        ...

    async def held_endpoints(
        self, service: str, gone: set[Endpoint], deadline_s: float | None
    ) -> tuple[Endpoint, ...]:
        """Return what is listed, once that has more than what is `gone`. Raises NoInstance."""
        ...


class Choice:
    """Chooses the instances of one call, an attempt at a time.

    Args:
        lists: knows what is listed, and may hold the call while nothing is.
        service: whose instances.
        balancer: whose turn it is.
        span: notes what was chosen.
    """

    __slots__ = ("_balancer", "_gone", "_lists", "_service", "_span", "_tried")

    def __init__(self, lists: Lists, service: str, balancer: RoundRobin, span: Span) -> None:
        self._lists = lists
        self._service = service
        self._balancer = balancer
        self._span = span
        self._tried: set[str] = set()
        # What refused a connection in this call: as good as not listed.
        self._gone: set[Endpoint] = set()

    async def next(self, deadline_s: float | None) -> Endpoint:
        """Choose an instance; one that failed this call already only where there is no other.

        Raises:
            NoInstance: none is ready, nor was while the call was held.
        """
        listed = await self._lists.endpoints(self._service)
        if self._gone.issuperset(listed):
            began_s = asyncio.get_running_loop().time()
            listed = await self._lists.held_endpoints(self._service, self._gone, deadline_s)
            held_s = asyncio.get_running_loop().time() - began_s
            if held_s > 0:
                self._span.note("held_ms", round(held_s * 1000))
        elif self._lists.holds.is_any_absent:
            self._lists.holds.found(self._service)
        is_choice_left = any(endpoint.instance not in self._tried for endpoint in listed)
        excluded = frozenset(self._tried) if is_choice_left else frozenset()
        endpoint = self._balancer.pick(listed, excluded)
        self._tried.add(endpoint.instance)
        self._span.note("instance", endpoint.instance)
        return endpoint

    def give_up(self, endpoint: Endpoint) -> None:
        """Take note that an instance refused the connection."""
        self._gone.add(endpoint)

    def __repr__(self) -> str:
        return f"<Choice {self._service}, {len(self._tried)} tried, {len(self._gone)} gone>"
