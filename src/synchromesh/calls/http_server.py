"""Calls over HTTP, the receiving side: routes of contracts to the dispatchers of services.

Requests that came whole are answered from their bytes: the context is read from the raw fields,
the dispatcher runs in an eager task, and the answer is put together once. What is out of the
ordinary (an unknown route, a body in chunks) takes the way of every other handler, which says the
same in the same words.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Any

from synchromesh.calls.admission import refuse_undo
from synchromesh.calls.contract import Operation
from synchromesh.calls.dispatcher import Dispatcher
from synchromesh.calls.routes import Match, NoMatch, Routes
from synchromesh.calls.wire import ATTEMPTS_USED, AWAY_MS, Receiver, Reply, Request
from synchromesh.clock import loop_clock, loop_now
from synchromesh.context import CREDENTIAL, from_headers, own_headers
from synchromesh.eager import TaskStarter, starter
from synchromesh.errors import (
    MethodNotAllowed,
    RemoteFailed,
    SynchromeshError,
    TimedOut,
    UnknownOperation,
)
from synchromesh.http import (
    HttpExchange,
    HttpRequest,
    HttpResponse,
    RawPair,
    error_response,
    problem_response,
    status_line,
)
from synchromesh.propagation import SAMPLE_ALL, Propagation
from synchromesh.runtime import Runtime
from synchromesh.timers import Timers
from synchromesh.wheel import Deadline

_log = logging.getLogger("synchromesh.calls")

_JSON = ("content-type", "application/json")
_PROBLEM = ("content-type", "application/problem+json")
_OK_HEAD = status_line(200) + b"content-type: application/json\r\ncontent-length: %d\r\n"
# What `Routes` find is kept by method and target for this many of them: paths without places.
_FOUND_MAX = 1024

_Target = tuple[Receiver, Operation[..., Any]]


class HttpEdge:
    """Answers the HTTP requests of one server for the services that are mounted on it.

    It is a handler for `http.HttpServer`, which bounds sizes and times. Unknown paths are 404,
    other methods of a known path 405 with `Allow`; errors are problem details (RFC 9457).
    """

    def __init__(self, *, runtime: Runtime, propagation: Propagation = SAMPLE_ALL) -> None:
        self._propagation = propagation
        self._wall_us, self._rng = runtime.wall_us, runtime.rng
        self._routes: Routes[_Target] = Routes()
        self._found: dict[tuple[bytes, bytes], Match[_Target]] = {}
        self._timers = Timers()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clock: Callable[[], float]
        self._start: TaskStarter

    def mount(
        self, receiver: Receiver, operations: Iterable[Operation[..., Any]], *, prefix: str = ""
    ) -> None:
        """Answer the routes of `operations` by a receiver, under a prefix such as "/billing".

        Raises:
            ConfigError: a route is taken by another operation; mount one of them under a prefix.
        """
        for operation in operations:
            self._routes.add(operation.method, prefix + operation.path, (receiver, operation))

    def begin_exchange(self, exchange: HttpExchange) -> bool:
        """Answer a request from its bytes; False where no route has it."""
        path, _, query = exchange.target.partition(b"?")
        found = self._found.get((exchange.method, path)) or self._find(exchange.method, path)
        if found is None:
            return False
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._clock, self._start = loop, loop_clock(loop), starter(loop)
        now, receiver = self._clock(), found.target[0]
        try:
            request = self._read(found, exchange.pairs, query.decode("latin-1"), exchange.body, now)
        except SynchromeshError as error:
            _answer(exchange, Reply.of_error(error))
            return True
        if isinstance(receiver, Dispatcher):
            # It is cancelled from here, so that it needs no timer of its own.
            dispatching = receiver.dispatch(request, self._clock)
        else:
            dispatching = receiver.dispatch(request)
        task = self._start(dispatching, context=copy_context())
        if task.done():
            _answer_by(exchange, task)
        else:
            _Work(exchange, task, request, self._timers).begin(loop)
        return True

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer one request."""
        found = self._routes.find(request.method, request.path)
        if isinstance(found, NoMatch):
            return _refuse(request, found)
        pairs = [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers
        ]
        try:
            now = loop_now()
            call = self._read(found, pairs, request.query, request.body, now)
        except SynchromeshError as error:
            return _response(Reply.of_error(error))
        return _response(await found.target[0].dispatch(call))

    def _read(
        self, found: Match[_Target], pairs: list[RawPair], query: str, body: bytes, now: float
    ) -> Request:
        """Return the call that a request is. Raises what it is refused by."""
        receiver, operation = found.target
        own = own_headers(pairs)
        credential = own.get(CREDENTIAL, "")
        # Before a byte of the arguments is looked at: whoever may not call is told nothing of them.
        who = receiver.authenticate(credential, now, operation)
        context = from_headers(
            own,
            now=now,
            wall_us=self._wall_us(),
            rng=self._rng,
            propagation=self._propagation,
        )
        if context.undoes:
            refuse_undo(who, operation)
        # Where a key is undone its record holds the arguments.
        arguments = b"{}" if context.undoes else operation.from_http(found.places, query, body)
        return Request(operation, arguments, context, credential)

    def _find(self, method: bytes, path: bytes) -> Match[_Target] | None:
        found = self._routes.find(method.decode("ascii"), path.decode("latin-1"))
        if isinstance(found, NoMatch):
            return None
        if not found.places and len(self._found) < _FOUND_MAX:
            self._found[method, path] = found
        return found


