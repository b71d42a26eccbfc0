"""An existing ASGI application as a service of a system: its requests, lifespan and context.

What users import of it is in `synchromesh.asgi`. Who runs the application, `joined` or
`application_part`, is what it is a `SystemMember` by.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

from msgspec.structs import replace

from synchromesh.calls import Call, Caller
from synchromesh.calls.dispatcher import below
from synchromesh.calls.tree import tree_of
from synchromesh.calls.wire import ATTEMPTS_USED
from synchromesh.clients import ClientCredential
from synchromesh.clock import loop_now
from synchromesh.context import CREDENTIAL, CallContext, from_headers, new_span_id, own_headers
from synchromesh.errors import (
    ConfigError,
    ContractError,
    DeadlineExceeded,
    DiscoveryError,
    RemoteFailed,
    SynchromeshError,
    TimedOut,
    Unauthenticated,
    UnknownOperation,
)
from synchromesh.http import AsgiApp, Lifespan, Message, Receive, Scope, Send, error_response
from synchromesh.identity import Principal
from synchromesh.propagation import TRACEPARENT, TRACESTATE
from synchromesh.runtime import RealRuntime, Runtime
from synchromesh.service import Deps
from synchromesh.service.context import sent_key
from synchromesh.system.host.joined import Membership
from synchromesh.telemetry import current_span

R = TypeVar("R")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_UNACCEPTABLE = 1008  # RFC 6455, section 7.4.1

_log = logging.getLogger("synchromesh.asgi")
_current: ContextVar[JoinedContext | None] = ContextVar("synchromesh_joined", default=None)


class SystemMember(Protocol):
    """How an application takes part in a system.

    Attributes:
        runtime: that of its process.
        deps: what it has of the system; None until the system has been found once.
        caller: makes its calls; None until then too.
    """

    @property
    def runtime(self) -> Runtime: ...  # noqa: D102

    @property
    def deps(self) -> Deps | None: ...  # noqa: D102

    @property
    def caller(self) -> Caller | None: ...  # noqa: D102


def join(app: AsgiApp, *, service: str, url: str, system: str | Path) -> Joined:
    """Return the application as a service of a system; give this one to the server.

    Args:
        app: the application, such as `FastAPI()`.
        service: its name there, which `[system] joined` of the system has.
        url: where the processes of the system reach it, such as "http://127.0.0.1:8000".
        system: the folder of the system, on this machine; relative to the working directory.

    Raises:
        ConfigError: the url is none.

    Example:
        >>> async def shop(scope, receive, send): ...
        >>> join(shop, service="shop", url="http://127.0.0.1:8000", system="../works")
        <Joined shop>
    """
    return Joined(app, service=service, url=url, system=Path(system))


def current() -> JoinedContext:
    """Return the context of the request that is handled here.

    Raises:
        ContractError: none is, or not by an application that has joined.

    Example:
        >>> async def handler() -> str:
        ...     return current().principal.name or "anonymous"
    """
    found = _current.get()
    if found is None:
        raise ContractError(
            "no request of a joined application is handled here; within one, and where the server "
            "runs what join() returned, there is a context"
        )
    return found


class JoinedContext:
    """The context of a request: its deadline, trace and principal, and calls that go on with them.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh import Contract, query
        >>> class Stock(Contract, Protocol, service="stock", version="1.0"):
        ...     @query("GET /stock/{sku}")
        ...     async def left(self, sku: str) -> int: ...
        >>> async def handler(sku: str) -> int:
        ...     return await current().call(Stock.left(sku), timeout_s=0.3)
    """

    def __init__(self, membership: SystemMember, context: CallContext) -> None:
        self._membership = membership
        self._context = context
        self._ordinals: dict[str, int] = {}

    @property
    def trace_id(self) -> str:
        """The trace that the request belongs to."""
        return self._context.trace_id

    @property
    def principal(self) -> Principal:
        """On whose behalf a service calls; `NOBODY` for its own, and of an ordinary client."""
        return self._context.principal

    @property
    def caller(self) -> str:
        """The service that calls, or "gateway"; "" for an ordinary client."""
        return self._context.caller

    @property
    def key(self) -> str:
        """The idempotency key of a call; of an ordinary client one that is its request's own."""
        return self._context.key

    def remaining_s(self) -> float | None:
        """Return the seconds left until the deadline; None without one."""
        return self._context.remaining_s(loop_now())

    def call(self, call: Call[R], *, timeout_s: float | None = None) -> Coroutine[Any, Any, R]:
        """Call a service of the system and return its answer, within the request's deadline.

        A command has a key that is made from the request's and counts the calls of its operation
        in the order in which they are made here: a request that is repeated repeats no effect.

        Raises:
            Rejection: one of those that the operation declares.
            CallError: it failed; see `errors` for what is known of its outcome.
            DiscoveryError: the system has not been found yet.
        """
        caller, operation, context = self._membership.caller, call.operation, self._context
        if caller is None:
            raise DiscoveryError(
                f"{operation.full_name} was not called: this application has not found its system "
                "yet; the log says why"
            )
        key = ""
        if operation.is_command:
            name = operation.full_name
            ordinal = self._ordinals[name] = self._ordinals.get(name, 0) + 1
            key = sent_key(context.caller, context.key, f"{context.key}/{name}#{ordinal}")
        return caller.call(call, context=replace(context, key=key), timeout_s=timeout_s)

    def __repr__(self) -> str:
        return f"<JoinedContext of trace {self.trace_id}>"


