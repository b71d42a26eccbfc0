"""The called side: who may call, how much runs at once, until when, and how it is answered.

    credential (401) → deadline (nothing run) → bound (shed) → handler, in time → reply

Only what the contract declares leaves a service as it is. Anything else that a handler raises is
`RemoteFailed`, and a call of its own that failed is `DownstreamFailed`: the caller's breaker for
this service does not count that (B5), and no text of an exception travels (G6); the log has it.
A bug is said to be final, all the way up: the same call is not made again only to meet it again.
"""

from __future__ import annotations

import asyncio
import logging
import math
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Token
from functools import partial
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from synchromesh.calls.admission import admitted
from synchromesh.calls.asked_spans import AskedSpans
from synchromesh.calls.contract import Operation
from synchromesh.calls.places import limits_of_operation, take_places, took_places
from synchromesh.calls.tree import Incoming, Places, Root, running
from synchromesh.calls.wire import Reply, Request
from synchromesh.clients import ClientCredential
from synchromesh.clock import loop_clock
from synchromesh.codec import encode
from synchromesh.context import CallContext, span_ids
from synchromesh.errors import (
    BadRequest,
    CallError,
    DeadlineExceeded,
    DownstreamFailed,
    NotExecuted,
    Rejection,
    RemoteFailed,
    SagaError,
    Shed,
    StoreError,
    SynchromeshError,
    TimedOut,
    UnknownOperation,
    VersionConflict,
)
from synchromesh.http import PoolLimits
from synchromesh.identity import NOBODY, Credential, Signer
from synchromesh.priority import Priority
from synchromesh.resilience import (
    DeadlinePassed,
    LatencyTracker,
    Limiter,
    LimitOptions,
    within,
)
from synchromesh.runtime import Runtime
from synchromesh.telemetry import (
    Record,
    SpanContext,
    Tracer,
    current_span,
    outcome_of,
    status_of,
)

_log = logging.getLogger("synchromesh.calls")

# What every transport carries: one that runs in this process must not carry more than the others.
ANSWER_BYTES_MAX = PoolLimits().body_bytes_max

# How long a credential that was verified is believed without a look at the wall clock.
LOOK_S = 1.0
KNOWN_MAX = 4096

# How much sooner than the handler its calls have to end, so that what became of them can still be
# told: a share of its time, which covers the way back, up to a bound. Then of two services that
# wait for a third only the one next to it runs out of time, and no one else is blamed (B5).
WAY_BACK_SHARE = 0.1
WAY_BACK_MAX_S = 0.1

# A global is read faster than a member of a class.
INTERACTIVE = Priority.INTERACTIVE

# Whoever calls a service that stands for somebody else's is nobody of ours.
_STRANGER = Credential("", NOBODY, "", 0)


class Handler(Protocol):
    """Answers the calls of one operation."""

    def __call__(self, incoming: Incoming, /) -> Awaitable[bytes]:
        """Return the answer's JSON; raise a declared `Rejection` for a business no."""
        ...


class _Answerer(msgspec.Struct, frozen=True, eq=False):
    """What answers one operation: its handler, and what it takes and learns."""

    handler: Handler
    record: Record
    limiter: Limiter
    tracker: LatencyTracker

    def note_error(
        self, error: BaseException, took_s: float, ended_s: float, deadline_s: float | None
    ) -> None:
        """Learn from a call that ended with an error: a business no is an answer like any other.

        One that ended at its deadline is a drop, unless its caller was only impatient.
        """
        if ended_s < self.tracker.next_sample_s:
            return
        if deadline_s is not None and ended_s >= deadline_s:
            if self.tracker.is_drop(took_s):
                self.limiter.sample(self.tracker, ended_s, took_s, is_late=True)
        elif isinstance(error, Rejection):
            self.limiter.sample(self.tracker, ended_s, took_s)


