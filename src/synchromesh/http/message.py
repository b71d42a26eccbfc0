"""Requests and answers as values, and how they look on the wire.

Framing (`content-length`, `transfer-encoding`, `connection`) belongs to the server and the pool:
no message is ever passed on as it came, so that what one side frames the other cannot read
differently. A name or value that could forge a line is refused where the message is made.

Source: RFC 9110 (semantics), RFC 9112 (HTTP/1.1), RFC 9457 (problem details).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeAlias, overload

import msgspec

from synchromesh.errors import PROBLEM_PREFIX, SynchromeshError, to_problem
from synchromesh.http.body import Body, Framing

Pairs: TypeAlias = Iterable[tuple[str, str]]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Field values: visible ASCII, blanks, tabs and obs-text; nothing that could end the line.
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(r"/[\x21\x22\x24-\x7e]*|\*")

FRAMING = frozenset(
    {"connection", "content-length", "keep-alive", "proxy-connection", "transfer-encoding"}
)
_FRAMING_OF_REQUESTS = FRAMING | {"expect", "te", "trailer", "upgrade"}
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_BODYLESS = frozenset({204, 304})


class Headers:
    """Holds header fields in their order, names in lower case; immutable.

    Names and values are latin-1 text. Raises ValueError for a name that is no token and for a value
    with CR, LF, NUL or another control character.

    Example:
        >>> headers = Headers([("Accept", "text/html"), ("accept", "*/*")])
        >>> headers.get("accept"), headers.get_all("accept"), headers.get("host")
        ('text/html', ('text/html', '*/*'), None)
        >>> Headers([("x-a", "1\\r\\nset-cookie: b=2")])
        Traceback (most recent call last):
        ...
        ValueError: header 'x-a' has a value with a character that may not stand in a header
    """

    __slots__ = ("_first", "_pairs")

    _pairs: tuple[tuple[str, str], ...]
    _first: dict[str, str]

    def __init__(self, pairs: Headers | Pairs = ()) -> None:
        if isinstance(pairs, Headers):
            self._pairs, self._first = pairs._pairs, pairs._first
            return
        self._take(tuple((_checked_name(n), _checked_value(n, v)) for n, v in pairs))

    @classmethod
    def from_wire(cls, pairs: Pairs) -> Headers:
        """Hold fields that a strict parser has checked, their names already in lower case."""
        headers = cls.__new__(cls)
        headers._take(tuple(pairs))
        return headers

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: str) -> str: ...
    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the first value of `name` (in lower case), or `default`."""
        return self._first.get(name, default)

    def get_all(self, name: str) -> tuple[str, ...]:
        """Return every value of `name` (in lower case), in order."""
        return tuple(value for key, value in self._pairs if key == name)

    def __contains__(self, name: object) -> bool:
        return name in self._first

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self._pairs == other._pairs

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __repr__(self) -> str:
        # Values may be credentials: only the names are shown.
        return f"<Headers {', '.join(self._first) or 'empty'}>"

    def _take(self, pairs: tuple[tuple[str, str], ...]) -> None:
        self._pairs = pairs
        self._first = dict(reversed(pairs))


@dataclass(frozen=True, slots=True, repr=False)
class HttpRequest:
    """Is one request as the server read it, its body decoded from any chunks.

    Attributes:
        method: as sent, in upper case.
        target: path and query exactly as sent (`/a%20b?c=d`); a request in absolute form is reduced
            to it, since its authority equals its Host.
        path: the target up to the first `?`, still percent-encoded; decode segments after splitting
            at `/`, never before.
        query: what follows the first `?`, still percent-encoded; empty if there is none.
        headers: every header field; trailer fields are dropped.
        body: the whole body; empty if there is none, or it is to be read from `stream`.
        peer: `host:port` of the client's end; empty where the transport does not know it.
        stream: the body while it comes, where the handler asked for that; else None.

    Example:
        >>> HttpRequest("GET", "/stock?sku=SX90", "/stock", "sku=SX90", Headers(), b"")
        <HttpRequest GET /stock 0 bytes>
    """

    method: str
    target: str
    path: str
    query: str
    headers: Headers
    body: bytes
    peer: str = ""
    stream: Body | None = None

    def __repr__(self) -> str:
        # The query and the headers may carry what must not be logged.
        body = f"{len(self.body)} bytes" if self.stream is None else repr(self.stream)
        return f"<HttpRequest {self.method} {self.path} {body}>"


