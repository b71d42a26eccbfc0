"""One instance of an upstream, as a route of a gateway reaches it."""

from __future__ import annotations

from collections.abc import Callable

from synchromesh.calls.forwarding import by_http
from synchromesh.calls.http_client import HttpTransport
from synchromesh.discovery import Endpoint
from synchromesh.gateway.leading import Leading
from synchromesh.http import HttpPool


class ForwardPlace:
    """One instance of an upstream, as a route reaches it.

    Args:
        endpoint: the instance, as it is listed.
        method, path: of the route, as the upstream has it.
        leading: makes what tells where the instance's answers lead.
    """

    __slots__ = (
        "endpoint",
        "host",
        "leading",
        "line",
        "lines_end",
        "noted",
        "pool",
        "port",
        "prefix",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        transport: HttpTransport,
        method: bytes,
        path: bytes,
        leading: Callable[[str], Leading],
    ) -> None:
        self.endpoint = endpoint
        place = transport.place(by_http(endpoint))
        self.leading = leading(by_http(endpoint).url)
        self.pool: HttpPool = transport.pool
        self.host, self.port = place.host, place.port
        self.prefix = place.prefix.encode("ascii")
        self.lines_end = f" HTTP/1.1\r\nhost: {place.name}\r\nvia: 1.1 synchromesh\r\n".encode()
        # The lines of a request whose path has no place, and that has no query.
        self.line = b"%b %b%b%b" % (method, self.prefix, path, self.lines_end)
        self.noted = {"instance": endpoint.instance, "attempts": "1"}
