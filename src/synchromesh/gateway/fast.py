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

import asyncio
import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, TypeAlias

import msgspec

from synchromesh.calls.fast import known_at_once
from synchromesh.calls.forwarding import IDEMPOTENT, FailedAttempt, Forwarder, by_http
from synchromesh.calls.http_client import HttpTransport, keep_line
from synchromesh.calls.routes import NoMatch
from synchromesh.calls.tree import tree_of
from synchromesh.context import ATTEMPTS_LEFT_MAX, CallContext, header_lines
from synchromesh.discovery import Endpoint, Member
from synchromesh.errors import BadRequest, CircuitOpen, ConfigError
from synchromesh.gateway.answering import Answering
from synchromesh.gateway.answers import ALWAYS, TRACE, refused, told_of
from synchromesh.gateway.arrival import NOTHING, Arrival, arrival_of
from synchromesh.gateway.asked import Accounting
from synchromesh.gateway.asking import Asker
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.composing import FastAggregate
from synchromesh.gateway.fast_beside import FastBeside, SlowWay
from synchromesh.gateway.fast_route import FastRoute
from synchromesh.gateway.forward import ODD, PRINCIPAL, answer_of, look
from synchromesh.gateway.forward_place import ForwardPlace
from synchromesh.gateway.forward_plan import SentForward
from synchromesh.gateway.identifying import Identification
from synchromesh.gateway.limits import TokenBuckets
from synchromesh.gateway.passing import ForwardExchange
from synchromesh.gateway.router import find
from synchromesh.gateway.routing import Routing
from synchromesh.gateway.traffic import RouteTraffic
from synchromesh.http import Body, HttpExchange, HttpRequest, HttpResponse, RawPair
from synchromesh.http.together import together_on
from synchromesh.identity import NOBODY, Principal
from synchromesh.telemetry import Tracer, outcome_of

_WITH_BODY: Final = frozenset({b"POST", b"PUT", b"PATCH"})
_IDEMPOTENT: Final = frozenset(method.encode() for method in IDEMPOTENT)
# One draw makes all ids of a request; a bit of each is set, for none of them may be zero. That of
# the trace is its first one: its last 56 are said to be random.
_ID_BITS: Final = 256
_NO_ZERO: Final = 1 << 255 | 1 << 64 | 1
_PLACES_MAX: Final = 256
# What a first attempt has told; a client's own line of that name passes in no head.
_TOLD = re.compile(rb"\r\nsynchromesh-principal: ([^\r]+)\r\n")
_UNREMARKABLE: Final[tuple[Arrival, tuple[RawPair, ...]]] = (NOTHING, ())


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


