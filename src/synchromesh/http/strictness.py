"""Which heads are acceptable: the checks that llhttp leaves to its user, as one table.

llhttp refuses CL+TE, two lengths, bare LF and CR, NUL, obs-fold and bad chunks. It lets through no
Host, two Hosts, a target that names another host, transfer codings on HTTP/1.0 or beside `chunked`,
and tunnels. Two parties that disagree about any of these can be played against each other
(request smuggling, host confusion), so that each row below ends the connection.

Source: RFC 9112, sections 2.3, 3.2, 3.3, 6.1; RFC 9110, sections 7.8, 10.1.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

_AUTHORITY = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::[0-9]{1,5})?"
_HOST = re.compile(_AUTHORITY)
_ORIGIN = re.compile(r"/[\x21\x22\x24-\x7e]*")
_ABSOLUTE = re.compile(rf"(?i:https?)://({_AUTHORITY})((?:[/?][\x21\x22\x24-\x7e]*)?)")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")

# What a target in origin form is made of, and what else may come before its query.
_TARGET_CHARS: Final = bytes(c for c in range(0x21, 0x7F) if c != ord("#"))
_HOST_BYTES = re.compile(_AUTHORITY.encode())
_BAD_ESCAPE_BYTES = re.compile(rb"%(?![0-9A-Fa-f]{2})")

# The only fields whose repetition or absence matters before a request is accepted.
WATCHED: Final = frozenset(
    {b"content-length", b"expect", b"host", b"transfer-encoding"},
)
_WATCHED: Final = frozenset(name.decode() for name in WATCHED)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Says why a request is refused: the status, and a sentence for the client."""

    status: int
    detail: str


@dataclass(slots=True)
class Head:
    """Holds what decides whether a request is acceptable.

    Example:
        >>> head = Head("GET", "/a", "1.1", [("host", "x")])
        >>> head.values("host"), refusal_of(head, body_bytes_max=10)
        (['x'], None)
        >>> refusal_of(Head("GET", "/a", "1.1", []), body_bytes_max=10).status
        400
    """

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    watched: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.watched = {}
        for name, value in self.headers:
            if name in _WATCHED:
                self.watched.setdefault(name, []).append(value)

    def values(self, name: str) -> list[str]:
        """Return the values of a watched field, in order."""
        return self.watched.get(name, _NONE)

    @property
    def is_continue_expected(self) -> bool:
        """True where the client waits for 100 Continue before it sends its body."""
        return bool(self.values("expect")) and self.version == "1.1"


_NONE: list[str] = []


def has_plain_host(host: bytes) -> bool:
    """Tell whether the one Host of a request is `name`, `name:port`, `[v6]` or `[v6]:port`."""
    return _HOST_BYTES.fullmatch(host) is not None


def has_plain_target(target: bytes) -> bool:
    """Tell whether a target is a percent-encoded path, with or without a query.

    Example:
        >>> [has_plain_target(t) for t in (b"/a%20b?c=%zz", b"/a%2", b"/a#b", b"*", b"http://x/")]
        [True, False, False, False, False]
    """
    return (
        target[:1] == b"/"
        and not target.translate(None, _TARGET_CHARS)
        and (b"%" not in target or not _BAD_ESCAPE_BYTES.search(target.partition(b"?")[0]))
    )


def has_odd_version(head: Head) -> bool:
    """Tell whether it is neither HTTP/1.0 nor HTTP/1.1."""
    return head.version not in ("1.1", "1.0")


def has_wrong_host_count(head: Head) -> bool:
    """Tell whether HTTP/1.1 comes without exactly one Host, or HTTP/1.0 with two."""
    count = len(head.values("host"))
    return count > 1 or (count == 0 and head.version != "1.0")


def has_bad_host(head: Head) -> bool:
    """Tell whether Host is no `name`, `name:port`, `[v6]` or `[v6]:port`."""
    return any(not _HOST.fullmatch(value) for value in head.values("host"))


def wants_tunnel(head: Head) -> bool:
    """Tell whether it asks for a tunnel; an Upgrade is an offer, and one may go on without it."""
    return head.method == "CONNECT"


def has_coding_on_old_version(head: Head) -> bool:
    """Tell whether HTTP/1.0 comes with a transfer coding, whose framing cannot be trusted."""
    return head.version == "1.0" and bool(head.values("transfer-encoding"))


