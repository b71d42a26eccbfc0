"""A request on the fast way that the gateway itself answers: who may, and what is told of it.

The client's exchange is answered by a callback of what runs for it. What is asked, and what runs,
is the route's own: `composing` for aggregates, `fast_route` for routes to one operation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol

from synchromesh.clock import loop_clock
from synchromesh.context import CallContext
from synchromesh.errors import RateLimited, SynchromeshError
from synchromesh.gateway.access_log import NO_STATUS, Told
from synchromesh.gateway.answers import ALWAYS, PARTIAL, TRACE, refused, told_of
from synchromesh.gateway.arrival import FIELDS, NOTHING, Arrival, arrival_of
from synchromesh.gateway.asked import key_under
from synchromesh.gateway.asking import Asker
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.identifying import Identification
from synchromesh.gateway.limits import UNLIMITED, TokenBuckets
from synchromesh.gateway.origin import Origins
from synchromesh.gateway.traffic import RouteTraffic
from synchromesh.http import Headers, HttpExchange, ready_answer
from synchromesh.http.together import together_on
from synchromesh.identity import NOBODY, Principal
from synchromesh.resilience import Limiter
from synchromesh.telemetry import Tracer, outcome_of

_ID_BITS: Final = 192
_NO_ZERO: Final = 1 << 191 | 1  # a bit of each id, as in `fast`: none of them may be zero
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: no-store\r\n"
    b"x-content-type-options: nosniff\r\n"
)


class AnsweringGate(Protocol):
    """Is what all routes of one gateway share; see `fast.Gate`."""

    asker: Asker
    attempts_left: int
    identification: Identification
    limiter: Limiter
    origins: Origins
    tracer: Tracer
    traffic: Mapping[str, RouteTraffic]


class Work(Protocol):
    """Is what runs for a request."""

    def cancel(self) -> object:
        """Give up."""
        ...


class Answering:
    """All that is the same for every request of one route that the gateway answers.

    Args:
        gate: what it shares with other routes.
        buckets: its rate; None where it has none.
    """

    __slots__ = (
        "buckets", "clock", "entry", "gate", "known", "loop", "record", "scopes", "together",
        "traffic",
    )  # fmt: skip

    def __init__(
        self, gate: AnsweringGate, entry: CompiledRoute, buckets: TokenBuckets | None
    ) -> None:
        self.gate = gate
        self.entry = entry
        self.scopes = entry.scopes
        self.known = None if entry.is_public else gate.identification.known(entry.kinds)
        self.buckets = buckets
        self.traffic = gate.traffic[entry.name]
        self.loop = asyncio.get_running_loop()
        self.clock = loop_clock(self.loop)
        self.together = together_on(self.loop)
        self.record = gate.tracer.recorder("gateway", entry.name)

    def who(self, exchange: HttpExchange) -> Principal | None:
        """Return who asks; None where that is not known at once, or may not."""
        who = NOBODY if self.known is None else self.known(exchange)
        return who if who is not None and self.scopes <= who.scopes else None

    def admit(
        self, exchange: HttpExchange, who: Principal, key: str = ""
    ) -> AnsweredExchange | None:
        """Take a place among those in flight, which the end of the request gives back.

        Args:
            who: asks.
            key: the idempotency key of the request, "" for none.

        Returns:
            The request under way; None where no place is free, and nothing was done.
        """
        gate, entry = self.gate, self.entry
        if not gate.limiter.take():
            return None
        now = self.clock()
        ids = (gate.tracer.rng.getrandbits(_ID_BITS) | _NO_ZERO).to_bytes(24).hex()
        arrived, trace_id = NOTHING, ids[:32]
        for name, _ in exchange.pairs:
            if name in FIELDS:
                arrived = arrival_of(Headers.from_wire(exchange.pairs))
                break
        if arrived.trace is not None:
            trace_id = arrived.trace.trace_id
        context = CallContext(
            trace_id=trace_id,
            span_id=ids[32:],
            caller=gate.tracer.service,
            principal=who,
            deadline_s=now + entry.deadline_s,
            key=key and key_under(who, key),
            attempts_left=gate.attempts_left,
            priority=entry.priority,
            marks=arrived.marks(trace_id, gate.tracer.propagation),
        )
        return AnsweredExchange(self, exchange, context, now, arrived)

    def __repr__(self) -> str:
        return f"<Answering {self.entry.name}>"


class AnsweredExchange:
    """Is one request under way that the gateway answers; it is told of the client's end.

    Attributes:
        context: of the calls that are made for it.
        told: lines of its answer, whatever that will be; those of a rate are `_limits`.
        work: what runs for it; set it where it does not end at once.
    """

    __slots__ = (
        "_answering", "_arrived", "_began_s", "_exchange", "_limits", "context", "told", "work",
    )  # fmt: skip

    def __init__(
        self,
        answering: Answering,
        exchange: HttpExchange,
        context: CallContext,
        began_s: float,
        arrived: Arrival,
    ) -> None:
        self._answering = answering
        self._exchange = exchange
        self._began_s = began_s
        self._arrived = arrived
        self._limits = UNLIMITED
        self.context = context
        self.told = arrived.line if arrived is not NOTHING else b""
        cors = answering.entry.cors
        if cors is not None:
            self.told += cors.lines(exchange.pairs)
        self.work: Work | None = None
        exchange.listener = self

    def is_within(self, buckets: TokenBuckets) -> bool:
        """Take a token of the route's rate; without one the request is refused, and False."""
        now, who = self._began_s, self.context.principal.name
        if not who:
            headers = Headers.from_wire(self._exchange.pairs)
            origins = self._answering.gate.origins
            who = origins.of_request(self._exchange.peer, headers).client
        wait_s = buckets.take(who, now)
        self._limits = buckets.allowance(who, now)
        if not wait_s:
            return True
        name = self._answering.entry.name
        message = f"too many requests for {name}; try again in {wait_s:.3f} s"
        self.refuse(RateLimited(message, retry_after_s=wait_s))
        return False

    def succeed(self, body: bytes, partial: str = "") -> None:
        """Answer; `partial` names the branches that are not as they could be."""
        traffic, marks, noted = self._answering.traffic, "", {}
        if partial:
            traffic.degraded += 1
            marks, noted = f"{PARTIAL}: {partial}\r\n", {"partial": partial}
        self._close("ok", noted)
        own = f"{TRACE}: {self.context.trace_id}\r\n{marks}content-length: {len(body)}\r\n"
        self._exchange.answer(_HEAD + own.encode() + self._limits.lines + self.told, body)
        self._count(200)
        if traffic.log is not None:
            self._log(200, len(body), is_degraded=bool(partial))

    def fail(self, error: Exception) -> None:
        """Answer with what the outside may know of an error."""
        self.refuse(told_of(error, self._answering.entry, self.context.trace_id), error)
        error.__traceback__ = None  # it leads to frames that hold the error

    def refuse(self, told: SynchromeshError, error: Exception | None = None) -> None:
        """Answer with an error that is worded for the outside."""
        outcome, noted = outcome_of(error or told)
        self._close(outcome, {**(noted or {}), "status": str(told.status)})
        fields = (*ALWAYS, (TRACE, self.context.trace_id), *self._limits.fields)
        head, body = ready_answer(refused(told, fields, trace_id=self.context.trace_id))
        self._exchange.answer(head + self.told, body)
        traffic = self._answering.traffic
        self._count(told.status)
        traffic.why(error or told)
        self._log(told.status, len(body))

    def on_lost(self) -> asyncio.Task[object] | None:
        """Give up: the client has gone."""
        work, self.work = self.work, None
        if work is not None:
            work.cancel()
        self._close("cancelled", {})
        self._answering.traffic.left += 1
        self._count(NO_STATUS)
        self._log(NO_STATUS, 0, ended="left")
        return work if isinstance(work, asyncio.Task) else None

    def on_room(self) -> None:
        """Do nothing: the answer is sent whole."""

    def _count(self, status: int) -> None:
        answering = self._answering
        took_s = answering.clock() - self._began_s
        answering.traffic.answered(self._exchange.method, status, took_s)

    def _log(self, status: int, size: int, *, ended: str = "ok", is_degraded: bool = False) -> None:
        answering, exchange, context = self._answering, self._exchange, self.context
        log = answering.traffic.log
        if log is None:
            return
        log.add(
            exchange.method.decode("ascii"),
            answering.entry.name,
            status,
            answering.clock() - self._began_s,
            size,
            ended=ended,
            peer=exchange.peer,
            told=Told(
                exchange.pairs,
                context.principal.name,
                context.trace_id,
                self._arrived.request_id,
                is_degraded,
            ),
        )

    def _close(self, status: str, noted: dict[str, str]) -> None:
        answering, context, arrived = self._answering, self.context, self._arrived
        parent_id = ""
        if context.principal.name:
            noted = {"principal": context.principal.name, **noted}
        if arrived is not NOTHING:
            parent_id = arrived.parent_id
            if arrived.request_id:
                noted = {"request_id": arrived.request_id, **noted}
        now = answering.clock()
        flags, began_s = context.marks.flags, self._began_s
        answering.record(
            context.trace_id, context.span_id, parent_id, began_s, now, status, noted, flags
        )
        answering.gate.limiter.release()
        # The two must not keep each other: that is a cycle.
        self._exchange.listener = None