class MemberApp:
    """An application whose requests are those of a member of a system; it has no lifespan here.

    Args:
        service: its name there.
        member: how it takes part.

    Attributes:
        member: the same; another one after each start of its lifespan.
        in_flight: how many requests it is at work on.
    """

    def __init__(self, app: AsgiApp, service: str, member: SystemMember) -> None:
        self._app = app
        self._service = service
        self.member = member
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection of an ASGI server."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        self.in_flight += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self.in_flight -= 1

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = loop_now()
        answer = _Answer(scope["type"], send)
        try:
            parent_id, deadline_s, context = self._arriving(scope["headers"], began_s)
        except SynchromeshError as error:
            await answer.refuse(error)
            return
        entered = _current.set(JoinedContext(self.member, context))
        spanned = current_span.set(context)
        try:
            # A tunnel lasts as long as it lasts.
            async with asyncio.timeout_at(None if answer.is_tunnel else deadline_s) as bound:
                with tree_of(context) as left:
                    answer.used = (lambda: left.used) if context.caller else None
                    await self._app(scope, receive, answer.send)
        except TimeoutError:
            if not bound.expired() or answer.status:
                raise
            what = f"{scope['method']} of {self._service} was cancelled at its deadline"
            await answer.refuse(TimedOut(f"{what}; what it did is unknown"))
        finally:
            _current.reset(entered)
            current_span.reset(spanned)
            self._record(scope, parent_id, context, began_s, answer)

    def _arriving(
        self, pairs: Iterable[tuple[bytes, bytes]], now: float
    ) -> tuple[str, float | None, CallContext]:
        """Return the sender's span, until when it waits, and the context of the handler.

        Raises:
            Unauthenticated: the credential is foreign, expired, or for another service.
            Forbidden: a client from outside may not call all of this service.
            DeadlineExceeded: the sender waits no longer.
            UnknownOperation: it is the undo of a command.
            BadRequest: what travels with the call is malformed.
        """
        runtime, deps, pairs = self.member.runtime, self.member.deps, list(pairs)
        is_ours = any(name == CREDENTIAL.encode() for name, _ in pairs)
        own = own_headers(pairs) if is_ours else _trace_of(pairs)
        now_us, span_id = runtime.wall_us(), new_span_id(runtime.rng)
        if not is_ours:
            sent = from_headers(own, now=now, wall_us=now_us, rng=runtime.rng)
            parent_id = sent.span_id if TRACEPARENT in own else ""
            if self.member.caller is None:
                return parent_id, None, replace(sent, span_id=span_id)
            # The root of a tree, which has its extra attempts, and a key of its own.
            root = self.member.caller.root(trace_id=sent.trace_id)
            return parent_id, None, replace(root, span_id=span_id, caller="", marks=sent.marks)
        if deps is None:
            raise Unauthenticated(f"{self._service!r} has not found its system yet; ask again")
        who = deps.signer.admit(own[CREDENTIAL], audience=self._service, now_us=now_us)
        if isinstance(who, ClientCredential):
            who.check(self._service)  # which operation a request is, only the application knows
        sent = from_headers(
            own, now=now, wall_us=now_us, rng=runtime.rng, propagation=deps.propagation
        )
        if sent.deadline_s is not None and now >= sent.deadline_s:
            raise DeadlineExceeded(f"the deadline passed before {self._service!r} began; not run")
        if sent.undoes:
            raise UnknownOperation(
                f"{self._service!r} is an application that has joined, and undoes nothing by its "
                "key; let a step there come after the pivot, or compensate it by a step of its own"
            )
        return sent.span_id, sent.deadline_s, below(sent, span_id, who, now)

    def _record(
        self, scope: Scope, parent_id: str, context: CallContext, began_s: float, answer: _Answer
    ) -> None:
        """Record the span of a request, under the name of its route where the framework says it."""
        deps = self.member.deps
        if deps is None:
            return
        method = str(scope.get("method", "WEBSOCKET"))
        name = f"{method} {getattr(scope.get('route'), 'path', '')}".strip()
        deps.tracer(self._service).recorder("handle", name)(
            context.trace_id, context.span_id, parent_id, began_s,
            loop_now(), answer.outcome, None, context.marks.flags,
        )  # fmt: skip