def has_coding_but_chunked(head: Head) -> bool:
    """Tell whether a transfer coding other than one `chunked` is named."""
    codings = head.values("transfer-encoding")
    return bool(codings) and [coding.lower() for coding in codings] != ["chunked"]


def has_two_framings(head: Head) -> bool:
    """Tell whether a length is repeated, or named beside a transfer coding (llhttp does, too)."""
    lengths = head.values("content-length")
    return len(lengths) > 1 or (bool(lengths) and bool(head.values("transfer-encoding")))


def has_bad_length(head: Head) -> bool:
    """Tell whether a length is not written in plain digits."""
    return any(not (v.isascii() and v.isdigit()) for v in head.values("content-length"))


def has_bad_target(head: Head) -> bool:
    """Tell whether the target is no path, no absolute URI of http(s), and no `*` of OPTIONS."""
    target = head.target
    if target == "*":
        return head.method != "OPTIONS"
    if not _ORIGIN.fullmatch(target) and not _ABSOLUTE.fullmatch(target):
        return True
    return "%" in target and bool(_BAD_ESCAPE.search(target.partition("?")[0]))


def names_another_host(head: Head) -> bool:
    """Tell whether the target's authority and Host differ."""
    absolute = _ABSOLUTE.fullmatch(head.target)
    hosts = head.values("host")
    return bool(absolute and hosts and absolute[1].lower() != hosts[0].lower())


def expects_the_unknown(head: Head) -> bool:
    """Tell whether an expectation other than 100-continue is named."""
    return any(value.lower() != "100-continue" for value in head.values("expect"))


# First match wins. The sentences name what was wrong and never repeat the client's bytes.
RULES: Final[tuple[tuple[Callable[[Head], bool], int, str], ...]] = (
    (has_odd_version, 505, "the version is neither HTTP/1.0, nor HTTP/1.1"),
    (has_wrong_host_count, 400, "a request has exactly one Host header"),
    (has_bad_host, 400, "the Host header is no host with an optional port"),
    (wants_tunnel, 501, "tunnels are not supported; send plain HTTP/1.1"),
    (has_coding_on_old_version, 400, "transfer codings came with HTTP/1.1; send Content-Length"),
    (has_coding_but_chunked, 501, "the only transfer coding understood is one 'chunked'"),
    (has_two_framings, 400, "the length of the body is stated twice"),
    (has_bad_length, 400, "Content-Length is not a number of bytes"),
    (has_bad_target, 400, "the request target is no percent-encoded path"),
    (names_another_host, 400, "the request target and the Host header name different hosts"),
    (expects_the_unknown, 417, "the only expectation understood is 100-continue"),
)


def refusal_of(head: Head, *, body_bytes_max: int) -> Refusal | None:
    """Decide whether a head is acceptable; None means that it is."""
    for is_wrong, status, detail in RULES:
        if is_wrong(head):
            return Refusal(status, detail)
    lengths = head.values("content-length")
    # Longer than 18 digits is longer than any limit, and costs no conversion.
    if lengths and (len(lengths[0]) > 18 or int(lengths[0]) > body_bytes_max):
        return too_large(body_bytes_max)
    return None


def too_large(body_bytes_max: int) -> Refusal:
    """Refuse a body that is, or says it is, longer than the limit."""
    return Refusal(413, f"the body is longer than {body_bytes_max} bytes")


def authority_of(target: str) -> str:
    """Return the host, and maybe the port, of an acceptable target; "" where it has none.

    Example:
        >>> authority_of("http://x:80/a"), authority_of("/a")
        ('x:80', '')
    """
    absolute = None if target.startswith(("/", "*")) else _ABSOLUTE.fullmatch(target)
    return "" if absolute is None else absolute[1]


def origin_form(target: str) -> str:
    """Reduce an acceptable target to path and query.

    Example:
        >>> origin_form("http://x:80/a?b"), origin_form("http://x?b"), origin_form("/a")
        ('/a?b', '/?b', '/a')
    """
    absolute = None if target.startswith(("/", "*")) else _ABSOLUTE.fullmatch(target)
    if absolute is None:
        return target
    rest = absolute[2]
    return rest if rest.startswith("/") else f"/{rest}"
