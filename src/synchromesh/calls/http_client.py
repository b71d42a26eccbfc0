"""Calls over HTTP, the sending side."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from urllib.parse import urlsplit

from synchromesh.calls.wire import ATTEMPTS_USED, Passing, Reply, Request
from synchromesh.context import CREDENTIAL, SENT_AT, CallContext, to_headers
from synchromesh.discovery import Endpoint
from synchromesh.errors import ConfigError
from synchromesh.http import HttpPool, HttpResponse
from synchromesh.runtime import Runtime

_RETRY_AFTER_MAX_S = 3600.0


class HttpTransport:
    """Sends requests over a pool of connections, by the routes of their contract.

    Args:
        pool: holds the connections; whoever made it closes it.
        runtime: the wall clock, for `Sent-At`.
    """

    def __init__(self, pool: HttpPool, *, runtime: Runtime) -> None:
        self._pool = pool
        self._runtime = runtime
        self._places: dict[str, tuple[str, int, str]] = {}

    async def send(self, endpoint: Endpoint, request: Request) -> Reply:
        """Send a request and return its reply, whatever its status.

        Raises:
            ConnectFailed, Shed: nothing was sent.
            ConnectionLost, TimedOut: it was sent, and no answer will come.
        """
        host, port, prefix = self._places.get(endpoint.url) or self._place(endpoint)
        operation, context = request.operation, request.context
        now = asyncio.get_running_loop().time()
        headers = self._headers(context, request.credential, now)
        if context.undoes:
            target, body = operation.path, b""
        else:
            target, body = operation.to_http(request.arguments)
        if body:
            headers["content-type"] = "application/json"
        response = await self._pool.request(
            host,
            port,
            operation.method,
            prefix + target,
            headers.items(),
            body,
            timeout_s=context.remaining_s(now),
            is_idempotent=bool(context.key) or not operation.is_command,
        )
        return reply_of(response, response.body)

    def forward(
        self, endpoint: Endpoint, passing: Passing
    ) -> AbstractAsyncContextManager[HttpResponse]:
        """Send a request as it is, and give its answer with its head.

        Raises:
            ConnectFailed, Shed: nothing was sent.
            ConnectionLost, TimedOut: it was sent, and no answer will come.
        """
        host, port, prefix = self._places.get(endpoint.url) or self._place(endpoint)
        now = asyncio.get_running_loop().time()
        headers = self._headers(passing.context, passing.credential, now)
        if passing.body is not None:
            # The time counts from the end of the body on, which may long be under way.
            headers.pop(SENT_AT, None)
        return self._pool.stream(
            host,
            port,
            passing.method,
            prefix + passing.target,
            (*passing.headers, *headers.items()),
            passing.body,
            timeout_s=passing.timeout_s,
            is_idempotent=passing.is_idempotent,
        )

    def _headers(self, context: CallContext, credential: str, now: float) -> dict[str, str]:
        headers = to_headers(context, now=now, wall_us=self._runtime.wall_us())
        if credential:
            headers[CREDENTIAL] = credential
        return headers

    def __repr__(self) -> str:
        return f"<HttpTransport over {self._pool!r}>"

    def _place(self, endpoint: Endpoint) -> tuple[str, int, str]:
        try:
            parts = urlsplit(endpoint.url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not host or parts.scheme != "http" or parts.query or parts.fragment:
            raise ConfigError(
                f"instance {endpoint.instance!r} has the url {endpoint.url!r}; expected "
                '"http://host:port", with a prefix of the path at most'
            )
        place = (host, port or 80, parts.path.rstrip("/"))
        if len(self._places) >= 1024:
            self._places.clear()  # instances come and go; a few of them are parsed again
        self._places[endpoint.url] = place
        return place


def reply_of(response: HttpResponse, body: bytes) -> Reply:
    """Return what an HTTP answer says to a caller."""
    used = response.headers.get(ATTEMPTS_USED) or ""
    wait = response.headers.get("retry-after") or ""
    return Reply(
        response.status,
        body,
        int(used) if _is_count(used) else 0,
        # RFC 9110 allows a date as well; a caller that retries within seconds has no use for it.
        min(float(wait), _RETRY_AFTER_MAX_S) if _is_count(wait) else None,
    )


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9
