"""Calls over HTTP, the sending side."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import urlsplit

from synchromesh.calls.contract import Operation
from synchromesh.calls.wire import ATTEMPTS_USED, AWAY_MS, Hop, Passing, Reply, Request
from synchromesh.clock import loop_now
from synchromesh.context import CREDENTIAL, SENT_AT, CallContext, header_lines, to_headers
from synchromesh.discovery import Endpoint
from synchromesh.eager import EagerFuture
from synchromesh.errors import ConfigError, DeadlineExceeded, TimedOut
from synchromesh.http import (
    ClientExchange,
    Headers,
    HttpPool,
    HttpResponse,
    RawPair,
    asked_to_switch,
    request_head,
)
from synchromesh.resilience import DeadlinePassed
from synchromesh.runtime import Runtime

# The ports that a Host leaves out, by scheme (RFC 9110, section 4.2).
# What our own services, and many others, call the body of an error (RFC 9457).
PROBLEM = "application/problem+json"
_PORTS = {"http": 80, "https": 443}
_RETRY_AFTER_MAX_S = 3600.0
_PLACES_MAX = 1024
_ATTEMPTS_USED = ATTEMPTS_USED.encode()
_AWAY_MS = AWAY_MS.encode()
_RETRY_AFTER = b"retry-after"
# Their requests state a length even where it is none.
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_JSON_LINE = b"content-type: application/json\r\n"
# What a server that is not ours is told: it may else answer XML, or by gzip (RFC 9110, section
# 12.5.3: without the field any coding will do), and many refuse who does not say what it is.
_TO_STRANGERS = Headers([
    ("accept", "application/json, */*;q=0.1"),
    ("accept-encoding", "identity"),
    ("user-agent", "synchromesh"),
])  # fmt: skip


class HttpTransport:
    """Sends requests over a pool of connections, by the routes of their contract.

    A request is one write: its request line is kept by instance and operation, the line of its
    credential on the hop, and only what differs from call to call is put together.

    Args:
        pool: holds the connections; whoever made it closes it.
        runtime: the wall clock, for `Sent-At`.

    Attributes:
        pool: the same.
    """

    keeps_time = True

    def __init__(self, pool: HttpPool, *, runtime: Runtime) -> None:
        self.pool = pool
        self._wall_us = runtime.wall_us
        self._places: dict[str, Place] = {}

    async def send(self, endpoint: Endpoint, request: Request) -> Reply:
        """Send a request and return its reply, whatever its status.

        Raises:
            DeadlineExceeded, ConnectFailed, Shed: nothing was sent.
            ConnectionLost: it was sent, and no answer will come.
            DeadlinePassed: it was sent, and there was no answer when it was due.
        """
        loop = asyncio.get_running_loop()
        call = _CallExchange(EagerFuture(loop))
        self.start(endpoint, request, call, loop_now())
        try:
            return await call.reply
        except (asyncio.CancelledError, GeneratorExit):
            # A coroutine that is thrown away may have outlived its loop.
            if not loop.is_closed():
                call.cancel()
            raise
        finally:
            del call  # it keeps an error that has this frame in its traceback

    def start(self, endpoint: Endpoint, request: Request, call: ClientExchange, now: float) -> None:
        """Send a request by an exchange, which is told what comes of it.

        Raises:
            DeadlineExceeded: nothing was sent.
        """
        place = self._places.get(endpoint.url) or self.place(endpoint)
        operation, context, hop = request.operation, request.context, request.hop
        due_s = request.due_s
        if context.deadline_s is not None and context.deadline_s < due_s:
            due_s = context.deadline_s
        if due_s <= now:
            raise DeadlineExceeded(f"no time was left for the call to {place.name}; not sent")
        if context.undoes:
            target, body = operation.path, b""
        elif request.arguments == b"{}" and operation in place.bare:
            # Its line is kept, and it has no body: nothing of it has to be put together.
            target, body = operation.path, b""
        else:
            target, body = operation.to_http(request.arguments)
            if request.arguments == b"{}" and target == operation.path and not body:
                place.bare.add(operation)
        line = place.lines.get((operation, target)) or place.line(operation, target)
        if hop is None:
            signed = _credential_line(request.credential)
        else:
            signed = hop.kept.get("http") or keep_line(hop)
        states_length = body or operation.method in _WITH_BODY
        wire = b"".join((
            line,
            signed,
            _JSON_LINE if body else b"",
            header_lines(context, now=now, wall_us=self._wall_us()),
            b"content-length: %d\r\n\r\n" % len(body) if states_length else b"\r\n",
            body,
        ))  # fmt: skip
        call.wire, call.due_s = wire, due_s
        call.is_idempotent = bool(context.key) or not operation.is_command
        self.pool.send(place.host, place.port, call)

    def forward(
        self, endpoint: Endpoint, passing: Passing
    ) -> AbstractAsyncContextManager[HttpResponse]:
        """Send a request as it is, and give its answer with its head.

        Raises:
            ConnectFailed, Shed, RateLimited: nothing was sent.
            ConnectionLost, TimedOut: it was sent, and no answer will come.
        """
        place = self._places.get(endpoint.url) or self.place(endpoint)
        now = loop_now()
        headers = self._headers(passing.context, passing.credential, now)
        if passing.body is not None:
            # The time counts from the end of the body on, which may long be under way.
            headers.pop(SENT_AT, None)
        if passing.quiet_s is not None:
            return asked_to_switch(
                self.pool.network,
                place.host,
                place.port,
                place.prefix + passing.target,
                (*passing.headers, *headers.items()),
                timeout_s=passing.timeout_s,
                quiet_s=passing.quiet_s,
                limits=self.pool.limits,
            )
        exchange = self.pool.streamed(
            place.host,
            place.port,
            passing.method,
            place.prefix + passing.target,
            (*passing.headers, *headers.items()),
            passing.body,
            timeout_s=passing.timeout_s,
            is_idempotent=passing.is_idempotent,
        )
        exchange.client = passing.client
        return self.pool.sent(place.host, place.port, exchange)

    def _headers(self, context: CallContext, credential: str, now: float) -> dict[str, str]:
        headers = to_headers(context, now=now, wall_us=self._wall_us())
        if credential:
            headers[CREDENTIAL] = credential
        return headers

    def __repr__(self) -> str:
        return f"<HttpTransport over {self.pool!r}>"

    def place(self, endpoint: Endpoint) -> Place:
        """Return where an instance is. Raises ConfigError where its url does not say that."""
        place = self._places.get(endpoint.url)
        if place is not None:
            return place
        try:
            parts = urlsplit(endpoint.url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not host or parts.scheme not in _PORTS or parts.query or parts.fragment:
            raise ConfigError(
                f"instance {endpoint.instance!r} has the url {endpoint.url!r}; expected "
                '"http://host:port", with a prefix of the path at most'
            )
        default = _PORTS[parts.scheme]
        place = Place(host, port or default, parts.path.rstrip("/"), default)
        if len(self._places) >= _PLACES_MAX:
            self._places.clear()  # instances come and go; a few of them are parsed again
        self._places[endpoint.url] = place
        return place


class Place:
    """Where an instance is, and the request lines of the operations that are called there.

    Attributes:
        name: `host:port`, or `host` alone at the default port, as a Host.
        prefix: of each path there.
        lines: the request lines that are kept.
        bare: the operations that have neither arguments nor a body.
    """

    __slots__ = ("bare", "host", "lines", "name", "port", "prefix")

    def __init__(self, host: str, port: int, prefix: str, default: int) -> None:
        self.host = host
        self.port = port
        self.prefix = prefix
        shown = f"[{host}]" if ":" in host else host
        self.name = shown if port == default else f"{shown}:{port}"
        self.bare: set[Operation[..., Any]] = set()
        self.lines: dict[tuple[Operation[..., Any], str], bytes] = {}

    def line(self, operation: Operation[..., Any], target: str) -> bytes:
        """Return request line and Host of an operation; it is kept where no argument is in it."""
        told = _TO_STRANGERS if operation.is_external else Headers()
        line = request_head(self.name, operation.method, self.prefix + target, told)
        if target == operation.path:
            self.lines[operation, target] = line
        return line


class _CallExchange(ClientExchange):
    """One call under way, and the future by which its caller is released."""

    def __init__(self, reply: EagerFuture[Reply]) -> None:
        self.reply = reply  # the rest is for `HttpTransport.start` to set

    def on_answer(self, status: int, pairs: list[RawPair], body: bytes) -> None:
        """Release the caller."""
        if self.reply.done():
            return
        self.reply.set_result(reply_of_wire(status, pairs, body))

    def on_error(self, error: Exception) -> None:
        """Release the caller by an error."""
        if not self.reply.done():
            # What it is called at its end is the edge's to say, which knows whose time it was.
            late = isinstance(error, TimedOut)
            self.reply.set_exception(DeadlinePassed(self.due_s) if late else error)


def spent(pairs: list[RawPair]) -> tuple[int, float]:
    """Return what an answer says that it took: extra attempts, and seconds of waiting for others.

    Of fields that are repeated the first counts.
    """
    used, away_ms = 0, 0
    for name, value in reversed(pairs):
        if name == _ATTEMPTS_USED:
            used = int(value) if _is_count(value) else 0
        elif name == _AWAY_MS:
            away_ms = int(value) if _is_count(value) else 0
    return used, away_ms / 1000


def reply_of_wire(status: int, pairs: list[RawPair], body: bytes) -> Reply:
    """Return what an answer as it came says to a caller."""
    used, wait_s, away_ms = 0, None, 0
    # Backwards, so that of fields that are repeated the first counts.
    for name, value in reversed(pairs):
        if name == _ATTEMPTS_USED:
            used = int(value) if _is_count(value) else 0
        elif name == _RETRY_AFTER:
            wait_s = _wait_of(value)
        elif name == _AWAY_MS:
            away_ms = int(value) if _is_count(value) else 0
    return Reply(status, body, used, wait_s, away_s=away_ms / 1000)


def is_problem(response: HttpResponse) -> bool:
    """Tell whether an answer says of itself that it is a problem (RFC 9457)."""
    kind = response.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower() == PROBLEM


def is_problem_on_wire(pairs: list[RawPair]) -> bool:
    """Tell the same of fields as they came."""
    kind = next((value for name, value in pairs if name == b"content-type"), b"")
    return kind.partition(b";")[0].strip().lower() == PROBLEM.encode()


def reply_of(response: HttpResponse, body: bytes) -> Reply:
    """Return what an HTTP answer says to a caller."""
    used = response.headers.get(ATTEMPTS_USED, "").encode("latin-1")
    wait = response.headers.get("retry-after", "").encode("latin-1")
    away = response.headers.get(AWAY_MS, "").encode("latin-1")
    away_s = int(away) / 1000 if _is_count(away) else 0.0
    count = int(used) if _is_count(used) else 0
    return Reply(response.status, body, count, _wait_of(wait), away_s=away_s)


def keep_line(hop: Hop) -> bytes:
    """Put a hop's credential on a header line, and keep it on the hop as "http"."""
    line = hop.kept["http"] = _credential_line(hop.credential)
    return line


def _credential_line(credential: str) -> bytes:
    if not credential:
        return b""
    # Checked as any header: the line is put between others.
    (value,) = Headers([(CREDENTIAL, credential)]).get_all(CREDENTIAL)
    return f"{CREDENTIAL}: {value}\r\n".encode("latin-1")


def _wait_of(text: bytes) -> float | None:
    # RFC 9110 allows a date as well; a caller that retries within seconds has no use for it.
    return min(float(text), _RETRY_AFTER_MAX_S) if _is_count(text) else None


def _is_count(text: bytes) -> bool:
    return text.isdigit() and len(text) <= 9
