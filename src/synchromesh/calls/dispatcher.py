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
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

import msgspec

from synchromesh.calls.contract import Operation
from synchromesh.calls.tree import tree_of
from synchromesh.calls.wire import Reply, Request
from synchromesh.codec import encode
from synchromesh.context import CallContext
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
from synchromesh.identity import Credential, Signer
from synchromesh.resilience import (
    DeadlinePassed,
    Limiter,
    LimitOptions,
    is_being_cancelled,
    within,
)
from synchromesh.runtime import Runtime
from synchromesh.telemetry import Tracer

_log = logging.getLogger("synchromesh.calls")

# What every transport carries: one that runs in this process must not carry more than the others.
ANSWER_BYTES_MAX = PoolLimits().body_bytes_max

# Whoever calls a service that stands for somebody else's is nobody of ours.
_STRANGER = Credential("", "", "", 0)


class Incoming(msgspec.Struct, frozen=True):
    """A call as its handler gets it.

    Attributes:
        operation: what is called.
        arguments: in canonical form; `operation.parse` checks and decodes them.
        context: caller and principal are verified; `span_id` is the span that handles the call.
    """

    operation: Operation[..., Any]
    arguments: bytes
    context: CallContext


class Handler(Protocol):
    """Answers the calls of one operation."""

    def __call__(self, incoming: Incoming, /) -> Awaitable[bytes]:
        """Return the answer's JSON; raise a declared `Rejection` for a business no."""
        ...


class Dispatcher:
    """Runs the calls that come to one instance of a service, many at once, within bounds.

    Args:
        service: whose calls these are.
        handlers: by the operation's name.
        signer: verifies the hop's credential.
        tracer: takes one span of kind "handle" a call.
        runtime: the wall clock.
        in_flight_max: how many handlers run at once (C3).
        queue_max: how many calls wait for a place; further ones are `Shed`.
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
        in_flight_max: int = 256,
        queue_max: int = 256,
        is_external: bool = False,
    ) -> None:
        self.service = service
        self._handlers = handlers
        self._signer = signer
        self._tracer = tracer
        self._runtime = runtime
        self._limiter = Limiter(LimitOptions(in_flight_max, queue_max), name=f"service {service}")
        self._is_external = is_external
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_draining(self) -> bool:
        """True once no new work is taken."""
        return self._is_draining

    @property
    def in_flight(self) -> int:
        """How many handlers run."""
        return self._limiter.in_flight

    def authenticate(self, credential: str) -> Credential:
        """Return who calls.

        Raises:
            Unauthenticated: the credential is missing, forged, expired or for another service (C4).
        """
        if self._is_external:
            return _STRANGER
        now_us = self._runtime.wall_us()
        return self._signer.verify(credential, audience=self.service, now_us=now_us)

    async def dispatch(self, request: Request) -> Reply:
        """Run a request and return its reply; it raises nothing but its own cancellation."""
        try:
            credential = self.authenticate(request.credential)
            handler = self._handler(request.operation)
        except NotExecuted as refused:
            return Reply.of_error(refused)
        sent = request.context
        with self._tracer.start(
            "handle", request.operation.full_name, trace_id=sent.trace_id, parent_id=sent.span_id
        ) as span:
            context = CallContext(
                trace_id=sent.trace_id,
                span_id=span.span_id,
                caller=credential.service,
                principal=credential.principal,
                deadline_s=sent.deadline_s,
                key=sent.key,
                attempts_left=sent.attempts_left,
                undoes=sent.undoes,
            )
            incoming = Incoming(request.operation, request.arguments, context)
            with tree_of(context) as left:
                outcome = await self._run(handler, incoming)
            if isinstance(outcome, bytes):
                return Reply(200, outcome, left.used)
            span.fail(outcome)
            return Reply.of_error(outcome, attempts_used=left.used)

    async def drain(self, within_s: float | None = None) -> int:
        """Refuse new calls, wait for those that run, and return how many still do after `within_s`.

        May be repeated. None waits for as long as it takes: every deadline bounds its call.
        """
        self._is_draining = True
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("%r still runs after %g s of draining", self, within_s)
        return self._limiter.in_flight

    def __repr__(self) -> str:
        draining = ", draining" if self._is_draining else ""
        return f"<Dispatcher {self.service}: {self._limiter.in_flight} in flight{draining}>"

    def _handler(self, operation: Operation[..., Any]) -> Handler:
        handler = self._handlers.get(operation.name)
        if handler is None:
            known = ", ".join(sorted(self._handlers)) or "none"
            raise UnknownOperation(
                f"service {self.service!r} has no operation {operation.name!r}; it has: {known}"
            )
        return handler

    async def _run(self, handler: Handler, incoming: Incoming) -> bytes | SynchromeshError:
        """Return the answer, or the error to be told to the caller."""
        name, deadline_s = incoming.operation.full_name, incoming.context.deadline_s
        if self._is_draining:
            return Shed(f"service {self.service!r} drains and takes no more calls; try another")
        loop = asyncio.get_running_loop()
        if deadline_s is not None and loop.time() >= deadline_s:
            return DeadlineExceeded(
                f"the deadline of {name} had passed when it came; it did not run"
            )
        try:
            await self._limiter.acquire(deadline_s)
        except Shed as shed:
            return shed
        self._idle.clear()
        try:
            answer = await within(lambda: handler(incoming), deadline_s)
            if not isinstance(answer, bytes):
                raise TypeError(f"the handler of {name} answered {type(answer).__name__}, no bytes")
            if len(answer) > ANSWER_BYTES_MAX:
                raise ValueError(
                    f"the answer of {name} has {len(answer)} bytes, at most {ANSWER_BYTES_MAX} are "
                    "carried; answer where it is to be found, or a part at a time"
                )
            return answer
        except DeadlinePassed as passed:
            if passed.deadline_s != deadline_s:
                return self._told(incoming, passed)  # one that the handler had set itself
            return TimedOut(f"{name} was cancelled at its deadline; what it did is unknown")
        except asyncio.CancelledError as error:
            if is_being_cancelled():
                raise
            # Nobody cancelled the call: the handler awaited something that was cancelled.
            return self._told(incoming, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer
            return self._told(incoming, error)
        finally:
            self._limiter.release()
            if not self._limiter.in_flight:
                self._idle.set()

    def _told(self, incoming: Incoming, error: BaseException) -> SynchromeshError:
        """Return what the caller is told of an error that a handler raised."""
        operation, trace_id = incoming.operation, incoming.context.trace_id
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
                    is_final=isinstance(error, CallError) and error.is_final,
                )
            if isinstance(error, NotExecuted | SagaError | VersionConflict):
                return error
        _log.error("%s failed in trace %s", operation.full_name, trace_id, exc_info=error)
        told = f"{operation.full_name} failed; the log of {self.service!r} says why"
        if isinstance(error, StoreError):
            # Its class says what a caller can act on; its words may name files and statements.
            return type(error)(f"{told}: {error.code}, trace {trace_id}")
        # What the world did to a handler may pass: a refused connection, a time-out, something that
        # was cancelled. Anything else is a bug, and would be met again.
        may_pass = isinstance(error, OSError | asyncio.CancelledError)
        return RemoteFailed(f"{told}: trace {trace_id}", is_final=not may_pass)


def _is_declared(rejection: Rejection, operation: Operation[..., Any]) -> bool:
    if not any(rejection.code == declared.code for declared in operation.raises):
        return False
    try:
        encode(rejection.details)
    except BadRequest:
        return False  # it cannot be told: a bug of the handler's
    return True
