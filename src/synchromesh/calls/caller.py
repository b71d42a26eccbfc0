"""The calling side: what one call goes through, in one fixed order, outermost first.

    trace → deadline → retry + budget → limiter → breaker (per edge) → balancer → transport

An *edge* is a caller and a callee service: it has one breaker and one retry budget, whatever the
transport (B5), and a limiter for each operation, or one for all if its limit is fixed. The way of
an operation through them is put together when it is first called, as a `Plan`. A call whose first
attempt goes straight through takes the fast way (`fast`), any other the slow one (`sending`); both
do the same.

Keys: a command is sent under `context.key`, and the caller invents none. A key promises that one
may ask again under it; one that dies with this call promises nothing, so that a command without a
key is sent once and not again once its outcome is unknown (D3). `Caller.root` makes a key for those
who have none; a query is sent without.

Where no instance is ready, the call is held until the resolver announces one (`holding`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from synchromesh.calls import fast
from synchromesh.calls.choice import Finder
from synchromesh.calls.contract import Call, Operation
from synchromesh.calls.faults import FaultTable
from synchromesh.calls.holding import Holds
from synchromesh.calls.isolations import Isolations
from synchromesh.calls.plan import CalledService, Plan, Shared
from synchromesh.calls.policies import Policies
from synchromesh.calls.wire import Transport
from synchromesh.chance import Chance
from synchromesh.clock import loop_clock, loop_now
from synchromesh.context import CallContext, new_trace_id, span_ids
from synchromesh.discovery import Resolver
from synchromesh.durations import is_number
from synchromesh.errors import BadRequest
from synchromesh.identity import NOBODY, Principal, Signer
from synchromesh.propagation import KEPT_TRACE, NEW_TRACE
from synchromesh.resilience import BreakerSnapshot, BreakerState, Edge, Limiter, Transition
from synchromesh.runtime import Runtime
from synchromesh.telemetry import Tracer

R = TypeVar("R")

_log = logging.getLogger("synchromesh.calls")


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
        faults: those that people put in force on purpose, which strike this caller's attempts.

    Attributes:
        holds: how many calls are held, and how many restarts were bridged.
        on_transition: told when a breaker changes state; must not raise.
        isolations: the edges that people have isolated by hand; whoever shares some with other
            callers has this one follow them.

    Example:
        >>> async def ask(caller: Caller, call: Call[R]) -> R:
        ...     return await caller.call(call, context=caller.root(principal="ada"), timeout_s=1.0)
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
        faults: FaultTable | None = None,
    ) -> None:
        self._service = service
        self.holds = Holds(policies.hold)
        self.on_transition: Callable[[Transition], None] | None = None
        self.isolations = Isolations()
        self._shared = Shared(
            service,
            resolver=resolver,
            finder=Finder(resolver, self.holds),
            lists=getattr(resolver, "lists", {}),
            absences=self.holds.absences,
            transports=transports,
            signer=signer,
            tracer=tracer,
            runtime=runtime,
            new_span_id=span_ids(runtime.rng),
            faults=faults if faults is not None else FaultTable(),
        )
        self._runtime = runtime
        self._policies = policies
        self._plans: dict[Operation[..., Any], Plan] = {}
        self._edges: dict[str, Edge] = {}
        self._services: dict[tuple[str, bool], CalledService] = {}
        self._clock: Callable[[], float] | None = None

    @property
    def faults(self) -> FaultTable:
        """The faults that people put in force on purpose."""
        return self._shared.faults

    @property
    def is_slow(self) -> bool:
        """Whether every call takes the slow way; tests set it, to hold both ways to one promise."""
        return self._shared.is_slow

    @is_slow.setter
    def is_slow(self, value: bool) -> None:
        self._shared.is_slow = value

    @property
    def rng(self) -> Chance:
        """The chance of its world."""
        return self._runtime.rng

    def wall_us(self) -> int:
        """Return the wall-clock time of its world, in microseconds since 1970."""
        return self._runtime.wall_us()

    def apart(self) -> Caller:
        """Return one that calls as the same service by edges of its own.

        What becomes of its calls is no news to the breakers, limiters and budgets of this one; the
        faults and isolations of people hold for both.
        """
        shared = self._shared
        other = Caller(
            self._service,
            resolver=shared.resolver,
            transports=shared.transports,
            signer=shared.signer,
            tracer=shared.tracer,
            runtime=self._runtime,
            policies=self._policies,
            faults=shared.faults,
        )
        other.isolations = self.isolations
        self.isolations.follow(other)
        return other

    def principal_token(self, principal: str, scopes: frozenset[str], *, audience: str) -> str:
        """Return what tells an upstream who asks; see `Signer.principal_token`."""
        signer, now_us = self._shared.signer, self._runtime.wall_us()
        return signer.principal_token(principal, scopes, audience=audience, now_us=now_us)

    def root(
        self,
        *,
        principal: Principal | str = NOBODY,
        key: str | None = None,
        timeout_s: float | None = None,
        trace_id: str = "",
    ) -> CallContext:
        """Return the context of a new call tree, with all its extra attempts and a fresh key.

        A principal that is given by its name has no scopes. Give a `key` to be able to ask again
        under it; `trace_id` continues a trace, such as that of a saga, whose calls are a tree of
        their own.

        Raises:
            BadRequest: the timeout is no number of seconds.
        """
        if timeout_s is not None and not is_number(timeout_s):
            raise BadRequest(
                f"the root of a call tree was given timeout_s {timeout_s!r}; make it a number of "
                "seconds, or None for no deadline"
            )
        if self._clock is None:
            self._clock = loop_clock(asyncio.get_running_loop())  # it may be made without a loop
        propagation = self._shared.tracer.propagation
        is_kept, trace_id = bool(trace_id), trace_id or new_trace_id(self._runtime.rng)
        marks = KEPT_TRACE if is_kept else NEW_TRACE
        if propagation.sampled_from:  # else all of them are sampled: without its frame
            marks = (propagation.kept if is_kept else propagation.begun)(trace_id)
        return CallContext(
            trace_id=trace_id,
            span_id="",
            caller=self._service,
            principal=Principal(principal) if isinstance(principal, str) else principal,
            deadline_s=None if timeout_s is None else self._clock() + timeout_s,
            key=self._runtime.new_id() if key is None else key,
            attempts_left=self._policies.attempts_per_tree,
            marks=marks,
        )

    def call(
        self, call: Call[R], *, context: CallContext, timeout_s: float | None = None
    ) -> Coroutine[Any, Any, R]:
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
        plan = self._plans.get(call.operation) or self._put_together(call.operation)
        return fast.call(plan, call.arguments, context, timeout_s, as_json=False)

    def plan(self, operation: Operation[..., Any]) -> Plan:
        """Return the way of an operation's calls, for who makes their first attempts himself."""
        return self._plans.get(operation) or self._put_together(operation)

    def send(
        self,
        operation: Operation[..., Any],
        arguments: bytes,
        *,
        context: CallContext,
        timeout_s: float | None = None,
    ) -> Coroutine[Any, Any, bytes]:
        """Return what sends a call whose arguments are JSON and gives the JSON of its answer.

        Both are checked. It is a coroutine, and has no frame of its own while the call waits.

        Raises:
            BadRequest: the arguments do not fit the contract; nothing was sent.
            Exception: what `call` raises.
        """
        # An undo is told by the key that it undoes: its argument is the callee's own record (S6).
        checked = b"{}" if context.undoes else operation.canonical(arguments)
        plan = self._plans.get(operation) or self._put_together(operation)
        return fast.call(plan, checked, context, timeout_s, as_json=True)

    def edge(self, service: str) -> Edge:
        """Return this caller's edge to a service."""
        edge = self._edges.get(service)
        if edge is None:
            edge = self._edges[service] = Edge(
                self._policies.of_edge(service),
                name=f"{self._service} -> {service}",
                now=loop_now(),
                rng=self._runtime.rng,
                on_transition=self._on_transition,
                timeout_key=f'policies."{self._of_edge(service)}".timeout',
            )
            self.follow_isolations()
        return edge

    def _of_edge(self, service: str) -> str:
        """Return how the edge to a service is named in the configuration."""
        return f"{self._service.partition('#')[0]}:{service}"

    def follow_isolations(self) -> None:
        """Isolate the breakers of edges that are isolated by hand, and close those no longer."""
        now = loop_now() if self._edges else 0.0
        for service, edge in self._edges.items():
            breaker, is_isolated = edge.breaker, self.isolations.covers(self._service, service)
            if breaker is None or (breaker.state is BreakerState.ISOLATED) is is_isolated:
                continue
            if is_isolated:
                breaker.isolate(now)
            else:
                breaker.close(now)

    @property
    def edges(self) -> dict[str, BreakerSnapshot]:
        """The breakers of all edges that were used, by the callee's service."""
        now = loop_now()
        return {
            service: edge.breaker.snapshot(now)
            for service, edge in self._edges.items()
            if edge.breaker is not None
        }

    @property
    def limiters(self) -> dict[str, Limiter]:
        """The limiters of all edges that were used, by the callee's service.

        Those that adapt themselves are by the operation: `stock.reserve`.
        """
        return {
            f"{service}.{name}" if name else service: limiter
            for service, edge in self._edges.items()
            for name, limiter in edge.limiters.items()
        }

    @property
    def ejected(self) -> dict[str, tuple[str, ...]]:
        """The instances that get no calls of this caller for now, by the callee's service."""
        found = {name: each.balancer.ejected for (name, _), each in self._services.items()}
        return {name: instances for name, instances in found.items() if instances}

    def __repr__(self) -> str:
        return f"<Caller {self._service}, {len(self._edges)} edges>"

    def called(self, service: str, *, is_external: bool) -> CalledService:
        """Return what this caller keeps of a service that it calls."""
        # By both: what a stranger is sent must not be what one of ours of that name is.
        found = self._services.get((service, is_external))
        if found is None:
            balancing = self._policies.of_balancer(service)
            found = CalledService(service, self._shared, balancing, is_external=is_external)
            self._services[service, is_external] = found
        return found

    def _put_together(self, operation: Operation[..., Any]) -> Plan:
        service, key = operation.service, ""
        edge, policy = self.edge(service), self._policies.of_operation(operation)
        own = self._policies.operations.get(operation.full_name)
        if own is not None and own.timeout_s is not None and not own.is_timed_as_edge:
            key = f'policies."{self._of_edge(service)}".operations.{operation.name}.timeout'
        called = self.called(service, is_external=operation.is_external)
        plan = self._plans[operation] = Plan(
            operation,
            edge.of_operation(
                policy,
                operation.name,
                is_read=not operation.is_command,
                is_ours=not operation.is_external,
                timeout_key=key,
            ),
            called,
        )
        return plan

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
        if self.on_transition is not None:
            self.on_transition(transition)
