"""One request that is passed on by callbacks: what its upstream, its client and its time tell it.

    on_answer ──▶ answer                    most answers come at once
    on_begin ──▶ on_part … ──▶ on_end      others as they come: `pause` and `on_room` hold them up
    on_error ──▶ retry, or a problem       before the head; behind it the client is reset
    on_lost  ──▶ cancelled                 the client has gone

Each ends in `_close`, or in `_release` where the slow way goes on: the spans are recorded, the
slots given back, and the client's exchange let go of, once.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence

from synchromesh.calls.forwarding import PROBLEM_BYTES_MAX, PROBLEM_WITHIN_S, FailedAttempt, by_http
from synchromesh.calls.http_client import is_problem_on_wire, reply_of_wire, spent
from synchromesh.calls.wire import Reply
from synchromesh.context import CallContext
from synchromesh.discovery import CallEnd, Member
from synchromesh.errors import CallError, ConnectionLost, RateLimited, SynchromeshError, TimedOut
from synchromesh.gateway.access_log import NO_STATUS, AccessLog, Told
from synchromesh.gateway.answers import ALWAYS, TRACE, refused, told_of
from synchromesh.gateway.arrival import Arrival
from synchromesh.gateway.forward_heads import answer_head
from synchromesh.gateway.forward_place import ForwardPlace
from synchromesh.gateway.forward_plan import ForwardPlan
from synchromesh.gateway.origin import ClientOrigin
from synchromesh.http import (
    ClientExchange,
    ExchangeState,
    Headers,
    HttpExchange,
    HttpResponse,
    RawPair,
    ready_answer,
)
from synchromesh.http.body import Framing
from synchromesh.http.client import ClientConnection, ExchangeOwner
from synchromesh.identity import Principal
from synchromesh.propagation import NEW_TRACE, NEW_UNSAMPLED
from synchromesh.resilience import (
    Attempt,
    Classification,
    may_retry,
)
from synchromesh.telemetry import outcome_of
from synchromesh.telemetry.metrics import SHORT_S


class ForwardExchange(ClientExchange):
    """Is one request on its way through: the exchange with the upstream, and what the client gets.

    Attributes:
        exchange: with the client.
        principal: who asks; `NOBODY` for anybody.
        trace_id, span_id: of the gateway's span; the call's own is below it.
        began_s: when it came.
        origin: whom it comes from, where nobody knows who asks or the upstream is told.
        permit: the breaker's, 0 without one; None where it let nothing be sent, or what came of it
            has been reported.
        member: what the balancer is told of, once; None where the upstream has one instance.
        has_slots: True while it holds those of both limiters, which is until its answer begins.
    """

    # What a class has costs no store for each request, as a slot would; most is never set.
    slot = None
    lost: ConnectionLost | None = None
    connection: ClientConnection | None = None
    connecting: asyncio.Task[None] | None = None
    owner: ExchangeOwner | None = None
    is_head = False
    state = ExchangeState.NEW
    permit: int | None = None
    member: Member | None = None
    has_slots = True
    framing: Framing | None = None
    # How long the next part of a body may take.
    part_s = 0.0
    # What an answer of 5xx has said so far, where that decides what is done; None for any other.
    problem: tuple[int, list[RawPair], list[bytes]] | None = None
    # What an answer is counted as that is passed on all the same.
    failed: Exception | None = None
    takes_parts = True
    # What the client has said of its request, where it has said anything.
    marks = NEW_TRACE
    parent_id = ""
    echo = b""
    has_cors = False
    noted: dict[str, str] | None = None
    # What is told of a rate, where there is one; it is a part of the echo.
    limits: Sequence[tuple[str, str]] = ()
    # What the client was sent so far, of an answer in parts.
    status = NO_STATUS
    sent_bytes = 0

    def __init__(
        self,
        plan: ForwardPlan,
        exchange: HttpExchange,
        place: ForwardPlace,
        principal: Principal,
        ids: str,
        began_s: float,
        origin: ClientOrigin | None,
    ) -> None:
        self.due_s = began_s + plan.timeout_s
        # What was sent on a kept connection that turns out to be closed may have been read.
        self.is_idempotent = plan.is_idempotent and not exchange.body
        self.together = plan.together
        self.plan = plan
        self.exchange = exchange
        self.place = place
        self.principal = principal
        self.trace_id = ids[:32]
        self.span_id = ids[32:48]
        self.call_span_id = ids[48:]
        self.began_s = began_s
        self.origin = origin
        if principal.name:
            self.noted = {"principal": principal.name}
        if ids[18:32] < plan.shared.tracer.propagation.sampled_from:
            self.marks = NEW_UNSAMPLED

    def arrive(self, arrived: Arrival, closer: Sequence[RawPair]) -> None:
        """Continue the client's trace, and keep what its answer says of its name and its page."""
        cors = self.plan.entry.cors
        if cors is not None:
            self.echo, self.has_cors = cors.lines(closer), True
        if arrived.trace is not None:
            self.trace_id, self.parent_id = arrived.trace.trace_id, arrived.trace.span_id
        self.marks = arrived.marks(self.trace_id, self.plan.shared.tracer.propagation)
        if arrived.request_id:
            self.echo += arrived.line
            self.noted = {**(self.noted or {}), "request_id": arrived.request_id}

    @property
    def client(self) -> str:  # type: ignore[override]
        """Who asks, or from where: each has a share of the answers that are under way."""
        name = self.principal.name
        if name or self.origin is None:
            return name
        return self.origin.client

    # -- what the upstream's connection tells ----------------------------------------------------

    def on_answer(self, status: int, pairs: list[RawPair], body: bytes) -> None:
        """Answer the client with an answer that has come at once."""
        if status >= 500:
            self._fail_by(status, pairs, body)
            return
        plan, exchange, trace_id = self.plan, self.exchange, self.trace_id
        now, began_s = plan.loop.time(), self.began_s
        breaker, permit = plan.breaker, self.permit
        # `_succeed`, `_close` and `_release`, without their frames.
        if breaker is not None and permit is not None:
            if permit == breaker.closed_permit and now < breaker.slice_ends_s:
                breaker.successes += 1
            else:
                breaker.success(permit, now, now - began_s)
        if now >= plan.tracker.next_sample_s:
            plan.edge.learn(None, Classification.SUCCESS, now, self._own_s(pairs, now))
        if self.member is not None:
            self._tell_member(now, CallEnd.ANSWERED)
        span_id, flags, noted, own = self.span_id, self.marks.flags, self.place.noted, self.noted
        if status != 200:
            told = {"status": str(status)}
            noted, own = {**noted, **told}, {**(own or {}), **told}
        plan.record_call(trace_id, self.call_span_id, span_id, began_s, now, "ok", noted, flags)
        plan.record(trace_id, span_id, self.parent_id, began_s, now, "ok", own, flags)
        if plan.limiter is not None:
            plan.limiter.release()
        plan.gate.limiter.release()
        traffic = plan.traffic
        # As `RouteTraffic.answered`, without its frame.
        method, took_s = exchange.method, now - began_s
        took = traffic.answers.get((method, status)) or traffic.first(method, status)
        took.counts[bisect_left(SHORT_S, took_s)] += 1
        took.total += took_s
        exchange.listener = None
        echo, leading = self.echo, self.place.leading
        exchange.answer(
            answer_head(status, pairs, trace_id, len(body), echo, leading, self.has_cors), body
        )
        if traffic.log is not None:
            self._log(traffic.log, status, len(body))

    def on_begin(self, status: int, pairs: list[RawPair], length: int | None) -> None:
        """Answer with a head, and go on as the body comes."""
        if status >= 500:
            error, used = self._error_of(status, pairs, b"")
            if self._is_inside(pairs) or self._may_be_tried(error):
                # It is read, for a moment, for what it tells, or to be had if nothing better comes.
                self.problem = (status, pairs, [])
                self.expect_within(PROBLEM_WITHIN_S)
                return
            self.failed = self._report(error, used)[1]
            self.plan.traffic.why(self.failed)
        else:
            self._succeed(pairs)
        # The rest is the client's time: it holds no slot that others wait for.
        self._give_slots()
        self.status = status
        self.framing = Framing(length=length)
        self.exchange.begin(self._head(status, pairs, length if length is not None else -1))
        self.part_s = self.place.pool.limits.part_s(length)
        if self.connection is not None:
            self.expect_within(self.part_s)

    def on_part(self, data: bytes) -> None:
        """Pass a part of the body on; a client that does not take it holds the upstream up."""
        if self.problem is not None:
            told = self.problem[2]
            told.append(data)
            if sum(map(len, told)) >= PROBLEM_BYTES_MAX:
                self._fail_now()
            return
        if self.framing is None:
            return
        self.sent_bytes += len(data)
        has_room = self.exchange.part(self.framing.part(data))
        if self.connection is not None:
            if has_room:
                self.expect_within(self.part_s)
            else:
                self.connection.pause()
                self.expect_within(None)

    def on_end(self) -> None:
        """End the answer."""
        if self.problem is not None:
            status, pairs, told = self.problem
            self.problem = None
            self._fail_by(status, pairs, b"".join(told))
            return
        if self.framing is None:
            return
        exchange, last = self.exchange, self.framing.end()
        failed, self.failed = self.failed, None
        if failed is None:
            self._close("ok", self.plan.loop.time())
        else:
            told_of(failed, self.plan.entry, self.trace_id)
            self._close(*self._outcome(failed))
        if last:
            exchange.part(last)
        exchange.end()
        self._ended("ok")

    def on_error(self, error: Exception) -> None:
        """Try again where that is allowed, or tell the client."""
        if self.problem is not None:
            self._fail_now()
        elif self.framing is not None:
            # Half an answer never looks whole.
            exchange = self.exchange
            self._close(*self._outcome(error))
            exchange.end(is_whole=False)
            self.plan.traffic.cut += 1
            self._ended("cut")
        else:
            self.fail(error)

    # -- what the client's connection tells ------------------------------------------------------

    def on_lost(self) -> None:
        """Give up: the client has gone."""
        self.cancel()
        if self.permit is not None:
            breaker = self.plan.breaker
            if breaker is not None:
                breaker.neutral(self.permit, self.plan.loop.time())
        self._tell_member(self.plan.loop.time(), CallEnd.LEFT)
        self._close("cancelled", self.plan.loop.time())
        self.plan.traffic.left += 1
        self._ended("left")

    def on_room(self) -> None:
        """Go on: the client has taken what there was."""
        if self.connection is not None and self.framing is not None:
            self.connection.resume()
            self.expect_within(self.part_s)

    # -- its own ---------------------------------------------------------------------------------

    def turn_away(self, wait_s: float) -> None:
        """Refuse a request that comes too soon: nothing was sent."""
        plan, exchange = self.plan, self.exchange
        error = RateLimited(
            f"too many requests for {plan.entry.name}; try again in {wait_s:.3f} s",
            retry_after_s=wait_s,
        )
        self._record(*self._outcome(error))
        self._forget_member()
        self._release()
        self._refuse(exchange, error, error)

    def fail(
        self,
        error: Exception,
        used: int | None = None,
        answer: tuple[int, list[RawPair], bytes] | None = None,
    ) -> None:
        """Take a failure of the attempt: retry by the slow way, or tell the client.

        `answer` is what the upstream has said, where it may pass.
        """
        plan, exchange = self.plan, self.exchange
        first, error = self._report(error, used)
        if not self._may_be_tried(error):
            self._close(*self._outcome(error))
            told = told_of(error, plan.entry, self.trace_id)
            if answer is None:
                self._refuse(exchange, told, error)
            else:
                status, pairs, body = answer
                exchange.answer(self._head(status, pairs, len(body)), body)
                self._account(status, len(body), error)
            return
        self._release()
        context = CallContext(
            trace_id=self.trace_id,
            span_id=self.span_id,
            caller=plan.shared.service,
            principal=self.principal,
            deadline_s=self.began_s + plan.deadline_s,
            attempts_left=plan.gate.attempts_left,
            priority=plan.entry.priority,
            marks=self.marks,
        )
        endpoint = by_http(self.place.endpoint)
        said = None
        if answer is not None:
            said = HttpResponse(answer[0], Headers.from_wire(answer[1]), answer[2])
        begun = FailedAttempt(first, error, endpoint, self.call_span_id, self.began_s, said)
        plan.gate.resume(self, context, begun)

    def _report(self, error: Exception, used: int | None) -> tuple[Attempt, Exception]:
        """Tell the edge of a failure; return the attempt, and what it is called."""
        plan = self.plan
        first = plan.edge.first_attempt(self.due_s, plan.gate.attempts_left // 2, self.began_s)
        first.used = used
        if isinstance(error, TimedOut):
            error = plan.edge.late(first)
        if self.permit is None:
            self._forget_member()
        else:
            permit, self.permit = self.permit, None
            first.judge, self.member = plan.service.judge(self.member), None
            plan.edge.report(error, first, permit)
        if isinstance(error, SynchromeshError):
            error.via = plan.service.name
        return first, error

    def _may_be_tried(self, error: Exception) -> bool:
        retry = self.plan.edge.policy.retry
        return (
            retry is not None
            and retry.attempts_max > 1
            and may_retry(error, is_retryable_unknown=self.is_idempotent)
        )

    def _error_of(
        self, status: int, pairs: list[RawPair], body: bytes
    ) -> tuple[SynchromeshError, int]:
        """Return what an answer of 5xx tells, and how many attempts it has used."""
        is_external = self.plan.is_external
        reply = reply_of_wire(status, pairs, b"" if is_external else body)
        error = reply.to_error((), is_external=is_external)
        if isinstance(error, CallError) and self.exchange.body:
            error.is_final = True  # the upstream has read a body that is sent once
        return error, 0 if is_external else reply.attempts_used

    def _is_inside(self, pairs: list[RawPair]) -> bool:
        """Tell whether an answer of 5xx may be a problem of our own, whose text is for inside."""
        return not self.plan.is_external and is_problem_on_wire(pairs)

    def _fail_by(self, status: int, pairs: list[RawPair], body: bytes) -> None:
        """Take an answer of 5xx, which tells of a failure."""
        error, used = self._error_of(status, pairs, body)
        if self._is_inside(pairs) and Reply(status, body).is_ours:
            self.fail(error, used)
        else:
            self.fail(error, used, (status, pairs, body))

    def _fail_now(self) -> None:
        """Take an answer of 5xx that does not end, and of which nothing is known."""
        assert self.problem is not None
        status, pairs, _ = self.problem
        self.problem = None
        self.cancel()
        self.fail(*self._error_of(status, pairs, b""))

    def _head(self, status: int, pairs: Sequence[RawPair], size: int) -> bytes:
        leading = self.place.leading
        return answer_head(status, pairs, self.trace_id, size, self.echo, leading, self.has_cors)

    def _succeed(self, pairs: list[RawPair]) -> None:
        """Report an answer: the rest is the client's time."""
        plan, permit = self.plan, self.permit
        if permit is None:
            return
        self.permit = None
        first = plan.edge.first_attempt(self.due_s, 0, self.began_s)
        first.away_s = 0.0 if plan.is_external else spent(pairs)[1]
        first.judge, self.member = plan.service.judge(self.member), None
        plan.edge.report(None, first, permit)

    def _own_s(self, pairs: list[RawPair], now: float) -> float:
        """Return how long an upstream of ours worked itself, without what it waited for others."""
        took_s = now - self.began_s
        return took_s if self.plan.is_external else max(0.0, took_s - spent(pairs)[1])

    def _forget_member(self) -> None:
        """Take back the choice of an instance that nothing was sent to."""
        member, self.member = self.member, None
        self.plan.service.unsent(member)

    def _tell_member(self, now: float, end: CallEnd) -> None:
        """Tell the balancer what came of a request that no breaker counts as a failure."""
        member, self.member = self.member, None
        self.plan.service.ended(member, now, now - self.began_s, end)

    def _outcome(self, error: BaseException) -> tuple[str, float, dict[str, str]]:
        status, noted = outcome_of(error)
        return status, self.plan.loop.time(), noted

    def _close(self, status: str, ended_s: float, told: dict[str, str] | None = None) -> None:
        """Record both spans, give back what was held, and let go of the client's exchange."""
        if self.status not in (NO_STATUS, 200):
            told = {"status": str(self.status), **(told or {})}
        noted = self.place.noted if told is None else {**self.place.noted, **told}
        ids, flags = (self.trace_id, self.call_span_id, self.span_id), self.marks.flags
        self.plan.record_call(*ids, self.began_s, ended_s, status, noted, flags)
        self._record(status, ended_s, told)
        self._release()

    def _record(self, status: str, ended_s: float, told: dict[str, str] | None) -> None:
        """Record the gateway's span."""
        noted = self.noted
        if told is not None:
            noted = {**(noted or {}), **told}
        span_id, above, flags = self.span_id, self.parent_id, self.marks.flags
        record = self.plan.record
        record(self.trace_id, span_id, above, self.began_s, ended_s, status, noted, flags)

    def _release(self) -> None:
        """Give back what it holds; the two exchanges must not keep each other: that is a cycle."""
        if self.has_slots:
            self._give_slots()
        self.exchange.listener = None

    def _give_slots(self) -> None:
        self.has_slots = False
        if self.plan.limiter is not None:
            self.plan.limiter.release()
        self.plan.gate.limiter.release()

    def _refuse(self, exchange: HttpExchange, told: SynchromeshError, why: Exception) -> None:
        head, body = ready_answer(
            refused(told, (*ALWAYS, (TRACE, self.trace_id)), trace_id=self.trace_id)
        )
        exchange.answer(head + self.echo, body)
        self._account(told.status, len(body), why)

    def _account(self, status: int, size: int, why: Exception) -> None:
        """Count, and log, a failure that was told whole."""
        traffic = self.plan.traffic
        traffic.answered(self.exchange.method, status, self.plan.loop.time() - self.began_s)
        traffic.why(why)
        if traffic.log is not None:
            self._log(traffic.log, status, size)

    def _ended(self, ended: str) -> None:
        """Count an answer in parts, or none, and tell the access log, where there is one."""
        traffic = self.plan.traffic
        traffic.answered(self.exchange.method, self.status, self.plan.loop.time() - self.began_s)
        if traffic.log is not None:
            self._log(traffic.log, self.status, self.sent_bytes, ended)

    def _log(self, log: AccessLog, status: int, size: int, ended: str = "ok") -> None:
        exchange, noted = self.exchange, self.noted or {}
        log.add(
            exchange.method.decode("ascii"),
            self.plan.entry.name,
            status,
            self.plan.loop.time() - self.began_s,
            size,
            ended=ended,
            peer=exchange.peer,
            told=Told(
                exchange.pairs, self.principal.name, self.trace_id, noted.get("request_id", "")
            ),
        )
