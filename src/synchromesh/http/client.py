"""One connection of the pool: sends a request, reads one strict answer, and knows if it may stay.

A connection carries one exchange at a time. It may carry another only if the answer ended by its
own framing, the server did not ask to close, everything was sent, and not one byte came unasked.

An exchange is told by callbacks: of the whole answer, or, where it takes parts, of its head as soon
as that is there and of its body as it comes. Its deadline is one of the pool's timers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol, cast

from synchromesh.clock import loop_now
from synchromesh.errors import ConnectionLost, TimedOut
from synchromesh.http.limits import PoolLimits
from synchromesh.http.message import RawPair
from synchromesh.http.outflow import Outflow, Taken, reset
from synchromesh.http.responses import ResponseReader, ResponseState
from synchromesh.http.together import TurnWrites
from synchromesh.timers import Timers
from synchromesh.wheel import Deadline

# Looked up for each answer: a global is found sooner than a member of its class.
_BODY, _WHOLE = ResponseState.BODY, ResponseState.WHOLE


class ExchangeState(IntEnum):
    """Names the states of an exchange of the pool.

    NEW ──▶ WAITING ──▶ CONNECTING ──▶ SENT ──▶ RECEIVING ──▶ DONE

    Each may be skipped, and DONE is reached from anywhere. From SENT it goes back to CONNECTING
    once, where a kept connection turned out to be closed and the request may be sent again.
    """

    NEW = 0
    WAITING = 1
    CONNECTING = 2
    SENT = 3
    RECEIVING = 4
    DONE = 5


class ExchangeOwner(Protocol):
    """Owns the connections to one endpoint; decides what an exchange may do next."""

    timers: Timers

    @property
    def taken(self) -> Taken:
        """What counts the bytes that a server has taken."""
        ...

    def cancel(self, exchange: ClientExchange) -> None:
        """Cancel an exchange: its callbacks are not called from now on."""
        ...

    def expire(self, exchange: ClientExchange) -> None:
        """Fail an exchange whose deadline has passed, by what is known of it."""
        ...

    def on_streaming(self, exchange: ClientExchange) -> None:
        """Count an exchange among the streams: its answer has begun, and takes its time."""
        ...

    def on_ended(self, exchange: ClientExchange, connection: ClientConnection) -> None:
        """Release the connection of an exchange that has ended."""
        ...

    def on_failed(
        self, exchange: ClientExchange, connection: ClientConnection, error: Exception
    ) -> None:
        """Release the connection of an exchange that has failed; resend what may be resent."""
        ...


class ClientExchange(Deadline):
    """Is one request to an endpoint and the callbacks for its response: a base class.

    `HttpPool.send` sends it. Exactly one of `on_answer`, `on_end` and `on_error` is called then,
    once, unless it is cancelled: within an event of the connection, so that they must neither block
    nor raise.

    Args:
        wire: the request as it is sent, in one write.
        due_s: until when an answer has to be there, on the loop's clock; infinity for no bound.
        is_head: the answer has no body, whatever it says.
        is_idempotent: running the request twice does what running it once does.

    Attributes:
        takes_parts: True where an answer that does not come whole at once is taken as it comes, by
            `on_begin`, `on_part` and `on_end`; then `due_s` is for its head, and `expect_within`
            bounds what comes later.
        together: gathers the writes of a turn of the loop; None where this one is not to wait.
        may_reuse: False where only a new connection will do.
        is_streaming: True while a body of it is under way at the pace of its client, and it holds
            no place of those that wait for an answer; from the start where its request's is.
        client: for whom it is; each has a share of the streams. "" for nobody in particular.
        state: how far it has come.
        connection: what carries it.
        overdue_s: set while it is CONNECTING: from when on a deadline that passes is the callee's
            failure. Before, it has waited for its place longer than for the callee.
    """

    # What a class has costs no store for each exchange, as a slot would; most is never set.
    slot: dict[Deadline, None] | None = None
    takes_parts = False
    is_sent = True
    is_head = False
    is_idempotent = False
    may_reuse = True
    is_streaming = False
    client = ""
    together: TurnWrites | None = None
    state = ExchangeState.NEW
    connection: ClientConnection | None = None
    connecting: asyncio.Task[None] | None = None
    owner: ExchangeOwner | None = None
    # Why it is sent a second time; that decides what is known if that fails, too.
    lost: ConnectionLost | None = None
    wire: bytes
    overdue_s: float

    def __init__(
        self, wire: bytes, *, due_s: float, is_head: bool = False, is_idempotent: bool = False
    ) -> None:
        self.due_s = due_s
        self.wire = wire
        self.is_head = is_head
        self.is_idempotent = is_idempotent

    def on_sent(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the deadline; called once the request was written."""
        if self.slot is None and self.owner is not None:
            self.owner.timers.add(self, loop)

    def on_answer(self, status: int, pairs: list[RawPair], body: bytes) -> None:
        """Handle the complete response."""

    def on_begin(self, status: int, pairs: list[RawPair], length: int | None) -> None:
        """Handle the head of a response that is taken in parts, and its content length."""

    def on_part(self, data: bytes) -> None:
        """Handle a part of its body."""

    def on_end(self) -> None:
        """Handle the end of its body."""

    def on_error(self, error: Exception) -> None:
        """Handle a failure: no response will come, or not the rest of it."""

    def cancel(self) -> None:
        """Cancel; the connection is closed, so that a late response can reach nobody else."""
        if self.owner is not None:
            self.owner.cancel(self)

    def expire(self) -> None:
        """Fail by the deadline."""
        if self.owner is not None:
            self.owner.expire(self)

    def expect_within(self, seconds: float | None) -> None:
        """Set the deadline to so many seconds from now; None removes it."""
        if self.owner is None:
            return
        timers, loop = self.owner.timers, asyncio.get_running_loop()
        timers.drop(self)
        if seconds is not None and self.state is not ExchangeState.DONE:
            self.due_s = loop_now() + seconds
            timers.add(self, loop)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.state.name.lower()}>"


