"""One request on the slow way of the gateway, until its answer has ended and is accounted for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from msgspec.structs import replace

from synchromesh.clock import loop_now
from synchromesh.codec import digest
from synchromesh.context import CallContext
from synchromesh.errors import SynchromeshError
from synchromesh.gateway.access_log import NO_STATUS, Told
from synchromesh.gateway.arrival import Arrival
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.fast_beside import UNDECIDED, Decided
from synchromesh.gateway.traffic import RouteTraffic
from synchromesh.http import HttpRequest, HttpResponse, Limits
from synchromesh.http.body import Body
from synchromesh.http.tunnel import Switching
from synchromesh.identity import NOBODY, Principal
from synchromesh.telemetry import Span


class RefusedRequest(Exception):
    """Carries an error that the gateway itself words for the outside."""

    def __init__(self, error: SynchromeshError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(slots=True)
class Accounting:
    """What becomes of one request, for the counts of its route and the access log.

    Attributes:
        traffic: of its route.
        began_s: when it came, by the loop's clock.
        is_degraded: something stood in for an answer, or was left out.
    """

    traffic: RouteTraffic
    request: HttpRequest
    began_s: float
    trace_id: str = ""
    request_id: str = ""
    principal: str = ""
    is_degraded: bool = False
    _status: int = NO_STATUS
    _size: int | None = 0
    _read: _CountedBody | None = None

    @classmethod
    def of(
        cls, traffic: RouteTraffic, request: HttpRequest, arrived: Arrival, trace_id: str = ""
    ) -> Accounting:
        """Begin to account for a request that has just come."""
        now = loop_now()
        return cls(traffic, request, now, trace_id, arrived.request_id)

    def answered(self, response: HttpResponse) -> HttpResponse:
        """Take note of an answer that is about to be sent, and return what to send."""
        self._status = response.status
        if self.is_degraded:
            self.traffic.degraded += 1
        self._size = len(response.body)
        if self.traffic.log is None or response.stream is None:
            return response
        if isinstance(response, Switching):
            self._size = None
            return response
        self._read = _CountedBody(response.stream)
        return HttpResponse(response.status, response.headers, stream=self._read)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Account for the end of a request: it has been answered, broke off, or was left."""
        try:
            yield
        except BaseException as error:
            self.broke_off(error)
            raise
        self.ended()

    def broke_off(self, error: BaseException) -> None:
        """Account for a request without a whole answer, by what ended it."""
        if isinstance(error, asyncio.CancelledError):
            self.traffic.left += 1
            self.ended("left")
        else:
            self.traffic.cut += 1
            self.ended("cut")

    def ended(self, how: str = "ok") -> None:
        """Count a request that has ended, and tell the access log, where there is one."""
        log, request = self.traffic.log, self.request
        took_s = loop_now() - self.began_s
        self.traffic.answered(request.method, self._status, took_s)
        if log is None:
            return
        size = self._size if self._read is None else self._read.count
        log.add(
            request.method,
            self.traffic.name,
            self._status,
            took_s,
            0 if request.method == "HEAD" else size,
            ended=how,
            peer=request.peer,
            told=Told(
                request.headers, self.principal, self.trace_id, self.request_id, self.is_degraded
            ),
        )


@dataclass(slots=True)
class AskedRequest:
    """One request on its way; `headers` are those of its answer, whatever that will be."""

    entry: CompiledRoute
    places: dict[str, str]
    request: HttpRequest
    span: Span
    account: Accounting
    headers: list[tuple[str, str]] = field(default_factory=list)
    principal: Principal = NOBODY
    decided: Decided = UNDECIDED

    def answered(self, response: HttpResponse) -> HttpResponse:
        """Note an answer that is about to be sent, and return what to send."""
        if response.status != 200:
            self.span.note("status", response.status)
        return self.account.answered(response)


def under(context: CallContext, key: str) -> CallContext:
    """Put a call under a principal's key."""
    return replace(context, key=key_under(context.principal, key))


def key_under(principal: Principal, key: str) -> str:
    """Return a principal's key: under another's it would be answered with another's answer."""
    return f"{digest(principal.name.encode())}/{key}"


async def whole_of(request: HttpRequest) -> HttpRequest | None:
    """Return a request with the body that is still coming; None where that is too long."""
    body = b""
    while request.stream is not None and (part := await request.stream.read()):
        body += part
        if len(body) > Limits().body_bytes_max:
            return None
    return replace(request, body=body, stream=None)


class _CountedBody(Body):
    """Reads another body, and counts what was read."""

    __slots__ = ("_body", "count")

    def __init__(self, body: Body) -> None:
        super().__init__(length=body.length, on_room=_nothing)
        self._body = body
        self.count = 0

    async def read(self) -> bytes:
        part = await self._body.read()
        self.count += len(part)
        return part


def _nothing() -> None:
    """Need no room: the other body does."""
