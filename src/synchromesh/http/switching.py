"""Switching to the WebSocket protocol: how it is asked for, and what counts as a yes.

What is not a proper yes is no tunnel: a peer that has switched on its own would take what follows
for another protocol than we do. A pure machine.

Source: RFC 6455, sections 4.1 and 4.2; RFC 9110, section 7.8.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final

import httptools

from synchromesh.errors import BadRequest
from synchromesh.http.limits import PoolLimits
from synchromesh.http.message import Headers, HttpResponse, RawPair
from synchromesh.http.responses import ResponseReader, ResponseState

VERSION: Final = "13"
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16
# What a client says of the protocol that it asks for, and a server of the one it takes.
ASKED_BY: Final = frozenset({
    "origin", "sec-websocket-extensions", "sec-websocket-key", "sec-websocket-protocol",
    "sec-websocket-version",
})  # fmt: skip
_FRAMES: Final = ("content-length", "transfer-encoding")
# The lines that make a message of HTTP the last one.
SWITCH_LINES: Final = b"connection: Upgrade\r\nupgrade: websocket\r\n\r\n"


def asks_to_switch(method: str, headers: Headers) -> bool:
    """Tell whether a request asks for a WebSocket; with a body it goes on without.

    Raises:
        BadRequest: it asks for one in a way that none can be made from.

    Example:
        >>> asks_to_switch("GET", Headers([("upgrade", "h2c"), ("connection", "Upgrade")]))
        False
    """
    if (
        method != "GET"
        or "websocket" not in _tokens(headers, "upgrade")
        or "upgrade" not in _tokens(headers, "connection")
        or any(headers.get(name, "0") != "0" for name in _FRAMES)
    ):
        return False
    versions, keys = headers.get_all("sec-websocket-version"), headers.get_all("sec-websocket-key")
    if versions != (VERSION,):
        raise BadRequest(f"a WebSocket is asked for with sec-websocket-version: {VERSION}")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise BadRequest("a WebSocket is asked for with one sec-websocket-key of 16 bytes, base64")
    return True


def accept_of(key: str) -> str:
    """Return what a server answers to a key.

    Example:
        >>> accept_of("dGhlIHNhbXBsZSBub25jZQ==")
        's3pPLMBiTxaQ9kYGzzhZRbK+xOo='
    """
    digest = hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def refusal_of_switch(asked: Headers, told: Headers) -> str:
    """Return why an answer of 101 is none to what was asked, "" where it is one."""
    if list(_tokens(told, "upgrade")) != ["websocket"]:
        return "it switched to another protocol than websocket"
    if "upgrade" not in _tokens(told, "connection"):
        return "it switched without 'Connection: Upgrade'"
    if any(told.get_all(name) for name in _FRAMES):
        return "it switched with a body"
    if told.get_all("sec-websocket-accept") != (accept_of(asked.get("sec-websocket-key", "")),):
        return "its sec-websocket-accept is no answer to what was asked"
    chosen = told.get_all("sec-websocket-protocol")
    offered = _tokens(asked, "sec-websocket-protocol", lower=False)
    if len(chosen) > 1 or any(name not in offered for name in chosen):
        return "it chose a subprotocol that was not offered"
    extensions = {_name(each) for each in _tokens(told, "sec-websocket-extensions")}
    if not extensions <= {_name(each) for each in _tokens(asked, "sec-websocket-extensions")}:
        return "it chose an extension that was not offered"
    return ""


class SwitchReader:
    """Reads the answer to a request to switch: 101 and what comes behind it, or any other whole.

    Args:
        asked: the fields of the request.
        limits: sizes of the answer.

    Attributes:
        answer: what came, once it is there; of status 101 the fields alone, as `switched`.
        rest: what came behind a 101.
    """

    def __init__(self, asked: Headers, limits: PoolLimits) -> None:
        self._asked = asked
        self._limits = limits
        self._held = b""
        self._interims = 0
        self._reader: ResponseReader | None = None
        self.switched: Headers | None = None
        self.answer: HttpResponse | None = None
        self.rest = b""

    def feed(self, data: bytes) -> str:
        """Read a part; return why it is not acceptable, "" where it is."""
        if self._reader is not None:
            return self._feed_other(data)
        self._held += data
        while self._reader is None:
            head, end, rest = self._held.partition(b"\r\n\r\n")
            if len(head) > self._limits.head_bytes_max:
                return "its head is too long"
            if not end:
                return ""
            read = _Head()
            try:
                read.parser.feed_data(head + end)
            except httptools.HttpParserUpgrade:
                pass  # it has ended
            except httptools.HttpParserError as error:
                return str(error)
            if len(read.pairs) > self._limits.headers_max:
                return "it has too many header fields"
            if read.status == 101:
                return self._switch(read, rest)
            if 100 <= read.status < 200:
                self._interims += 1
                if self._interims > self._limits.interim_max:
                    return "too many interim answers"
                self._held = rest
                continue
            self._reader = ResponseReader(self._limits)
            self._reader.expect(False, False)
        held, self._held = self._held, b""
        return self._feed_other(held)

    def end(self) -> bool:
        """Take the end of the connection; tell whether it ends an answer."""
        reader = self._reader
        if reader is not None and reader.state is ResponseState.BODY and not reader.is_delimited:
            self._take(reader)
        return self.answer is not None

    def __repr__(self) -> str:
        return f"<SwitchReader {self.answer or self.switched or 'waits'}>"

    def _switch(self, read: _Head, rest: bytes) -> str:
        told = Headers.from_wire(read.pairs)
        reason = refusal_of_switch(self._asked, told)
        if read.parser.get_http_version() != "1.1":
            reason = "it switched by another version than HTTP/1.1"
        if not reason:
            self.switched, self.rest = told, rest
        return reason

    def _feed_other(self, data: bytes) -> str:
        reader = self._reader
        assert reader is not None
        reason = reader.feed(data)
        if reader.state is ResponseState.WHOLE:
            self._take(reader)
            return ""
        return reason or ""

    def _take(self, reader: ResponseReader) -> None:
        if self.answer is None:
            headers = Headers.from_wire(reader.pairs)
            self.answer = HttpResponse(reader.status, headers, reader.take_body())


class _Head:
    """One head, as the parser tells of it."""

    def __init__(self) -> None:
        self.pairs: list[RawPair] = []
        self.status = 0
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field."""
        self.pairs.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        """Take the status."""
        self.status = self.parser.get_status_code()


def _tokens(headers: Headers, name: str, *, lower: bool = True) -> list[str]:
    parts = (part.strip(" \t") for value in headers.get_all(name) for part in value.split(","))
    return [part.lower() if lower else part for part in parts if part]


def _name(extension: str) -> str:
    return extension.partition(";")[0].strip(" \t")


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text.encode("ascii"), validate=True)) == _KEY_BYTES
    except (binascii.Error, UnicodeEncodeError):
        return False
