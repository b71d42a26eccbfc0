"""The connections to one host and port: who gets one, who waits, and what is known when it fails.

All of it happens in callbacks. A request for which a kept connection is idle is written at once;
only a connection that has to be made takes a task.

    whole request ──▶ place ──▶ whole answer ──▶ idle      the callee's time, `connections_max`
                        └────▶ answer in parts ──▶ idle    its client's, `streams_max`
    request in parts ────────▶ stream ──▶ idle             its client's, too

A body that is under way takes as long as its client likes. So it holds no place that others wait
for, and no client has more than its share of those streams.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import Protocol

from synchromesh.clock import loop_now
from synchromesh.errors import CallError, ConnectFailed, ConnectionLost, RateLimited, Shed
from synchromesh.http.client import ClientConnection, ClientExchange, ExchangeState
from synchromesh.http.limits import PoolLimits
from synchromesh.http.outflow import Taken
from synchromesh.network import Network
from synchromesh.timers import Timers

# Looked up for each exchange: a global is found sooner than a member of its class.
_SENT, _DONE = ExchangeState.SENT, ExchangeState.DONE

# A server seldom closes what it was asked over so recently: stock ones wait for 2 to 75 s.
_RECENT_S = 1.0
# When to ask again, who was refused a stream.
_STREAM_RETRY_S = 1.0


class EndpointOwner(Protocol):
    """Is what the endpoints of one pool share; the pool is one.

    Attributes:
        connections: every one that is open, in the order of making.
        is_closed: True once nothing more is sent.
        sweeping: the timer that ends what is idle for too long; None while nothing is.
    """

    network: Network
    limits: PoolLimits
    timers: Timers
    connections: dict[ClientConnection, None]
    is_closed: bool
    sweeping: asyncio.TimerHandle | None

    def on_used(self, endpoint: PoolEndpoint) -> None:
        """Register an endpoint: it has connections."""
        ...

    def on_unused(self, endpoint: PoolEndpoint) -> None:
        """Forget an endpoint: its last connection has gone."""
        ...

    def on_idle(self) -> None:
        """Schedule the idle timeout of a connection that became idle."""
        ...

    def on_lost(self) -> None:
        """Note that a connection has closed."""
        ...


class PoolEndpoint:
    """Pools the connections to one host and port.

    Args:
        key: host and port.
        owner: what all endpoints of one pool share.

    Attributes:
        used: how many places are taken: by connections that are made, that wait for the head of an
            answer or for a whole one, and that are idle.
        streams: whose body is under way, and for which client.
        shares: how many of those each client has.
        idle: the connections that carry nothing.
        waiting: who waits for a place, in turn.
    """

    def __init__(self, key: tuple[str, int], owner: EndpointOwner) -> None:
        self.key = key
        self.host, self.port = key
        self.name = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        self.timers = owner.timers
        self._owner = owner
        self._limits = owner.limits
        self.used = 0
        self.streams: dict[ClientExchange, str] = {}
        self.shares: dict[str, int] = {}
        self.idle: deque[ClientConnection] = deque()
        # Since when each waits. A dict keeps their order, and lets one in the middle leave.
        self.waiting: dict[ClientExchange, float] = {}

    @property
    def taken(self) -> Taken:
        """What counts the bytes that a server has taken."""
        return self._owner.network.taken

    def send(self, exchange: ClientExchange) -> None:
        """Send a request on an idle connection, on a new one, or when one becomes free."""
        if self._owner.is_closed:
            self._fail(exchange, self._closed())
            return
        if self.streams:
            refusal = self._refusal(exchange)
            if refusal is not None:
                self._fail(exchange, refusal)
                return
        if exchange.is_streaming:
            self._begin_stream(exchange)
            self._use(exchange, None)
            return
        connection: ClientConnection | None = None
        if (
            self.idle
            and exchange.may_reuse
            # Whoever cannot be sent again takes no chances; the latest used is the last.
            and (exchange.is_idempotent or loop_now() - self.idle[-1].idle_since_s < _RECENT_S)
        ):
            connection = self.idle.pop()
            # `is_reusable` without its frame: what is idle carries nothing.
            if not (connection.is_spoiled or connection.transport.is_closing()):
                # What nearly every exchange comes to, without the frames of the rest.
                exchange.state, exchange.connection = _SENT, connection
                connection.send(exchange)
                exchange.on_sent(connection.loop)
                return
        elif self.used < self._limits.connections_max:
            self._take()
        elif self.idle:
            self.idle.popleft().abort()  # for a new one, in its place
        else:
            self._wait(exchange)
            return
        self._use(exchange, connection)

    def close(self) -> None:
        """Fail the exchanges that wait for a connection."""
        for exchange in list(self.waiting):
            self._fail(exchange, self._closed())

    def sweep(self, now: float) -> float | None:
        """Close connections past the idle timeout; return when the next one is due."""
        while self.idle:
            until_s = self.idle[0].idle_since_s + self._limits.idle_s
            if until_s > now:
                return until_s
            self.idle.popleft().abort()
            self._free()
        return None

    def __repr__(self) -> str:
        streams = f"{len(self.streams)} streams, " if self.streams else ""
        return f"<PoolEndpoint {self.name}: {self.used} used, {streams}{len(self.waiting)} waiting>"

    # -- what exchanges and connections tell -----------------------------------------------------

    def cancel(self, exchange: ClientExchange) -> None:
        """Cancel an exchange: its callbacks are not called from now on."""
        if exchange.state is ExchangeState.DONE:
            return
        connection, connecting = exchange.connection, exchange.connecting
        self._end(exchange)
        if connection is not None:
            connection.drop()
            self._leave(exchange, connection)
        elif connecting is not None:
            connecting.cancel()

    def expire(self, exchange: ClientExchange) -> None:
        """Fail an exchange whose deadline has passed, by what is known of it."""
        if exchange.state is ExchangeState.WAITING:
            error: Exception = self._busy()
        elif exchange.state is ExchangeState.CONNECTING:
            # A place that came too late to connect says nothing of the callee.
            is_ours = loop_now() < exchange.overdue_s
            error = self._busy() if is_ours else self._unreached("it did not answer in time")
        elif exchange.connection is not None:
            error = exchange.connection.timed_out()
        else:
            return
        self.cancel(exchange)
        exchange.on_error(exchange.lost or error)

    def on_streaming(self, exchange: ClientExchange) -> None:
        """Take an exchange whose answer has begun out of the places, for the next one."""
        if not exchange.is_streaming:
            exchange.is_streaming = True
            self._begin_stream(exchange)
            self._give(None)

    def on_ended(self, exchange: ClientExchange, connection: ClientConnection) -> None:
        """Release the connection of an exchange that has ended."""
        # `_end` and `_give`, in one frame for what nearly every exchange comes to.
        slot = exchange.slot
        if slot is not None:
            exchange.slot = None
            del slot[exchange]
        exchange.state = _DONE
        exchange.connection = None
        if exchange.is_streaming:
            self._end_stream(exchange, connection)
            return
        if self.waiting or connection.is_spoiled or self._owner.is_closed:
            self._give(connection)
            return
        connection.idle_since_s = loop_now()
        self.idle.append(connection)
        if self._owner.sweeping is None:
            self._owner.on_idle()

    def on_failed(
        self, exchange: ClientExchange, connection: ClientConnection, error: Exception
    ) -> None:
        """Release the connection of an exchange that has failed, and resend what may be resent.

        The server may have closed it in the moment in which it was used again. Whether it has run
        the request is unknown, so that only one that is idempotent is sent a second time, once.
        """
        is_again = (
            exchange.is_idempotent
            and exchange.lost is None
            and connection.was_stale
            and isinstance(error, ConnectionLost)
        )
        connection.abort()
        if is_again and isinstance(error, ConnectionLost):
            exchange.lost, exchange.may_reuse, exchange.connection = error, False, None
            self._leave(exchange, connection)
            self.send(exchange)
            return
        self._end(exchange)
        self._leave(exchange, connection)
        exchange.on_error(error)

    # -- its own ---------------------------------------------------------------------------------

    def _use(
        self,
        exchange: ClientExchange,
        connection: ClientConnection | None,
        waited_s: float = 0.0,
    ) -> None:
        """Send on a connection, or on a new one that is made in its place."""
        loop = asyncio.get_running_loop()
        if connection is not None:
            if exchange.may_reuse and connection.is_reusable:
                exchange.state, exchange.connection = ExchangeState.SENT, connection
                connection.send(exchange)
                exchange.on_sent(loop)
                return
            connection.abort()
        exchange.state = ExchangeState.CONNECTING
        exchange.overdue_s = loop_now() + waited_s
        if exchange.slot is None:
            self.timers.add(exchange, loop)
        exchange.connecting = loop.create_task(self._connect(exchange))
        exchange.connecting.add_done_callback(partial(self._on_connect_end, exchange))

    def _wait(self, exchange: ClientExchange) -> None:
        if len(self.waiting) >= self._limits.waiting_max:
            self._fail(
                exchange,
                Shed(
                    f"{len(self.waiting)} calls wait for a connection to {self.name} already; "
                    "nothing was sent"
                ),
            )
            return
        exchange.state = ExchangeState.WAITING
        loop = asyncio.get_running_loop()
        self.waiting[exchange] = loop_now()
        if exchange.slot is None:
            self.timers.add(exchange, loop)

    async def _connect(self, exchange: ClientExchange) -> None:
        """Connect, then send the request of an exchange."""
        made: list[ClientConnection] = []

        def factory() -> ClientConnection:
            made.append(ClientConnection(self.name, self._limits, self, self._lost))
            return made[-1]

        try:
            async with asyncio.timeout(self._limits.connect_s):
                await self._owner.network.connect(factory, self.host, self.port)
        except Exception as error:  # noqa: BLE001 - told to the exchange
            self._leave(exchange, None)
            self._fail(exchange, self._not_connected(error))
        else:
            self._connected(exchange, made[-1])
        finally:
            del exchange  # it keeps an error that has this frame in its traceback

    def _on_connect_end(self, exchange: ClientExchange, connecting: asyncio.Task[None]) -> None:
        """Give the place of a cancelled attempt back."""
        # Not in `_connect`: a task that is cancelled before its first step runs no line of its own.
        if connecting.cancelled():
            self._leave(exchange, None)

    def _connected(self, exchange: ClientExchange, connection: ClientConnection) -> None:
        self._owner.connections[connection] = None
        exchange.connecting = None
        if self._owner.is_closed:
            self._leave(exchange, connection)
            self._fail(exchange, self._closed())
        elif exchange.state is ExchangeState.DONE:
            self._leave(exchange, connection)
        elif not connection.is_reusable:
            self._leave(exchange, connection)
            self._fail(
                exchange,
                ConnectFailed(f"{self.name} closed the connection at once; nothing was sent"),
            )
        else:
            exchange.may_reuse = True
            self._use(exchange, connection)

    def _leave(self, exchange: ClientExchange, connection: ClientConnection | None) -> None:
        """Give back what an exchange has held, and the connection that it was on."""
        if exchange.is_streaming:
            self._end_stream(exchange, connection)
        else:
            self._give(connection)

    def _give(self, connection: ClientConnection | None) -> None:
        """Hand a place with its connection, or to make one, to who waits longest, or free it."""
        if connection is not None and (self._owner.is_closed or not connection.is_reusable):
            connection.abort()
            connection = None
        now = loop_now()
        while self.waiting:
            exchange, since_s = next(iter(self.waiting.items()))
            if exchange.due_s <= now:
                # Its timer is about to say so: it would take the place for nothing.
                self._fail(exchange, self._busy())
                continue
            refusal = self._refusal(exchange)
            if refusal is not None:
                self._fail(exchange, refusal)
                continue
            del self.waiting[exchange]
            self._use(exchange, connection, now - since_s)
            return
        if connection is None:
            self._free()
        else:
            connection.idle_since_s = now
            self.idle.append(connection)
            self._owner.on_idle()

    def _take(self) -> None:
        self.used += 1
        if self.used == 1:
            self._owner.on_used(self)

    def _free(self) -> None:
        self.used -= 1
        if not self.used and not self.streams:
            self._owner.on_unused(self)

    def _refusal(self, exchange: ClientExchange) -> CallError | None:
        """Return why an exchange is not sent whose body may come to be under way for long.

        Whole ones are always sent. As many streams are left over as there are places: the answer to
        each of those may become one.
        """
        limits = self._limits
        # Who a client is has to be found out: not before there may be one who has too many.
        if not exchange.takes_parts or len(self.streams) < limits.share_max:
            return None
        client = exchange.client
        if client and self.shares.get(client, 0) >= limits.share_max:
            return RateLimited(
                f"{limits.share_max} bodies are under way to or from {self.name} for one client, "
                "which is its share; nothing was sent",
                retry_after_s=_STREAM_RETRY_S,
                is_final=True,
            )
        if len(self.streams) < limits.streams_max - limits.connections_max:
            return None
        refusal = Shed(
            f"{len(self.streams)} bodies are under way to or from {self.name}, and no more may be; "
            "nothing was sent",
            retry_after_s=_STREAM_RETRY_S,
            is_final=True,
        )
        refusal.is_callees = False
        return refusal

    def _begin_stream(self, exchange: ClientExchange) -> None:
        if not self.used and not self.streams:
            self._owner.on_used(self)
        # Kept: who a client is may not be known any more when it has gone.
        client = self.streams[exchange] = exchange.client
        self.shares[client] = self.shares.get(client, 0) + 1

    def _end_stream(self, exchange: ClientExchange, connection: ClientConnection | None) -> None:
        """Count a stream out, and keep its connection where there is a place for it."""
        client = self.streams.pop(exchange)
        left = self.shares[client] - 1
        if left:
            self.shares[client] = left
        else:
            del self.shares[client]
        if connection is not None and self.used < self._limits.connections_max:
            self._take()
            self._give(connection)
            return
        if connection is not None:
            connection.abort()
        if not self.used and not self.streams:
            self._owner.on_unused(self)

    def _lost(self, connection: ClientConnection) -> None:
        self._owner.connections.pop(connection, None)
        # A busy connection is given back by the exchange that it fails.
        if connection in self.idle:
            self.idle.remove(connection)
            self._free()
        self._owner.on_lost()

    def _end(self, exchange: ClientExchange) -> None:
        self.timers.drop(exchange)
        self.waiting.pop(exchange, None)
        exchange.state = ExchangeState.DONE
        exchange.connection = None

    def _fail(self, exchange: ClientExchange, error: Exception) -> None:
        if exchange.state is not ExchangeState.DONE:
            self._end(exchange)
            # That it was not sent again says nothing of the first time, when it may have been run.
            exchange.on_error(exchange.lost or error)

    def _busy(self) -> Shed:
        return Shed(
            f"all {self.used} connections to {self.name} stayed busy for too long before the "
            "deadline; nothing was sent"
        )

    def _not_connected(self, error: Exception) -> Exception:
        if not isinstance(error, OSError):
            return error
        failed = self._unreached(error.strerror or str(error) or "it did not answer in time")
        failed.__cause__ = error
        return failed

    def _unreached(self, reason: str) -> ConnectFailed:
        return ConnectFailed(f"cannot connect to {self.name}: {reason}; nothing was sent")

    def _closed(self) -> ConnectFailed:
        return ConnectFailed(f"the pool is closed: nothing was sent to {self.name}")
