"""Requests and answers as values, and how they look on the wire.

Framing (`content-length`, `transfer-encoding`, `connection`) belongs to the server and the pool:
no message is ever passed on as it came, so that what one side frames the other cannot read
differently. A name or value that could forge a line is refused where the message is made.

Source: RFC 9110 (semantics), RFC 9112 (HTTP/1.1), RFC 9457 (problem details).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, overload

import msgspec

from synchromesh.errors import PROBLEM_PREFIX, SynchromeshError, to_problem
from synchromesh.http.body import Body, Framing

if TYPE_CHECKING:
    from synchromesh.certificate import ClientCertificate

Pairs: TypeAlias = Iterable[tuple[str, str]]
# A header field as the parser has checked it: its name in lower case, its value without blanks.
RawPair: TypeAlias = tuple[bytes, bytes]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Field values: visible ASCII, blanks, tabs and obs-text; nothing that could end the line.
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(r"/[\x21\x22\x24-\x7e]*|\*")
_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Z]+")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})

FRAMING = frozenset(
    {"connection", "content-length", "keep-alive", "proxy-connection", "transfer-encoding"}
)
_FRAMING_OF_REQUESTS = FRAMING | {"expect", "te", "trailer", "upgrade"}
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_STATUS_LINES = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, b""))
    for status in range(200, 600)
}
_BODYLESS = frozenset({204, 304})
# Names that were checked, by how they were spelt. A program has few; who makes them up from input
# fills the table, and then each is checked.
_NAMES: dict[str, str] = {}
_NAMES_MAX = 1024


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

    __slots__ = ("_by_name", "_texts", "_wire")

    # Fields from the wire become texts when somebody asks for one: few handlers do.
    _wire: Sequence[RawPair]
    _texts: tuple[tuple[str, str], ...] | None
    _by_name: dict[str, str] | None

    def __init__(self, pairs: Headers | Pairs = ()) -> None:
        self._wire, self._by_name = (), None
        if isinstance(pairs, Headers):
            self._texts = pairs._pairs
        else:
            self._texts = tuple(_checked(pairs))

    @classmethod
    def from_wire(cls, pairs: Sequence[RawPair]) -> Headers:
        """Hold fields that a strict parser has checked, their names already in lower case."""
        headers = cls.__new__(cls)
        headers._wire, headers._texts, headers._by_name = pairs, None, None
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

    @property
    def _pairs(self) -> tuple[tuple[str, str], ...]:
        if self._texts is None:
            self._texts = tuple([(n.decode("latin-1"), v.decode("latin-1")) for n, v in self._wire])
        return self._texts

    @property
    def _first(self) -> dict[str, str]:
        if self._by_name is None:
            self._by_name = dict(reversed(self._pairs))
        return self._by_name


class Connected(Protocol):
    """What is known of a connection; transports of asyncio are such."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known under a name."""
        ...


class HttpRequest(msgspec.Struct, frozen=True):
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
        connection: that it came by; None where it came by none.

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
    connection: Connected | None = None

    @property
    def certificate(self) -> ClientCertificate | None:
        """What the client has proved itself by, by TLS; None where it has not."""
        if self.connection is None:
            return None
        found: ClientCertificate | None = self.connection.get_extra_info("client_certificate")
        return found

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
    response: HttpResponse,
    *,
    is_head: bool,
    is_last: bool,
    framing: Framing | None = None,
    date: bytes = b"",
) -> bytes:
    """Frame an answer for the wire; `is_last` tells the client that the connection closes.

    `date` is the line of that field, for an answer that has none of its own.

    The answer to a HEAD request (`is_head`) keeps the content-length that its handler names and
    has no body (RFC 9110, section 9.3.2). With a `framing` the head alone is returned: the body
    follows in parts.
    """
    status, body = response.status, response.body
    fields = ""
    for name, value in response.headers:
        if name not in FRAMING:
            fields += f"{name}: {value}\r\n"
        if name == "date":
            date = b""
    parts = [_STATUS_LINES[status], fields.encode("latin-1"), date]
    if not has_body(response, is_head=is_head):
        length = response.length if is_head and not body else len(body)
        # Without a word of it a HEAD says nothing of the length; that is right where it is unknown.
        if is_head and status not in _BODYLESS and not (length is None and response.stream):
            parts.append(b"content-length: %d\r\n" % (length or 0))
        body = b""
    elif framing is None:
        parts.append(b"content-length: %d\r\n" % len(body))
    else:
        parts += [b"%b\r\n" % field.encode() for field in framing.fields]
    parts += (b"connection: close\r\n\r\n" if is_last else b"\r\n", body)
    return b"".join(parts)


