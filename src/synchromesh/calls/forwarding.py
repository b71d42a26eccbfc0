"""Requests that are passed on as they are: the same layers as for a call, bodies as they come.

    trace → limiter → deadline → retry + budget → breaker (per edge) → balancer → transport

They share breaker, budget and limiter with the calls of their edge. What differs comes from the
bodies: an attempt is over once the head of its answer is there, and that is what its timeout, the
breaker and the limiter see; the span lasts until the answer has been read. A body can be read once,
so that a request that has one is tried again only while none of it has been read.

How long a body takes is its client's time. So it is read ahead, whole or until the buffer is full,
before anything is sent: who sends slowly holds no connection. One that is longer is an *upload*: it
holds no slot, and the time to answer it begins once it is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from msgspec import structs

from synchromesh.calls.caller import Caller
from synchromesh.calls.http_client import is_problem, reply_of
from synchromesh.calls.plan import CalledService
from synchromesh.calls.sending import Way
from synchromesh.calls.tree import attempts_left
from synchromesh.calls.wire import Passing, Reply, is_passing
from synchromesh.clock import loop_now
from synchromesh.context import CallContext, new_span_id
from synchromesh.discovery import Endpoint
from synchromesh.errors import CallError, ConfigError, ConnectFailed, SynchromeshError, TimedOut
from synchromesh.http import Body, HttpResponse
from synchromesh.resilience import Attempt, AttemptsLeft, Edge, Limiter
from synchromesh.resilience.attempts import NEARLY_FULL
from synchromesh.telemetry import Record, Tracer

# The name of the fact that says where an instance is reached by HTTP, besides its own transport.
HTTP = "http"
# What is read of an answer that tells of a failure, and for how long.
PROBLEM_BYTES_MAX = 64 * 1024
PROBLEM_WITHIN_S = 1.0
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


@dataclass(frozen=True, slots=True)
class Forwarding:
    """Says what is passed on, to whom, and for whom.

    Attributes:
        upstream: the service that gets it.
        name: of its span, such as a route.
        method, target, headers, body: the request.
        context: of whoever passes it on; its deadline is when the answer has to begin.
        is_external: the upstream is not ours: it is told a trace and a key alone.
        client: for whom: each has a share of the bodies that are under way.
        quiet_s: of a request for a WebSocket, how long nothing may move in it; None of any other.
    """

    upstream: str
    name: str
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: Body | None
    context: CallContext
    is_external: bool
    client: str
    quiet_s: float | None = None

    @property
    def is_upload(self) -> bool:
        """True where its body is still coming: what that takes is its client's time."""
        return self.body is not None and not self.body.is_ended


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """A first attempt that was made elsewhere and has failed; its breaker has been told of it.

    Attributes:
        attempt, error: what was tried, and what it raised.
        endpoint: where.
        span_id, began_s: of the call's span.
        answer: what the upstream has said, whole; None where it said nothing that may pass.
    """

    attempt: Attempt
    error: Exception
    endpoint: Endpoint
    span_id: str
    began_s: float
    answer: HttpResponse | None = None


@dataclass(frozen=True, slots=True)
class Passed:
    """An answer that is passed on.

    Attributes:
        response: with its head; read its `stream`.
        endpoint: the instance that gave it.
        error: what it was counted as, where it is one of 5xx.
    """

    response: HttpResponse
    endpoint: Endpoint
    error: SynchromeshError | None = None


@dataclass(frozen=True, slots=True)
class _Held:
    """What an upstream has said with a failure, until it is known whether another attempt is made.

    `exchange` ends with it.
    """

    passed: Passed
    exchange: AsyncExitStack


@dataclass(frozen=True, slots=True)
class Line:
    """The way to one upstream: its edge, and one for uploads, with no slot and no time for each."""

    edge: Edge
    untimed: Edge
    limiter: Limiter | None
    service: CalledService


