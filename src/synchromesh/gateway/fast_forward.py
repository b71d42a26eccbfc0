"""What a route that passes requests on does with each of them, up to where it is sent.

    head ─▶ who asks ─▶ instance ─▶ limiters ─▶ rate ─▶ breaker ─▶ bytes

All in two frames. What the fields of a request come to for its route is found out once for all
requests of a connection that say the same (`KeptFields`); who asks, and everything that may change
while they do not, is looked at each time. `passing` has what happens then.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from synchromesh.calls.fast import known_at_once
from synchromesh.calls.forwarding import IDEMPOTENT, by_http
from synchromesh.calls.http_client import HttpTransport, keep_line
from synchromesh.context import (
    ATTEMPTS_LEFT_MAX,
    CallContext,
    header_lines,
    lines_outside,
)
from synchromesh.discovery import Endpoint, Member
from synchromesh.errors import BadRequest, CircuitOpen, ConfigError
from synchromesh.gateway.arrival import NOTHING, Arrival
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.forward import PRINCIPAL
from synchromesh.gateway.forward_heads import ODD, look
from synchromesh.gateway.forward_place import ForwardPlace
from synchromesh.gateway.forward_plan import ForwardGate
from synchromesh.gateway.limits import TokenBuckets
from synchromesh.gateway.origin import ClientOrigin
from synchromesh.gateway.passing import ForwardExchange
from synchromesh.http import HttpExchange, KeptFields, RawPair
from synchromesh.http.together import together_on
from synchromesh.identity import NOBODY, Principal

_WITH_BODY: Final = frozenset({b"POST", b"PUT", b"PATCH"})
_IDEMPOTENT: Final = frozenset(method.encode() for method in IDEMPOTENT)
# One draw makes all ids of a request; a bit of each is set, for none of them may be zero. That of
# the trace is its first one: its last 56 are said to be random.
_ID_BITS: Final = 256
_NO_ZERO: Final = 1 << 255 | 1 << 64 | 1
_PLACES_MAX: Final = 256
_UNREMARKABLE: Final[tuple[Arrival, tuple[RawPair, ...]]] = (NOTHING, ())


# What the fields of a request come to for one route: the lines that pass or are added by them
# alone, what they say of its trace and name, those that were looked at more closely, and whom they
# come from, where that is asked for.
_Noted: TypeAlias = tuple[bytes, Arrival, Sequence[RawPair], ClientOrigin | None]


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
        gate: ForwardGate,
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
        fields = exchange.pairs
        kept = fields.noted if isinstance(fields, KeptFields) else None
        noted: _Noted | None = kept[1] if kept is not None and kept[0] is self else None
        if noted is None:
            noted = self._note(exchange)
            if noted is None:
                return False
        passing, arrived, closer, origin = noted
        who = NOBODY if self.is_public else self.known(exchange)
        if who is None or not self.scopes <= who.scopes:
            return False
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
        if member is not None:
            sent.member = member
        lines = [line, passing]
        if self.tells_principal:
            lines.append(self._told(who))
        self._pass_on(sent, lines, now)
        return True

    def _note(self, exchange: HttpExchange) -> _Noted | None:
        """Find out what the fields of a request come to; None has them read by the slow way.

        It is about the fields, the connection that they came by, and this route: nothing else may
        be looked at, for it is not looked at again while they stay the same.
        """
        origins, passed, odd = self.gate.origins, self.passed, self.odd
        host = b""
        lines: list[bytes] = []
        closer: list[RawPair] = []
        for name, value in exchange.pairs:
            if name in passed:
                # Judged by the parser, and as they were: no line can be forged by them.
                lines += (name, b": ", value, b"\r\n")
            elif name == b"host":
                host = value
            elif name in odd:
                closer.append((name, value))
        looked = look(closer, origins.told_by) if closer else _UNREMARKABLE
        if looked is None:
            return None
        arrived, told = looked
        origin = None
        if self.needs_origin:
            key = (exchange.peer.rpartition(":")[0], host, told)
            origin = origins.kept.get(key) or origins.of(exchange.peer, host, told)
            if self.tells_origin:
                lines.append(origin.lines)
        if arrived is not NOTHING:
            lines.append(arrived.line)
        noted = b"".join(lines), arrived, closer, origin
        if isinstance(exchange.pairs, KeptFields):
            exchange.pairs.noted = self, noted
        return noted

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

    def _pass_on(self, sent: ForwardExchange, lines: list[bytes], now: float) -> None:
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
            lines.append(lines_outside(trace_id, span_id, sent.marks))
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