class ClientConnection(asyncio.Protocol):
    """Carries exchanges with one endpoint, one at a time, over a kept-alive connection.

    Args:
        name: how errors call the endpoint, `host:port`.
        limits: sizes and counts of an answer.
        owner: takes it back after each exchange.
        on_lost: is told when the connection has closed.

    Attributes:
        exchange: what it carries; None while it is idle.
        outflow: whether the server takes what it is sent.
        idle_since_s: when it was given back last.
        is_spoiled: True once it may carry nothing more.
        loop: where it was made, and `transport`: what it writes to.
    """

    outflow: Outflow
    transport: asyncio.Transport
    _reader: ResponseReader

    def __init__(
        self,
        name: str,
        limits: PoolLimits,
        owner: ExchangeOwner,
        on_lost: Callable[[ClientConnection], None],
    ) -> None:
        self._name = name
        self._taken = owner.taken
        self._patience = limits.patience
        self._owner = owner
        self._on_lost = on_lost
        self._limits = limits
        self.is_spoiled = self._has_answered = self._is_held = False
        self.loop = asyncio.get_running_loop()
        self._unwritten = b""
        self.exchange: ClientExchange | None = None
        self.idle_since_s = 0.0

    def __repr__(self) -> str:
        doing = "busy" if self.exchange else "idle" if self.is_reusable else "closed"
        return f"<ClientConnection {self._name} {doing}>"

    @property
    def is_reusable(self) -> bool:
        """True while it may carry the next exchange."""
        return not self.is_spoiled and self.exchange is None and not self.transport.is_closing()

    @property
    def was_stale(self) -> bool:
        """True where it had answered before, and nothing came in answer to the latest request."""
        return self._has_answered and self._reader.state is ResponseState.AWAITED

    def send(self, exchange: ClientExchange) -> None:
        """Write the request of an exchange and deliver the response to it."""
        self._reader.expect(exchange.is_head, exchange.takes_parts)
        self.exchange = exchange
        together = exchange.together
        if together is None:
            self.transport.write(exchange.wire)
        else:
            self._unwritten = exchange.wire
            together.add(self._write)

    def pause(self) -> None:
        """Pause reading (backpressure) until `resume`. May be repeated."""
        if not self._is_held and not self.transport.is_closing():
            self._is_held = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Resume reading. May be repeated."""
        if self._is_held:
            self._is_held = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def abort(self) -> None:
        """Close at once; nothing more is sent or read. May be repeated."""
        self.is_spoiled = True
        self.transport.abort()

    def drop(self) -> None:
        """Abort the connection in the middle of an exchange, and detach that."""
        exchange, self.exchange = self.exchange, None
        self.is_spoiled = True
        if exchange is not None and exchange.takes_parts:
            # A body that was cut must not be taken for a whole one.
            reset(self.transport)
        else:
            self.transport.abort()

    def timed_out(self) -> TimedOut:
        """Return what is told of an exchange whose answer did not come in time."""
        return TimedOut(f"{self._name} did not answer in time; what it did is unknown")

    # -- what the transport tells ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = cast("asyncio.Transport", transport)
        # Not before: a reader is a cycle until it ends, and uvloop makes protocols for connections
        # that then are refused.
        self._reader = ResponseReader(self._limits)
        self.outflow = Outflow(self.transport, taken=self._taken, patience=self._patience)

    def pause_writing(self) -> None:
        """Let who sends a body wait until the server takes more."""
        self.outflow.pause(self._on_stall)

    def resume_writing(self) -> None:
        """Let it go on."""
        self.outflow.resume()

    def data_received(self, data: bytes) -> None:
        """Parse a part of the answer; bytes that nobody asked for end the connection."""
        exchange, reader = self.exchange, self._reader
        if exchange is None:
            self.abort()
            return
        reason = None if reader.take_whole(data) else reader.feed(data)
        if reader.state is _WHOLE:
            # An early answer: the rest of its request must not begin the next one.
            is_early = (
                self.transport.get_write_buffer_size() > 0
                or not exchange.is_sent
                or bool(self._unwritten)
            )
            if reason is not None or not reader.keeps_alive or is_early:
                self.is_spoiled = True
            self._finish(exchange)
        elif reason is not None:
            self.is_spoiled = True
            self._fail(ConnectionLost(f"{self._name} sent no acceptable answer: {reason}"))
        elif exchange.takes_parts and reader.state is _BODY:
            self._pass_on(exchange)

    def eof_received(self) -> None:
        """End an answer that ends with the connection; the transport closes by itself."""
        self.is_spoiled = True
        reader = self._reader
        if self.exchange is not None and reader.state is _BODY and not reader.is_delimited:
            self._finish(self.exchange)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the exchange that runs: whether the request was run is unknown."""
        self.is_spoiled = True
        self.outflow.end()
        why = f": {exc}" if exc is not None else ""
        self._fail(ConnectionLost(f"{self._name} closed the connection before its answer{why}"))
        self._reader.end()
        self._on_lost(self)

    # -- its own ---------------------------------------------------------------------------------

    def _finish(self, exchange: ClientExchange) -> None:
        """Release the connection, then deliver the response."""
        reader = self._reader
        self._has_answered = True
        # Taken first: whoever gets the connection next reads his answer with the same reader.
        status, pairs, body = reader.status, reader.pairs, reader.take_body()
        is_passing = exchange.state is ExchangeState.RECEIVING
        if self._is_held:
            self.resume()
        self.exchange = None
        self._owner.on_ended(exchange, self)
        if not is_passing:
            exchange.on_answer(status, pairs, body)
            return
        if body:
            exchange.on_part(body)
        exchange.on_end()

    def _pass_on(self, exchange: ClientExchange) -> None:
        """Deliver what has come of a response that is taken in parts."""
        reader = self._reader
        self._has_answered = True
        if exchange.state is not ExchangeState.RECEIVING:
            exchange.state = ExchangeState.RECEIVING
            exchange.expect_within(None)
            self._owner.on_streaming(exchange)
            exchange.on_begin(reader.status, reader.pairs, reader.length)
        part = reader.take_body()
        if part and self.exchange is exchange:
            exchange.on_part(part)

    def _write(self) -> None:
        """Write a request that was kept for the end of the turn, unless it was given up."""
        wire, self._unwritten = self._unwritten, b""
        if self.exchange is not None:
            self.transport.write(wire)

    def _fail(self, error: Exception) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            self._owner.on_failed(exchange, self, error)

    def _on_stall(self) -> None:
        # Others have a deadline for all, in which they may take as long as they like.
        if self.exchange is not None and self.exchange.takes_parts:
            self._owner.expire(self.exchange)
