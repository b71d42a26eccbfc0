"""Bodies on their way: what one side has sent and the other has not taken, and how it is framed.

A connection feeds a `Body`, and stops reading from its socket while that is full; whoever reads the
body makes it go on. So a slow reader slows the sender down, and little is held in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from synchromesh.errors import ConnectionLost

# A body that holds this much is full. What one read of the socket brings comes on top.
FULL_BYTES: Final = 64 * 1024


class Body:
    """A body that is still coming; it has one reader, which reads it once.

    Args:
        length: how long the sender says it is; None where that is not known, 0 for none.
        on_room: called when the reader has taken what there was, or waits for more; not once it is
            whole or has failed.

    Attributes:
        length: as it was given.
        size: how many bytes have come and were not read yet.
        is_ended: True once it is whole.
        is_touched: True where any of it may have been read: it cannot be read again.
        awaits_continue: True where the sender waits for 100 Continue, which the first read or
            `fill` has it sent.

    Example:
        >>> async def main() -> list[bytes]:
        ...     body = Body(length=None, on_room=lambda: None)
        ...     body.feed(b"ab")
        ...     body.feed(b"c")
        ...     body.end()
        ...     return [await body.read(), await body.read()]
        >>> asyncio.run(main())
        [b'abc', b'']
    """

    __slots__ = (
        "_error", "_on_room", "_parts", "_reading", "awaits_continue", "is_ended", "is_touched",
        "length", "size",
    )  # fmt: skip

    def __init__(self, *, length: int | None, on_room: Callable[[], None]) -> None:
        self.length = length
        self.size = 0
        self.is_ended = False
        self.is_touched = False
        self.awaits_continue = False
        self._on_room = on_room
        self._parts: list[bytes] = []
        self._error: Exception | None = None
        self._reading: asyncio.Future[None] | None = None

    @classmethod
    def of(cls, data: bytes) -> Body:
        """Return a body that has come whole."""
        body = cls(length=len(data), on_room=_nothing)
        body.feed(data)
        body.end()
        return body

    @property
    def is_full(self) -> bool:
        """True while nothing more should be fed."""
        return self.size >= FULL_BYTES

    @property
    def is_wanted(self) -> bool:
        """True while somebody waits for more."""
        return self._reading is not None

    async def read(self) -> bytes:
        """Return what has come, as soon as there is something; b"" at the end.

        Raises:
            CallError: the body broke off; what had come and was not read is lost. The reason is
                told once, and then that it was.
        """
        self.is_touched = True
        if not self._parts and not self.is_ended and self._error is None:
            await self._more()
        if self._error is not None:
            # Handed over: kept here, it and whoever reads would hold each other, by its traceback.
            error, self._error = self._error, ConnectionLost("the body broke off before")
            try:
                raise error
            finally:
                del error  # this frame, too, is in its traceback
        part = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self.size = 0
        if part:
            self._on_room()
        return part

    async def fill(self) -> None:
        """Return once it is whole, full or broken; nothing of it is read."""
        while not (self.is_ended or self.is_full or self._error is not None):
            await self._more()

    def peek(self) -> bytes:
        """Return what has come and was not read, and leave it there."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    # -- what the connection tells ---------------------------------------------------------------

    def feed(self, part: bytes) -> None:
        """Take a part that has come."""
        if part:
            self._parts.append(part)
            self.size += len(part)
            self._wake()

    def end(self) -> None:
        """Take the end: the body is whole."""
        self.is_ended = True
        self._on_room = _nothing
        self._wake()

    def fail(self, error: Exception) -> None:
        """Take the news that the rest will not come."""
        if not self.is_ended and self._error is None:
            self._error = error
            self._on_room = _nothing
            self._wake()

    def __repr__(self) -> str:
        doing = "broken" if self._error else "ended" if self.is_ended else "coming"
        return f"<Body {doing}, {self.size} bytes unread>"

    async def _more(self) -> None:
        self._reading = asyncio.get_running_loop().create_future()
        try:
            self._on_room()
            await self._reading
        finally:
            self._reading = None

    def _wake(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)


def _nothing() -> None:
    """Need no room: nothing more will come."""


class Framing:
    """Delimits a body that is sent in parts: by its length, by chunks, or by the end of all.

    Args:
        length: how long it will be; None where that is not known.
        is_chunked: whether the other side understands chunks.

    Example:
        >>> chunks = Framing(length=None)
        >>> chunks.fields, chunks.part(b"abc"), chunks.end()
        (('transfer-encoding: chunked',), b'3\\r\\nabc\\r\\n', b'0\\r\\n\\r\\n')
        >>> length = Framing(length=3)
        >>> length.fields, length.part(b"abc"), length.end()
        (('content-length: 3',), b'abc', b'')
    """

    __slots__ = ("_is_chunked", "_left")

    def __init__(self, *, length: int | None, is_chunked: bool = True) -> None:
        self._left = length
        self._is_chunked = is_chunked and length is None

    @property
    def fields(self) -> tuple[str, ...]:
        """The header field that says so; none where the end of the connection is the body's."""
        if self._left is not None:
            return (f"content-length: {self._left}",)
        return ("transfer-encoding: chunked",) if self._is_chunked else ()

    def part(self, part: bytes) -> bytes:
        """Frame a part.

        Raises:
            ValueError: it is more than the length that was announced.
        """
        if self._left is not None:
            self._left -= len(part)
            if self._left < 0:
                raise ValueError(f"a body is longer than it was announced, by {-self._left} bytes")
        # An empty chunk would end the body.
        return b"%x\r\n%b\r\n" % (len(part), part) if self._is_chunked and part else part

    def end(self) -> bytes:
        """Frame the end.

        Raises:
            ValueError: there is less than the length that was announced.
        """
        if self._left:
            raise ValueError(f"a body is shorter than it was announced, by {self._left} bytes")
        return b"0\r\n\r\n" if self._is_chunked else b""