class Joined:
    """An application as a service of a system; made by `join`, run by an ASGI server.

    Where the system runs it itself, it belongs to it by that, and `url` and `system` are not used.

    Example:
        >>> async def shop(scope, receive, send): ...
        >>> joined = join(shop, service="shop", url="http://127.0.0.1:8000", system=".")
        >>> async def at_night(call: Call[R]) -> R:  # outside a request
        ...     return await joined.root(timeout_s=5.0).call(call)
    """

    def __init__(self, app: AsgiApp, *, service: str, url: str, system: Path) -> None:
        self._joining: Callable[[], Membership] = lambda: Membership(
            service, url, system.resolve(), RealRuntime()
        )
        self._membership = self._joining()
        self._has_lifespan = False
        self._service = service
        self._app = app
        self._requests = MemberApp(app, service, self._membership)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection of an ASGI server."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if not self._has_lifespan and scope["type"] in ("http", "websocket"):
            self._has_lifespan = True  # it is said once
            _log.warning(
                "the server of %s runs no lifespan, so that it is not registered; switch it on, "
                "such as with: uvicorn --lifespan on",
                self._service,
            )
        await self._requests(scope, receive, send)

    def taken_by(self, member: SystemMember) -> AsgiApp:
        """Return the application within, for the system that runs it; `root` goes on to work."""
        self._requests.member = member
        return self._app

    def root(self, *, timeout_s: float | None = None) -> JoinedContext:
        """Return the context of a new call tree, for what is done outside requests.

        Raises:
            DiscoveryError: the system has not been found yet.
        """
        member = self._requests.member
        caller = member.caller
        if caller is None:
            raise DiscoveryError("this application has not found its system yet; the log says why")
        return JoinedContext(member, caller.root(timeout_s=timeout_s))

    def __repr__(self) -> str:
        return f"<Joined {self._service}>"

    # -- lifespan --------------------------------------------------------------------------------

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        lifespan = Lifespan(self._app, scope)
        await receive()
        try:
            await lifespan.startup()
        except ConfigError as error:
            await send({"type": "lifespan.startup.failed", "message": error.message})
            return
        self._has_lifespan = True
        # Whoever imported this may have been forked since: ids must not be those of a sibling.
        self._requests.member = self._membership = self._joining()
        await self._membership.start()
        try:
            async with _heard(self._membership.drain):
                await send({"type": "lifespan.startup.complete"})
                await receive()
        finally:
            await self._membership.stop()
        await lifespan.shutdown()
        await send({"type": "lifespan.shutdown.complete"})


class _Answer:
    """What an application sends, and what is sent in its place.

    Attributes:
        status: of the answer that has begun; 0 before that.
        used: says how many extra attempts were spent below; None where nobody is told.
    """

    def __init__(self, kind: str, send: Send) -> None:
        self.is_tunnel = kind == "websocket"
        self.status = 0
        self.used: Callable[[], int] | None = None
        self._send = send

    @property
    def outcome(self) -> str:
        """The status of the span: "ok", or the code of an error."""
        if self.status == TimedOut.status:
            return TimedOut.code
        return "ok" if self.is_tunnel or 0 < self.status < 500 else RemoteFailed.code

    async def send(self, message: Message) -> None:
        """Send a message of the application."""
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            used = 0 if self.used is None else self.used()
            if used:
                told = (ATTEMPTS_USED.encode(), str(used).encode())
                message = {**message, "headers": [*message.get("headers", ()), told]}
        await self._send(message)

    async def refuse(self, error: SynchromeshError) -> None:
        """Answer with an error as every service does (RFC 9457); a WebSocket is not opened."""
        if self.is_tunnel:
            await self._send({"type": "websocket.close", "code": _UNACCEPTABLE})
            return
        answer = error_response(error)
        fields = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in answer.headers]
        self.status = answer.status
        start = {"type": "http.response.start", "status": answer.status, "headers": fields}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": answer.body})


def _trace_of(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the trace of a request of a client; one that is told twice is none."""
    found: dict[str, list[str]] = {TRACEPARENT: [], TRACESTATE: []}
    for name, value in pairs:
        if name in (b"traceparent", b"tracestate"):
            found[name.decode()].append(value.decode("latin-1"))
    if len(found[TRACEPARENT]) != 1:
        return {}
    return {name: ",".join(values) for name, values in found.items() if values}


@asynccontextmanager
async def _heard(drain: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Have an instance leave the list when its server is told to end.

    ASGI tells of that only when the server has stopped accepting and has drained: until then
    callers would be sent to a port that is closed. So a handler goes before that of the server,
    which does with the signal what it does. Where the server has none, or not in this thread, it is
    left so.
    """
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    def leave() -> None:
        tasks.add(asyncio.create_task(drain()))

    def before(server: Callable[[int, FrameType | None], object]) -> Callable[..., None]:
        def handler(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(leave)
            server(number, frame)

        return handler

    put: dict[signal.Signals, tuple[Any, Any]] = {}
    for number in SIGNALS:
        theirs = signal.getsignal(number)
        if callable(theirs):
            try:
                signal.signal(number, before(theirs))
            except ValueError:  # a signal has its handler in the main thread alone
                break
            put[number] = (signal.getsignal(number), theirs)
    try:
        yield
    finally:
        for number, (ours, theirs) in put.items():
            if signal.getsignal(number) is ours:
                signal.signal(number, theirs)
        await asyncio.gather(*tasks)
