"""The calling side: what one call goes through, in one fixed order, outermost first.

    trace → deadline → retry + budget → limiter → breaker (per edge) → balancer → transport

An *edge* is a caller and a callee service: it has one breaker, one retry budget and one limiter,
whatever the transport (B5). The layers from deadline to breaker are `resilience.Edge`; this module
puts the span around them and the choice of an instance inside. The way of an operation through them
is put together when it is first called.

Keys: a command is sent under `context.key`, and the caller invents none. A key promises that one
may ask again under it; one that dies with this call promises nothing, so that a command without a
key is sent once and not again once its outcome is unknown (D3). `Caller.root` makes a key for those
who have none; a query is sent without.

Where no instance is ready, the call is held until the resolver announces one (`holding`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from synchromesh.calls.choice import Choice, Finder
from synchromesh.calls.contract import Call, Operation
from synchromesh.calls.holding import Holds
from synchromesh.calls.policies import Policies
from synchromesh.calls.tree import attempts_left
from synchromesh.calls.wire import Request, Transport
from synchromesh.codec import decode
from synchromesh.context import ATTEMPTS_LEFT_MAX, CallContext, check_key, new_trace_id
from synchromesh.discovery import Endpoint, Resolver, RoundRobin
from synchromesh.errors import (
    BadRequest,
    ConfigError,
    ConnectFailed,
    RemoteFailed,
    SynchromeshError,
)
from synchromesh.http import Limits
from synchromesh.identity import Signer
from synchromesh.resilience import Attempt, BreakerSnapshot, Edge, Transition
from synchromesh.runtime import Runtime
from synchromesh.store.guard import refuse_in_unit
from synchromesh.telemetry import Span, Tracer

R = TypeVar("R")

# What every transport carries: one that runs in this process must not carry more than the others.
REQUEST_BYTES_MAX = Limits().body_bytes_max
# The target shares the head of a request with what travels with every call.
TARGET_BYTES_MAX = Limits().head_bytes_max * 3 // 4

_log = logging.getLogger("synchromesh.calls")


@dataclass(frozen=True, slots=True)
class _Line:
    """The way of one operation's calls: its guarded edge, and whose turn it is behind it."""

    operation: Operation[..., Any]
    edge: Edge
    balancer: RoundRobin


