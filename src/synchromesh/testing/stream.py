"""A simulated byte stream: two transports with TCP's behaviour between them.

Bytes arrive in order or not at all, in pieces that need not be those that were written. A receiver
that does not read stops the sender: one piece waits at the receiver, the rest at the sender, in a
kernel's buffer, if there is one, and in that of its transport, which pauses its protocol above the
high-water mark. A kernel takes more once a third of its buffer is free, as Linux's does. A
partition delays bytes until they are sent again; after two minutes without an answer the stream is
lost.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from contextvars import Context
from typing import Any

from synchromesh.testing.process import SimProcess
from synchromesh.testing.wire import Wire

# The largest piece that is under way at a time.
SEGMENT_MAX_BYTES = 65_536
# How long bytes are sent again without an answer before the stream is lost.
GIVE_UP_AFTER_S = 120.0
_RESEND_FIRST_S, _RESEND_MAX_S = 0.2, 10.0
# The share of pieces that arrive in two parts, so that no parser relies on whole messages.
_SPLIT_SHARE = 0.1
_HIGH_WATER_BYTES = 65_536


def node_name(process: SimProcess | None) -> str:
    """Return the name of a process's node, as partitions have it; "" outside of nodes."""
    return "" if process is None else process.name


def os_error(kind: type[OSError], number: int, more: str = "") -> OSError:
    """Return the error that the operating system would raise.

    Example:
        >>> os_error(ConnectionResetError, errno.ECONNRESET)
        ConnectionResetError(104, 'Connection reset by peer')
    """
    return kind(number, os.strerror(number) + more)