class Forwarder:
    """Passes requests on for one caller.

    Args:
        caller: whose edges they take.
        tracer: takes one span of kind "call" a request, however many attempts it took.
    """

    def __init__(self, caller: Caller, tracer: Tracer) -> None:
        self._caller = caller
        self._tracer = tracer
        self._lines: dict[tuple[str, str, bool], Line] = {}
        self._records: dict[str, Record] = {}

    async def read_ahead(self, forwarding: Forwarding, deadline_s: float) -> Forwarding:
        """Return once a body is whole, or its buffer full; the answer has so long from then on.

        Not where its sender is to wait for the upstream, nor where the breaker would refuse it.
        """
        body = forwarding.body
        if body is None:
            return forwarding
        line = self.line(forwarding.upstream, forwarding.name, is_external=forwarding.is_external)
        if not (body.awaits_continue or line.edge.is_refusing(loop_now())):
            await body.fill()
        context = structs.replace(forwarding.context, deadline_s=loop_now() + deadline_s)
        return replace(forwarding, context=context)

    @asynccontextmanager
    async def forward(
        self, forwarding: Forwarding, begun: FailedAttempt | None = None
    ) -> AsyncIterator[Passed]:
        """Pass a request on, and give its answer with its head; read its `stream` in the context.

        With `begun` it goes on behind that attempt.

        An answer of 5xx is a failure: it counts as one, and is tried again where that is allowed.
        Then it is the upstream's to give, as any other; but where a service of ours says so by a
        problem of our own errors, whose text is for inside, that is raised. Where the breaker is
        open it is refused at once.

        Raises:
            CallError: it failed; the class says what is known of the outcome.
        """
        line = self.line(forwarding.upstream, forwarding.name, is_external=forwarding.is_external)
        record = self.recorder(forwarding.name)
        if begun is None:
            now = loop_now()
            passage = _Passage(line, forwarding, record, new_span_id(self._tracer.rng), now)
        else:
            passage = _Passage(line, forwarding, record, begun.span_id, begun.began_s)
            passage.go_on(begun)
        outcome: BaseException | None = None
        try:
            async with AsyncExitStack() as stack:
                passed = await self._answered(line, passage, stack, begun)
                outcome = passed.error
                yield passed
                del passed
        except BaseException as error:
            outcome = error
            raise
        finally:
            if not isinstance(outcome, GeneratorExit):
                passage.end(outcome)
            outcome = begun = None  # this frame is in their tracebacks: kept, they are cycles

    async def _answered(
        self, line: Line, passage: _Passage, stack: AsyncExitStack, begun: FailedAttempt | None
    ) -> Passed:
        """Return an answer; `stack` holds what it takes until it has been read."""
        context, is_upload, limiter = passage.context, passage.is_upload, line.limiter
        # It is refused at once, and not after a wait for a place (B2).
        is_refusing = line.edge.is_refusing(loop_now())
        if is_upload and limiter is not None and not is_refusing:
            await limiter.acquire(context.deadline_s, context.priority)
            limiter.release()
        left = attempts_left(context)
        if begun is not None:
            left.give()
        if is_refusing:
            left = AttemptsLeft(0)
        try:
            edge = line.untimed if is_upload else line.edge
            response = await edge.run(
                passage.attempt,
                deadline_s=None if is_upload else context.deadline_s,
                attempts_left=left,
                is_retryable_unknown=passage.is_idempotent,
                rng=self._tracer.rng,
                failed=None if begun is None else (begun.attempt, begun.error),
                priority=context.priority,
            )
        except SynchromeshError as error:
            error.via = line.service.name
            held = passage.held
            if held is None or held.passed.error is not error:
                raise
            passage.held = None
            error.__traceback__ = None  # it is kept with the answer, and leads to these frames
            stack.push_async_exit(held.exchange)
            return held.passed
        finally:
            begun = None
            await passage.let_go()
        stack.push_async_exit(passage.exchange)
        return Passed(response, passage.endpoint)

    def recorder(self, name: str) -> Record:
        """Return what records the spans of that name."""
        record = self._records.get(name)
        if record is None:
            record = self._records[name] = self._tracer.recorder("call", name)
        return record

    def line(self, upstream: str, name: str, *, is_external: bool) -> Line:
        """Return the way to an upstream, for requests of one name: what is usual is their own."""
        line = self._lines.get((upstream, name, is_external))
        if line is None:
            shared = self._caller.edge(upstream)
            edge = shared.of_operation(shared.policy, name, is_ours=not is_external)
            line = self._lines[upstream, name, is_external] = Line(
                edge,
                edge.untimed(),
                edge.limiter,
                self._caller.called(upstream, is_external=is_external),
            )
        return line

    def __repr__(self) -> str:
        return f"<Forwarder of {self._caller!r}>"


