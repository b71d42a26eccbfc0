"""What the server and the pool put up with: every size, count and time has a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from synchromesh.durations import ABOVE_0, FROM_0, FROM_1, refuse_wrong_numbers
from synchromesh.http.pace import Patience

# How many clients it takes at least to fill all streams.
SHARES: Final = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds what one server accepts; the defaults cut who sends slowly within 10 s.

    Attributes:
        head_bytes_max: request line and header fields together; beyond it 431.
        headers_max: number of header fields; beyond it 431.
        body_bytes_max: a body, decoded from its chunks; beyond it 413.
        head_s: from the first byte of a request to the end of its head; beyond it 408.
        body_s: from the end of a head to the end of its body; beyond it 408.
        body_bytes_min: what has to come of a streamed body in each `body_s` that it is waited for;
            less is 408.
        idle_s: how long a connection may stay open without a request.
        write_s: how long a client may take less than `write_bytes_min` of what was written before
            it is cut; a second more for each 100 kB that it had taken, since a kernel with a large
            buffer tells seldom of what is read from it.
        write_most_s: how long that may become.
        write_bytes_min: what it has to take in each `write_s`.
        linger_s: how long the rest of a refused request is read and dropped, so that the client
            sees the answer and not a reset (RFC 9112, section 9.6).
        pipeline_max: requests of one connection that wait for their turn; then reading pauses. As
            many are begun before other connections have their turn.
        connections_max: open connections. For one more, an idle one of the client with most of them
            is closed; where none is idle, the newcomer is answered 503 and closed. As many again
            may still be about to end so; beyond that they are reset.
        client_connections_max: those of one client, in the same way; None for no bound of its own.

    Example:
        >>> Limits(body_bytes_max=0).head_s
        10.0
    """

    head_bytes_max: int = 32 * 1024
    headers_max: int = 100
    body_bytes_max: int = 1024 * 1024
    head_s: float = 10.0
    body_s: float = 10.0
    body_bytes_min: int = 4096
    idle_s: float = 10.0
    write_s: float = 10.0
    write_most_s: float = 120.0
    write_bytes_min: int = 8192
    linger_s: float = 1.0
    pipeline_max: int = 16
    connections_max: int = 1024
    client_connections_max: int | None = None

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (FROM_1, "head_bytes_max pipeline_max connections_max client_connections_max"),
            (FROM_0, "headers_max body_bytes_max body_bytes_min write_bytes_min linger_s"),
            (ABOVE_0, "head_s body_s idle_s write_s write_most_s"),
        )

    @property
    def patience(self) -> Patience:
        """How slowly a client may take what was written."""
        return Patience(self.write_s, self.write_most_s, self.write_bytes_min)


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds what one pool holds and accepts.

    Attributes:
        connections_max: connections to one endpoint that are idle or wait for the head of an
            answer. Bodies that are under way, at their clients' pace, have places of their own, see
            `streams_max`.
        waiting_max: calls that wait for a connection to one endpoint; one more is shed.
        idle_s: how long a connection is kept for the next call; less than the server's `idle_s`,
            so that it is seldom the server who closes first.
        connect_s: how long a connection may take to be made.
        head_bytes_max: status line and header fields of an answer.
        headers_max: number of header fields of an answer.
        body_bytes_max: the body of an answer, decoded from its chunks.
        interim_max: answers of status 1xx before the one that counts.
        stall_s: how long a streamed exchange may stand still: nothing is taken of the request, or
            nothing comes of an answer that is waited for and has said its length.
        quiet_s: how long nothing may come of an answer without a length, as events are that a
            server sends: those that say nothing for long send a comment every 15 to 30 s.

    Example:
        >>> PoolLimits().connections_max
        256
    """

    connections_max: int = 256
    waiting_max: int = 1024
    idle_s: float = 5.0
    connect_s: float = 5.0
    head_bytes_max: int = 32 * 1024
    headers_max: int = 100
    body_bytes_max: int = 8 * 1024 * 1024
    interim_max: int = 8
    stall_s: float = 10.0
    quiet_s: float = 60.0

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (FROM_1, "connections_max head_bytes_max"),
            (FROM_0, "waiting_max idle_s headers_max body_bytes_max interim_max"),
            (ABOVE_0, "connect_s stall_s quiet_s"),
        )

    @property
    def patience(self) -> Patience:
        """How slowly a server may take what is sent to it."""
        return Patience(self.stall_s, self.quiet_s, 1)

    def part_s(self, length: int | None) -> float:
        """Return how long the next part may take of a body with such a length, None for none."""
        return self.quiet_s if length is None else self.stall_s

    @property
    def streams_max(self) -> int:
        """Connections to one endpoint that carry a body under way: 4 x `connections_max`."""
        return SHARES * self.connections_max

    @property
    def share_max(self) -> int:
        """With so many of them, a quarter, the next request of one client is refused."""
        return self.streams_max // SHARES