class SimStream(asyncio.Transport):
    """One end of a simulated connection; an `asyncio.Transport` as protocols know it.

    Its protocol's methods run in the context of the process that owns the end.
    """

    peer: SimStream

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        wire: Wire,
        owner: tuple[SimProcess | None, Context],
        *,
        addresses: tuple[tuple[str, int], tuple[str, int]],
        forget: Callable[[SimStream], None],
        kernel_bytes: int,
    ) -> None:
        super().__init__({"sockname": addresses[0], "peername": addresses[1]})
        self.process, self._context = owner
        self._loop, self._wire, self._forget = loop, wire, forget
        self._protocol: asyncio.Protocol | None = None
        self._out = bytearray()
        # How much of that the kernel holds, and may hold; the rest is the transport's to hold.
        self._in_kernel, self._kernel_bytes = 0, kernel_bytes
        self.arrived_bytes = 0
        self._is_flying = self._is_eof_written = self._is_eof_sent = False
        self._is_writing_paused = False
        self._high, self._low = _HIGH_WATER_BYTES, _HIGH_WATER_BYTES // 4
        self._in = bytearray()
        self._is_eof_in = self._is_eof_delivered = self._is_feeding = False
        self._is_reading_paused = False
        self._is_closing = self._is_lost = False
        # Nobody is there any more: what arrives is answered by a reset.
        self._is_gone = False

    def __repr__(self) -> str:
        state = "closing" if self._is_closing else "open"
        here, there = self.get_extra_info("sockname"), self.get_extra_info("peername")
        return f"<SimStream {here} -> {there} {state}>"

    # -- what protocols use ----------------------------------------------------------------------

    def attach(self, protocol: asyncio.Protocol) -> None:
        """Attach a protocol; bytes that arrived before are delivered now."""
        self._protocol = protocol
        protocol.connection_made(self)
        self._feed_soon()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand the stream to another protocol."""
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the current protocol."""
        assert self._protocol is not None
        return self._protocol

    def is_closing(self) -> bool:
        """Return whether it is closing, closed or lost."""
        return self._is_closing

    def is_reading(self) -> bool:
        """Return whether arriving bytes are delivered to the protocol."""
        return not self._is_reading_paused and not self._is_closing

    def pause_reading(self) -> None:
        """Stop delivering; flow control pauses the sender in the end."""
        self._is_reading_paused = True

    def resume_reading(self) -> None:
        """Resume delivering, first what was held back."""
        if self._is_reading_paused:
            self._is_reading_paused = False
            self._feed_soon()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send bytes; never blocks. Raises RuntimeError after `write_eof`."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be bytes-like, not {type(data).__name__}")
        if self._is_closing:
            return
        if self._is_eof_written:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self.process is not None:
            self.process.sends += 1
        self._out += data
        self._fill_kernel()
        self._fly()
        if self.get_write_buffer_size() > self._high and not self._is_writing_paused:
            self._is_writing_paused = True
            self.get_protocol().pause_writing()

    def can_write_eof(self) -> bool:
        """Return True: one direction can be ended alone."""
        return True

    def write_eof(self) -> None:
        """End this direction once all bytes are out."""
        if not self._is_closing and not self._is_eof_written:
            self._is_eof_written = True
            self._fly()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait that the kernel has not taken."""
        return len(self._out) - self._in_kernel

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the low- and the high-water mark in bytes."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when the protocol is paused and resumed, in bytes; as asyncio defaults them."""
        if high is None:
            high = _HIGH_WATER_BYTES if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low

    def close(self) -> None:
        """Flush the buffer, then close; nothing more is read."""
        if self._is_closing:
            return
        self._is_closing = self._is_eof_written = True
        self._in.clear()
        self._fly()
        if not self._out:
            self._lose(None)

    def abort(self) -> None:
        """Close at once: the buffer is dropped, and the peer is reset."""
        if not self._is_lost:
            self._reset_peer()
            self._discard()
            self._lose(None)

    # -- sending ---------------------------------------------------------------------------------

    def _fly(self) -> None:
        """Send the next piece, unless one is under way or waits at the receiver."""
        if self._is_flying or self.peer._in:
            return
        if self._out or (self._is_eof_written and not self._is_eof_sent):
            self._is_flying = True
            self._later(self._wire.segment_delay_s(), self._arrive, 0.0, _RESEND_FIRST_S)

    def _arrive(self, tried_s: float, resend_s: float) -> None:
        """Hand over, at the receiver, what has been written by now."""
        if not self._is_flying:
            return
        if self._is_parted():
            self._wire.count["segment cut off"] += 1
            if tried_s >= GIVE_UP_AFTER_S:
                self._lose(os_error(TimeoutError, errno.ETIMEDOUT))
            else:
                later_s = min(2.0 * resend_s, _RESEND_MAX_S)
                self._later(resend_s, self._arrive, tried_s + resend_s, later_s)
            return
        self._is_flying = False
        peer = self.peer
        if peer._is_gone:
            if self._out or not self._is_closing:
                self._later(self._wire.latency_s(), self._be_reset)
            return
        size = min(len(self._out), SEGMENT_MAX_BYTES)
        if size > 1 and self._wire.rng.random() < _SPLIT_SHARE:
            size = 1 + int((size - 1) * self._wire.rng.random())
        data = bytes(self._out[:size])
        del self._out[:size]
        self.arrived_bytes += size
        self._in_kernel = max(0, self._in_kernel - size)
        self._fill_kernel()
        self._is_eof_sent = self._is_eof_written and not self._out
        peer._receive(data, is_eof=self._is_eof_sent)
        if self._is_writing_paused and self.get_write_buffer_size() <= self._low:
            self._loop.call_soon(self._resume_writing, context=self._context)
        if self._is_closing and not self._out:
            self._lose(None)
        self._fly()

    def _fill_kernel(self) -> None:
        free = self._kernel_bytes - self._in_kernel
        if 3 * free >= self._kernel_bytes:
            self._in_kernel += min(free, len(self._out) - self._in_kernel)

    def _resume_writing(self) -> None:
        is_low = self.get_write_buffer_size() <= self._low
        if self._is_writing_paused and not self._is_lost and is_low:
            self._is_writing_paused = False
            self._tell("resume_writing", self.get_protocol().resume_writing)

    # -- receiving -------------------------------------------------------------------------------

    def _receive(self, data: bytes, *, is_eof: bool) -> None:
        if not self._is_closing:
            self._in += data
            self._is_eof_in = is_eof
            self._feed_soon()

    def _feed_soon(self) -> None:
        if self._protocol is not None and not self._is_feeding and not self._is_reading_paused:
            self._is_feeding = True
            self._loop.call_soon(self._feed, context=self._context)

    def _feed(self) -> None:
        """Deliver what has arrived to the protocol; runs as a step of the owner."""
        self._is_feeding = False
        if self._is_reading_paused or self._is_closing:
            return
        protocol: Any = self._protocol
        if self._in:
            data = bytes(self._in)
            self._in.clear()
            self._tell("data_received", lambda: protocol.data_received(data))
            self.peer._fly()
        self._feed_eof(protocol)

    def _feed_eof(self, protocol: Any) -> None:
        if self._in or self._is_eof_delivered or not self._is_eof_in or not self.is_reading():
            return
        self._is_eof_delivered = True
        kept_open: list[Any] = []
        self._tell("eof_received", lambda: kept_open.append(protocol.eof_received()))
        if not any(kept_open):
            self.close()

    def _tell(self, name: str, method: Callable[[], object]) -> None:
        try:
            method()
        except Exception as error:  # noqa: BLE001 - as asyncio: the stream ends, the loop is told
            self._loop.call_exception_handler(
                {"message": f"protocol.{name}() failed", "exception": error, "transport": self}
            )
            self._reset_peer()
            self._lose(error)

    # -- ending ----------------------------------------------------------------------------------

    def _lose(self, error: Exception | None) -> None:
        if self._is_lost:
            return
        self._is_lost = self._is_closing = True
        self._in.clear()
        if error is not None:
            self._discard()
        if self._protocol is None:
            self._vanish()
        else:
            self._loop.call_soon(self._end, error, context=self._context)

    def _end(self, error: Exception | None) -> None:
        protocol = self._protocol
        self._leave()
        if protocol is not None:
            protocol.connection_lost(error)

    def _leave(self) -> None:
        # What ends this direction may still be under way, or wait; it needs no owner.
        self._forget(self)
        self._is_gone = True

    def _discard(self) -> None:
        """Discard unsent bytes; not even EOF is sent."""
        self._out.clear()
        self._in_kernel = 0
        self._is_flying = False
        self._is_eof_sent = True

    def _vanish(self) -> None:
        self._discard()
        self._in.clear()
        self._is_lost = self._is_closing = True
        self._leave()

    def cut(self) -> None:
        """Close as by a power cut: what is in flight still arrives, and then a reset."""
        in_flight = bytes(self._out[:SEGMENT_MAX_BYTES]) if self._is_flying else b""
        self._vanish()
        if in_flight:
            self._later(self._wire.latency_s(), self._last_arrives, in_flight)
        else:
            self._reset_peer()

    def _last_arrives(self, data: bytes) -> None:
        # A process can act on others through what it sent right before it died, and never know.
        if not self.peer._is_gone and not self._is_parted():
            self.peer._receive(data, is_eof=False)
        self._reset_peer()

    def _reset_peer(self) -> None:
        if not self.peer._is_gone:
            self._later(self._wire.latency_s(), self._reset_arrives)

    def _reset_arrives(self) -> None:
        # Nobody sends a reset again: one that a partition swallows is lost.
        if not self._is_parted():
            self.peer._be_reset()

    def _be_reset(self) -> None:
        self._lose(os_error(ConnectionResetError, errno.ECONNRESET))

    def _is_parted(self) -> bool:
        return self._wire.is_partitioned(node_name(self.process), node_name(self.peer.process))

    def _later(self, delay_s: float, callback: Callable[..., object], *args: object) -> None:
        self._loop.call_later(delay_s, callback, *args, context=Context())