class FastForward:
    """All that is the same for every request of one route, put together when it first comes.

    Args:
        gate: what it shares with other routes.
        method: of the requests.
        buckets: its rate; None where it has none.
        is_external: the upstream is not ours.
    """

    __slots__ = (
        "body_bytes_max", "breaker", "buckets", "budget", "deadline_s", "draw", "edge", "entry",
        "gate", "has_cors", "has_places", "hops", "is_external", "is_idempotent", "is_public",
        "known", "leading", "limiter", "loop", "method", "name", "needs_origin", "odd", "passed",
        "path", "places", "priority", "record", "record_call", "scopes", "service", "shared",
        "states_length", "tells_origin", "tells_principal", "timeout_s", "together",
        "tracker", "traffic",
    )  # fmt: skip

    def __init__(
        self,
        gate: Gate,
        entry: CompiledRoute,
        method: bytes,
        buckets: TokenBuckets | None,
        *,
        is_external: bool,
    ) -> None:
        passage = entry.passage
        assert passage is not None
        self.name = f"{passage.to} {entry.template.method} {passage.path}"
        line = gate.forwarder.line(passage.to, self.name, is_external=is_external)
        self.gate = gate
        self.loop = asyncio.get_running_loop()
        self.together = together_on(self.loop)
        self.entry = entry
        self.buckets = buckets
        self.is_external = is_external
        self.is_public = entry.is_public
        self.tells_origin = passage.tells_origin(is_external=is_external)
        self.tells_principal = passage.tells_principal
        self.needs_origin = entry.is_public or self.tells_origin
        self.leading = passage.leading
        self.odd = ODD | gate.origins.told_by
        self.has_cors = entry.cors is not None
        if self.has_cors:
            self.odd |= {b"origin"}
        self.scopes = entry.scopes
        self.known = gate.identification.known(entry.kinds)
        self.method = method
        self.path = passage.path.encode()
        self.has_places = b"{" in self.path
        self.passed = frozenset(name.encode() for name in passage.passed)
        self.body_bytes_max = passage.body_bytes_max
        self.deadline_s = entry.deadline_s
        self.traffic = gate.traffic[entry.name]
        self.edge, self.limiter, self.service = line.edge, line.limiter, line.service
        self.priority, self.tracker = entry.priority, line.edge.tracker
        self.hops = line.service.hops[entry.priority]
        self.shared = line.service.shared
        self.draw = self.shared.runtime.rng.getrandbits
        self.breaker, self.budget = line.edge.breaker, line.edge.budget
        timeout_s = line.edge.policy.timeout_s
        self.timeout_s = min(entry.deadline_s, math.inf if timeout_s is None else timeout_s)
        self.states_length = self.method in _WITH_BODY
        self.is_idempotent = self.method in _IDEMPOTENT
        self.record = gate.tracer.recorder("gateway", entry.name)
        self.record_call = gate.forwarder.recorder(self.name)
        self.places: dict[str, ForwardPlace] = {}

    def begin(  # noqa: C901 - one frame for all layers is the point of it
        self, exchange: HttpExchange, query: bytes = b"", places: Mapping[str, str] | None = None
    ) -> bool:
        """Pass a request on; False declines it, and nothing was done then.

        Its path is that of the route; `places` are what that has of places, percent-encoded.
        """
        gate, shared, service = self.gate, self.shared, self.service
        # What strikes calls is a dict that is empty while nothing does.
        if shared.faults.rules or shared.is_slow or len(exchange.body) > self.body_bytes_max:
            return False
        host, passed, odd = b"", self.passed, self.odd
        lines: list[bytes] = [b""]  # the request line's place
        closer: list[RawPair] = []
        for name, value in exchange.pairs:
            if name in passed:
                # Judged by the parser, and as they were: no line can be forged by them.
                lines += (name, b": ", value, b"\r\n")
            elif name == b"host":
                host = value
            elif name in odd:
                closer.append((name, value))
        looked = look(closer, gate.origins.told_by) if closer else _UNREMARKABLE
        if looked is None:
            return False
        arrived, told = looked
        who = NOBODY if self.is_public else self.known(exchange)
        if who is None or not self.scopes <= who.scopes:
            return False
        if self.tells_principal:
            lines.append(self._told(who))
        origin = None
        if self.needs_origin:
            kept = gate.origins.kept.get((exchange.peer.rpartition(":")[0], host, told))
            origin = kept or gate.origins.of(exchange.peer, host, told)
            lines.append(origin.lines if self.tells_origin else b"")
        # The wheel's and the breaker's clock is the loop's.
        now = self.loop.time()
        sure = shared.lists.get(service.name)  # as `known_at_once` does, without its frame
        listed = sure[0] if sure and now < sure[1] else known_at_once(service, now)
        if not listed:
            return False
        member, endpoint = None, listed[0]
        if len(listed) > 1:
            member = service.balancer.pick(listed, now)
            endpoint = member.endpoint
        place = self.places.get(endpoint.instance)
        if place is None or (place.endpoint is not endpoint and place.endpoint != endpoint):
            place = self._place(endpoint)
            if place is None:
                return self._decline(member)
        has_line = not (query or self.has_places)
        line, limiter = place.line if has_line else self._line(place, query, places), self.limiter
        if line is None or not gate.limiter.take():
            return self._decline(member)
        if limiter is not None and not limiter.take(self.priority):
            gate.limiter.release()
            return self._decline(member)
        ids = (self.draw(_ID_BITS) | _NO_ZERO).to_bytes(32).hex()
        sent = ForwardExchange(self, exchange, place, who, ids, now, origin)
        if arrived is not NOTHING or self.has_cors:
            sent.arrive(arrived, closer)
            lines.append(arrived.line)
        if member is not None:
            sent.member = member
        self._pass_on(sent, line, lines, now)
        return True

    def _told(self, principal: Principal) -> bytes:
        """Return the line that tells the upstream who asks."""
        token = self.shared.signer.principal_token(
            principal.name,
            principal.scopes,
            audience=self.service.name,
            now_us=self.shared.runtime.wall_us(),
        )
        return f"{PRINCIPAL}: {token}\r\n".encode()

    def _decline(self, member: Member | None) -> bool:
        """Leave a request to the slow way, as if nothing had been done."""
        self.service.unsent(member)
        return False

    def _pass_on(self, sent: ForwardExchange, line: bytes, lines: list[bytes], now: float) -> None:
        """Send a request for whom it is; both limiters' slots are taken."""
        gate, shared, service = self.gate, self.shared, self.service
        exchange, who, body = sent.exchange, sent.principal, sent.exchange.body
        if self.buckets is not None:
            whose = who.name or sent.client
            wait_s = self.buckets.take(whose, now)
            sent.limits, told = self.buckets.allowance(whose, now)
            sent.echo += told
            if wait_s:
                sent.turn_away(wait_s)
                return
        if self.budget is not None:
            self.budget.calls += 1
        breaker, sent.permit = self.breaker, 0
        if breaker is not None:
            try:
                # While it is closed all share one permit, and a success is a number to count.
                sent.permit = breaker.closed_permit or breaker.admit(now)
            except CircuitOpen as error:
                sent.permit = None
                sent.wire = b"".join(lines)  # whom it is for is read again
                sent.fail(error)
                return
        if shared.absences:
            shared.finder.note_found(service.name)
        trace_id, span_id = sent.trace_id, sent.call_span_id
        if self.is_external:
            outside = CallContext(trace_id=trace_id, span_id=span_id, marks=sent.marks.outside())
            lines.append(header_lines(outside, now=now, wall_us=None))
        else:
            hop = self.hops.get(who)
            if hop is None or now >= hop.fresh_until_s:
                hop = service.hop(who, self.priority, now)
            travelling = CallContext(
                trace_id=trace_id,
                span_id=span_id,
                principal=who,
                deadline_s=sent.due_s,
                attempts_left=min(gate.attempts_left // 2, ATTEMPTS_LEFT_MAX),
                priority=self.priority,
                marks=sent.marks,
            )
            lines += (
                hop.kept.get("http") or keep_line(hop),
                # As on the slow way, where it counts from the end of the body on.
                header_lines(
                    travelling, now=now, wall_us=None if body else shared.runtime.wall_us()
                ),
            )
        lines[0] = line
        if body or self.states_length:
            lines += (b"content-length: %d\r\n\r\n" % len(body), body)
        else:
            lines.append(b"\r\n")
        sent.wire = b"".join(lines)
        exchange.listener = sent
        place = sent.place
        place.pool.send(place.host, place.port, sent)

    def __repr__(self) -> str:
        return f"<FastForward {self.entry.name}>"

    def _line(
        self, place: ForwardPlace, query: bytes, held: Mapping[str, str] | None
    ) -> bytes | None:
        """Return the request line and what is behind it; None where a place leads elsewhere."""
        path = self.path
        if self.has_places:
            assert self.entry.passage is not None
            try:
                path = self.entry.passage.target(held or {}).encode("ascii")
            except BadRequest:
                return None
        mark = b"?" if query else b""
        parts = (self.method, b" ", place.prefix, path, mark, query, place.lines_end)
        return b"".join(parts)

    def _place(self, endpoint: Endpoint) -> ForwardPlace | None:
        """Return how an instance is reached; None where that is not by HTTP."""
        transport = self.shared.transports.get(by_http(endpoint).scheme)
        if not isinstance(transport, HttpTransport):
            return None
        if len(self.places) >= _PLACES_MAX:
            self.places.clear()  # instances come and go; a few are looked up again
        try:
            place = ForwardPlace(endpoint, transport, self.method, self.path, self.leading)
        except ConfigError:
            return None  # the slow way meets it again, and tells it
        self.places[endpoint.instance] = place
        return place