@dataclass(frozen=True, slots=True, init=False, repr=False)
class HttpResponse:
    """Is one answer; framing fields among its headers are replaced by the server's own.

    Its body is `body`, or, where there is one, what is read from `stream`; a `content-length` among
    the headers then says how long that will be.

    Raises ValueError for a status outside 200 to 599 and for headers that `Headers` refuses.

    Example:
        >>> HttpResponse(200, [("content-type", "text/plain")], b"hello")
        <HttpResponse 200 5 bytes>
    """

    status: int
    headers: Headers
    body: bytes
    stream: Body | None

    def __init__(
        self,
        status: int,
        headers: Headers | Pairs = (),
        body: bytes = b"",
        *,
        stream: Body | None = None,
    ) -> None:
        if not 200 <= status <= 599:
            raise ValueError(f"an answer has status {status}; 200 to 599 can be sent")
        object.__setattr__(self, "status", status)
        object.__setattr__(self, "headers", Headers(headers))
        object.__setattr__(self, "body", body)
        object.__setattr__(self, "stream", stream)

    @property
    def length(self) -> int | None:
        """What `content-length` among the headers says; None where it says no number."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None

    def __repr__(self) -> str:
        body = f"{len(self.body)} bytes" if self.stream is None else repr(self.stream)
        return f"<HttpResponse {self.status} {body}>"


def error_response(error: SynchromeshError, headers: Pairs = ()) -> HttpResponse:
    """Answer with an error as problem details (RFC 9457), under its own status.

    Example:
        >>> from synchromesh.errors import Shed
        >>> error_response(Shed("the service drains")).status
        503
    """
    return _problem(error.status, to_problem(error), headers)


def problem_response(
    status: int, detail: str, *, code: str = "bad_request", headers: Pairs = ()
) -> HttpResponse:
    """Answer with problem details whose status no error class has, such as 413.

    Example:
        >>> problem_response(413, "the body is longer than 5 bytes").headers.get("content-type")
        'application/problem+json'
    """
    problem = {
        "type": PROBLEM_PREFIX + code,
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    return _problem(status, problem, headers)


def has_body(response: HttpResponse, *, is_head: bool) -> bool:
    """Tell whether an answer may have a body at all (RFC 9110, sections 6.4.1 and 9.3.2)."""
    return not is_head and response.status not in _BODYLESS


def encode_response(
    response: HttpResponse, *, is_head: bool, is_last: bool, framing: Framing | None = None
) -> bytes:
    """Frame an answer for the wire; `is_last` tells the client that the connection closes.

    The answer to a HEAD request (`is_head`) keeps the content-length that its handler names and
    has no body (RFC 9110, section 9.3.2). With a `framing` the head alone is returned: the body
    follows in parts.
    """
    status, body = response.status, response.body
    lines = [b"HTTP/1.1 %d %b" % (status, _REASONS.get(status, b""))]
    lines += [
        f"{name}: {value}".encode("latin-1")
        for name, value in response.headers
        if name not in FRAMING
    ]
    if not has_body(response, is_head=is_head):
        length = response.length if is_head and not body else len(body)
        # Without a word of it a HEAD says nothing of the length; that is right where it is unknown.
        if is_head and status not in _BODYLESS and not (length is None and response.stream):
            lines.append(b"content-length: %d" % (length or 0))
        body = b""
    elif framing is None:
        lines.append(b"content-length: %d" % len(body))
    else:
        lines += [field.encode() for field in framing.fields]
    if is_last:
        lines.append(b"connection: close")
    lines += (b"", body)
    return b"\r\n".join(lines)


def encode_request(
    authority: str, method: str, target: str, headers: Headers | Pairs, body: bytes | Framing
) -> bytes:
    """Frame a request for the wire; a Host among the headers replaces `authority`.

    With a `Framing` for a body the head alone is returned: the body follows in parts.

    Raises:
        ValueError: the method is no token in upper case, the target is neither a path nor `*`, a
            header is refused by `Headers`, frames the message, or there are two Hosts.
    """
    if not _TOKEN.fullmatch(method) or method != method.upper() or method == "CONNECT":
        raise ValueError(f"method {method!r} cannot be sent: give a token such as GET or POST")
    if not _TARGET.fullmatch(target):
        raise ValueError(f"target {target!r} cannot be sent: give a percent-encoded path")
    fields = Headers(headers)
    hosts = fields.get_all("host")
    if len(hosts) > 1:
        raise ValueError("a request has two Host headers; give one or none")
    lines = [f"{method} {target} HTTP/1.1", f"host: {hosts[0] if hosts else authority}"]
    for name, value in fields:
        if name in _FRAMING_OF_REQUESTS:
            raise ValueError(f"header {name!r} frames the message and is set by the pool alone")
        if name != "host":
            lines.append(f"{name}: {value}")
    if isinstance(body, Framing):
        lines += body.fields
        body = b""
    elif body or method in ("POST", "PUT", "PATCH"):
        lines.append(f"content-length: {len(body)}")
    lines.append("\r\n")
    return "\r\n".join(lines).encode("latin-1") + body


def _problem(status: int, problem: dict[str, Any], headers: Pairs) -> HttpResponse:
    fields = [("content-type", "application/problem+json"), *headers]
    return HttpResponse(status, fields, msgspec.json.encode(problem))


def _checked_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"header name {name!r} is no token (RFC 9110, section 5.1)")
    return name.lower()


def _checked_value(name: str, value: str) -> str:
    # The value stays out of the message: it may be a credential.
    if not _VALUE.fullmatch(value):
        raise ValueError(
            f"header {name!r} has a value with a character that may not stand in a header"
        )
    return value
