"""What the kernel knows of a connection, and tells nobody by itself.

A transport says how much is left in its own buffer alone. The kernel's is up to some megabytes on
top, and takes more only once a third of it is free: with a slow reader that is a minute in which
the transport sees nothing move.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    import socket

_PLATFORM: str = sys.platform
# Linux: where `tcpi_bytes_acked` is in `struct tcp_info`, and the ioctl for what is not yet acked.
_ACKED: Final = struct.Struct("=120xQ")
_SIOCOUTQ: Final = 0x5411
# macOS: the socket option for what is in the send buffer.
_SO_NWRITE: Final = 0x1024


def taken_by_peer(transport: asyncio.WriteTransport) -> int:
    """Return a count that grows by each byte that the peer's kernel has acknowledged.

    It is below 0 where only what is left is known: where the kernel does not count what has been
    acknowledged, and for sockets other than those of TCP.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        acked = _acked(connection) if _PLATFORM == "linux" else 0
        return acked or -transport.get_write_buffer_size() - _left(connection)
    return -transport.get_write_buffer_size()


def _acked(connection: socket.socket) -> int:
    """Return how many bytes have been acknowledged; 0 where the kernel does not count them."""
    from socket import IPPROTO_TCP, TCP_INFO

    try:
        told = connection.getsockopt(IPPROTO_TCP, TCP_INFO, _ACKED.size)
    except OSError:
        return 0
    return int(_ACKED.unpack(told)[0]) if len(told) == _ACKED.size else 0


def _left(connection: socket.socket) -> int:
    """Return how many bytes the kernel holds that have not been acknowledged, 0 if unknown."""
    from fcntl import ioctl
    from socket import SOL_SOCKET

    try:
        if _PLATFORM == "linux":
            told: int = struct.unpack("=i", ioctl(connection.fileno(), _SIOCOUTQ, bytes(4)))[0]
            return told
        return connection.getsockopt(SOL_SOCKET, _SO_NWRITE)
    except OSError:
        return 0
