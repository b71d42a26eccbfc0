"""TLS over any byte stream: a protocol to the stream below, a transport to the protocol above.

What is written is encrypted at once and handed down, so that nothing waits here: how much is
unsent, and whether the other end takes it, is what the stream below says of itself, as of plain
connections. A connection is closed by a close_notify and then as a plain one is, which leaves the
rest to the kernel; nobody is waited for, and nobody's last bytes are cut off after some seconds.
Sources: RFC 8446, sections 6.1 (closure) and 4.6.3 (key update); RFC 5246.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Final, cast

from synchromesh.certificate import ClientCertificate, certificate_of

READ_BYTES: Final = 256 * 1024


class TlsStream(asyncio.Transport, asyncio.Protocol):
    """One connection by TLS.

    The protocol above is made, and told of the connection, once both ends have shaken hands; where
    that fails, or takes longer than `handshake_s`, it never hears of it.

    Args:
        factory: makes the protocol above.
        secured: the TLS object, and its buffers for what comes and what leaves.
        handshake_s: how long both ends may take to shake hands.
        began: told when it begins to shake hands.
        opened: told once it is open, or why it never will be.
        is_strict: an end without a close_notify is a fault, as somebody on the way may have made
            it: what has no other mark of its end would look whole. Servers are lenient, for many
            clients end so, and their requests state a length.
    """

    def __init__(
        self,
        factory: Callable[[], asyncio.Protocol],
        secured: Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject],
        *,
        handshake_s: float,
        opened: Callable[[TlsStream, BaseException | None], None],
        began: Callable[[TlsStream], None] | None = None,
        is_strict: bool = False,
    ) -> None:
        super().__init__()
        self._began, self._is_strict = began, is_strict
        self._fault: Exception | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = secured(self._incoming, self._outgoing)
        self._factory: Callable[[], asyncio.Protocol] = factory
        self._handshake_s = handshake_s
        self._opened: Callable[[TlsStream, BaseException | None], None] | None = opened
        self._below: asyncio.Transport
        self._above: asyncio.Protocol | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._certificate: ClientCertificate | None = None
        self._has_looked = False
        self._is_held = False
        self._has_said_goodbye = False
        self._has_heard_goodbye = False

    def __repr__(self) -> str:
        return f"<TlsStream of {self._above!r}>"

    # -- what the stream below tells ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Shake hands."""
        self._below = cast("asyncio.Transport", transport)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(
            self._handshake_s, self.fail, TimeoutError("the TLS handshake took too long")
        )
        if self._began is not None:
            self._began(self)
        if not self._below.is_closing():
            self._shake_hands()

    def data_received(self, data: bytes) -> None:
        """Decrypt what came."""
        self._incoming.write(data)
        if self._above is None:
            self._shake_hands()
        else:
            self._read()

    def eof_received(self) -> bool | None:
        """Hand on that nothing more will come."""
        self._incoming.write_eof()
        if self._above is None:
            self.fail(ConnectionResetError("closed in the middle of the TLS handshake"))
            return False
        if self._is_strict and not self._has_heard_goodbye:
            self.fail(ConnectionResetError("closed without a close_notify of TLS"))
            return False
        return self._heard_goodbye()

    def pause_writing(self) -> None:
        """Hand on that the other end does not take what it was sent."""
        if self._above is not None:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        """Hand on that the other end has taken what it was sent."""
        if self._above is not None:
            self._above.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Hand on that the connection is over."""
        self._end_handshake(exc or ConnectionResetError("closed in the TLS handshake"))
        # They would hold each other.
        above, self._above = self._above, None
        if above is not None:
            above.connection_lost(exc or self._fault)

    # -- what the protocol above asks for ----------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send; what is written to a connection that closes is dropped."""
        if not data or self._has_said_goodbye or self._below.is_closing():
            return
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            self.fail(error)
            return
        self._below.write(self._outgoing.read())

    def writelines(self, list_of_data: Any) -> None:
        """Encrypt and send, in as few records as possible."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """Return True: each direction of TLS is closed by itself."""
        return True

    def write_eof(self) -> None:
        """Say that nothing more will be sent, once all that was written has left."""
        self._say_goodbye()
        self._below.write_eof()

    def close(self) -> None:
        """Close once all that was written has left."""
        if not self._below.is_closing():
            self._say_goodbye()
            self._below.close()

    def abort(self) -> None:
        """End at once; what was not sent is lost."""
        self._below.abort()

    def is_closing(self) -> bool:
        """Return whether it is closed, or about to be."""
        return self._below.is_closing()

    def get_write_buffer_size(self) -> int:
        """Return how many encrypted bytes have not been handed to the kernel."""
        return self._below.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the limits of the stream below: low, and high."""
        return self._below.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the limits of the stream below."""
        self._below.set_write_buffer_limits(high, low)

    def pause_reading(self) -> None:
        """Decrypt and read no more."""
        self._is_held = True
        self._below.pause_reading()

    def resume_reading(self) -> None:
        """Go on reading, with what has come already."""
        if self._is_held:
            self._is_held = False
            asyncio.get_running_loop().call_soon(self._go_on)

    def is_reading(self) -> bool:
        """Return whether it reads."""
        return not self._is_held and not self.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is asked for, or what the stream below knows of it.

        It knows "ssl_object", "peercert", "cipher", and "client_certificate", which is a
        `ClientCertificate`, or None.
        """
        if name == "client_certificate":
            # It stays the same, and is asked for with each request.
            if not self._has_looked:
                self._certificate, self._has_looked = certificate_of(self._tls), True
            return self._certificate
        if name == "ssl_object":
            return self._tls
        if name == "peercert":
            return self._tls.getpeercert()
        if name == "cipher":
            return self._tls.cipher()
        return self._below.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Put another protocol above it."""
        self._above = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol above it."""
        assert self._above is not None
        return self._above

    # -- TLS ---------------------------------------------------------------------------------------

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except (ssl.SSLError, ValueError) as error:
            # The other end is told why.
            self._flush()
            self.fail(error)
            return
        self._flush()
        # What makes it may know it, and it knows this stream: nothing of them is kept.
        factory, self._factory = self._factory, asyncio.Protocol
        above = self._above = factory()
        self._end_handshake(None)
        above.connection_made(self)
        self._read()

    def _read(self) -> None:
        """Hand up what can be decrypted."""
        while not self._is_held and not self._below.is_closing():
            try:
                data = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            except ssl.SSLError as error:
                self._flush()
                self.fail(error)
                return
            if not data:
                if self._heard_goodbye() is not True and not self._below.is_closing():
                    self.close()
                break
            assert self._above is not None
            self._above.data_received(data)
        # Reading may have something to say: that keys change, for example.
        self._flush()

    def _go_on(self) -> None:
        if self._is_held or self.is_closing():
            return
        self._read()
        if not self._is_held:
            self._below.resume_reading()

    def _heard_goodbye(self) -> bool | None:
        """Hand on that nothing more will come; once."""
        if self._has_heard_goodbye or self._above is None:
            return True
        self._has_heard_goodbye = True
        return self._above.eof_received()

    def _say_goodbye(self) -> None:
        """Send close_notify, after all that was written."""
        if self._has_said_goodbye or self._above is None:
            return
        self._has_said_goodbye = True
        # The other end has not said it yet, and is not waited for.
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._tls.unwrap()
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending and not self._below.is_closing():
            self._below.write(self._outgoing.read())

    def fail(self, error: Exception) -> None:
        """End by a fault; an alert that tells of it may leave first."""
        self._fault = error
        self._end_handshake(error)
        if isinstance(error, ssl.SSLError):
            self._below.close()
        else:
            self._below.abort()

    def _end_handshake(self, error: BaseException | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._opened is not None:
            opened, self._opened = self._opened, None
            opened(self, error)


class Handshakes:
    """Makes the protocols of connections that are accepted by TLS.

    A client that never shakes hands costs a connection for `handshake_s`, and not more than `most`
    of them do at once: beyond that the oldest handshake of the address with most of them is cut.

    Args:
        factory: makes the protocol above.
        context: returns what a server proves itself by.
    """

    def __init__(
        self,
        factory: Callable[[], asyncio.Protocol],
        context: Callable[[], ssl.SSLContext],
        *,
        handshake_s: float,
        most: int,
    ) -> None:
        self._factory, self._context = factory, context
        self._handshake_s, self._most = handshake_s, most
        # By address, each in the order in which they came.
        self._under_way: dict[str, dict[TlsStream, None]] = {}
        self._count = 0

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of one more connection."""
        context = self._context()
        return TlsStream(
            self._factory,
            lambda come, leave: context.wrap_bio(come, leave, server_side=True),
            handshake_s=self._handshake_s,
            began=self._began,
            opened=self._opened,
        )

    def _began(self, stream: TlsStream) -> None:
        self._under_way.setdefault(_address_of(stream), {})[stream] = None
        self._count += 1
        if self._count > self._most:
            greediest = max(self._under_way.values(), key=len)
            next(iter(greediest)).fail(ConnectionAbortedError("too many TLS handshakes at once"))

    def _opened(self, stream: TlsStream, _: BaseException | None) -> None:
        address = _address_of(stream)
        own = self._under_way.get(address, {})
        if stream in own:
            del own[stream]
            self._count -= 1
            if not own:
                del self._under_way[address]


def _address_of(stream: TlsStream) -> str:
    peer = stream.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) and peer else ""