class Caller:
    """Sends the calls of one service (or of one client) to others, guarded, signed and traced.

    Args:
        service: who calls.
        resolver: finds the instances of a service; calls are held only by a `WatchableResolver`.
        transports: by the scheme of an endpoint's url: "inproc", "http", "sim".
        signer: signs every hop within the system (C4).
        tracer: takes one span of kind "call" a call, however many attempts it took.
        runtime: wall clock, chance and ids.
        policies: how calls are guarded.
        on_transition: told when a breaker changes state; must not raise.

    Attributes:
        holds: how many calls are held, and how many restarts were bridged.
    """

    def __init__(
        self,
        service: str,
        *,
        resolver: Resolver,
        transports: Mapping[str, Transport],
        signer: Signer,
        tracer: Tracer,
        runtime: Runtime,
        policies: Policies,
        on_transition: Callable[[Transition], None] | None = None,
    ) -> None:
        self._service = service
        self.holds = Holds(policies.hold)
        self._finder = Finder(resolver, self.holds)
        self._transports = transports
        self._signer = signer
        self._tracer = tracer
        self._runtime = runtime
        self._policies = policies
        self._tell = on_transition
        self._lines: dict[Operation[..., Any], _Line] = {}
        self._edges: dict[str, Edge] = {}
        self._balancers: dict[str, RoundRobin] = {}

    def root(
        self,
        *,
        principal: str = "",
        key: str | None = None,
        timeout_s: float | None = None,
        trace_id: str = "",
    ) -> CallContext:
        """Return the context of a new call tree, with all its extra attempts and a fresh key.

        Give a `key` to be able to ask again under it; `trace_id` continues a trace, such as that of
        a saga, whose calls are a tree of their own.
        """
        now = asyncio.get_running_loop().time()
        return CallContext(
            trace_id=trace_id or new_trace_id(self._runtime.rng),
            span_id="",
            caller=self._service,
            principal=principal,
            deadline_s=None if timeout_s is None else now + timeout_s,
            key=self._runtime.new_id() if key is None else key,
            attempts_left=self._policies.attempts_per_tree,
        )

    async def call(
        self, call: Call[R], *, context: CallContext, timeout_s: float | None = None
    ) -> R:
        """Send a call and return its answer.

        Args:
            call: the operation and its arguments.
            context: the context of whoever makes the call, with this call's `key` and `undoes`.
            timeout_s: bounds the whole call, retries too; the deadline of the context does anyway.

        Raises:
            Rejection: one of those that the operation declares.
            CallError: the call failed; its class says what is known of the outcome.
            ForeignAwait: a unit of work made the call.
        """
        answer: R
        _, answer = await self._run(call.operation, call.arguments, context, timeout_s)
        return answer

    async def send(
        self,
        operation: Operation[..., Any],
        arguments: bytes,
        *,
        context: CallContext,
        timeout_s: float | None = None,
    ) -> bytes:
        """Send a call whose arguments are JSON and return the JSON of its answer, both checked.

        Raises:
            BadRequest: the arguments do not fit the contract; nothing was sent.
            Exception: what `call` raises.
        """
        # An undo is told by the key that it undoes: its argument is the callee's own record (S6).
        checked = b"{}" if context.undoes else operation.canonical(arguments)
        body, _ = await self._run(operation, checked, context, timeout_s)
        return body

    def edge(self, service: str) -> Edge:
        """Return this caller's edge to a service, for instance to isolate it by hand."""
        edge = self._edges.get(service)
        if edge is None:
            edge = self._edges[service] = Edge(
                self._policies.of_edge(service),
                name=f"{self._service} -> {service}",
                now=asyncio.get_running_loop().time(),
                rng=self._runtime.rng,
                on_transition=self._on_transition,
            )
        return edge

    @property
    def edges(self) -> dict[str, BreakerSnapshot]:
        """The breakers of all edges that were used, by the callee's service."""
        return {
            service: edge.breaker.snapshot()
            for service, edge in self._edges.items()
            if edge.breaker is not None
        }

    def __repr__(self) -> str:
        return f"<Caller {self._service}, {len(self._edges)} edges>"

    async def _run(
        self,
        operation: Operation[..., Any],
        arguments: bytes,
        context: CallContext,
        timeout_s: float | None,
    ) -> tuple[bytes, Any]:
        refuse_in_unit(f"the call {operation.full_name}")
        line = self._lines.get(operation) or self._put_together(operation)
        key = check_key(context.key) if operation.is_command else ""
        if len(arguments) > TARGET_BYTES_MAX // 3 and not operation.is_external:
            _check_size(operation, arguments)
        deadline_s = context.deadline_s
        if timeout_s is not None:
            until_s = asyncio.get_running_loop().time() + timeout_s
            if math.isnan(until_s):
                # It compares with nothing, and would put the timers of the loop out of order.
                raise BadRequest(f"{operation.full_name} was given the timeout {timeout_s} s")
            deadline_s = until_s if deadline_s is None else min(deadline_s, until_s)
        with self._tracer.start(
            "call", operation.full_name, trace_id=context.trace_id, parent_id=context.span_id
        ) as span:
            sending = _Sending(self, line, arguments, context, key, span)
            try:
                return await line.edge.run(
                    sending.attempt,
                    deadline_s=deadline_s,
                    attempts_left=attempts_left(context),
                    is_retryable_unknown=bool(key) or not operation.is_command,
                    rng=self._runtime.rng,
                )
            except SynchromeshError as error:
                error.via = operation.full_name
                raise
            finally:
                span.note("attempts", sending.number)

    def _put_together(self, operation: Operation[..., Any]) -> _Line:
        service = operation.service
        edge, policy = self.edge(service), self._policies.of_operation(operation)
        if policy is not edge.policy:
            own = Edge(policy, name=edge.name, now=asyncio.get_running_loop().time())
            own.breaker, own.limiter = edge.breaker, edge.limiter
            own.budget = edge.budget or own.budget
            edge = own
        balancer = self._balancers.setdefault(service, RoundRobin(service))
        line = self._lines[operation] = _Line(operation, edge, balancer)
        return line

    def _on_transition(self, transition: Transition) -> None:
        _log.warning(
            "breaker %s: %s, was %s (%s)",
            transition.name,
            transition.after.value,
            transition.before.value,
            transition.trigger.value,
            extra={
                "edge": transition.name,
                "before": transition.before.value,
                "after": transition.after.value,
            },
        )
        if self._tell is not None:
            self._tell(transition)

    # -- what one attempt asks -------------------------------------------------------------------

    def choice(self, service: str, balancer: RoundRobin, span: Span) -> Choice:
        """Return what chooses the instances of one call; `balancer` says whose turn it is."""
        return Choice(self._finder, service, balancer, span)

    def transport(self, endpoint: Endpoint) -> Transport:
        """Return what reaches an endpoint. Raises ConfigError where nothing does."""
        transport = self._transports.get(endpoint.scheme)
        if transport is None:
            known = ", ".join(sorted(self._transports)) or "none"
            raise ConfigError(
                f"instance {endpoint.instance!r} is reached by {endpoint.scheme!r}, and "
                f"{self._service!r} has no such transport (it has: {known}); add one, or register "
                "the instance under another url"
            )
        return transport

    def credential(self, principal: str, audience: str) -> str:
        """Return what signs a hop to a service on behalf of a principal."""
        now_us = self._runtime.wall_us()
        return self._signer.token(self._service, principal, audience=audience, now_us=now_us)