class _Passage(Way):
    """One request under way; `exchange` is left open by the attempt that `endpoint` answered."""

    endpoint: Endpoint

    def __init__(
        self, line: Line, forwarding: Forwarding, record: Record, span_id: str, began_s: float
    ) -> None:
        super().__init__(line.service, forwarding.context, record, span_id, began_s)
        self._line = line
        self._forwarding = forwarding
        self.is_upload = forwarding.is_upload
        self.is_idempotent = forwarding.body is None and (
            forwarding.method in IDEMPOTENT or bool(forwarding.context.key)
        )
        self.exchange = AsyncExitStack()
        self.held: _Held | None = None

    def go_on(self, begun: FailedAttempt) -> None:
        """Take over after an attempt that was made elsewhere."""
        self.number = begun.attempt.number
        self.choice.note_tried(begun.endpoint)
        if isinstance(begun.error, ConnectFailed):
            self.choice.give_up(begun.endpoint)
        if begun.answer is not None and isinstance(begun.error, SynchromeshError):
            passed = Passed(begun.answer, begun.endpoint, begun.error)
            self.held = _Held(passed, AsyncExitStack())

    async def let_go(self) -> None:
        """Forget an answer that is held, and end its exchange unless somebody has taken that."""
        held, self.held = self.held, None
        if held is not None:
            await held.exchange.aclose()

    async def attempt(self, attempt: Attempt) -> HttpResponse:
        """Send once, and return the answer once its head is there."""
        self.number = attempt.number
        body, context = self._forwarding.body, self._forwarding.context
        endpoint = by_http(await self.next(attempt, attempt.deadline_s or context.deadline_s))
        transport = self.shared.transport(endpoint)
        if not is_passing(transport):
            raise ConfigError(
                f"instance {endpoint.instance!r} is reached by {endpoint.url!r}, and nothing can "
                "be passed on that way; register it with its http:// url"
            )
        try:
            async with AsyncExitStack() as exchange:
                passing = self._passing(attempt)
                await self._suffer_in_time(endpoint, passing.timeout_s)
                response = await exchange.enter_async_context(transport.forward(endpoint, passing))
                if response.status != 200:
                    self.note("status", response.status)
                attempt.used = 0
                if self.is_upload:
                    # How long it took to come is not known apart from how long it took to send.
                    attempt.began_s = loop_now()
                if not self._forwarding.is_external:
                    attempt.away_s = reply_of(response, b"").away_s
                if response.status >= 500:
                    error, answer = await self._failure(attempt, response)
                    if answer is not None:
                        await self.let_go()
                        passed = Passed(answer, endpoint, error)
                        self.held = _Held(passed, exchange.pop_all())
                    raise error
                self.exchange = exchange.pop_all()
                self.endpoint = endpoint
                return response
        except ConnectFailed:
            self.choice.give_up(endpoint)
            raise
        except CallError as error:
            error.is_final = error.is_final or (body is not None and body.is_touched)
            raise

    async def _suffer_in_time(self, endpoint: Endpoint, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self.suffer(endpoint)
        except TimeoutError:
            told = f"{self.service.name} did not answer in time, by a fault"
            raise TimedOut(told) from None

    def _passing(self, attempt: Attempt) -> Passing:
        forwarding, hop = self._forwarding, self.hop(attempt)
        now = loop_now()
        timeout_s = self._timeout_s(attempt, now)
        return Passing(
            method=forwarding.method,
            target=forwarding.target,
            headers=forwarding.headers,
            body=forwarding.body,
            context=self.travelling(forwarding.context.key, now + timeout_s, attempt),
            credential=hop.credential,
            timeout_s=timeout_s,
            is_idempotent=self.is_idempotent,
            hop=hop,
            client=forwarding.client,
            quiet_s=forwarding.quiet_s,
        )

    def _timeout_s(self, attempt: Attempt, now: float) -> float:
        """Return how long the answer may take; with an upload that counts once it is sent."""
        if attempt.deadline_s is not None:
            return attempt.deadline_s - now
        deadline_s, own_s = self._forwarding.context.deadline_s, self._line.edge.policy.timeout_s
        assert deadline_s is not None, "who passes a request on says when its answer has to begin"
        left_s = deadline_s - now
        if own_s is None:
            return left_s
        attempt.has_full_timeout = left_s >= own_s * NEARLY_FULL
        return min(own_s, left_s)

    async def _failure(
        self, attempt: Attempt, response: HttpResponse
    ) -> tuple[SynchromeshError, HttpResponse | None]:
        """Return what an answer of 5xx tells, and the answer if it may pass."""
        is_external, told = self._forwarding.is_external, b""
        answer: HttpResponse | None = response
        if not is_external and response.stream is not None and is_problem(response):
            told, is_whole = await _start_of(response.stream)
            if not is_whole or Reply(response.status, told).is_ours:
                answer = None
            else:
                answer = HttpResponse(response.status, response.headers, told)
        reply = reply_of(response, told)
        attempt.used = 0 if is_external else reply.attempts_used
        return reply.to_error((), is_external=is_external), answer


def by_http(endpoint: Endpoint) -> Endpoint:
    """Return an instance as it is reached by HTTP, where it says how."""
    url = dict(endpoint.metadata).get(HTTP)
    return endpoint if url is None else replace(endpoint, url=url)


async def _start_of(body: Body) -> tuple[bytes, bool]:
    """Read what a short answer says, and whether that is all.

    What is long or slow says nothing that is known here.
    """
    told = b""
    try:
        async with asyncio.timeout(PROBLEM_WITHIN_S):
            while len(told) < PROBLEM_BYTES_MAX:
                part = await body.read()
                if not part:
                    return told, True
                told += part
    except (TimeoutError, CallError):
        return b"", False
    return told, False
