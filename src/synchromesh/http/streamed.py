"""Streamed exchanges of the pool: neither body is ever held whole.

The request's body is sent as its reader gets it, the answer is returned with its head, and reading
pauses while enough of its body is unread. What is waited for is bounded each time, and not in all.
"""

from __future__ import annotations

import asyncio

from synchromesh.errors import ConnectFailed, ConnectionLost, NotExecuted
from synchromesh.http.body import Body, Framing
from synchromesh.http.client import ClientExchange, ExchangeState
from synchromesh.http.limits import PoolLimits
from synchromesh.http.message import Headers, HttpResponse, RawPair


class StreamedExchange(ClientExchange):
    """An exchange with streamed bodies, with backpressure in both directions.

    It is a stream from the start where its request's body is not there yet: what that takes is the
    time of whoever sends it. A body that has come whole is sent with its head, and stays readable
    where nothing was sent.

    Args:
        head: as it is framed for the wire.
        body: what is sent after it, and read where it is still coming; None where there is none.
        framing: of that body.
        due_s: until when there has to be a connection.
        answer_s: how long the head of the answer may take, from the last byte of the request on.
        limits: how long the answer's body may stand still while it is read.

    Attributes:
        answer: the answer, once its head is there; its body is its `stream`.
    """

    takes_parts = True

    def __init__(
        self,
        head: bytes,
        body: Body | None,
        framing: Framing,
        *,
        due_s: float,
        answer_s: float,
        limits: PoolLimits,
        is_head: bool,
        is_idempotent: bool,
    ) -> None:
        self._whole = body if body is not None and body.is_ended and not body.is_touched else None
        if self._whole is not None:
            head += framing.part(self._whole.peek()) + framing.end()
            body = None
        super().__init__(head, due_s=due_s, is_head=is_head, is_idempotent=is_idempotent)
        self._loop = asyncio.get_running_loop()
        self._body = body
        self._framing = framing
        self._answer_s = answer_s
        self._limits = limits
        self.is_streaming = body is not None and not body.is_ended
        self._stream = Body(length=None, on_room=self._on_room)
        self._sending: asyncio.Task[None] | None = None
        # One that is still coming cannot be sent again if a kept connection turns out to be closed.
        self.may_reuse = body is None
        self.answer: asyncio.Future[HttpResponse] = self._loop.create_future()

    async def leave(self) -> None:
        """End the exchange; one that is not complete resets its connection."""
        self.cancel()
        self._stream.fail(ConnectionLost("whoever asked for this answer has left it"))
        await self._stop_sending()

    # -- what the connection tells ---------------------------------------------------------------

    def on_sent(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send the body, if there is one, then start the deadline of the response."""
        if self._whole is not None:
            self._whole.is_touched = True
        if self._body is None:
            self.expect_within(self._answer_s)
        else:
            self.expect_within(None)
            self._sending = loop.create_task(self._send(self._body))

    @property
    def is_sent(self) -> bool:  # type: ignore[override]
        """True once the whole request has been sent."""
        return self._sending is None or self._sending.done()

    def on_answer(self, status: int, pairs: list[RawPair], body: bytes) -> None:
        """Resolve `answer` with a response that came whole."""
        self.on_begin(status, pairs, None if self.is_head else len(body))
        self._stream.feed(body)
        self.on_end()

    def on_begin(self, status: int, pairs: list[RawPair], length: int | None) -> None:
        """Resolve `answer` with the head."""
        self._stream.length = length
        if not self.answer.done():
            headers = Headers.from_wire(pairs)
            self.answer.set_result(HttpResponse(status, headers, stream=self._stream))

    def on_part(self, data: bytes) -> None:
        """Buffer a part, and pause reading while the buffer is full."""
        self._stream.feed(data)
        if self._stream.is_full and self.connection is not None:
            self.connection.pause()
        self._expect_part()

    def on_end(self) -> None:
        """Handle the end of the response; stop sending a request that it did not wait for."""
        self._stream.end()
        if self._sending is not None:
            self._sending.cancel()

    def on_error(self, error: Exception) -> None:
        """Fail `answer`, or its body."""
        if self._body is not None and self._body.is_wanted and isinstance(error, ConnectionLost):
            # It has had enough of a sender who keeps it waiting, as some servers do early.
            error.is_callees = False
        if self._sending is not None:
            self._sending.cancel()
        if self._whole is not None and isinstance(error, (NotExecuted, ConnectFailed)):
            self._whole.is_touched = False
        if not self.answer.done():
            self.answer.set_exception(error)
        else:
            self._stream.fail(error)

    # -- its own ---------------------------------------------------------------------------------

    async def _send(self, body: Body) -> None:
        connection = self.connection
        assert connection is not None
        try:
            while part := await body.read():
                await connection.outflow.send(self._framing.part(part))
            await connection.outflow.send(self._framing.end())
        except Exception as error:  # noqa: BLE001 - told to who waits for the answer
            self.cancel()
            self._sending = None
            self.on_error(error)
        else:
            if self.state is ExchangeState.SENT:
                self.expect_within(self._answer_s)
        finally:
            del self  # it keeps an error that has this frame in its traceback

    async def _stop_sending(self) -> None:
        sending, self._sending = self._sending, None
        if sending is not None and not sending.done():
            sending.cancel()
            await asyncio.wait([sending])

    def _on_room(self) -> None:
        """Resume reading the response: its reader has read the buffer, or waits for more."""
        if self.connection is not None:
            self.connection.resume()
            self._expect_part()

    def _expect_part(self) -> None:
        stream = self._stream
        self.expect_within(self._limits.part_s(stream.length) if stream.is_wanted else None)