class _Sending:
    """One call under way: makes its attempts, each at an instance of its own choice."""

    __slots__ = (
        "_arguments", "_caller", "_choice", "_context", "_key", "_line", "_span", "number",
    )  # fmt: skip

    def __init__(
        self,
        caller: Caller,
        line: _Line,
        arguments: bytes,
        context: CallContext,
        key: str,
        span: Span,
    ) -> None:
        self._caller = caller
        self._line = line
        self._arguments = arguments
        self._context = context
        self._key = key
        self._span = span
        self._choice = caller.choice(line.operation.service, line.balancer, span)
        self.number = 0

    async def attempt(self, attempt: Attempt) -> tuple[bytes, Any]:
        """Send once; return the answer's JSON and value."""
        self.number = attempt.number
        caller, operation = self._caller, self._line.operation
        endpoint = await self._choice.next(attempt.deadline_s)
        if operation.is_external:
            # It is not told who we are, and it can spend none of our attempts.
            request, attempt.used = self._foreign(), 0
            reply = await caller.transport(endpoint).send(endpoint, request)
        else:
            request = self._request(attempt)
            try:
                reply = await caller.transport(endpoint).send(endpoint, request)
            except ConnectFailed:
                self._choice.give_up(endpoint)
                raise
            attempt.used = reply.attempts_used
        if not reply.is_answer:
            raise reply.to_error(operation.raises, is_external=operation.is_external)
        return self._checked(reply.body or b"null")

    def _request(self, attempt: Attempt) -> Request:
        context = self._context
        sent = CallContext(
            trace_id=context.trace_id,
            span_id=self._span.span_id,
            principal=context.principal,
            deadline_s=attempt.deadline_s,
            key=self._key,
            attempts_left=min(attempt.attempts_left, ATTEMPTS_LEFT_MAX),
            undoes=context.undoes,
        )
        operation = self._line.operation
        credential = self._caller.credential(context.principal, operation.service)
        return Request(operation, self._arguments, sent, credential)

    def _foreign(self) -> Request:
        sent = CallContext(
            trace_id=self._context.trace_id, span_id=self._span.span_id, key=self._key
        )
        return Request(self._line.operation, self._arguments, sent, "")

    def _checked(self, body: bytes) -> tuple[bytes, Any]:
        operation = self._line.operation
        try:
            return body, decode(body, operation.shape.result)
        except BadRequest as error:
            raise RemoteFailed(
                f"{operation.full_name} answered what its contract does not say: {error.message}; "
                "caller and callee have contracts that do not fit each other"
            ) from error


def _check_size(operation: Operation[..., Any], arguments: bytes) -> None:
    target, body = operation.to_http(arguments)
    for part, limit in ((body, REQUEST_BYTES_MAX), (target, TARGET_BYTES_MAX)):
        if len(part) > limit:
            raise BadRequest(
                f"the arguments of {operation.full_name} have {len(part)} bytes as they are sent, "
                f"at most {limit} are carried there; send where they are to be found instead"
            )