class Dispatcher:
    """Runs the incoming calls of one instance of a service, concurrently and within bounds.

    Args:
        service: whose calls these are.
        handlers: by the operation's name.
        signer: verifies the hop's credential.
        tracer: takes one span of kind "handle" a call.
        runtime: the wall clock.
        in_flight_max: how many handlers run at once (C3); those that wait for calls of their own do
            not count, up to `AWAY_MAX`. Each operation finds a limit of its own
            below that, by how long its answers take: one alone gets three quarters at most.
        queue_max: how many calls wait for a place, for each operation; further ones are `Shed`.
        is_external: it stands for somebody else's service: credentials are not asked for.
    """

    def __init__(
        self,
        service: str,
        handlers: Mapping[str, Handler],
        *,
        signer: Signer,
        tracer: Tracer,
        runtime: Runtime,
        in_flight_max: int = 1000,
        queue_max: int = 1000,
        is_external: bool = False,
    ) -> None:
        self.service = service
        self._handlers = handlers
        self._signer = signer
        self._tracer = tracer
        self._runtime = runtime
        self._limiter = Places(LimitOptions(in_flight_max, queue_max), name=f"service {service}")
        self._is_external = is_external
        self._is_draining = False
        self._drained: asyncio.Event | None = None
        self._new_span_id = span_ids(runtime.rng)
        self._asked = AskedSpans(tracer, runtime)
        # By token, who calls and until when nobody need look.
        self._known: dict[str, tuple[Credential, float]] = {}
        self._limits = limits_of_operation(in_flight_max, queue_max, of=len(handlers))
        self._answering: dict[Operation[..., Any], _Answerer] = {}

    @property
    def is_draining(self) -> bool:
        """True once no new work is taken."""
        return self._is_draining

    @property
    def in_flight(self) -> int:
        """How many handlers have begun and not ended."""
        return self._limiter.in_flight + self._limiter.away

    @property
    def limiters(self) -> dict[str, Limiter]:
        """The limiters of all operations that were called, by name; "" is that of the service."""
        answering = self._answering.items()
        own = {operation.full_name: answerer.limiter for operation, answerer in answering}
        return {"": self._limiter, **own}

    def authenticate(
        self, credential: str, now: float, operation: Operation[..., Any]
    ) -> Credential:
        """Return who calls; `now` is the loop's clock.

        Raises:
            Unauthenticated: the credential is missing, forged, expired or for another service (C4).
            Forbidden: it is that of a client from outside who may not call this operation.
        """
        known = self._known.get(credential)
        if known is None or now >= known[1]:
            known = self._verified(credential, now, operation)
        return known[0]

    async def dispatch(  # noqa: C901 - a frame for each layer would cost more than most handlers
        self, request: Request, clock: Callable[[], float] | None = None
    ) -> Reply:
        """Run a request; raise its own cancellation alone. Who has a `clock` cancels it in time."""
        sent, operation, is_apart = request.context, request.operation, clock is not None
        deadline_s, clock = sent.deadline_s, clock or loop_clock(asyncio.get_running_loop())
        began_s = clock()
        try:
            known = self._known.get(request.credential)
            if known is None or began_s >= known[1]:
                known = self._verified(request.credential, began_s, operation)
            answerer = self._answering.get(operation) or self._answerer(operation)
        except NotExecuted as refused:
            return Reply.of_error(refused)
        span_id, ran_s, status, noted = self._new_span_id(), began_s, "ok", None
        trace, above, flags, places = sent.trace_id, sent.span_id, sent.marks.flags, self._limiter
        who, limiter, record = known[0], answerer.limiter, answerer.record
        context, args = below(sent, span_id, who, began_s), request.arguments
        if type(who) is ClientCredential:
            record = self._asked.recorder(who, operation, record)
        root = Incoming(
            span_id, None, limiter, places, operation=operation, arguments=args, context=context
        )
        spanned, rooted = current_span.set(context), running.set(root)
        try:
            if self._is_draining or (deadline_s is not None and began_s >= deadline_s):
                raise self._refusal(operation)
            is_free = places.in_flight < places.in_flight_max and context.priority is INTERACTIVE
            if is_free and limiter.in_flight < limiter.in_flight_max:
                limiter.in_flight += 1
                places.in_flight += 1
            elif not took_places(limiter, places, context.priority):
                ran_s, noted = await take_places(limiter, places, deadline_s, context.priority)
            try:
                if not is_apart and deadline_s is not None:
                    answer = await within(partial(answerer.handler, root), deadline_s)
                else:
                    answer = await answerer.handler(root)
                ended_s = clock()
                root.away_s += ended_s - root.since_s if root.away else 0.0  # calls still run
                if ended_s >= answerer.tracker.next_sample_s:
                    limiter.sample(answerer.tracker, ended_s, ended_s - ran_s - root.away_s)
            finally:
                root.limiter = None
                if root.away or limiter.waiting or places.waiting or self._drained is not None:
                    self._give_back(limiter, root)
                else:
                    limiter.in_flight -= 1
                    places.in_flight -= 1
            if type(answer) is not bytes or len(answer) > ANSWER_BYTES_MAX:
                raise _bad_answer(operation, answer)
            used = 0 if root.left is None else root.left.used  # `Root.used` without its frame
            reply = Reply(200, answer, used, None, ended_s - began_s, root.away_s)
        except GeneratorExit:
            raise  # who is thrown away has neither its context nor a loop any more
        except BaseException as error:
            ended_s = clock()
            answerer.note_error(error, root.own_s(ran_s, ended_s), ended_s, deadline_s)
            if _is_own_end(error):
                status = _end_of(error, deadline_s, ended_s)
                record(trace, span_id, above, began_s, ended_s, status, None, flags)
                _put_back(spanned, rooted)
                raise
            reply, status, noted = self._failed(operation, sent, error, root, noted)
        record(trace, span_id, above, began_s, ended_s, status, noted, flags)
        if not is_apart:
            _put_back(spanned, rooted)
        elif root.released is not None:
            root.released(reply)
        return reply

    async def drain(self, within_s: float | None = None) -> int:
        """Refuse new calls, wait for those that run, and return how many still do after `within_s`.

        May be repeated. None waits for as long as it takes: every deadline bounds its call.
        """
        self._is_draining = True
        if self._is_idle():
            return 0
        if self._drained is None:
            self._drained = asyncio.Event()
        try:
            async with asyncio.timeout(within_s):
                await self._drained.wait()
        except TimeoutError:
            _log.warning("%r still runs after %g s of draining", self, within_s)
        return self.in_flight

    def __repr__(self) -> str:
        draining = ", draining" if self._is_draining else ""
        return f"<Dispatcher {self.service}: {self.in_flight} in flight{draining}>"

    def _verified(
        self, credential: str, now: float, operation: Operation[..., Any]
    ) -> tuple[Credential, float]:
        """Return the caller's credential, and until when it is valid, on the loop's clock."""
        if self._is_external:
            return _STRANGER, math.inf
        now_us = self._runtime.wall_us()
        who, may_keep = admitted(self._signer, credential, self.service, operation, now_us)
        # The wall clock may be set: it is looked at once in a while, and before its end.
        left_s = (who.expires_us - now_us) / 1e6 * may_keep
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        known = self._known[credential] = (who, now + min(LOOK_S, max(0.0, left_s)))
        return known

    def _answerer(self, operation: Operation[..., Any]) -> _Answerer:
        """Return what answers an operation."""
        handler = self._handlers.get(operation.name)
        if handler is None:
            known = ", ".join(sorted(self._handlers)) or "none"
            raise UnknownOperation(
                f"service {self.service!r} has no operation {operation.name!r}; it has: {known}"
            )
        record = self._tracer.recorder("handle", operation.full_name)
        limiter = Limiter(self._limits, name=operation.full_name)
        found = _Answerer(handler, record, limiter, LatencyTracker())
        self._answering[operation] = found
        return found

    def _give_back(self, limiter: Limiter, root: Root) -> None:
        """Release both places of a call, to those who wait."""
        if not root.away:
            limiter.release()
        if root.is_out:
            self._limiter.away -= 1
        else:
            self._limiter.release()
        if self._drained is not None and self._is_idle():
            self._drained.set()

    def _is_idle(self) -> bool:
        """Say whether no call runs or waits for a place."""
        limiters = [answerer.limiter for answerer in self._answering.values()]
        return not self.in_flight and not any(
            limiter.in_flight or limiter.waiting for limiter in limiters
        )

    def _refusal(self, operation: Operation[..., Any]) -> NotExecuted:
        if self._is_draining:
            return Shed(f"service {self.service!r} drains and takes no more calls; try another")
        return DeadlineExceeded(
            f"the deadline of {operation.full_name} had passed when it came; it did not run"
        )

    def _failed(
        self,
        operation: Operation[..., Any],
        context: CallContext,
        error: BaseException,
        root: Root,
        noted: Mapping[str, str] | None,
    ) -> tuple[Reply, str, dict[str, str]]:
        """Return the reply that tells of an error, and what the span says of it.

        No frame of the call itself keeps the error, which has that frame in its traceback.
        """
        public = self._public_error(operation, context, error)
        reply = Reply.of_error(public, attempts_used=root.used, away_s=root.away_s)
        status, told = outcome_of(public)
        return reply, status, {**(noted or {}), **told}

    def _public_error(
        self, operation: Operation[..., Any], context: CallContext, error: BaseException
    ) -> SynchromeshError:
        """Return the public form of an error that a handler raised."""
        trace_id = context.trace_id
        if isinstance(error, DeadlinePassed) and error.deadline_s == context.deadline_s:
            return TimedOut(
                f"{operation.full_name} was cancelled at its deadline; what it did is unknown"
            )
        if isinstance(error, Rejection):
            if _is_declared(error, operation):
                return error
        elif isinstance(error, SynchromeshError):
            if error.via or (isinstance(error, CallError) and not isinstance(error, NotExecuted)):
                needed = error.via or "a call it made"
                _log.warning("%s failed because %s did: %s", operation.full_name, needed, error)
                return DownstreamFailed(
                    f"{operation.full_name} failed because {needed} did: {error.code}",
                    cause_code=error.code,
                    is_final=error.is_final,
                )
            if isinstance(error, NotExecuted | SagaError | VersionConflict):
                return error
        _log.error("%s failed in trace %s", operation.full_name, trace_id, exc_info=error)
        message = f"{operation.full_name} failed; the log of {self.service!r} says why"
        if isinstance(error, StoreError):
            # Its class says what a caller can act on; its words may name files and statements.
            return type(error)(f"{message}: {error.code}, trace {trace_id}")
        # What the world did to a handler may pass: a refused connection, a time-out, something that
        # was cancelled. Anything else is a bug, and would be met again.
        may_pass = isinstance(error, OSError | asyncio.CancelledError)
        return RemoteFailed(f"{message}: trace {trace_id}", is_final=not may_pass)


