"""An aggregate on the fast way: one request, whose branches are exchanges of their own.

The client's exchange is answered by the callback of the branch that ends last. It declines what the
slow way has words for: a query or a body, a path that does not fit, a credential to be verified.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final, Protocol

from synchromesh.context import NEW_TRACE, CallContext
from synchromesh.errors import BadRequest, RateLimited, SynchromeshError
from synchromesh.gateway.access_log import NO_STATUS, Told
from synchromesh.gateway.aggregate import AggregatePlan, AggregateRun, arguments_of
from synchromesh.gateway.answers import ALWAYS, PARTIAL, TRACE, refused, told_of
from synchromesh.gateway.arrival import FIELDS, NOTHING, Arrival, arrival_of
from synchromesh.gateway.asking import Asker
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.identifying import Identification
from synchromesh.gateway.limits import TokenBuckets
from synchromesh.gateway.origin import Origins
from synchromesh.gateway.traffic import RouteTraffic
from synchromesh.http import Headers, HttpExchange, ready_answer
from synchromesh.http.together import together_on
from synchromesh.identity import NOBODY
from synchromesh.resilience import AttemptsLeft, Limiter
from synchromesh.telemetry import Tracer, outcome_of

_log = logging.getLogger("synchromesh.gateway")

_ID_BITS: Final = 192
_NO_ZERO: Final = 1 << 191 | 1  # a bit of each id, as in `fast`: none of them may be zero
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: no-store\r\n"
    b"x-content-type-options: nosniff\r\n"
)


class AggregateGate(Protocol):
    """Is what all routes of one gateway share; see `fast.Gate`."""

    asker: Asker
    attempts_left: int
    identification: Identification
    limiter: Limiter
    origins: Origins
    tracer: Tracer
    traffic: Mapping[str, RouteTraffic]


class FastAggregate:
    """All that is the same for every request of one aggregate."""

    __slots__ = (
        "buckets", "entry", "gate", "known", "loop", "plan", "record", "together", "traffic",
    )  # fmt: skip

    def __init__(
        self, gate: AggregateGate, entry: CompiledRoute, buckets: TokenBuckets | None
    ) -> None:
        self.gate = gate
        self.entry = entry
        self.known = gate.identification.known(entry.kinds)
        self.plan = AggregatePlan(entry.name, entry.parts, gate.asker)
        self.buckets = buckets
        self.traffic = gate.traffic[entry.name]
        self.loop = asyncio.get_running_loop()
        self.together = together_on(self.loop)
        self.record = gate.tracer.recorder("gateway", entry.name)

    def begin(
        self, exchange: HttpExchange, query: bytes = b"", places: Mapping[str, str] | None = None
    ) -> bool:
        """Answer a request, now or later; False declines it, and nothing was done then."""
        gate, entry = self.gate, self.entry
        if query or exchange.body:
            return False
        principal = NOBODY if entry.is_public else self.known(exchange)
        if principal is None or not entry.scopes <= principal.scopes:
            return False
        try:
            given = arguments_of(entry.parts, places or {})
        except BadRequest:
            return False
        if not gate.limiter.take():
            return False
        now = self.loop.time()
        ids = (gate.tracer.rng.getrandbits(_ID_BITS) | _NO_ZERO).to_bytes(24).hex()
        arrived, trace_id, marks = NOTHING, ids[:32], NEW_TRACE
        for name, _ in exchange.pairs:
            if name in FIELDS:
                arrived = arrival_of(Headers.from_wire(exchange.pairs))
                break
        if arrived.trace is not None:
            trace_id, marks = arrived.trace.trace_id, arrived.trace.marks
        context = CallContext(
            trace_id=trace_id,
            span_id=ids[32:],
            caller=gate.tracer.service,
            principal=principal,
            deadline_s=now + entry.deadline_s,
            attempts_left=gate.attempts_left,
            priority=entry.priority,
            marks=marks,
        )
        asked = AggregateExchange(self, exchange, context, now, arrived)
        if self.buckets is not None:
            who = principal.name
            if not who:
                headers = Headers.from_wire(exchange.pairs)
                who = gate.origins.of_request(exchange.peer, headers).client
            wait_s = self.buckets.take(who, now)
            asked.limits = self.buckets.lines(who, now)
            if wait_s:
                asked.refuse(
                    RateLimited(
                        f"too many requests for {entry.name}; try again in {wait_s:.3f} s",
                        retry_after_s=wait_s,
                    )
                )
                return True
        exchange.listener = asked
        asked.run = AggregateRun(
            self.plan,
            given,
            context=context,
            left=AttemptsLeft(context.attempts_left),
            together=self.together,
        )
        asked.run.begin(asked.on_end)
        return True

    def __repr__(self) -> str:
        return f"<FastAggregate {self.entry.name}>"


class AggregateExchange:
    """Is one request for an aggregate under way."""

    __slots__ = ("_arrived", "_began_s", "_context", "_exchange", "_plan", "limits", "run")

    run: AggregateRun
    limits: bytes  # what is told of a rate, where there is one

    def __init__(
        self,
        plan: FastAggregate,
        exchange: HttpExchange,
        context: CallContext,
        began_s: float,
        arrived: Arrival,
    ) -> None:
        self._plan = plan
        self._exchange = exchange
        self._context = context
        self._began_s = began_s
        self._arrived = arrived

    def on_end(self) -> None:
        """Answer: every branch has ended, or one that is required has failed."""
        trace_id = self._context.trace_id
        try:
            composed = self.run.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            self._plan.traffic.branched(self.run.outcomes)
            self.refuse(told_of(error, self._plan.entry, trace_id), error)
            error.__traceback__ = None  # it leads to frames that hold the error
            return
        marks, noted = "", {}
        traffic = self._plan.traffic
        if composed.partial:
            traffic.degraded += 1
            traffic.branched(self.run.outcomes)
            names = ", ".join(composed.partial)
            marks, noted = f"{PARTIAL}: {names}\r\n", {"partial": names}
            for branch in composed.partial:
                _log.info(
                    "%s: %s is %s",
                    self._plan.entry.name,
                    branch,
                    self.run.outcomes[branch].status.value,
                )
        body = composed.body
        self._close("ok", noted)
        own = f"{TRACE}: {trace_id}\r\n{marks}content-length: {len(body)}\r\n"
        head, cors = _HEAD + own.encode(), self._plan.entry.cors
        if self._arrived is not NOTHING:
            head += self._arrived.line
        if cors is not None:
            head += cors.lines(self._exchange.pairs)
        if self._plan.buckets is not None:
            head += self.limits
        self._exchange.answer(head, body)
        traffic.answers[2] += 1
        if traffic.log is not None:
            self._log(200, len(body), is_degraded=bool(composed.partial))

    def on_lost(self) -> None:
        """Give up: the client has gone."""
        self.run.cancel()
        self._close("cancelled", {})
        self._plan.traffic.left += 1
        self._log(NO_STATUS, 0, ended="left")

    def on_room(self) -> None:
        """Do nothing: the answer is sent whole."""

    def refuse(self, told: SynchromeshError, error: Exception | None = None) -> None:
        """Answer with an error that is worded for the outside."""
        self._close(*outcome_of(error or told))
        fields = (*ALWAYS, (TRACE, self._context.trace_id), *self._arrived.fields)
        head, body = ready_answer(refused(told, fields, trace_id=self._context.trace_id))
        cors = self._plan.entry.cors
        if cors is not None:
            head += cors.lines(self._exchange.pairs)
        if self._plan.buckets is not None:
            head += self.limits
        self._exchange.answer(head, body)
        traffic = self._plan.traffic
        traffic.answers[told.status // 100] += 1
        traffic.why(error or told)
        self._log(told.status, len(body))

    def _log(self, status: int, size: int, *, ended: str = "ok", is_degraded: bool = False) -> None:
        plan, exchange, context = self._plan, self._exchange, self._context
        log = plan.traffic.log
        if log is None:
            return
        log.add(
            exchange.method.decode("ascii"),
            plan.entry.name,
            status,
            plan.loop.time() - self._began_s,
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
        plan, context, arrived = self._plan, self._context, self._arrived
        parent_id = ""
        if context.principal.name:
            noted = {"principal": context.principal.name, **noted}
        if arrived is not NOTHING:
            parent_id = arrived.parent_id
            if arrived.request_id:
                noted = {"request_id": arrived.request_id, **noted}
        now = plan.loop.time()
        plan.record(context.trace_id, context.span_id, parent_id, self._began_s, now, status, noted)
        plan.gate.limiter.release()
        # The two must not keep each other: that is a cycle.
        self._exchange.listener = None
