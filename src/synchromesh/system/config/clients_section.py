"""`[gateway.clients]`: how much, how long and how many the gateway puts up with."""

from __future__ import annotations

import msgspec

from synchromesh.durations import duration
from synchromesh.errors import ConfigError
from synchromesh.http.limits import Limits, PoolLimits

HEAD_BYTES = (1024, 1024 * 1024)
HEADERS = (10, 10_000)
CONNECTIONS = (1, 1_000_000)


class ClientsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[gateway.clients]`: how much, how long and how many the gateway puts up with.

    Attributes:
        connections: how many are open at once; for one more, an idle one of the client with most of
            them is closed, and where none is idle the newcomer is answered 503.
        connections_per_client: how many of those one client may have, by its address, of IPv6 its
            /64; 0 sets no bound of its own. Those of trusted proxies are counted for nobody.
        head: how long a request's head may take to come; past it the client is answered 408.
        body: how long a body may take, and how long less than 4096 bytes of one that is passed on.
        idle: how long a connection may stay open without a request.
        write: how long a client may take less than 8192 bytes of what it is sent; a second more for
            each 100 kB that it had taken, up to 2 minutes.
        quiet: how long an upstream may send nothing of an answer without a length, such as
            server-sent events.
        head_bytes: request line and header fields together; more is answered 431.
        headers: how many header fields; more is answered 431.
    """

    connections: int = 1024
    connections_per_client: int = 0
    head: str = "10s"
    body: str = "10s"
    idle: str = "10s"
    write: str = "10s"
    quiet: str = "60s"
    head_bytes: int = 32 * 1024
    headers: int = 100

    def compile(self) -> Limits:
        """Return the limits that the section describes.

        Raises:
            ConfigError: a value is wrong; the message begins with its key.
        """
        for key, bounds in (
            ("connections", CONNECTIONS),
            ("head_bytes", HEAD_BYTES),
            ("headers", HEADERS),
        ):
            value = getattr(self, key)
            if not bounds[0] <= value <= bounds[1]:
                raise ConfigError(f"{key} = {value}; make it {bounds[0]} to {bounds[1]}")
        if not 0 <= self.connections_per_client <= self.connections:
            raise ConfigError(
                f"connections_per_client = {self.connections_per_client}; make it 1 to "
                f"{self.connections}, which is connections, or 0 for no bound of its own"
            )
        write_s = self._seconds("write")
        return Limits(
            head_bytes_max=self.head_bytes,
            headers_max=self.headers,
            head_s=self._seconds("head"),
            body_s=self._seconds("body"),
            idle_s=self._seconds("idle"),
            write_s=write_s,
            write_most_s=max(write_s, Limits().write_most_s),
            connections_max=self.connections,
            client_connections_max=self.connections_per_client or None,
        )

    def compile_pool(self) -> PoolLimits:
        """Return how upstreams are waited for. Raises ConfigError as `compile` does."""
        return PoolLimits(quiet_s=self._seconds("quiet"))

    def _seconds(self, key: str) -> float:
        return duration(getattr(self, key), key)
