"""The gateway at work: a handler for `http.HttpServer`.

    route -> principal -> place among those in flight -> scopes -> rate -> arguments -> call

The place is held until the answer begins, and not while somebody else is waited for: an issuer of
tokens for its keys, or a client for a body, either way.

Nothing of a request passes through but what the engine read on purpose: the credential, the
idempotency key, and the arguments that the contract names. Every call is made anew under a context
of the gateway's own, so that no identity and no forwarding header from outside can reach a service,
however it is spelt (G2).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import msgspec

from synchromesh.calls import Caller, Forwarder, Operation
from synchromesh.calls.http_arguments import read_strictly
from synchromesh.calls.routes import Match, NoMatch
from synchromesh.calls.tree import attempts_left, tree_of
from synchromesh.clock import loop_now
from synchromesh.codec import encode
from synchromesh.context import IDEMPOTENCY_KEY, CallContext
from synchromesh.errors import (
    BadRequest,
    CallError,
    ConfigError,
    Forbidden,
    RateLimited,
    SynchromeshError,
)
from synchromesh.gateway.aggregate import AggregatePlan, AggregateRun, arguments_of
from synchromesh.gateway.answers import (
    ALWAYS,
    FALLBACK,
    PARTIAL,
    TRACE,
    mark_of,
    refused,
    told_of,
    unrouted,
)
from synchromesh.gateway.arrival import arrival_of, key_of, unread_body
from synchromesh.gateway.asked import Accounting, AskedRequest, RefusedRequest, under, whole_of
from synchromesh.gateway.asking import Asker
from synchromesh.gateway.checking import compiled, read
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.cors import ORIGIN, read_cors
from synchromesh.gateway.fast import Gate
from synchromesh.gateway.fast_beside import UNDECIDED, Decided
from synchromesh.gateway.host_gates import HostGates
from synchromesh.gateway.hosts import Hosts, host_of, table_of
from synchromesh.gateway.identifying import Identification
from synchromesh.gateway.keeping import AnswerCache
from synchromesh.gateway.mirrors import Mirrors
from synchromesh.gateway.onward import Onward
from synchromesh.gateway.opening import all_opened
from synchromesh.gateway.origin import Origins
from synchromesh.gateway.preflight import preflight
from synchromesh.gateway.principal import Authenticator, Folders
from synchromesh.gateway.router import Finding, find
from synchromesh.gateway.routes import Gateway
from synchromesh.gateway.routing import Routing
from synchromesh.gateway.state import GatewayState
from synchromesh.gateway.traffic import GatewayCounts
from synchromesh.http import (
    HttpExchange,
    HttpRequest,
    HttpResponse,
    RawPair,
    problem_response,
)
from synchromesh.runtime import Runtime
from synchromesh.telemetry import Tracer

REREAD_EVERY_S = 1.0

_log = logging.getLogger("synchromesh.gateway")

_JSON = ("content-type", "application/json")


class GatewayEngine:
    """Answers the requests of one gateway; a handler for `HttpServer`, which bounds and drains.

    For a gateway with a `Forward` it has to be the server's `streaming` as well.

    Args:
        gateway: what is served; it is checked whole before anything else happens.
        caller: sends the calls, as the service that the gateway is known by.
        tracer: takes one span of kind "gateway" a request that has a route.
        authenticators: what `gateway.auth` became at work; `open` makes them.
        externals: the upstreams that are not ours, and are not told who asks.
        origins: tells whom a request comes from, where that is not the peer of its connection.
        entries: what `compiled` has made of the gateway already; it is read here where None.
        state: what is known of its requests; none where None.

    Attributes:
        entries: its routes.
        state: what is known of its requests.

    Raises:
        ConfigError: the gateway has mistakes; the message names them all.

    Example:
        >>> async def serve(engine: GatewayEngine, runtime: Runtime) -> HttpServer:
        ...     server = HttpServer(engine, network=runtime.network, streaming=engine)
        ...     await server.start()
        ...     return server
    """

    def __init__(
        self,
        gateway: Gateway,
        *,
        caller: Caller,
        tracer: Tracer,
        authenticators: Sequence[Authenticator] = (),
        externals: AbstractSet[str] = frozenset(),
        origins: Origins | None = None,
        entries: Sequence[CompiledRoute] | None = None,
        state: GatewayState | None = None,
    ) -> None:
        if entries is None:
            entries = compiled(gateway)
        self._externals = externals
        self._origins = Origins() if origins is None else origins
        self._has_forwards = any(entry.passage is not None for entry in entries)
        self._has_cors = any(entry.cors is not None for entry in entries)
        self._cors = None if gateway.cors is None else read_cors(gateway.cors, lambda _: None)
        self._caller = caller
        self._tracer = tracer
        self._identification = Identification(authenticators)
        self.state = GatewayState.of(gateway, entries) if state is None else state
        self._limiter, self._tunnels = self.state.limiter, self.state.tunnels
        self._asker = Asker(caller, self.state.last)
        self._answers = AnswerCache(gateway.cache_max, gateway.cache_bytes_max)
        self._forwarder = Forwarder(caller, tracer)
        self._mirrors = Mirrors(
            caller, tracer, self.state.mirrors, externals=externals, origins=self._origins
        )
        self._onward = Onward(
            caller, self._forwarder, limiter=self._limiter, tunnels=self._tunnels,
            externals=externals, origins=self._origins, mirrors=self._mirrors,
        )  # fmt: skip
        # Where no route has a host, none is looked at.
        self._hosts = Hosts(entries) if any(entry.host for entry in entries) else None
        self._routes = table_of(entries if self._hosts is None else ())
        self.entries = entries

    @classmethod
    async def open(
        cls,
        gateway: Gateway,
        *,
        caller: Caller,
        tracer: Tracer,
        runtime: Runtime,
        folders: Folders,
        externals: AbstractSet[str] = frozenset(),
        origins: Origins | None = None,
        entries: Sequence[CompiledRoute] | None = None,
    ) -> GatewayEngine:
        """Check the gateway, read its keys, and return it at work; `close` it.

        With `entries`, what `compiled` has made of it already, the gateway is not checked again.

        Raises:
            ConfigError: the gateway or its keys have mistakes; the message names them all.
        """
        mistakes: tuple[str, ...] = ()
        if entries is None:
            reading = read(gateway)
            entries, mistakes = reading.entries, reading.mistakes
        authenticators = await all_opened(gateway, folders, runtime, mistakes)
        return cls(
            gateway,
            caller=caller,
            tracer=tracer,
            authenticators=authenticators,
            externals=externals,
            origins=origins,
            entries=entries,
        )

    async def run(self) -> None:
        """Keep what credentials are verified by as it is, looked at every second; supervised."""
        while True:
            self.refresh()
            await asyncio.sleep(REREAD_EVERY_S)

    def refresh(self) -> None:
        """Look once whether what credentials are verified by has changed."""
        self._identification.refresh()

    async def retire(self) -> None:
        """Give up copies that are still under way: another engine has taken over long ago."""
        await self._mirrors.close()

    async def close(self) -> None:
        """End what verifies credentials, and copies under way. May be repeated."""
        await self._mirrors.close()
        await self._identification.close()

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer one request; it raises nothing but its own cancellation."""
        routes = self._routes if self._hosts is None else self._hosts.asked(request)
        try:
            found = find(routes, request.method, request.path)
        except BadRequest as error:
            fields = [*ALWAYS, *arrival_of(request.headers).fields]
            return self._other(request, refused(error, fields))
        asked_before = preflight(routes, request) if self._has_cors else None
        if asked_before is not None:
            return self._other(request, asked_before)
        if isinstance(found, NoMatch):
            return self._other(request, unrouted(request, found, self._cors))
        with self._begun(found, request) as (asked, context):
            return await self._answer(asked, context, self._call)

    @property
    def begin_exchange(self) -> Callable[[HttpExchange], bool]:
        """What answers requests on the fast way; False leaves one to the slow way."""
        if self._hosts is None:
            return self._gate(self._routes, self.entries, self.entries).begin
        return HostGates(self._hosts, lambda of: self._gate(of, of.entries, of.closest)).begin

    def _gate(
        self,
        routes: Finding[CompiledRoute],
        entries: Sequence[CompiledRoute],
        closest: Sequence[CompiledRoute],
    ) -> Gate:
        return Gate(
            Routing(entries, closest, routes, self._externals, self._origins, self.state),
            forwarder=self._forwarder,
            tracer=self._tracer,
            identification=self._identification,
            asker=self._asker,
            attempts_left=self._caller.root().attempts_left,
            slow=self.stream,
        )

    def body_max(self, method: str, path: str, pairs: Sequence[RawPair]) -> int | None:
        """Say how long the body of a request may be that is passed on; None where it is not."""
        if not self._has_forwards:
            return None
        routes = self._routes if self._hosts is None else self._hosts.of(host_of(pairs))
        try:
            found = find(routes, method, path)
        except BadRequest:
            return None
        if isinstance(found, NoMatch) or found.target.passage is None:
            return None
        return found.target.passage.body_bytes_max

    @asynccontextmanager
    async def stream(
        self, request: HttpRequest, decided: Decided = UNDECIDED
    ) -> AsyncIterator[HttpResponse]:
        """Answer a request that is passed on; the context is left once its answer is sent."""
        routes = self._routes if self._hosts is None else self._hosts.asked(request)
        found = find(routes, request.method, request.path)
        if isinstance(found, NoMatch) or found.target.passage is None:
            # It was passed on when its head came: another gateway has taken over since.
            whole = await whole_of(request)
            if whole is None:
                yield self._other(request, problem_response(413, "the body is too long"))
            else:
                yield await self(whole)
            return
        asked_before = preflight(routes, request) if self._has_cors else None
        if asked_before is not None:
            yield self._other(request, asked_before)
            return
        with self._begun(found, request) as (asked, context):
            asked.decided = decided
            async with AsyncExitStack() as stack:
                yield await self._answer(asked, context, partial(self._forward, stack))

    async def _forward(
        self, stack: AsyncExitStack, asked: AskedRequest, context: CallContext
    ) -> HttpResponse:
        await self._identify(asked)
        async with self._limiter:
            context = self._admitted(asked, context)
        return await self._onward.answer(stack, asked, context)

    def snapshot(self) -> GatewayCounts:
        """Return what became of the requests so far, by route."""
        return self.state.counts()

    def _other(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        """Account for a request that is no route's."""
        account = Accounting.of(self.state.others, request, arrival_of(request.headers))
        with account.under_way():
            return account.answered(response)

    def __repr__(self) -> str:
        return f"<GatewayEngine {self._limiter.in_flight} in flight>"

    @contextmanager
    def _begun(
        self, found: Match[CompiledRoute], request: HttpRequest
    ) -> Iterator[tuple[AskedRequest, CallContext]]:
        """Begin the span and the call tree of a request; they end with its answer."""
        entry, arrived = found.target, arrival_of(request.headers)
        context, parent_id = self._caller.root(timeout_s=entry.deadline_s), ""
        trace_id = context.trace_id
        if arrived.trace is not None:
            trace_id, parent_id = arrived.trace.trace_id, arrived.trace.span_id
        marks = arrived.marks(trace_id, self._tracer.propagation)
        with self._tracer.start(
            "gateway", entry.name, trace_id=trace_id, parent_id=parent_id, marks=marks
        ) as span:
            context = msgspec.structs.replace(
                context,
                trace_id=trace_id,
                span_id=span.span_id,
                priority=entry.priority,
                marks=marks,
            )
            headers = [*ALWAYS, (TRACE, trace_id)]
            if arrived.request_id:
                headers += arrived.fields
                span.note("request_id", arrived.request_id)
            if entry.cors is not None:
                headers += entry.cors.fields(request.headers.get_all(ORIGIN))
            traffic = self.state.traffic[entry.name]
            began_s = (context.deadline_s or 0.0) - entry.deadline_s
            account = Accounting(traffic, request, began_s, trace_id, arrived.request_id)
            asked = AskedRequest(entry, found.places, request, span, account, headers)
            try:  # as `under_way` does, without its frames
                with tree_of(context):
                    yield asked, context
            except BaseException as error:
                account.broke_off(error)
                raise
            account.ended()

    async def _answer(
        self,
        asked: AskedRequest,
        context: CallContext,
        answer: Callable[[AskedRequest, CallContext], Awaitable[HttpResponse]],
    ) -> HttpResponse:
        entry, span, account = asked.entry, asked.span, asked.account
        try:
            return asked.answered(await answer(asked, context))
        except RefusedRequest as refusal:
            span.fail(refusal.error)
            told = refusal.error
            account.traffic.why(told)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            span.fail(error)
            account.traffic.why(error)
            told = told_of(error, entry, context.trace_id)
            if isinstance(error, SynchromeshError):
                # It was an outcome before: its traceback leads to frames that hold that.
                error.__traceback__ = None
        return asked.answered(refused(told, asked.headers, trace_id=context.trace_id))

    async def _call(self, asked: AskedRequest, context: CallContext) -> HttpResponse:
        if asked.entry.passage is not None:
            raise ConfigError(
                f"{asked.entry.name} is passed on, and this server hands requests over whole; give "
                "it the engine as its streaming, too"
            )
        await self._identify(asked)
        async with self._limiter:
            context = self._admitted(asked, context)
            if asked.entry.page is not None:
                return asked.entry.page.answer(asked.request, asked.headers)
            if asked.entry.cache is not None:
                return await self._answers.answer(asked, context, self._asked)
            return await self._asked(asked, context)

    async def _asked(self, asked: AskedRequest, context: CallContext) -> HttpResponse:
        if asked.entry.operation is not None:
            return await self._route(asked.entry.operation, asked, context)
        return await self._aggregate(asked, context)

    # -- who may -----------------------------------------------------------------------------------

    def _admitted(self, asked: AskedRequest, context: CallContext) -> CallContext:
        """Return the context of who asks, if they may (G1). Raises RefusedRequest."""
        entry, request, principal = asked.entry, asked.request, asked.principal
        who = principal.name
        missing = sorted(entry.scopes - principal.scopes)
        if missing:
            raise RefusedRequest(
                Forbidden(f"this needs the scope {missing[0]!r}, which the credential lacks")
            )
        buckets = self.state.buckets.get(entry.name)
        if buckets is not None:
            who = who or self._origins.of_request(request.peer, request.headers).client
            now = loop_now()
            wait_s = buckets.take(who, now)
            asked.headers += buckets.allowance(who, now).fields
            if wait_s:
                raise RefusedRequest(
                    RateLimited(
                        f"too many requests for {entry.name}; try again in {wait_s:.3f} s",
                        retry_after_s=wait_s,
                    )
                )
        if principal.name:
            asked.span.note("principal", principal.name)
        return msgspec.structs.replace(context, principal=principal)

    async def _identify(self, asked: AskedRequest) -> None:
        """Find out who asks, unless anybody may; it may wait. Raises RefusedRequest."""
        if not asked.entry.is_public:
            try:
                asked.principal = await self._identification.of(asked.request, asked.entry.kinds)
            except CallError as error:
                raise RefusedRequest(error) from error
            asked.account.principal = asked.principal.name

    # -- what is asked -----------------------------------------------------------------------------

    async def _route(
        self, operation: Operation[..., Any], asked: AskedRequest, context: CallContext
    ) -> HttpResponse:
        request = asked.request
        if request.body and (refused := unread_body(request.headers)):
            # Its own status, that no error class has.
            why, fields = refused
            asked.span.fail(BadRequest(why))
            return problem_response(415, why, headers=[*asked.headers, *fields])
        try:
            if operation.is_command:
                key = key_of(request.headers) or context.key
                context = under(context, key)
                # Told, so that also who sent none can ask again under it.
                asked.headers.append((IDEMPOTENCY_KEY, key))
            is_strict = asked.entry.is_strict
            reads = partial(read_strictly, operation) if is_strict else operation.from_http
            arguments = reads(asked.places, request.query, request.body)
        except BadRequest as error:
            # The operation's name is ours; what is wrong with its arguments is the client's.
            message = error.message.removeprefix(f"{operation.full_name}: ")
            told = BadRequest(message)
            told.mistakes = error.mistakes
            raise RefusedRequest(told) from error
        outcome = await self._asker.ask(
            operation,
            arguments,
            context=context,
            place=(asked.entry.name,),
            stand_in=asked.entry.stand_in,
        )
        if outcome.is_partial:
            if asked.entry.stand_in is not None:
                asked.account.traffic.branched({"": outcome})
            if not outcome.has_data:
                assert outcome.error is not None, "what has no data was refused or failed"
                raise outcome.error
            asked.account.is_degraded = True
            mark = mark_of(outcome)
            asked.span.note("fallback", mark)
            asked.headers.append((FALLBACK, mark))
            _log.info("%s is %s", asked.entry.name, mark)
        # By its value: what the contract does not name stays inside, whatever the service adds.
        return HttpResponse(200, [_JSON, *asked.headers], encode(outcome.value))

    async def _aggregate(self, asked: AskedRequest, context: CallContext) -> HttpResponse:
        entry, request = asked.entry, asked.request
        try:
            if request.query or request.body:
                raise BadRequest("this takes neither a query nor a body")
            given = arguments_of(entry.parts, asked.places)
        except BadRequest as error:
            raise RefusedRequest(error) from error
        plan = AggregatePlan(entry.name, entry.parts, self._asker)
        run = AggregateRun(plan, given, context=context, left=attempts_left(context))
        try:
            composed = await run.answer()
        finally:
            asked.account.traffic.branched(run.outcomes, run.took_s)
        if composed.partial:
            asked.account.is_degraded = True
            names = ", ".join(composed.partial)
            asked.span.note("partial", names)
            asked.headers.append((PARTIAL, names))
            for name in composed.partial:
                _log.info("%s: %s is %s", entry.name, name, run.outcomes[name].status.value)
        return HttpResponse(200, [_JSON, *asked.headers], composed.body)
