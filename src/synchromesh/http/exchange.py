"""One request of a server connection as it came, and the way to answer it by ready-made bytes.

A handler may offer more than a coroutine: a `FastHandler` gets small requests as bytes, before any
header was decoded, and answers them at once, or later by a callback. It costs no task, no future
and no header objects. What it declines takes the way of every other request.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from synchromesh.http.body import Body
from synchromesh.http.message import Connected, Headers, HttpRequest, HttpResponse, RawPair

if TYPE_CHECKING:
    from synchromesh.certificate import ClientCertificate


class ResponseWriter(Protocol):
    """Writes the response of an exchange; a server connection is one."""

    peer: str

    @property
    def transport(self) -> Connected:
        """The connection."""
        ...

    def answered(self, head: bytes, body: bytes) -> None:
        """Write a complete response at once, and go on with the next request."""
        ...

    def begun(self, head: bytes, data: bytes) -> None:
        """Write the head of a response whose body follows in parts, with what there is of it."""
        ...

    def part(self, data: bytes) -> bool:
        """Write a part of a body; False while the client does not read (backpressure)."""
        ...

    def ended(self, *, is_whole: bool) -> None:
        """End a response; one that is not complete resets the connection."""
        ...

    def answered_by(
        self, request: HttpRequest, answering: AbstractAsyncContextManager[HttpResponse]
    ) -> None:
        """Answer by what a context gives, in a task."""
        ...


class ExchangeListener(Protocol):
    """Handles events of the client while its response is pending."""

    def on_lost(self) -> asyncio.Task[object] | None:
        """Cancel the work: the client has disconnected. Return a task that is still to end."""
        ...

    def on_room(self) -> None:
        """Resume writing parts: the client has read what was written."""
        ...


class HttpExchange:
    """Is one complete request as raw bytes, and the way to respond to it.

    Attributes:
        method: in upper case.
        target: path and query as they were sent; an absolute form is reduced to it.
        pairs: the header fields, names in lower case; trailer fields are dropped.
        body: the whole body.
        is_plain: True where nothing about the head was out of the ordinary: HTTP/1.1, one Host, a
            length or no body, nothing expected. Only such requests are offered to a `FastHandler`.
        stream: the body while it comes, in place of `body`; None where it has come.
        listener: who is told when the client leaves; set it when the answer comes later.
        peer: `host:port` of the client's end; empty where the transport does not know it.

    Example:
        >>> def begin_exchange(exchange: HttpExchange) -> bool:
        ...     if exchange.target != b"/health":
        ...         return False  # the handler's coroutine takes it
        ...     exchange.answer(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n", b"ok")
        ...     return True
    """

    __slots__ = (
        "_writer",
        "body",
        "is_plain",
        "listener",
        "method",
        "pairs",
        "peer",
        "stream",
        "target",
    )  # fmt: skip

    def __init__(
        self,
        writer: ResponseWriter,
        method: bytes,
        target: bytes,
        pairs: list[RawPair],
        body: bytes,
        is_plain: bool,
        stream: Body | None = None,
    ) -> None:
        self._writer: ResponseWriter | None = writer
        # An attribute: it is read with every request that is passed on.
        self.peer = writer.peer
        self.method = method
        self.target = target
        self.pairs = pairs
        self.body = body
        self.is_plain = is_plain
        self.stream = stream
        self.listener: ExchangeListener | None = None

    def answer(self, head: bytes, body: bytes = b"") -> None:
        """Respond in one write; ignored if the client has disconnected or was answered.

        Args:
            head: status line and header lines, each with its CRLF, `content-length` among them;
                `connection` is the server's own, and so is the blank line at the end.
            body: as long as the head says.
        """
        writer = self._writer
        if writer is not None:
            self._writer = None
            writer.answered(head, body)

    def begin(self, head: bytes, data: bytes = b"") -> None:
        """Start a response whose body follows in parts, framed as the head says; see `answer`."""
        if self._writer is not None:
            self._writer.begun(head, data)

    def part(self, data: bytes) -> bool:
        """Write a framed part; False where more has to wait for `ExchangeListener.on_room`."""
        return self._writer is None or self._writer.part(data)

    def end(self, *, is_whole: bool = True) -> None:
        """End a response; one that is not complete resets the connection, and never looks whole."""
        writer = self._writer
        if writer is not None:
            self._writer = None
            writer.ended(is_whole=is_whole)

    def answer_by(self, answering: AbstractAsyncContextManager[HttpResponse]) -> None:
        """Answer by what a context gives, as one of a `Streaming` does: for what takes a task.

        Ignored where the client has gone or was answered; the context is not entered then. Nor is
        it where the client goes before the task takes its first step.
        """
        writer = self._writer
        if writer is not None:
            request = self.request()
            self._writer = None
            writer.answered_by(request, answering)

    def lose(self) -> asyncio.Task[object] | None:
        """Detach from the client, which has disconnected; later answers are ignored."""
        self._writer = None
        return None if self.listener is None else self.listener.on_lost()

    @property
    def is_lost(self) -> bool:
        """True once the request was answered, or the client has disconnected."""
        return self._writer is None

    def request(self) -> HttpRequest:
        """Return the request as a coroutine handler gets it."""
        target, writer = self.target.decode("latin-1"), self._writer
        path, _, query = target.partition("?")
        return HttpRequest(
            self.method.decode("ascii"),
            target,
            path,
            query,
            Headers.from_wire(self.pairs),
            self.body,
            self.peer,
            self.stream,
            None if writer is None else writer.transport,
        )

    @property
    def certificate(self) -> ClientCertificate | None:
        """What the client has proved itself by, by TLS; None where it has not, or has gone."""
        if self._writer is None:
            return None
        found: ClientCertificate | None
        found = self._writer.transport.get_extra_info("client_certificate")
        return found

    def __repr__(self) -> str:
        # The query and the headers may carry what must not be logged.
        path = self.target.partition(b"?")[0].decode("latin-1")
        return f"<HttpExchange {self.method.decode('ascii')} {path} {len(self.body)} bytes>"


class FastHandler(Protocol):
    """Is a handler that also responds to small requests by callbacks."""

    def begin_exchange(self, exchange: HttpExchange) -> bool:
        """Respond to a request, now or later, by `exchange.answer`; return False to decline it.

        It runs within the connection's own turn and must not block. What it declines is handed to
        the handler's coroutine, untouched. Raising is answered 500 and logged, as there.
        """
        ...
