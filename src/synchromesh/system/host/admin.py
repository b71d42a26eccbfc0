"""The admin listener of a process: HTTP beside everything else, for those who watch over it.

    /healthz         200 while the event loop turns, also while the process drains
    /readyz          200 where every part of the process takes requests, else 503 and why
    /readyz/orders   the same of one part
    /metrics         its metrics, for Prometheus (`metrics_page`)

It is asked for no credential, so that it listens on loopback unless it is configured otherwise; and
it is never a server that clients come to. What is shown under other paths is added by `page`, and
what may change something, by `room`, which asks for a credential itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from socket import AF_INET, AF_INET6, create_server
from urllib.parse import unquote

from synchromesh.codec import encode
from synchromesh.errors import ConfigError
from synchromesh.http import HttpRequest, HttpResponse, HttpServer, Limits, problem_response
from synchromesh.network import Network
from synchromesh.system.config.admin_section import AdminSection

HEALTH, READY = "/healthz", "/readyz"
# Those who watch are few. One that stays connected must not shut the others out.
_LIMITS = Limits(connections_max=64)
# A process that has not let go of its port yet is asked again so often.
_TAKEN_S = 0.1
_FIELDS = (("content-type", "application/json"), ("cache-control", "no-store"))

Page = Callable[[HttpRequest], Awaitable[HttpResponse]]
# Says why a part takes no requests; "" where it takes them.
WhyNot = Callable[[], str]


class AdminListener:
    """Tells of one process, from before its parts are started until they have ended.

    Args:
        host, port: where it listens; port 0 takes any free one.
        wall_us: the wall clock.
        scheme: of its URL: "https" where the network secures it.

    Attributes:
        is_draining: whether the process takes nothing new any more.
        is_up: whether all its parts have been started once.
        parts: says of each part why it takes no requests, by name.

    Example:
        >>> from synchromesh.runtime import RealRuntime
        >>> admin = AdminListener(RealRuntime().network, "127.0.0.1", 0)
        >>> admin.ready().status, admin.ready().body
        (503, b'{"parts":{},"status":"starting"}')
        >>> admin.is_up = True
        >>> admin.ready().status, admin.ready().body
        (200, b'{"parts":{},"status":"ready"}')
    """

    def __init__(
        self,
        network: Network,
        host: str,
        port: int,
        wall_us: Callable[[], int] | None = None,
        scheme: str = "http",
    ) -> None:
        self._host, self._port, self._scheme = host, port, scheme
        self._pages: dict[str, Page] = {}
        self._rooms: dict[str, Page] = {}
        self._server = HttpServer(self._answer, network=network, limits=_LIMITS, wall_us=wall_us)
        self._is_listening = False
        self.parts: dict[str, WhyNot] = {}
        self.is_draining = self.is_up = False

    @property
    def url(self) -> str:
        """Its URL; that which it will have, while it waits for its port."""
        if self._is_listening:
            return self._server.url
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{self._scheme}://{host}:{self._port}"

    def page(self, path: str, page: Page) -> None:
        """Show something more under a path of its own; `page` answers each GET and HEAD."""
        self._pages[path] = page

    def room(self, path: str, answer: Page) -> None:
        """Have all below a path answered, by whatever method; `answer` sees who may ask."""
        self._rooms[f"{path}/"] = answer

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: it cannot listen there.
        """
        await self._server.start(self._host, self._port, what="[admin] ")
        self._is_listening = True

    async def run(self) -> None:
        """Listen as soon as the process before lets go of the port; a supervised loop."""
        while not self._is_listening:
            try:
                await self.start()
            except ConfigError:
                await asyncio.sleep(_TAKEN_S)
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Stop listening. May be repeated."""
        await self._server.close()

    def ready(self) -> HttpResponse:
        """Answer whether the process takes requests."""
        why = {name: self._why_not(name) for name in self.parts}
        if self.is_draining:
            return _said(503, "draining", why)
        if not self.is_up:
            return _said(503, "starting", why)
        return _said(503, "not ready", why) if any(why.values()) else _said(200, "ready", why)

    def _why_not(self, name: str) -> str:
        return "it drains" if self.is_draining else self.parts[name]()

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        for path, answer in self._rooms.items():
            if request.path.startswith(path):
                return await answer(request)
        page, told = self._pages.get(request.path), self._health(request.path)
        if told is None and page is None:
            parts = (f"{READY}/{name}" for name in self.parts)
            known = ", ".join([HEALTH, READY, *self._pages, *parts])
            return problem_response(404, f"the admin listener has {known}")
        if request.method not in ("GET", "HEAD"):
            return problem_response(405, "ask by GET", headers=[("allow", "GET, HEAD")])
        return await page(request) if page is not None else told or self.ready()

    def _health(self, path: str) -> HttpResponse | None:
        """Answer what is asked of the process or of a part of it; None where it is neither."""
        if path == HEALTH:
            return HttpResponse(200, _FIELDS, b'{"status":"ok"}')
        if path == READY:
            return self.ready()
        part = unquote(path.removeprefix(f"{READY}/"))
        if not path.startswith(f"{READY}/") or part not in self.parts:
            return None
        why = self._why_not(part)
        return _said(503 if why else 200, "not ready" if why else "ready", {part: why})

    def __repr__(self) -> str:
        return f"<AdminListener {self.url}>"


def refuse_taken(section: AdminSection) -> None:
    """Refuse ports of other processes that somebody has.

    A process that is replaced keeps its port until it ends, so that its successor waits for it, and
    would wait for a stranger for ever.

    Raises:
        ConfigError: one of them is taken.
    """
    family = AF_INET6 if ":" in section.host else AF_INET
    for name, port in section.ports.items():
        try:
            if port:
                create_server((section.host, port), family=family).close()
        except OSError as error:
            raise ConfigError(
                f"[admin] ports of {name!r}: cannot listen on {section.host}:{port}: "
                f"{error.strerror or error}; stop what listens there, or choose another port, or 0 "
                "to take a free one"
            ) from error


def _said(status: int, word: str, why: dict[str, str]) -> HttpResponse:
    parts = {name: each or "ready" for name, each in why.items()}
    return HttpResponse(status, _FIELDS, encode({"status": word, "parts": parts}))