def below(sent: CallContext, span_id: str, who: Credential, began_s: float) -> CallContext:
    """Return the context of the handler, which is that of the calls that it makes."""
    deadline_s = sent.deadline_s
    if deadline_s is not None:
        way_back_s = (deadline_s - began_s) * WAY_BACK_SHARE
        # `min` takes ten times as long.
        deadline_s -= way_back_s if way_back_s < WAY_BACK_MAX_S else WAY_BACK_MAX_S  # noqa: FURB136
    return replace(
        sent,
        span_id=span_id,
        caller=who.service,
        principal=who.principal,
        deadline_s=deadline_s,
        priority=who.priority,
    )


def _put_back(spanned: Token[SpanContext | None], rooted: Token[Root | None]) -> None:
    running.reset(rooted)
    current_span.reset(spanned)


def _is_own_end(error: BaseException) -> bool:
    """Say whether an error ends the call itself, and not only what its handler awaited."""
    if isinstance(error, CancelledError):
        # No local may keep the task: the error that is raised has the frame in its traceback, and
        # the task keeps the error.
        return bool(getattr(asyncio.current_task(), "cancelling", bool)())
    return not isinstance(error, Exception)


def _end_of(error: BaseException, deadline_s: float | None, ended_s: float) -> str:
    """Return the span's status of a call that its own end has ended."""
    is_late = deadline_s is not None and ended_s >= deadline_s
    return "timed_out" if is_late else status_of(error)


def _bad_answer(operation: Operation[..., Any], answer: object) -> Exception:
    if not isinstance(answer, bytes):
        return TypeError(
            f"the handler of {operation.full_name} answered {type(answer).__name__}, no bytes"
        )
    return ValueError(
        f"the answer of {operation.full_name} has {len(answer)} bytes, at most {ANSWER_BYTES_MAX} "
        "are carried; answer where it is to be found, or a part at a time"
    )


def _is_declared(rejection: Rejection, operation: Operation[..., Any]) -> bool:
    if not any(rejection.code == declared.code for declared in operation.raises):
        return False
    try:
        encode(rejection.details)
    except BadRequest:
        return False  # it cannot be encoded: a bug of the handler's
    return True