def ready_answer(response: HttpResponse) -> tuple[bytes, bytes]:
    """Return an answer as `HttpExchange.answer` takes it: the lines of its head, and its body.

    Example:
        >>> ready_answer(HttpResponse(200, [("content-type", "text/plain")], b"hello"))[1]
        b'hello'
    """
    head = encode_response(response, is_head=False, is_last=False)
    return head[: len(head) - len(response.body) - 2], response.body


def status_line(status: int) -> bytes:
    """Return the first line of an answer, with its end; statuses are 200 to 599.

    Example:
        >>> status_line(404)
        b'HTTP/1.1 404 Not Found\\r\\n'
    """
    return _STATUS_LINES[status]


def asks_to_close(response: HttpResponse) -> bool:
    """Tell whether a handler wants the connection closed after its answer."""
    for name, value in response.headers:
        if name == "connection":
            return value.lower() == "close"
    return False


def encode_request(
    authority: str, method: str, target: str, headers: Headers | Pairs, body: bytes | Framing
) -> bytes:
    """Frame a request for the wire; a Host among the headers replaces `authority`.

    With a `Framing` for a body the head alone is returned: the body follows in parts.

    Raises:
        ValueError: the method is no token in upper case, the target is neither a path nor `*`, a
            header is refused by `Headers`, frames the message, or there are two Hosts.
    """
    fields = Headers(headers)
    head = request_head(authority, method, target, fields)
    if isinstance(body, Framing):
        return b"".join([head, *[b"%b\r\n" % field.encode() for field in body.fields], b"\r\n"])
    if body or method in _WITH_BODY:
        return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
    return head + b"\r\n"


def request_head(authority: str, method: str, target: str, fields: Headers) -> bytes:
    """Return the request line and header lines of a request, without its framing and its end.

    Raises:
        ValueError: as `encode_request` does.
    """
    if not _METHOD.fullmatch(method) or method == "CONNECT":
        raise ValueError(f"method {method!r} cannot be sent: give a token such as GET or POST")
    if not _TARGET.fullmatch(target):
        raise ValueError(f"target {target!r} cannot be sent: give a percent-encoded path")
    host = authority
    lines = []
    has_host = False
    for name, value in fields:
        if name in _FRAMING_OF_REQUESTS:
            raise ValueError(f"header {name!r} frames the message and is set by the pool alone")
        if name != "host":
            lines.append(f"{name}: {value}\r\n")
        elif has_host:
            raise ValueError("a request has two Host headers; give one or none")
        else:
            host, has_host = value, True
    text = f"{method} {target} HTTP/1.1\r\nhost: {host}\r\n{''.join(lines)}"
    return text.encode("latin-1")


def _problem(status: int, problem: dict[str, Any], headers: Pairs) -> HttpResponse:
    fields = [("content-type", "application/problem+json"), *headers]
    return HttpResponse(status, fields, msgspec.json.encode(problem))


def _checked(pairs: Pairs) -> list[tuple[str, str]]:
    texts = []
    for name, value in pairs:
        # Printable ASCII is all that nearly any value has; what else may stand in one is looked up.
        if not (value.isascii() and value.isprintable()) and not _VALUE.fullmatch(value):
            # The value stays out of the message: it may be a credential.
            raise ValueError(
                f"header {name!r} has a value with a character that may not stand in a header"
            )
        texts.append((_NAMES.get(name) or _checked_name(name), value))
    return texts


def _checked_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"header name {name!r} is no token (RFC 9110, section 5.1)")
    lower = name.lower()
    if len(_NAMES) < _NAMES_MAX:
        _NAMES[name] = lower
    return lower
