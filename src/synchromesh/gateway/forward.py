"""What passes between a client and an upstream: which path, which headers, how long a body.

Nothing is passed that was not allowed: of a request the fields of content, conditions and
negotiation, and those that its route names. So no identity and no forwarding header from outside
reaches an upstream, however it is spelt (G2). Of an answer everything passes but what belongs to
one hop, and what the gateway says itself.

Source: RFC 9110, sections 7.6.1 and 7.6.3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from synchromesh.calls import Forwarding
from synchromesh.calls.routes import ANY
from synchromesh.context import (
    ATTEMPTS_LEFT,
    CREDENTIAL,
    DEADLINE_MS,
    IDEMPOTENCY_KEY,
    SENT_AT,
    UNDOES,
    CallContext,
)
from synchromesh.durations import duration
from synchromesh.errors import BadRequest, ConfigError
from synchromesh.gateway.arrival import REQUEST_ID, arrival_of
from synchromesh.gateway.cors import SAID_BY_US
from synchromesh.gateway.fallbacks import Note
from synchromesh.gateway.leading import FIELDS as LED
from synchromesh.gateway.leading import Leading, UpstreamPaths
from synchromesh.gateway.limits import RATELIMIT, RATELIMIT_POLICY
from synchromesh.gateway.origin import ClientOrigin
from synchromesh.gateway.router import Template
from synchromesh.gateway.routes import Forward
from synchromesh.gateway.shapes import is_a
from synchromesh.http import (
    ASKED_BY,
    Headers,
    HttpRequest,
    HttpResponse,
    Switching,
    asks_to_switch,
)
from synchromesh.propagation import BAGGAGE, TRACEPARENT, TRACESTATE

# What a request may carry to any upstream: content, conditions, ranges, negotiation.
PASSED: Final = frozenset({
    "accept", "accept-charset", "accept-encoding", "accept-language", "cache-control",
    "content-digest", "content-disposition", "content-encoding", "content-language",
    "content-range", "content-type", "if-match", "if-modified-since", "if-none-match", "if-range",
    "if-unmodified-since", "prefer", "range", "repr-digest", "user-agent",
})  # fmt: skip
# What belongs to one hop; `Connection` may name more.
_HOP: Final = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authentication-info",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
_OURS: Final = frozenset({
    ATTEMPTS_LEFT, CREDENTIAL, DEADLINE_MS, IDEMPOTENCY_KEY, SENT_AT, TRACEPARENT, UNDOES,
    "attempts-used", "away-ms", BAGGAGE, TRACESTATE,
})  # fmt: skip
# Headers that no route may let in: they say who asks, from where, how the message is framed, or
# that another method or path is meant than the one that was checked.
_NEVER: Final = _HOP | _OURS | {
    "content-length", "expect", "forwarded", "host", "remote-user",
    "true-client-ip", "via", "x-api-key", "x-client-ip", "x-http-method", "x-http-method-override",
    "x-method-override", "x-principal", "x-real-ip", "x-remote-user", "x-rewrite-url", "x-user",
}  # fmt: skip
_NEVER_BEGINS: Final = ("synchromesh-", "x-forwarded-", "x-authenticated-", "x-original-")
DROPPED: Final = _HOP | _OURS | {"x-content-type-options"}
_CORS_SAYS: Final = frozenset({"access-control-allow-origin", "vary"})
# Lists, to which the gateway adds its own.
_LISTED: Final = frozenset({"vary", RATELIMIT, RATELIMIT_POLICY})
# Tells an upstream who asks, where the route says so.
PRINCIPAL: Final = "synchromesh-principal"
_VIA: Final = ("via", "1.1 synchromesh")

_UPSTREAM = re.compile(r"[a-z][a-z0-9_]{0,62}")
_HEADER = re.compile(r"[a-z0-9][a-z0-9-]*")
_PLACE = re.compile(r"\{([a-z_][a-z0-9_]*)(?:\.\.\.)?\}")
_SIZE = re.compile(r"([0-9]{1,9}) ?(B|KiB|MiB|GiB)")
_UNITS_BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_TWO_SLASHES = re.compile(r"/(?:[/\\]|%(?:25)*(?:2f|5c))", re.IGNORECASE)
# How often a place is decoded to see where it leads.
_DECODINGS_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class CompiledForward:
    """A `Forward` as the engine runs it.

    Attributes:
        to: the upstream.
        path: where the upstream has it, with places, and maybe a rest.
        passed: the headers of a request that pass.
        body_bytes_max: how long its body may be.
        ways: the route's own way to the upstream, and all that lead there.
        forwarded: whether it is told whom a request comes from; None where it is ours.
        quiet_s: how long nothing may move in a WebSocket; None where there are none.
        tells_principal: whether it is told who asks by a signed token.
        has_slashes: whether places and the rest may hold encoded slashes and backslashes.
        is_guarded: a closer route asks for more than this one: what some take for its path is not
            passed on here.
    """

    to: str
    path: str
    passed: frozenset[str]
    body_bytes_max: int
    ways: tuple[UpstreamPaths, ...]
    forwarded: bool | None = None
    quiet_s: float | None = None
    tells_principal: bool = False
    has_slashes: bool = False
    is_guarded: bool = False

    def tells_origin(self, *, is_external: bool) -> bool:
        """Tell whether the upstream is told whom a request comes from."""
        return not is_external if self.forwarded is None else self.forwarded

    def leading(self, url: str) -> Leading:
        """Return what tells where the answers of an instance lead."""
        return Leading(self.ways, url)

    def target(self, places: Mapping[str, str]) -> str:
        """Return the path at the upstream; `places` are percent-encoded, as they came.

        Raises:
            BadRequest: a place would lead to another path.
        """
        target = _PLACE.sub(lambda place: self._inside(places[place[1]]), self.path)
        if _TWO_SLASHES.match(target):
            raise BadRequest("the path begins with two slashes, which some take for a host")
        return target

    def _inside(self, value: str) -> str:
        """Return what a place or a rest holds if it leads nowhere else wherever it is decoded."""
        decoded = value
        # Some servers decode a path twice, or the service behind them does it again.
        for _ in range(_DECODINGS_MAX):
            decoded = unquote(decoded)
        if decoded != unquote(decoded):
            raise BadRequest(f"the path is encoded more than {_DECODINGS_MAX} times over")
        for part in re.split(r"[/\\]", decoded):
            # Some servers cut parameters off a segment before they look at its dots.
            if part.partition(";")[0] in (".", ".."):
                raise BadRequest("the path has a segment of dots, which leads elsewhere")
        if not self.has_slashes and ("\\" in decoded or decoded.count("/") != value.count("/")):
            raise BadRequest("the path has an encoded slash, or a backslash; neither passes here")
        if self.is_guarded and (";" in decoded or "//" in f"/{value}" or decoded != unquote(value)):
            raise BadRequest(
                "the path has an empty segment, a parameter, or is encoded twice: some servers "
                "take it for another one, which is guarded"
            )
        return value

    def forwarding(
        self,
        request: HttpRequest,
        places: Mapping[str, str],
        *,
        name: str,
        context: CallContext,
        origin: ClientOrigin,
        is_external: bool,
        told: str,
    ) -> Forwarding:
        """Return what is sent to the upstream; `places` are percent-encoded, as they came.

        `told` is a token that says who asks, "" for none.

        Raises:
            BadRequest: a place would lead to another path, or a WebSocket is asked for wrongly.
        """
        body = request.stream
        target = self.target(places)
        is_switching = self.quiet_s is not None and asks_to_switch(request.method, request.headers)
        return Forwarding(
            upstream=self.to,
            name=name,
            method=request.method,
            target=f"{target}?{request.query}" if request.query else target,
            headers=(
                *_passing(request.headers, self.passed | ASKED_BY if is_switching else self.passed),
                *arrival_of(request.headers).fields,
                *(origin.fields if self.tells_origin(is_external=is_external) else ()),
                *(((PRINCIPAL, told),) if told else ()),
                _VIA,
            ),
            body=None if body is None or body.length == 0 else body,
            context=context,
            is_external=is_external,
            client=context.principal.name or origin.client,
            quiet_s=self.quiet_s if is_switching else None,
        )


def answer_of(
    response: HttpResponse, ours: Iterable[tuple[str, str]], leading: Leading
) -> HttpResponse:
    """Return an upstream's answer as the client gets it, with headers of `ours`.

    What the upstream says of caching goes before ours: it knows its answer. What it says of its own
    places is told as they are outside.
    """
    ours = tuple(ours)
    dropped = DROPPED | named_by(response.headers)
    own = {name for name, _ in ours}
    if REQUEST_ID in own:
        dropped |= {REQUEST_ID}  # it is the client's to say
    # Where the gateway says which pages may read it, the upstream does not.
    prefixes = ("synchromesh-", SAID_BY_US) if own & _CORS_SAYS else ("synchromesh-",)
    kept = [
        (name, leading.of(name, value) if name in LED else value)
        for name, value in response.headers
        if name not in dropped and not name.startswith(prefixes)
    ]
    said = {name for name, _ in kept} - _LISTED
    added = [(name, value) for name, value in ours if name not in said]
    if isinstance(response, Switching):
        return response.telling([*kept, *added])
    return HttpResponse(response.status, [*kept, *added], response.body, stream=response.stream)


def read_forward(
    route: Forward, template: Template, note: Note, others: tuple[UpstreamPaths, ...]
) -> CompiledForward:
    """Return a `Forward` as the engine runs it, and note what is wrong with it.

    It is added to the first of `others`, the ways to its upstream: those of its host, and of any.
    """
    check_upstream(route.to, note)
    path = read_path(route.path, template, note)
    own = UpstreamPaths()
    for ways in (own, others[0]):
        ways.add(template.path, path)
    body_bytes_max = 0
    try:
        body_bytes_max = size_of(route.body_max)
    except ConfigError as error:
        note(f"its body_max: {error.message}")
    if not (route.forwarded is None or is_a(route.forwarded, bool)):
        note(f"forwarded is {str(route.forwarded)[:40]!r}; write True, False or None")
    _check_flags(route, note)
    if route.principal is True and route.public:
        note("is public, so that nobody is known whom principal could tell; drop one of the two")
    if is_a(route.headers, str):
        note(f'headers is a text; write a set of texts, such as {{"{route.headers}"}}')
        return CompiledForward(str(route.to), path, PASSED, body_bytes_max, (own, *others))
    for name in sorted(map(str, route.headers)):
        if not _HEADER.fullmatch(name):
            note(f'{name[:40]!r} is no header in lower case; write one such as "x-checksum"')
        elif name == "authorization" and not route.public:
            note(
                f"{name!r} never passes where the gateway asks for it: the upstream could show it "
                "to others; drop it, or say public=True and let the upstream ask"
            )
        elif name in _NEVER or name.startswith(_NEVER_BEGINS):
            note(f"{name!r} never passes: it says who asks, from where, or how; drop it")
    # A well-formed one passes anyway.
    passed = frozenset(route.headers) - {REQUEST_ID}
    return CompiledForward(
        str(route.to),
        path,
        PASSED | passed,
        body_bytes_max,
        (own, *others),
        route.forwarded,
        _read_quiet_s(route, template, note),
        route.principal,
        route.encoded_slashes,
    )


def check_upstream(name: object, note: Note) -> None:
    """Note where what should name an upstream does not."""
    if not is_a(name, str) or not _UPSTREAM.fullmatch(str(name)):
        note(f'leads to {str(name)[:40]!r}; name an upstream, such as to="firmware_store"')


def _check_flags(route: Forward, note: Note) -> None:
    for name in ("encoded_slashes", "principal", "websocket"):
        value = getattr(route, name)
        if not is_a(value, bool):
            note(f"{name} is {str(value)[:40]!r}; write True or False")


def size_of(text: str) -> int:
    """Return the bytes that a size such as "64MiB" stands for; units are B, KiB, MiB and GiB.

    Raises:
        ConfigError: it is no such text.

    Example:
        >>> size_of("64MiB"), size_of("0B")
        (67108864, 0)
    """
    matched = _SIZE.fullmatch(str(text))
    if matched is None:
        raise ConfigError(
            f"{str(text)[:40]!r} is no size; write a whole number of B, KiB, MiB or GiB, such as "
            '"64MiB"'
        )
    return int(matched[1]) * _UNITS_BYTES[matched[2]]


def _read_quiet_s(route: Forward, template: Template, note: Note) -> float | None:
    """Return how long a WebSocket of the route may be quiet; None where it takes none."""
    try:
        quiet_s = duration(route.quiet, "quiet")
    except ConfigError as error:
        note(f"its {error.message}")
        return None
    if route.websocket and template.method not in ("GET", ANY):
        note(f"a WebSocket is asked for by GET; write GET or ANY, not {template.method}")
    return quiet_s if route.websocket else None


def read_path(path: str, template: Template, note: Note) -> str:
    """Return where an upstream has what a route's path stands for; "" is the same path."""
    if not path:
        return template.path
    try:
        there = Template.of(f"{template.method} {path}")
    except ConfigError:
        note(f'{str(path)[:40]!r} is no path; write one such as "/images/{{name}}"')
        return template.path
    if any(segment in (".", "..") for segment in there.steps):
        note(f"{there.path!r} has a segment of dots; write where it leads")
    known = ", ".join(f"{{{place}}}" for place in template.places) or "none"
    for place in there.places:
        if place not in template.places:
            note(f"{{{place}}} in {there.path!r} is no place of the route; it has: {known}")
    for place in template.places:
        if place not in there.places:
            note(f"{{{place}}} is not used in {there.path!r}; use it there, or drop it here")
    if there.has_rest != template.has_rest or (
        there.has_rest and there.places[-1:] != template.places[-1:]
    ):
        note(f"{there.path!r} and the route have to end in the same rest, or both in none")
    return there.path


def _passing(headers: Headers, passed: frozenset[str]) -> list[tuple[str, str]]:
    named = named_by(headers)
    return [(name, value) for name, value in headers if name in passed and name not in named]


def named_by(headers: Headers) -> set[str]:
    """Return what `Connection` names: fields of this hop alone."""
    return {
        option.strip().lower()
        for value in headers.get_all("connection")
        for option in value.split(",")
    }