class _Work(Deadline):
    """A handler that goes on after its first step; answers when it ends, or at its deadline."""

    __slots__ = ("_exchange", "_operation", "_task", "_timers")

    def __init__(
        self, exchange: HttpExchange, task: asyncio.Task[Reply], request: Request, timers: Timers
    ) -> None:
        deadline_s = request.context.deadline_s
        super().__init__(math.inf if deadline_s is None else deadline_s)
        self._exchange = exchange
        self._task = task
        self._operation = request.operation
        self._timers = timers

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for the end."""
        self._exchange.listener = self
        self._timers.add(self, loop)
        self._task.add_done_callback(self._end)

    def on_lost(self) -> asyncio.Task[Any] | None:
        """Cancel the handler: its client has gone."""
        self._timers.drop(self)
        self._task.cancel()
        return self._task

    def on_room(self) -> None:
        """Need no room: the answer is one write."""

    def expire(self) -> None:
        """Cancel the handler at its deadline, and answer."""
        # One that ended in this very turn of the loop is in time.
        if not self._task.done():
            self._task.cancel()
            name = self._operation.full_name
            error = TimedOut(f"{name} was cancelled at its deadline; what it did is unknown")
            _answer(self._exchange, Reply.of_error(error))

    def _end(self, task: asyncio.Task[Reply]) -> None:
        self._timers.drop(self)
        self._exchange.listener = None  # exchange and work would keep each other, and the task
        if not self._exchange.is_lost:
            _answer_by(self._exchange, task)
        elif not task.cancelled():
            task.exception()  # nobody waits for it; the dispatcher has logged it


def _answer_by(exchange: HttpExchange, task: asyncio.Task[Reply]) -> None:
    """Answer with the result of a dispatcher's task."""
    try:
        reply = task.result()
    except asyncio.CancelledError:
        _log.error("a handler was cancelled: %r", exchange)
        reply = _FAILED
    except Exception:  # noqa: BLE001 - whatever it is, the client gets an answer
        _log.exception("a handler failed: %r", exchange)
        reply = _FAILED
    _answer(exchange, reply)


# What is less is not told: nearly every answer then has the same head.
TOLD_S = 0.001


def _answer(exchange: HttpExchange, reply: Reply) -> None:
    body = reply.body
    is_plain = not reply.attempts_used and reply.retry_after_s is None and reply.away_s < TOLD_S
    if reply.status == 200 and is_plain:
        exchange.answer(_OK_HEAD % len(body), body)
        return
    lines = [status_line(reply.status)]
    lines += [f"{name}: {value}\r\n".encode("latin-1") for name, value in _fields(reply)]
    lines.append(b"content-length: %d\r\n" % len(body))
    exchange.answer(b"".join(lines), body)


def _fields(reply: Reply) -> list[tuple[str, str]]:
    headers = [_JSON if reply.is_answer else _PROBLEM]
    if reply.attempts_used:
        headers.append((ATTEMPTS_USED, str(reply.attempts_used)))
    if reply.away_s >= TOLD_S:
        headers.append((AWAY_MS, str(int(reply.away_s * 1000))))
    if reply.retry_after_s is not None:
        headers.append(("retry-after", str(math.ceil(reply.retry_after_s))))
    return headers


def _response(reply: Reply) -> HttpResponse:
    return HttpResponse(reply.status, _fields(reply), reply.body)


def _refuse(request: HttpRequest, found: NoMatch) -> HttpResponse:
    if not found.allowed:
        return error_response(
            UnknownOperation(
                f"no operation answers {request.method} {request.path[:200]}; "
                "look the route up in the contract of the service"
            )
        )
    allowed = ", ".join(found.allowed)
    return problem_response(
        MethodNotAllowed.status,
        f"{request.path[:200]} takes {allowed}, not {request.method}",
        code=MethodNotAllowed.code,
        headers=[("allow", allowed)],
    )


_FAILED = Reply.of_error(
    RemoteFailed("the handler failed; the reason is in the log of this service")
)
