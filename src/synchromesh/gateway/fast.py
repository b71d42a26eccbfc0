"""A request that is passed on, on the fast way: callbacks from the socket to the upstream and back.

    route → key's verdict → rate → limiters → breaker → pick → pooled connection → bytes through

It does what the engine and `calls.forwarding` do for a first attempt that goes straight through,
without a task, a context manager, a header object or a frame for each layer. Whatever else there is
takes the slow way. `FastForward.begin` declines before it has changed anything: a body that is
still coming, a credential that has to be verified, a fault in force, an idempotency key, an
instance that is not known at once, a limiter that is full. An attempt that failed is handed over
(`HttpExchange.answer_by`) and retried there, or told at once where no retry is allowed.

A request to our own services is a signed hop; one to a foreign upstream carries a trace alone.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeAlias

import msgspec

from synchromesh.calls.forwarding import FailedAttempt, Forwarder
from synchromesh.calls.routes import NoMatch
from synchromesh.calls.tree import tree_of
from synchromesh.context import CallContext
from synchromesh.errors import BadRequest
from synchromesh.gateway.answering import Answering
from synchromesh.gateway.answers import ALWAYS, TRACE, refused, told_of
from synchromesh.gateway.arrival import arrival_of
from synchromesh.gateway.asked import Accounting
from synchromesh.gateway.asking import Asker
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.composing import FastAggregate
from synchromesh.gateway.fast_beside import FastBeside, SlowWay
from synchromesh.gateway.fast_forward import FastForward
from synchromesh.gateway.fast_route import FastRoute
from synchromesh.gateway.forward import answer_of
from synchromesh.gateway.forward_plan import SentForward
from synchromesh.gateway.identifying import Identification
from synchromesh.gateway.router import find
from synchromesh.gateway.routing import Routing
from synchromesh.gateway.traffic import RouteTraffic
from synchromesh.http import Body, HttpExchange, HttpRequest, HttpResponse
from synchromesh.telemetry import Tracer, outcome_of

# What a first attempt has told; a client's own line of that name passes in no head.
_TOLD = re.compile(rb"\r\nsynchromesh-principal: ([^\r]+)\r\n")


Plan: TypeAlias = "FastForward | FastBeside | FastAggregate | FastRoute"


class Gate:
    """What all routes of one gateway share, and where a request finds its own.

    Args:
        routing: the routes.
        forwarder: has the ways to the upstreams, and goes on where an attempt failed.
        identification: says who asks.
        asker: asks the operations of routes and aggregates.
        attempts_left: the extra attempts of each request's tree.
        slow: answers by the slow way what is decided here.
    """

    def __init__(
        self,
        routing: Routing,
        *,
        forwarder: Forwarder,
        tracer: Tracer,
        identification: Identification,
        asker: Asker,
        attempts_left: int,
        slow: SlowWay,
    ) -> None:
        self._routes = routing.routes
        self._has_cors = any(entry.cors is not None for entry in routing.entries)
        # Paths without a place are found in one look, whatever else there is.
        self._plain = {
            (entry.template.method.encode(), entry.template.path.encode()): entry
            for entry in routing.closest
            if not entry.template.places
        }
        # A route that takes any method has a plan for each; None where the slow way has them all.
        self._plans: dict[tuple[str, bytes], Plan | None] = {}
        # The plans of those, once they have been asked for without a query.
        self._ready: dict[tuple[bytes, bytes], Plan] = {}
        self._buckets = routing.state.buckets
        self._externals = routing.externals
        self.traffic: Mapping[str, RouteTraffic] = routing.state.traffic
        self.origins = routing.origins
        self.asker = asker
        self.forwarder = forwarder
        self.tracer = tracer
        self.limiter = routing.state.limiter
        self.identification = identification
        self.attempts_left = attempts_left
        self._slow = slow

    def begin(self, exchange: HttpExchange) -> bool:
        """Have a request answered; False leaves it to the slow way, and nothing was done then."""
        if self._has_cors and exchange.method == b"OPTIONS":
            return False  # a browser asks before it sends
        ready = self._ready.get((exchange.method, exchange.target))
        if ready is not None:
            return ready.begin(exchange)
        path, _, query = exchange.target.partition(b"?")
        entry, places = self._plain.get((exchange.method, path)), None
        if entry is None:
            found = self._find(exchange.method, path)
            if found is None:
                return False
            entry, places = found
        key = (entry.name, exchange.method)
        plan = self._plans[key] if key in self._plans else self._plan(entry, exchange.method)
        if plan is None:
            return False
        if places is None and exchange.target == path:
            self._ready[exchange.method, path] = plan
        return plan.begin(exchange, query, places)

    def resume(self, sent: SentForward, context: CallContext, begun: FailedAttempt) -> None:
        """Go on by the slow way with what has failed here."""
        exchange, plan = sent.exchange, sent.plan
        assert isinstance(plan, FastForward)
        request = exchange.request()
        if exchange.body:
            request = msgspec.structs.replace(request, stream=Body.of(exchange.body))
        told = _TOLD.search(sent.wire) if plan.tells_principal else None
        who = told[1].decode() if told else ""
        exchange.answer_by(self._resumed(plan, request, context, begun, who, sent.limits))

    def __repr__(self) -> str:
        return f"<Gate {len(self._plans)} routes in use, {self.limiter!r}>"

    @asynccontextmanager
    async def _resumed(
        self,
        plan: FastForward,
        request: HttpRequest,
        context: CallContext,
        begun: FailedAttempt,
        told: str,
        limits: Sequence[tuple[str, str]],
    ) -> AsyncIterator[HttpResponse]:
        entry, passage, arrived = plan.entry, plan.entry.passage, arrival_of(request.headers)
        assert passage is not None
        headers = [*ALWAYS, (TRACE, context.trace_id), *arrived.fields, *limits]
        if entry.cors is not None:
            headers += entry.cors.fields(request.headers.get_all("origin"))
        found = self._find(request.method.encode(), request.path.encode("latin-1"))
        assert found is not None, "it was found before"
        status, who = "ok", context.principal.name
        noted = {"principal": who} if who else {}
        account = Accounting(
            plan.traffic, request, begun.began_s, context.trace_id, arrived.request_id, who
        )
        if arrived.request_id:
            noted["request_id"] = arrived.request_id
        try:
            with account.under_way(), self.tracer.under(context), tree_of(context):
                async with AsyncExitStack() as stack:
                    try:
                        forwarding = passage.forwarding(
                            request,
                            found[1],
                            name=plan.name,
                            context=context,
                            origin=self.origins.of_request(request.peer, request.headers),
                            is_external=plan.is_external,
                            told=told,
                        )
                        async with self.limiter:
                            passed = await stack.enter_async_context(
                                self.forwarder.forward(forwarding, begun)
                            )
                        if passed.error is not None:
                            status, more = outcome_of(passed.error)
                            noted |= more
                            plan.traffic.why(passed.error)
                            told_of(passed.error, entry, context.trace_id)
                        leading = passage.leading(passed.endpoint.url)
                        answer = answer_of(passed.response, headers, leading)
                    except Exception as error:  # noqa: BLE001 - the client gets an answer
                        problem = told_of(error, entry, context.trace_id)
                        status, more = outcome_of(error)
                        noted |= more
                        answer = refused(problem, headers, trace_id=context.trace_id)
                        plan.traffic.why(error)
                        error.__traceback__ = None  # it leads to frames that hold the error
                    if answer.status != 200:
                        noted["status"] = str(answer.status)
                    yield account.answered(answer)
        except BaseException as error:
            status, more = outcome_of(error)
            noted |= more
            raise
        finally:
            ids, now = (context.trace_id, context.span_id, arrived.parent_id), plan.loop.time()
            plan.record(*ids, begun.began_s, now, status, noted, context.marks.flags)

    def _find(self, method: bytes, path: bytes) -> tuple[CompiledRoute, Mapping[str, str]] | None:
        try:
            found = find(self._routes, method.decode(), path.decode("latin-1"))
        except BadRequest:
            return None
        return None if isinstance(found, NoMatch) else (found.target, found.places)

    def _plan(self, entry: CompiledRoute, method: bytes) -> Plan | None:
        plan: Plan | None = None
        if entry.passage is not None:
            plan = self._forward(entry, method)
        elif entry.page is None and entry.cache is None and entry.stand_in is None:
            answering = Answering(self, entry, self._buckets.get(entry.name))
            plan = FastRoute(answering) if entry.operation else FastAggregate(answering)
        self._plans[entry.name, method] = plan
        return plan

    def _forward(self, entry: CompiledRoute, method: bytes) -> FastForward | FastBeside:
        assert entry.passage is not None
        is_external, buckets = entry.passage.to in self._externals, self._buckets.get(entry.name)
        own = FastForward(self, entry, method, buckets, is_external=is_external)
        if entry.split is None and entry.mirror is None:
            return own
        to_other = entry.to_other()
        other = None if to_other is None else self._forward(to_other, method)
        return FastBeside(entry, own, other, origins=self.origins, slow=self._slow)
