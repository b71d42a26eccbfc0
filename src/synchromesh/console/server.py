"""The listener of the console: who may ask, which page answers, and pages that stay up to date.

It is reached by a browser, and so by every page that the browser has open. A request is answered
where its Host is this listener's, where no other origin sent it, and where its cookie is a session;
what changes something carries a token of that session too. Cookies do not tell ports of a host
apart, and for SameSite all ports of a host are one site: `Sec-Fetch-Site` does tell them apart.

Source: Fetch Metadata (W3C), sections 2 and 3; RFC 6265, section 8.5; HTML, 9.2 (server-sent
events).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import msgspec

from synchromesh.codec import encode
from synchromesh.console.markup import Markup, tag
from synchromesh.console.parts import PageQuery, frame
from synchromesh.console.sessions import SESSION_S, Sessions
from synchromesh.console.site import FoundPage, find_page
from synchromesh.console.source import Source
from synchromesh.console.verbs import request_of
from synchromesh.errors import (
    BadRequest,
    ConfigError,
    Forbidden,
    MethodNotAllowed,
    SynchromeshError,
    Unauthenticated,
    UnknownOperation,
)
from synchromesh.http import (
    Body,
    HttpRequest,
    HttpResponse,
    HttpServer,
    Limits,
    RawPair,
    error_response,
)
from synchromesh.network import Network

LIVE = "/live"
# How often a page that is shown is looked at, and how many are.
LIVE_EVERY_S = 2.0
LIVE_MAX = 16
FORM_BYTES_MAX = 16 * 1024
FORM_FIELDS_MAX = 20
_LIMITS = Limits(connections_max=64, body_bytes_max=FORM_BYTES_MAX)
_STATIC = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'"
)
_SAFE = (
    ("content-security-policy", _POLICY),
    ("cache-control", "no-store"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    # With "no-referrer" browsers send "Origin: null" with forms.
    ("referrer-policy", "same-origin"),
    ("x-content-type-options", "nosniff"),
)  # fmt: skip

_log = logging.getLogger("synchromesh.console")


class Console:
    """Serves the pages of a system on loopback.

    Args:
        source: tells of the system, and does what is asked for.
        system: its name.
        who: whose name is recorded with what is done.
        sessions: knows who was let in.
        new_token: makes a text that nobody can guess.
        wall_us: the wall clock.
        live_every_s: how often a page that is shown is looked at.
    """

    def __init__(
        self,
        source: Source,
        network: Network,
        *,
        system: str,
        who: str,
        sessions: Sessions,
        new_token: Callable[[], str],
        wall_us: Callable[[], int],
        live_every_s: float = LIVE_EVERY_S,
    ) -> None:
        self._source = source
        self._system = system
        self._who = who
        self._sessions = sessions
        self._new_token = new_token
        self._wall_us = wall_us
        self._live_every_s = live_every_s
        self._live = 0
        self._server = HttpServer(
            self.handle, network=network, limits=_LIMITS, streaming=self, wall_us=wall_us
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.port

    async def start(self, port: int) -> None:
        """Listen on loopback, on this port if it is free.

        Raises:
            ConfigError: it cannot listen at all.
        """
        try:
            await self._server.start("127.0.0.1", port, what="console: ")
        except ConfigError:
            if not port:
                raise
            await self._server.start("127.0.0.1", 0, what="console: ")

    async def close(self) -> None:
        """Stop listening. May be repeated."""
        await self._server.close()

    def entry(self) -> str:
        """Return a URL that lets one browser in, once."""
        token = self._new_token()
        self._sessions.admit(token)
        return f"{self._server.url}/enter?token={token}"

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Answer a request, whoever sent it."""
        is_json = request.path.endswith(".json")
        try:
            return await self._answer(request)
        except SynchromeshError as error:
            return _with(error_response(error)) if is_json else self._failed(request, error)

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        self._check_origin(request)
        if request.path.startswith("/static/"):
            return _static(request.path.removeprefix("/static/"))
        query = _fields(request.query)
        if request.path == "/enter" and request.method == "GET":
            return self._enter(query.get("token", ""))
        cookie = self._session(request)
        if request.path.startswith("/do/"):
            return await self._do(request, cookie)
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed("pages are asked for by GET")
        found = _found(request.path)
        asked = PageQuery(found.name, query, self._sessions.form_token(cookie))
        told = await found.page.fetch(self._source, asked)
        if found.is_json:
            return _with(HttpResponse(200, [("content-type", "application/json")], encode(told)))
        title = f"{found.page.title} {found.name}".strip()
        main = found.page.render(told, asked)
        live = request.target if found.page.is_live else ""
        return _html(200, frame(title, self._system, found.here, main, live=live))

    def _check_origin(self, request: HttpRequest) -> None:
        """Refuse what another page sent, or what was sent to another name.

        Raises:
            Forbidden: it was.
        """
        hosts = request.headers.get_all("host")
        port = self._server.port
        if len(hosts) != 1 or hosts[0] not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            raise Forbidden("the console is asked under another name than its own")
        origins = request.headers.get_all("origin")
        if any(each != f"http://{hosts[0]}" for each in origins):
            raise Forbidden("the console is asked by a page of another origin")
        if request.method not in ("GET", "HEAD") and not origins:
            raise Forbidden("what changes something says its Origin")
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Forbidden("the console is asked by a page of another origin")

    def _session(self, request: HttpRequest) -> str:
        now_s = self._wall_us() / 1e6
        for line in request.headers.get_all("cookie"):
            for pair in line.split(";"):
                name, _, value = pair.strip().partition("=")
                if name == self._cookie and self._sessions.knows(value, now_s=now_s):
                    return value
        raise Unauthenticated(
            "this browser has no session; open the URL that `synchromesh dev` printed last. It "
            "works once; for another one: synchromesh console"
        )

    @property
    def _cookie(self) -> str:
        # Consoles of several systems share the cookies of their host.
        return f"synchromesh_console_{self._server.port}"

    def _enter(self, token: str) -> HttpResponse:
        cookie = self._sessions.enter(token, self._new_token(), now_s=self._wall_us() / 1e6)
        if cookie is None:
            raise Unauthenticated(
                "this URL was used, or a restart has made it void; for another one: "
                "synchromesh console"
            )
        said = f"{self._cookie}={cookie}; Path=/; HttpOnly; SameSite=Strict"
        return _with(
            HttpResponse(303, [("location", "/"), ("set-cookie", f"{said}; Max-Age={SESSION_S:g}")])
        )

    async def _do(self, request: HttpRequest, cookie: str) -> HttpResponse:
        if request.method != "POST":
            raise MethodNotAllowed("verbs are asked for by POST")
        form = _fields(request.body.decode("utf-8", "replace"))
        if not self._sessions.is_form_token(form.get("form_token", ""), cookie):
            raise Forbidden("the form is none of this session; open its page again")
        name = request.path.removeprefix("/do/")
        wanted = request_of(name, form, who=self._who)
        await self._source.ask("POST", wanted.path, wanted.body)
        _log.warning(
            "%s by the console", name,
            extra={"who": self._who, "reason": form["why"].strip(), "asked": wanted.path},
        )  # fmt: skip
        return _with(HttpResponse(303, [("location", wanted.back)]))

    def _failed(self, request: HttpRequest, error: SynchromeshError) -> HttpResponse:
        main = Markup(tag("h1", "That did not work") + tag("p", error.message, class_="bad"))
        has_chrome = not isinstance(error, Forbidden | Unauthenticated)
        body = frame("Error", self._system, request.path, main, has_chrome=has_chrome)
        return _html(error.status, body)

    # -- pages that stay up to date ------------------------------------------------------------

    def body_max(self, method: str, path: str, _: Sequence[RawPair]) -> int | None:
        """Say that events are streamed, and all else is answered whole."""
        return 0 if method == "GET" and path == LIVE else None

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
        """Send the main part of a page, again whenever it has changed, as server-sent events."""
        try:
            self._check_origin(request)
            cookie = self._session(request)
            target = urlsplit(_fields(request.query).get("at", "/"))
            found = _found(target.path)
            if not found.page.is_live:
                raise BadRequest("this page is made when it is asked for")
            if self._live >= LIVE_MAX:
                raise BadRequest(f"{LIVE_MAX} pages are kept up to date already; close one")
        except SynchromeshError as error:
            yield _with(error_response(error))
            return
        asked = PageQuery(found.name, _fields(target.query), self._sessions.form_token(cookie))
        body = Body(length=None, on_room=lambda: None)
        feeding = asyncio.ensure_future(self._feed(body, found, asked))
        self._live += 1
        try:
            fields = [("content-type", "text/event-stream")]
            yield _with(HttpResponse(200, fields, stream=body))
        finally:
            self._live -= 1
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    async def _feed(self, body: Body, found: FoundPage, asked: PageQuery) -> None:
        shown = ""
        body.feed(b"retry: 1000\n\n")
        try:
            while True:
                try:
                    main = found.page.render(await found.page.fetch(self._source, asked), asked)
                except SynchromeshError as error:
                    main = tag("p", error.message, class_="bad")
                # A browser that has not taken the last one gets the next.
                if main != shown and not body.size:
                    shown = main
                    body.feed(b"data: %b\n\n" % msgspec.json.encode(str(main)))
                elif not body.size:
                    body.feed(b":\n\n")  # so that a browser that has gone is noticed
                await asyncio.sleep(self._live_every_s)
        finally:
            body.end()

    def __repr__(self) -> str:
        return f"<Console of {self._system}, {self._live} pages kept up to date>"


def _found(path: str) -> FoundPage:
    found = find_page(path)
    if found is None:
        raise UnknownOperation(f"the console has no page {path[:80]!r}")
    return found


def _fields(text: str) -> dict[str, str]:
    """Return the first value of each field of a query or a form.

    Raises:
        BadRequest: there are too many.
    """
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=FORM_FIELDS_MAX)
    except ValueError as error:
        raise BadRequest(f"more than {FORM_FIELDS_MAX} fields were sent") from error
    return dict(reversed(pairs))


def _static(name: str) -> HttpResponse:
    kind = _STATIC.get(name)
    if kind is None:
        raise UnknownOperation("the console has no such file")
    body = (Path(__file__).with_name("static") / name).read_bytes()
    return _with(HttpResponse(200, [("content-type", kind)], body))


def _html(status: int, body: bytes) -> HttpResponse:
    return _with(HttpResponse(status, [("content-type", "text/html; charset=utf-8")], body))


def _with(response: HttpResponse) -> HttpResponse:
    """Add what each answer says of how it may be used."""
    fields = [*response.headers, *_SAFE]
    return HttpResponse(response.status, fields, response.body, stream=response.stream)
