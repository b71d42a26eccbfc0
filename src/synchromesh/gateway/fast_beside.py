"""The fast way of a `Forward` with another upstream beside its own: who gets which request.

What is copied takes the slow way, and so do requests that either upstream's plan declines; they are
told what was decided here, so that no request is drawn twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import msgspec

from synchromesh.calls.plan import Shared
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.origin import Origins
from synchromesh.http import Body, HttpExchange, HttpRequest, HttpResponse
from synchromesh.identity import NOBODY, Principal


class ExchangePlan(Protocol):
    """Answers the requests of one route; see `fast.FastForward`."""

    def begin(
        self, exchange: HttpExchange, query: bytes = b"", places: Mapping[str, str] | None = None
    ) -> bool:
        """Answer a request; False declines it, and nothing was done then."""
        ...


class OwnPlan(ExchangePlan, Protocol):
    """Is that of the route's own upstream.

    Attributes:
        body_bytes_max: longer bodies are refused by the slow way.
    """

    body_bytes_max: int
    known: Callable[[HttpExchange], Principal | None]
    shared: Shared


class Decided(msgspec.Struct, frozen=True):
    """What was drawn for a request; None for what was not.

    Attributes:
        is_split: it goes to the upstream of the `Split`.
        is_mirrored: it is copied.
    """

    is_split: bool | None = None
    is_mirrored: bool | None = None


UNDECIDED: Final = Decided()
SlowWay = Callable[[HttpRequest, Decided], AbstractAsyncContextManager[HttpResponse]]


class FastBeside:
    """Gives each request of a route to one of two upstreams, or to the slow way to be copied.

    Args:
        entry: the route.
        own, other: the plans of the route's upstream, and of the split's; None without one.
        origins: tells whom a request comes from.
        slow: answers a request by the slow way.
    """

    def __init__(
        self,
        entry: CompiledRoute,
        own: OwnPlan,
        other: ExchangePlan | None,
        *,
        origins: Origins,
        slow: SlowWay,
    ) -> None:
        self._own = own
        self._other = other
        self._split, self._mirror = entry.split, entry.mirror
        self._known = None if entry.is_public else own.known
        self._chance = own.shared.runtime.rng
        self._origins = origins
        self._slow = slow
        self._body_bytes_max = own.body_bytes_max

    def begin(
        self, exchange: HttpExchange, query: bytes = b"", places: Mapping[str, str] | None = None
    ) -> bool:
        """Answer a request; False declines it, and nothing was done then."""
        if len(exchange.body) > self._body_bytes_max:
            return False
        plan: ExchangePlan = self._own
        is_split = is_mirrored = None
        if self._split is not None and self._other is not None:
            client = self._client(exchange) if self._split.is_sticky else ""
            if client is None:
                return False
            is_split = self._split.takes(client, self._chance)
            plan = self._other if is_split else plan
        if self._mirror is not None:
            is_mirrored = self._mirror.takes(exchange.method.decode("ascii"), self._chance)
        if not is_mirrored and plan.begin(exchange, query, places):
            return True
        whole = exchange.request()
        request = msgspec.structs.replace(whole, stream=Body.of(whole.body), body=b"")
        exchange.answer_by(self._slow(request, Decided(is_split, is_mirrored)))
        return True

    def __repr__(self) -> str:
        return f"<FastBeside {self._own!r}>"

    def _client(self, exchange: HttpExchange) -> str | None:
        """Return by whom a request is counted; None where that is not known at once."""
        who = NOBODY if self._known is None else self._known(exchange)
        if who is None or who.name:
            return None if who is None else who.name
        told_by, host = self._origins.told_by, b""
        told = []
        for name, value in exchange.pairs:
            if name == b"host":
                host = value
            elif name in told_by:
                told.append((name, value))
        return self._origins.of(exchange.peer, host, tuple(told)).client
