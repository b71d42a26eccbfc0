"""Reads a head in which nothing is odd from its bytes, at once, and knows it when it comes again.

llhttp tells a message field by field, and each field is a call from C into Python: half of what
reading a request costs. Nearly every message of a call comes in one piece, though, and says nothing
out of the ordinary. What is accepted here is a part of what llhttp and `strictness` accept, and it
is read as they read it; anything else is left to them, before a byte of it was taken.

Who sends one message after the other over a connection mostly says the same of each: only the first
line and the body differ. So a connection keeps the fields that came last, and compares what comes
with their bytes: the same bytes are the same fields, and need not be read, nor judged, again
(docs/adr/0080). What a layer above has found out by them is kept with them (`KeptFields`).

Source: RFC 9112, sections 3 and 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from http import HTTPStatus
from typing import Any, Final

from synchromesh.http.message import RawPair

# All that a line may consist of here; with it, CR and LF are only where lines end.
_PRINTABLE: Final = bytes(range(0x20, 0x7F))
# What decides about framing, persistence or protocol needs a closer look.
_ODD: Final = frozenset({b"expect", b"proxy-connection", b"transfer-encoding", b"upgrade"})
# Of answers the framing is looked at: those of many frameworks come in a chunk.
ODD_IN_ANSWERS: Final = _ODD - {b"transfer-encoding"}
_HEX: Final = b"0123456789abcdefABCDEF"
_CHUNK_DIGITS_MAX: Final = 4
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
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


HEAD_END: Final = b"\r\n\r\n"
LINE_END: Final = b"\r\n"
# Fields that take more are read each time: what idle connections keep is bounded.
KEPT_BYTES_MAX: Final = 2048


class KeptFields(list[RawPair]):
    """The fields of a head, read once for all messages of a connection that say the same.

    Names are in lower case, none is there twice, and nobody changes the list. It is the same object
    for each message that has these fields, and of no connection but one: so who reads many of them
    leaves there what they come to, and finds it when they come again. What may be over before they
    differ (a key is withdrawn, a token expires, a route is replaced) has to be looked at each time.

    They are kept when they come for the second time in a row: who never says the same twice costs
    no more than that is compared.

    Args:
        pairs: the fields.
        block: the bytes that they were read from.
        length: how long the body is that follows; below 0 where that is for itself to say.

    Attributes:
        noted: who has found out something by them, and what; None for nothing yet.
        verdict: who asks by them, as somebody has found out; None where nobody has looked.

    Example:
        >>> fields = KeptFields([(b"host", b"x")], b"Host: x", 0)
        >>> fields, fields.noted
        ([(b'host', b'x')], None)
    """

    __slots__ = ("block", "length", "noted", "verdict")

    def __init__(self, pairs: Iterable[RawPair], block: bytes, length: int) -> None:
        super().__init__(pairs)
        self.block = block
        self.length = length
        self.noted: tuple[object, Any] | None = None
        self.verdict: object = None


def read_fields(block: bytes, odd: AbstractSet[bytes] = _ODD) -> dict[bytes, bytes] | None:
    """Return the fields of a head, which are all of it but its first line; None where it is odd.

    Names are in lower case, and none is there twice, or among those that are `odd`.

    Example:
        >>> read_fields(b"Host: x\\r\\na: b")
        {b'host': b'x', b'a': b'b'}
        >>> [
        ...     read_fields(block)
        ...     for block in (b"a: b\\nc: d", b"a : b", b"a:b", b"a: b\\r\\nA: c", b"upgrade: h2c")
        ... ]
        [None, None, None, None, None]
    """
    lines = block.split(LINE_END)
    if len(block.translate(None, _PRINTABLE)) != 2 * len(lines) - 2:
        return None
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
        or not odd.isdisjoint(fields)
        or fields.get(b"connection", b"keep-alive") != b"keep-alive"
    ):
        return None
    return fields


def one_chunk(data: bytes) -> bytes | None:
    """Return a body that came as one chunk, and its end with it; None for anything else.

    Example:
        >>> one_chunk(b"3\\r\\nabc\\r\\n0\\r\\n\\r\\n")
        b'abc'
        >>> [
        ...     one_chunk(data + b"\\r\\n0\\r\\n\\r\\n")
        ...     for data in (b"4\\r\\nabc", b"3;x=y\\r\\nabc", b"+3\\r\\nabc", b"0\\r\\n")
        ... ]
        [None, None, None, None]
    """
    size, _, rest = data.partition(LINE_END)
    if not 0 < len(size) <= _CHUNK_DIGITS_MAX or size.translate(None, _HEX):
        return None
    chunk = rest.removesuffix(_LAST_CHUNK)
    if not chunk or len(chunk) == len(rest) or int(size, 16) != len(chunk):
        return None
    return chunk


def _learn(name: bytes) -> bytes:
    """Return a name in lower case, and know it from now on; nothing where it is no token."""
    if not _TOKEN.fullmatch(name):
        return b""
    if len(_NAMES) >= _NAMES_MAX:
        _NAMES.clear()  # who makes names up must not keep the usual ones out
    lower = _NAMES[name] = name.lower()
    return lower
