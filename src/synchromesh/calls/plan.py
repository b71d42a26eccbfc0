"""Plans: all that is the same for every call of one operation by one caller, put together once.

A call then looks nothing up but what may have changed since: which instances are ready, and whether
its credential is still fresh.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import msgspec

from synchromesh.calls.choice import Finder
from synchromesh.calls.contract import Operation
from synchromesh.calls.faults import FaultTable
from synchromesh.calls.wire import Hop, Reply, Request, Transport, keeps_time
from synchromesh.clock import loop_clock
from synchromesh.codec import decoder_of
from synchromesh.context import ATTEMPTS_LEFT_MAX, CallContext
from synchromesh.discovery import (
    Balancer,
    BalancerOptions,
    CallEnd,
    Ejection,
    Endpoint,
    Member,
    Resolver,
)
from synchromesh.errors import (
    ConfigError,
    ContractMismatch,
    RemoteFailed,
    SynchromeshError,
    TimedOut,
)
from synchromesh.identity import Principal, Signer
from synchromesh.priority import Priority
from synchromesh.resilience import Classification, Edge, Judge, within
from synchromesh.runtime import Runtime
from synchromesh.telemetry import Tracer

_log = logging.getLogger("synchromesh.calls")

# How long a credential is used without a look at the wall clock, which may be set.
LOOK_S = 1.0
HOPS_MAX = 4096
# A global is read faster than a member of a class.
SUCCESS, ANSWERED = Classification.SUCCESS, CallEnd.ANSWERED
TARGETS_MAX = 1024


class Target(msgspec.Struct, eq=False):
    """One instance that calls go to, and how.

    Attributes:
        send: sends a request, and releases its caller when it is due.
        noted: what the span of a call that it answered at once says; shared by all of them.
        member: what the balancer is told of; None where this instance is listed alone.
    """

    endpoint: Endpoint
    transport: Transport
    send: Callable[[Endpoint, Request], Awaitable[Reply]]
    noted: dict[str, str]
    member: Member | None = None


class First(msgspec.Struct, eq=False):
    """A first attempt that was made elsewhere and failed, for the slow way to go on after it.

    Attributes:
        due_s: when its caller is released, on the loop's clock; infinity for never.
        given: the extra attempts that were set aside for the callee's side.
        permit: the breaker's; 0 where there is none, or it let nothing be sent.
        target: the instance that it was made at, and `reply`: what that said, if it came so far.
        failed: what it raised.
    """

    due_s: float
    given: int
    permit: int = 0
    target: Target | None = None
    reply: Reply | None = None
    failed: BaseException | None = None


class CalledService:
    """What one caller keeps for all operations of one service that it calls.

    Attributes:
        hops: by priority and principal, with the credential of each.
        targets: by instance.
        sole: the target of a service of one instance, where `sole_of` is what lists it.
        balancer: whose turn it is.
    """

    __slots__ = ("balancer", "hops", "is_external", "name", "shared", "sole", "sole_of", "targets")

    sole: Target

    def __init__(
        self, name: str, shared: Shared, balancing: BalancerOptions, *, is_external: bool
    ) -> None:
        self.name = name
        self.shared = shared
        self.is_external = is_external
        self.balancer = Balancer(
            name, rng=shared.runtime.rng, options=balancing, on_ejection=self._on_ejection
        )
        self.hops: tuple[dict[Principal, Hop], ...] = tuple({} for _ in Priority)
        self.targets: dict[str, Target] = {}
        self.sole_of: tuple[Endpoint, ...] = ()

    def hop(self, principal: Principal, priority: Priority, now: float) -> Hop:
        """Return the hop for a principal, with a credential that is still good for a while.

        One that is as it was stays the same object, so that what is kept on it stays.
        """
        hops = self.hops[priority]
        hop = hops.get(principal)
        if hop is not None and now < hop.fresh_until_s:
            return hop
        if self.is_external:
            # It is not told who we are.
            token, fresh_until_s = "", math.inf
        else:
            shared, signer = self.shared, self.shared.signer
            token = signer.token(
                shared.service,
                principal,
                audience=self.name,
                now_us=shared.runtime.wall_us(),
                priority=priority,
            )
            # A credential is renewed at half its life: what is left is much longer than this.
            fresh_until_s = now + min(LOOK_S, signer.lifetime_s / 4)
        if hop is None or hop.credential != token:
            if len(hops) >= HOPS_MAX:
                hops.clear()
            hop = hops[principal] = Hop(self.name, principal, token)
        hop.fresh_until_s = fresh_until_s
        return hop

    def choose(self, listed: tuple[Endpoint, ...], now: float) -> Target:
        """Return the instance whose turn it is; its `member` is to be told of the call's end.

        Raises:
            ConfigError: nothing reaches it.
        """
        if self.shared.absences:
            self.shared.finder.note_found(self.name)
        if len(listed) > 1:
            member = self.balancer.pick(listed, now)
            if member.target is None:
                try:
                    member.target = self._target(member.endpoint, member)
                except ConfigError:
                    self.unsent(member)
                    raise
            return cast("Target", member.target)
        # One instance has every turn.
        endpoint = listed[0]
        target = self.targets.get(endpoint.instance)
        if target is None or target.endpoint is not endpoint:
            if len(self.targets) >= TARGETS_MAX:
                self.targets.clear()  # instances come and go; a few are looked up again
            target = self.targets[endpoint.instance] = self._target(endpoint)
        # A tuple does not change: the same one, which is kept alive here, lists the same.
        self.sole, self.sole_of = target, listed
        return target

    def unsent(self, member: Member | None) -> None:
        """Take back the choice of an instance that nothing was sent to."""
        if member is not None:
            member.forget()

    def ended(self, member: Member | None, now: float, took_s: float, end: CallEnd) -> None:
        """Tell the balancer how a call ended that no breaker counts as a failure."""
        if member is not None:
            self.balancer.observe(member, now, took_s, end)

    def judge(self, member: Member | None) -> Judge | None:
        """Return what `Edge.report` asks of an attempt at a member."""
        return None if member is None else partial(self._judge, member)

    def _judge(
        self,
        member: Member,
        verdict: Classification,
        outcome: BaseException | None,
        now: float,
        took_s: float,
        half_open_s: float | None,
    ) -> bool:
        if verdict is Classification.SUCCESS:
            end = CallEnd.ANSWERED
        elif verdict is Classification.FAILURE:
            end = CallEnd.FAILED
        elif isinstance(outcome, Exception) and not isinstance(outcome, TimedOut):
            end = CallEnd.BUSY
        else:
            end = CallEnd.LEFT
        return self.balancer.observe(member, now, took_s, end, half_open_s)

    def _on_ejection(self, ejection: Ejection) -> None:
        _log.warning(
            "instance %s of %s %s for %s: %s",
            ejection.instance,
            self.name,
            "is back" if ejection.until_s is None else "is ejected",
            self.shared.service,
            ejection.why,
        )

    def _target(self, endpoint: Endpoint, member: Member | None = None) -> Target:
        transport = self.shared.transport(endpoint)
        noted = {"instance": endpoint.instance, "attempts": "1"}
        # No timer where the transport has one: in one process most callees have answered before it
        # could be armed.
        send = transport.send if keeps_time(transport) else partial(_send_in_time, transport.send)
        return Target(endpoint, transport, send, noted, member)


@dataclass(slots=True)
class Shared:
    """What all plans of one caller share.

    Attributes:
        service: who calls.
        finder: finds instances, and holds calls while there are none.
        lists: what the resolver is sure of, as `MemoryRegistry.lists`; empty for one that asks.
        absences: the services that have no instance; empty while each has one.
        new_span_id: as in `context`.
        faults: those in force on purpose.
        is_slow: whether every call takes the slow way, as tests want it.
    """

    service: str
    resolver: Resolver
    finder: Finder
    lists: Mapping[str, tuple[tuple[Endpoint, ...], float]]
    absences: Mapping[str, object]
    transports: Mapping[str, Transport]
    signer: Signer
    tracer: Tracer
    runtime: Runtime
    new_span_id: Callable[[], str]
    faults: FaultTable
    is_slow: bool = False

    def transport(self, endpoint: Endpoint) -> Transport:
        """Return what reaches an endpoint. Raises ConfigError where nothing does."""
        transport = self.transports.get(endpoint.scheme)
        if transport is None:
            known = ", ".join(sorted(self.transports)) or "none"
            if endpoint.scheme == "https":
                raise ConfigError(
                    f"instance {endpoint.instance!r} is at {endpoint.url}, by TLS, and "
                    f"{self.service!r} has nobody to believe there; give it the files: [system] "
                    "tls of a process of the system, tls=ClientFiles(...) of a Client"
                )
            raise ConfigError(
                f"instance {endpoint.instance!r} is reached by {endpoint.scheme!r}, and "
                f"{self.service!r} has no such transport (it has: {known}); add one, or register "
                "the instance under another url"
            )
        return transport


class Plan:
    """The way of one operation's calls, for one caller.

    Attributes:
        edge: its guard, with the operation's own time and retries; `breaker`, `budget`, `limiter`
            and `timeout_s` are those of the edge.
        clock: of the loop that they are made on.
        is_hedged: whether they may be sent twice at once, which only the slow way does.
        decode: reads an answer.
        record: takes the span of a call that has ended.
    """

    __slots__ = (
        "breaker", "budget", "clock", "decode", "edge", "is_command", "is_external", "is_hedged",
        "limiter", "name", "operation", "record", "service", "shared", "timeout_s", "tracker",
    )  # fmt: skip

    def __init__(self, operation: Operation[..., Any], edge: Edge, service: CalledService) -> None:
        self.operation = operation
        self.name = operation.full_name
        self.is_command = operation.is_command
        self.is_external = operation.is_external
        self.service = service
        self.shared = service.shared
        self.edge = edge
        self.breaker, self.budget, self.limiter = edge.breaker, edge.budget, edge.limiter
        self.tracker = edge.tracker
        self.is_hedged = edge.hedging is not None
        self.timeout_s = math.inf if edge.policy.timeout_s is None else edge.policy.timeout_s
        self.clock = loop_clock(asyncio.get_running_loop())
        self.decode: Callable[[bytes], Any] = decoder_of(operation.shape.result)
        self.record = service.shared.tracer.recorder("call", operation.full_name)

    def request(
        self,
        arguments: bytes,
        context: CallContext,
        key: str,
        span_id: str,
        given: int,
        due_s: float,
        now: float,
    ) -> Request:
        """Return what the first attempt of a call sends; `span_id` is the call's.

        `given` and `due_s` are as in `First`.
        """
        hop = self.service.hops[context.priority].get(context.principal)
        if hop is None or now >= hop.fresh_until_s:
            hop = self.service.hop(context.principal, context.priority, now)
        if self.is_external:
            # It is not told who we are, and it can spend none of our attempts.
            marks = context.marks.outside()
            sent = CallContext(trace_id=context.trace_id, span_id=span_id, key=key, marks=marks)
        else:
            sent = CallContext(
                trace_id=context.trace_id,
                span_id=span_id,
                principal=context.principal,
                deadline_s=due_s if due_s != math.inf else None,
                key=key,
                # `min` takes ten times as long.
                attempts_left=given if given < ATTEMPTS_LEFT_MAX else ATTEMPTS_LEFT_MAX,  # noqa: FURB136
                undoes=context.undoes,
                priority=context.priority,
                marks=context.marks,
            )
        return Request(self.operation, arguments, sent, hop.credential, hop, due_s)

    def answered(
        self,
        context: CallContext,
        span_id: str,
        permit: int,
        target: Target,
        began_s: float,
        away_s: float,
    ) -> None:
        """Learn that a first attempt was answered, and record the span of its call.

        Args:
            context: of whoever made the call; `span_id` is the call's.
            permit: what the breaker gave for it; 0 without one.
            target: who answered.
            began_s: when the call began, on the loop's clock.
            away_s: how long the callee says that it waited for others.
        """
        ended_s, breaker = self.clock(), self.breaker
        took_s = ended_s - began_s
        if breaker is not None:
            # The first lines of `Breaker.success`, without its frame.
            if permit == breaker.closed_permit and ended_s < breaker.slice_ends_s:
                breaker.successes += 1
            else:
                breaker.success(permit, ended_s, took_s)
        if ended_s >= self.tracker.next_sample_s:
            # A stranger is not believed.
            own_s = took_s if self.is_external else max(0.0, took_s - away_s)
            self.edge.learn(None, SUCCESS, ended_s, own_s)
        if target.member is not None:
            self.service.balancer.observe(target.member, ended_s, took_s, ANSWERED)
        flags, above = context.marks.flags, context.span_id
        noted = target.noted
        self.record(context.trace_id, span_id, above, began_s, ended_s, "ok", noted, flags)

    def error_of(self, reply: Reply) -> SynchromeshError:
        """Return what a reply that is no answer tells."""
        return reply.to_error(self.operation.raises, is_external=self.is_external)

    def misfit(self, error: Exception) -> RemoteFailed:
        """Return what an answer is that cannot be decoded.

        JSON that does not fit is an error of its own (B5); what is no JSON was not said by the
        operation, but by a server or a proxy before it.
        """
        if isinstance(error, msgspec.ValidationError):
            return ContractMismatch(
                f"{self.name} answered what the contract of {self.shared.service!r} does not say: "
                f"{error}; the two run with different releases of the contract: deploy them with "
                "one that fits both"
            )
        return RemoteFailed(f"{self.name} answered what is no JSON: {error}; look at what spoke")


async def _send_in_time(
    send: Callable[[Endpoint, Request], Awaitable[Reply]], endpoint: Endpoint, request: Request
) -> Reply:
    until_s = request.due_s if request.due_s != math.inf else None
    return await within(partial(send, endpoint, request), until_s)
