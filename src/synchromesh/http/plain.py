"""Reads a head in which nothing is odd from its bytes, at once.

llhttp tells a message field by field, and each field is a call from C into Python: half of what
reading a request costs. Nearly every message of a call comes in one piece, though, and says nothing
out of the ordinary. What is accepted here is a part of what llhttp and `strictness` accept, and it
is read as they read it; anything else is left to them, before a byte of it was taken.

Source: RFC 9112, sections 3 and 5.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

# All that a line may consist of here; with it, CR and LF are only where lines end.
_PRINTABLE: Final = bytes(range(0x20, 0x7F))
# What decides about framing, persistence or protocol needs a closer look.
_ODD: Final = frozenset({b"expect", b"proxy-connection", b"transfer-encoding", b"upgrade"})
# An answer of any other status, or of other words, is read by llhttp: these have a body.
STATUSES: Final = {
    f"HTTP/1.1 {status.value} {status.phrase}".encode(): status.value
    for status in HTTPStatus
    if status >= 200 and status not in (204, 205, 304)
}
LENGTH_DIGITS_MAX: Final = 18
# After so many in a row that were not plain, the rest of a connection is not looked at.
ODD_MAX: Final = 8
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")
# Names that were found to be tokens, by how they were spelt, in lower case.
_NAMES: dict[bytes, bytes] = {}
_NAMES_MAX: Final = 1024


def read_head(data: bytes) -> tuple[bytes, dict[bytes, bytes], bytes] | None:
    """Return the first line of a head, its fields, and what follows it; None where it is odd.

    Names are in lower case, and none is there twice.

    Example:
        >>> read_head(b"GET / HTTP/1.1\\r\\nHost: x\\r\\na: b\\r\\n\\r\\nbody")
        (b'GET / HTTP/1.1', {b'host': b'x', b'a': b'b'}, b'body')
        >>> [
        ...     read_head(b"GET / HTTP/1.1\\r\\n" + fields + b"\\r\\n\\r\\n")
        ...     for fields in (b"a: b\\nc: d", b"a : b", b"a:b", b"a: b\\r\\nA: c", b"upgrade: h2c")
        ... ]
        [None, None, None, None, None]
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    if not end or len(head.translate(None, _PRINTABLE)) != 2 * len(lines) - 2:
        return None
    first = lines.pop(0)
    fields = {}
    names = _NAMES
    for line in lines:
        name, _, value = line.partition(b": ")
        lower = names.get(name) or _learn(name)
        value = value.strip(b" ")
        if not lower or not value:
            return None
        fields[lower] = value
    if (
        len(fields) != len(lines)
        or not _ODD.isdisjoint(fields)
        or fields.get(b"connection", b"keep-alive") != b"keep-alive"
    ):
        return None
    return first, fields, rest


def _learn(name: bytes) -> bytes:
    """Return a name in lower case, and know it from now on; nothing where it is no token."""
    if not _TOKEN.fullmatch(name):
        return b""
    if len(_NAMES) >= _NAMES_MAX:
        _NAMES.clear()  # who makes names up must not keep the usual ones out
    lower = _NAMES[name] = name.lower()
    return lower
