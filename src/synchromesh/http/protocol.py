"""One connection of the server: requests are answered in order, slow clients are cut.

Requests queue up and are answered one at a time, in order; what is queued, unread and unsent is
bounded, so that a client that sends faster than it reads waits and costs nothing. While the reader
of a streamed body has enough unread, the connection reads no more.

All is done in *turns*: one event of the transport is parsed, what can be answered at once is, and
the answers leave in one write. A handler runs as an eager task, within the turn until it waits;
a `FastHandler` needs none. The states are those of `states`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context
from functools import partial
from typing import Final, cast

from synchromesh.http.body import Body
from synchromesh.http.date import DATE
from synchromesh.http.exchange import HttpExchange
from synchromesh.http.message import (
    HttpRequest,
    HttpResponse,
    asks_to_close,
    encode_response,
    problem_response,
)
from synchromesh.http.outflow import Outflow, half_close, peer_of, reset
from synchromesh.http.read_timer import ReadTimer
from synchromesh.http.reading import SLICE_BYTES, RequestReader
from synchromesh.http.serving import FAILED, FULL, Serving
from synchromesh.http.states import REPLIES, WAITED, ReadingState, Replying, ReplyingEvent, doing_of
from synchromesh.http.streaming import answer_streaming
from synchromesh.http.strictness import Refusal

_logger = logging.getLogger("synchromesh.http")

# Answers to requests that came together leave together, up to this much.
_TOGETHER_BYTES: Final = 64 * 1024
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_BLANK_LINE, _LAST_LINES = b"\r\n", b"connection: close\r\n\r\n"

# Looked up in each turn: a global is found sooner than a member of its class.
_FREE, _BEGUN, _BUSY = Replying.FREE, Replying.BEGUN, Replying.BUSY
_LINGERING, _LOST = Replying.LINGERING, Replying.LOST
_TAKEN, _WAITS, _ANSWERED = ReplyingEvent.TAKEN, ReplyingEvent.WAITS, ReplyingEvent.ANSWERED
_FRESH, _IDLE, _, _BODY, _CLOSED = ReadingState


class ServerConnection(asyncio.Protocol):
    """Serves one client until it leaves, is refused, is too slow, or the server drains.

    A client that closes its sending side counts as gone: its handler is cancelled. TCP does not
    tell the two apart, and a handler that works for nobody is the costlier mistake.
    """

    transport: asyncio.Transport
    outflow: Outflow

    def __init__(self, serving: Serving) -> None:
        self._loop = asyncio.get_running_loop()
        self._serving, self.date = serving, serving.date
        self.reader = RequestReader(
            serving.limits, serving.streaming, self, is_fast=serving.is_fast
        )
        self._read_timer = ReadTimer(self._loop, serving.limits, self._on_read_timeout)
        self._replying = Replying.FREE
        # Who works for the answer, once that has to be waited for.
        self._work: asyncio.Task[object] | HttpExchange | None = None
        self.current: Body | None = None  # the streamed body of the request being answered
        self._unfed: bytes | memoryview = b""
        self._is_held = False  # reading is paused while something is unfed
        self._out: list[bytes] = []
        # What is said after all answers, before the end: why nothing more is taken.
        self.final_response: HttpResponse | None = None
        # Of the connection's making: a pipelined request is started by the task of the one before.
        self._context = copy_context()
        self.peer = ""

    def __repr__(self) -> str:
        doing = doing_of(self.reader.state, self._replying)
        return f"<ServerConnection {self.peer} {doing}, {len(self.reader.ready)} waiting>"

    # -- what the transport tells ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for the first request; its head may take `head_s` from now."""
        self.transport = cast("asyncio.Transport", transport)
        # Any unsent byte counts: a client is slow from the moment it does not take what it is sent.
        self.transport.set_write_buffer_limits(high=0)
        self.outflow = Outflow(
            self.transport, taken=self._serving.taken, patience=self._serving.patience
        )
        self.peer = peer_of(transport)
        if not self._serving.owner.opened(self):
            self._close_with(FULL)
        self._turn()

    def data_received(self, data: bytes) -> None:
        """Parse what came; what is too early to parse is kept, and reading pauses."""
        if self.reader.state is _CLOSED:
            return
        if self._unfed:
            self._unfed = memoryview(bytes(self._unfed) + data)
            return
        self._unfed = data
        if self._replying is _FREE and not (self._is_held or self.outflow.is_paused):
            reader = self.reader
            if not reader.ready and len(data) <= SLICE_BYTES:
                # A turn that begins with nothing: most are one request, and end with that.
                exchange = reader.take_whole(data)
                if exchange is not None:
                    self._unfed = b""
                    self._take(exchange)
                    if reader.state is _IDLE and self._ends_alone():
                        return
        self._turn()

    def eof_received(self) -> None:
        """Let the transport close: the client has gone."""

    def pause_writing(self) -> None:
        """Begin to watch whether the client takes what it was sent."""
        self.outflow.pause(self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client has taken everything."""
        self.outflow.resume()
        work = self._work
        if isinstance(work, HttpExchange) and work.listener is not None:
            work.listener.on_room()
        self._turn()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Cancel the running handler, and drop pipelined requests."""
        self._replying = REPLIES[self._replying][ReplyingEvent.LOST]
        self.stop_reading()
        self._read_timer.end()
        self.outflow.end()
        self.reader.end()
        self.current = None
        self._out.clear()
        work, self._work = self._work, None
        if isinstance(work, HttpExchange):
            work = work.lose()
        elif work is not None:
            work.cancel()
        self._serving.owner.closed(self, work)

    # -- what the server asks --------------------------------------------------------------------

    def drain(self, idle_s: float) -> None:
        """Answer what has been accepted or begun, and one request within `idle_s`, then close."""
        reader = self.reader
        reader.is_draining = True
        if not idle_s and reader.state is _IDLE and not self._unfed:
            reader.close()
        self._turn()
        self._read_timer.drain(idle_s)

    @property
    def is_idle(self) -> bool:
        """True where nothing of a request has come whose answer is not taken."""
        has_more = self.reader.ready or self._unfed or self._out or self.outflow.is_paused
        return self._replying is _FREE and self.reader.state <= _IDLE and not has_more

    def make_room(self) -> None:
        """End an idle connection at once: others need its place."""
        self.transport.close()

    def cut(self) -> None:
        """Drop the connection at once, with what it was doing."""
        self.transport.abort()

    # -- what a reader of a streamed body tells --------------------------------------------------

    def on_room(self) -> None:
        """Go on with a streamed body: its reader has taken what there was, or waits for more."""
        reader = self.reader
        body = reader.coming
        if body is None:
            return
        if reader.owes_continue and body is self.current and body.is_wanted:
            reader.owes_continue = False
            self._out.append(_CONTINUE)
        self._turn()

    def _ends_alone(self) -> bool:
        """Do what `_turn` does behind a request that came alone; False where it has more to do."""
        out = self._out
        if self._replying is _BUSY and not out:
            self._read_timer.pause()
            return True
        if self._replying is _FREE and len(out) == 1:
            self.transport.write(out.pop())
            if not self.outflow.is_paused:
                self._read_timer.expect_next(self.reader.begun)
                return True
        return False

    # -- a turn ----------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Parse and answer all that needs no waiting, write once, and wait for the rest."""
        reader = self.reader
        ready, most = reader.ready, self._serving.limits.pipeline_max
        left = most
        while True:
            if ready and self._replying is _FREE and not self.outflow.is_paused:
                if not left:
                    # Who sends many at once must not keep the others waiting.
                    self._loop.call_soon(self._turn, context=self._context)
                    break
                left -= 1
                self._take(ready.popleft())
                if (ready or self._unfed) and sum(map(len, self._out)) >= _TOGETHER_BYTES:
                    self._flush()  # which may find that the client takes no more
            elif (
                self._unfed
                and len(ready) < most
                and (reader.coming is None or not reader.coming.is_full)
            ):
                self._feed()
            else:
                break
        if self._replying is _FREE and not ready:
            if reader.state is _CLOSED:
                self._conclude()
            elif reader.owes_continue and reader.state is _BODY:
                reader.owes_continue = False
                self._out.append(_CONTINUE)
        self._flush()
        self._wait()

    def _feed(self) -> None:
        """Parse the next piece; a whole event of usual size is one."""
        data, reader = self._unfed, self.reader
        if len(data) <= SLICE_BYTES:
            self._unfed = b""
        else:
            data = memoryview(data)
            data, self._unfed = data[:SLICE_BYTES], data[SLICE_BYTES:]
        refusal = reader.feed(data)
        if reader.is_open and not self._unfed and refusal is None:
            refusal = reader.settle()
        if refusal is not None:
            self._refuse(refusal)
        if reader.state is _CLOSED:
            self._unfed = b""

    def _conclude(self) -> None:
        """Say the last word to a client of whom nothing more is taken, and end."""
        if self.outflow.is_paused:
            return
        word, self.final_response = self.final_response, None
        if word is not None:
            date = self.date.line()
            self._out.append(encode_response(word, is_head=False, is_last=True, date=date))
            self._serving.refused(self.peer, word.status)
        self._end()

    def _flush(self) -> None:
        if out := self._out:
            self.transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def _flush_late(self) -> None:
        """Write what was answered in this turn of the loop."""
        if self._out:
            self._flush()
            if self.outflow.is_paused:
                self._wait()

    def _wait(self) -> None:
        """Read only while what is read can be parsed, and give the client its time for it."""
        reader = self.reader
        if self._unfed:
            # A paused client is not a slow one.
            if not self._is_held:
                self._is_held = True
                self.transport.pause_reading()
            self._read_timer.expect(None, 0)
            return
        if self._is_held:
            self._is_held = False
            self.transport.resume_reading()
        # Who has not taken the last answer is timed by that alone.
        answering = _BUSY if self.outflow.is_paused and self._replying is _FREE else self._replying
        wait = WAITED[answering][reader.state]
        if reader.coming is None:
            self._read_timer.expect(wait, reader.begun)
        elif reader.owes_continue:
            self._read_timer.expect(None, 0)
        else:
            self._read_timer.expect_part(wait, reader.begun, reader.body_bytes)

    def _end(self) -> None:
        """Close so that the client sees the answer even while it is still sending."""
        self._flush()
        if self.outflow.is_paused:
            return  # until the client has taken it: `_turn` then comes back
        self._replying = REPLIES[self._replying][ReplyingEvent.ENDED]
        self.stop_reading()
        half_close(self.transport)

    # -- refusing --------------------------------------------------------------------------------

    def _refuse(self, refusal: Refusal) -> None:
        """Answer with an error after all that came before it, then close."""
        reader = self.reader
        if reader.state is _CLOSED:
            return
        coming = reader.coming
        self._close_with(problem_response(refusal.status, refusal.detail))
        if coming is None:
            return
        if reader.ready and reader.ready[-1].stream is coming:
            reader.ready.pop()
        if coming is self.current and isinstance(self._work, asyncio.Task):
            # Its handler works for a client that has broken its word.
            self._work.cancel()

    def _close_with(self, word: HttpResponse) -> None:
        self.stop_reading()
        self.final_response = word

    def stop_reading(self) -> None:
        """Parse nothing more, and forget the request that has begun."""
        self.reader.close()
        self._unfed = b""

    def _on_read_timeout(self) -> None:
        timer, wait = self._read_timer, self._read_timer.wait
        if wait is None:
            return
        if self._replying is _LINGERING:
            self.transport.abort()
            return
        if wait.status:
            self._refuse(Refusal(wait.status, timer.told(wait)))
        else:
            self.stop_reading()
        self._turn()

    # -- answering -------------------------------------------------------------------------------

    def _take(self, exchange: HttpExchange) -> None:
        """Dispatch a request; a handler that does not wait has responded when this returns."""
        serving = self._serving
        self._replying = REPLIES[self._replying][_TAKEN]
        if exchange.is_plain:
            if serving.begin is not None and exchange.stream is None:
                try:
                    is_taken = serving.begin(exchange)
                except Exception:
                    _logger.exception("a handler failed: %r", exchange)
                    is_taken = True
                    if not exchange.is_lost:
                        exchange.lose()
                        self.send(FAILED)
                if is_taken:
                    if self._replying is _BEGUN:
                        self._work = exchange
                        self._replying = REPLIES[_BEGUN][_WAITS]
                    return
            refusal = self.reader.judge_whole(exchange)
            if refusal is not None:
                self._replying = REPLIES[self._replying][_ANSWERED]
                self.reader.ready.clear()
                self._close_with(problem_response(refusal.status, refusal.detail))
                return
        self._start(exchange)

    def _start(self, exchange: HttpExchange) -> None:
        """Dispatch a request to a coroutine, whose first step is taken here."""
        serving, request, context = self._serving, exchange.request(), self._context.copy()
        task: asyncio.Task[None]
        if exchange.stream is not None:
            assert serving.streaming is not None
            opening = partial(serving.streaming.stream, request)
            task = self._loop.create_task(answer_streaming(self, request, opening), context=context)
        elif serving.is_fast:
            task = serving.start(self._answer(request), context=context)
        else:
            task = self._loop.create_task(self._answer(request), context=context)
        if not task.done():
            self._work = task
            self._replying = REPLIES[self._replying][_WAITS]

    async def _answer(self, request: HttpRequest) -> None:
        try:
            response = await self._serving.handler(request)
            if not isinstance(response, HttpResponse):
                raise TypeError(f"a handler answered {type(response).__name__}, not HttpResponse")
        except asyncio.CancelledError:
            if self._replying is _LOST:
                raise
            _logger.exception("a handler was cancelled: %r", request)
            response = FAILED
        except Exception:
            _logger.exception("a handler failed: %r", request)
            response = FAILED
        if self._replying is not _LOST:
            self.send(response, is_head=request.method == "HEAD")

    def send(self, response: HttpResponse, *, is_head: bool = False) -> None:
        """Send an answer whole, and go on."""
        if asks_to_close(response):
            self.stop_reading()
            self.reader.ready.clear()
            self.final_response = None
        is_last, date = self.is_last(), self.date.line()
        self._out.append(encode_response(response, is_head=is_head, is_last=is_last, date=date))
        self.on_answered()

    @property
    def is_lost(self) -> bool:
        """True once the client has gone."""
        return self._replying is _LOST

    def is_last(self) -> bool:
        """Tell whether the answer that is about to be sent is the connection's last.

        While the server drains it is, where nothing else has begun to come: it can still say so.
        """
        reader = self.reader
        if reader.is_draining and reader.state is _IDLE and not (reader.ready or self._unfed):
            reader.close()
        return reader.is_closed and not reader.ready and self.final_response is None

    def on_answered(self) -> None:
        """Go on after an answer: within its turn that is the turn's, else it is a new one."""
        before = self._replying
        self._replying = REPLIES[before][_ANSWERED]
        if before is _BUSY:
            self._work = None
            if self.reader.ready or self._unfed:
                # What comes next is begun in the connection's own context, not in the answer's.
                self._flush()
                self._loop.call_soon(self._turn, context=self._context)
            else:
                self._turn()

    # -- what an exchange tells ------------------------------------------------------------------

    def answered(self, head: bytes, body: bytes) -> None:
        """Send a ready-made answer, and go on with the next request."""
        reader, out = self.reader, self._out
        has_more = reader.ready or self._unfed or out or self._is_held or self.outflow.is_paused
        if not has_more and reader.state is _IDLE and not reader.is_draining:
            # The turn of a client that has nothing else under way, without its frames.
            before = self._replying
            self._replying, self._work = REPLIES[before][_ANSWERED], None
            date = b"" if DATE in head else self.date.now or self.date.line()
            out.append(b"%b%b\r\n%b" % (head, date, body))
            if before is _BEGUN:
                return  # whoever has begun it writes
            self._read_timer.expect_next(reader.begun)
            together = self._serving.together
            if together is None:
                self._flush_late()
            else:
                together.add(self._flush_late)
            return
        out += (head, self.date.line_for(head), _LAST_LINES if self.is_last() else _BLANK_LINE)
        if body:
            out.append(body)
        self.on_answered()

    def begun(self, head: bytes, data: bytes) -> None:
        """Send the head of a ready-made answer, with what there is of its body."""
        is_last = self.is_last()
        self._out += (head, self.date.line_for(head), _LAST_LINES if is_last else _BLANK_LINE)
        self.part(data)

    def part(self, data: bytes) -> bool:
        """Write a part of a body; False while the client does not read (backpressure)."""
        self._out.append(data)
        self._flush()
        return not self.outflow.is_paused

    def ended(self, *, is_whole: bool) -> None:
        """End a response; one that is not complete resets the connection."""
        if is_whole:
            self.on_answered()
        else:
            reset(self.transport)

    def answered_by(
        self, request: HttpRequest, answering: AbstractAsyncContextManager[HttpResponse]
    ) -> None:
        """Answer by what a context gives: what was tried without a task takes one."""
        self._work = self._loop.create_task(
            answer_streaming(self, request, lambda: answering), context=self._context.copy()
        )
        if self._replying is _BEGUN:
            self._replying = REPLIES[_BEGUN][_WAITS]
