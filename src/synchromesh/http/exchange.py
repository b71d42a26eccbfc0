"""One request of a server connection as it came, and the way to answer it by ready-made bytes.

A handler may offer more than a coroutine: a `FastHandler` gets small requests as bytes, before any
header was decoded, and answers them at once, or later by a callback. It costs no task, no future
and no header objects. What it declines takes the way of every other request.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from synchromesh.http.body import Body
from synchromesh.http.message import Headers, HttpRequest, RawPair


class Answerer(Protocol):
    """Sends what an exchange is answered with; its connection is one."""

    peer: str

    def answered(self, head: bytes, body: bytes) -> None:
        """Send an answer in one write, and go on with the next request."""
        ...

    def begun(self, head: bytes, data: bytes) -> None:
        """Send the head of an answer whose body follows in parts, with what there is of it."""
        ...

    def part(self, data: bytes) -> bool:
        """Send a part of a body; False where the client has not taken what it was sent."""
        ...

    def ended(self, *, is_whole: bool) -> None:
        """End an answer that was begun; one that is not whole is cut off by a reset."""
        ...


class Interest(Protocol):
    """Is told what becomes of the client while its answer is worked for."""

    def on_lost(self) -> asyncio.Task[object] | None:
        """Stop the work: the client has gone. A task that needs a moment to end is returned."""
        ...

    def on_room(self) -> None:
        """Go on with the body's parts: the client has taken what it was sent."""
        ...


class HttpExchange:
    """Is one request as it came, its framing judged and its body decoded, and its answer's way.

    Attributes:
        method: in upper case.
        target: path and query as they were sent; an absolute form is reduced to it.
        pairs: the header fields, names in lower case; trailer fields are dropped.
        body: the whole body.
        is_plain: True where nothing about the head was out of the ordinary: HTTP/1.1, one Host, a
            length or no body, nothing expected. Only such requests are offered to a `FastHandler`.
        stream: the body while it comes, in place of `body`; None where it has come.
        interest: who is told when the client leaves; set it when the answer comes later.
    """

    __slots__ = (
        "_answerer", "body", "interest", "is_plain", "method", "pairs", "stream", "target",
    )  # fmt: skip

    def __init__(
        self,
        answerer: Answerer,
        method: bytes,
        target: bytes,
        pairs: list[RawPair],
        body: bytes,
        *,
        is_plain: bool,
        stream: Body | None = None,
    ) -> None:
        self._answerer: Answerer | None = answerer
        self.method = method
        self.target = target
        self.pairs = pairs
        self.body = body
        self.is_plain = is_plain
        self.stream = stream
        self.interest: Interest | None = None

    def answer(self, head: bytes, body: bytes = b"") -> None:
        """Answer, in one write; ignored where the client has gone or was answered.

        Args:
            head: status line and header lines, each with its CRLF, `content-length` among them;
                `connection` is the server's own, and so is the blank line at the end.
            body: as long as the head says.
        """
        answerer = self._answerer
        if answerer is not None:
            self._answerer = None
            answerer.answered(head, body)

    def begin(self, head: bytes, data: bytes = b"") -> None:
        """Begin an answer whose body follows in parts, framed as the head says; see `answer`."""
        if self._answerer is not None:
            self._answerer.begun(head, data)

    def part(self, data: bytes) -> bool:
        """Send a part, framed already; False where more is to wait for `Interest.on_room`."""
        return self._answerer is None or self._answerer.part(data)

    def end(self, *, is_whole: bool = True) -> None:
        """End an answer that was begun; one that is not whole is cut off, and never looks whole."""
        answerer = self._answerer
        if answerer is not None:
            self._answerer = None
            answerer.ended(is_whole=is_whole)

    def lose(self) -> asyncio.Task[object] | None:
        """Take the news that the client has gone; what is answered from now on is ignored."""
        self._answerer = None
        return None if self.interest is None else self.interest.on_lost()

    @property
    def is_lost(self) -> bool:
        """True where nobody waits for an answer (any more)."""
        return self._answerer is None

    def request(self) -> HttpRequest:
        """Return the request as a handler gets it."""
        target = self.target.decode("latin-1")
        path, _, query = target.partition("?")
        return HttpRequest(
            self.method.decode("ascii"),
            target,
            path,
            query,
            Headers.from_wire(self.pairs),
            self.body,
            "" if self._answerer is None else self._answerer.peer,
            self.stream,
        )

    def __repr__(self) -> str:
        # The query and the headers may carry what must not be logged.
        path = self.target.partition(b"?")[0].decode("latin-1")
        return f"<HttpExchange {self.method.decode('ascii')} {path} {len(self.body)} bytes>"


class FastHandler(Protocol):
    """Is a handler that also answers small requests by callbacks."""

    def begin_exchange(self, exchange: HttpExchange) -> bool:
        """Answer a request, now or later, by `exchange.answer`; False declines it.

        It runs within the connection's own turn and must not block. What it declines is handed to
        the handler's coroutine, untouched. Raising is answered 500 and logged, as there.
        """
        ...
