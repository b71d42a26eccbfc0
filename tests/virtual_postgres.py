"""A real PostgreSQL in virtual time: time stands still for as long as the server owes an answer.

The loop is that of a simulation, but for connections to the server of this process's tests. What
they have sent is counted, and so is each `ReadyForQuery` of the server; while one is missing and
nothing else is ready, the loop waits for it in real time, and virtual time does not go on. So
whatever sleeps for an hour takes no longer on this engine than on a simulated disk. A process that
is killed loses its connections, and the lease of its store with them.
"""

from __future__ import annotations

import asyncio
import re
import selectors
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from importlib import import_module
from typing import Any, TypeVar

import psycopg
import pytest

from postgres_server import shared_server
from synchromesh.runtime import Runtime
from synchromesh.store.postgres import PostgresOptions, PostgresStores
from synchromesh.testing import world
from synchromesh.testing.loop import SimLoop
from synchromesh.testing.process import PROCESS, SimProcess

T = TypeVar("T")

# What is asked from time to time in virtual time would be asked thousands of times in its hours.
OPTIONS = PostgresOptions(connections_max=2, readers_max=1, look_every_s=1e5, lease_s=1e6)

_CANCEL = (80877102).to_bytes(4)
_LIFE = re.compile(rb"application_name\0synchromesh ([^\0 ]+) ([^\0 ]+)\0")
# No statement here takes as long on any machine, but where it waits for what virtual time holds.
_ANSWER_S = 60.0
# Where something is always ready, as in a loop of `sleep(0)`, answers have their turn, too.
_LOOK_EVERY = 64
_FORGET = """\
do $$ declare made text; begin
for made in select tablename from pg_tables where schemaname = 'public'
and tablename not in ('sm_meta', 'sm_migration', 'sm_log') loop
execute 'delete from ' || quote_ident(made); end loop;
if to_regclass('sm_log') is not null then update sm_log set last = 0; end if; end $$"""


class ServerLink(asyncio.Transport):
    """A connection to the server, which is read when the loop has nothing else to do."""

    def __init__(self, loop: PostgresLoop, path: str, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.protocol: Any = protocol
        self.context = copy_context()
        self.life = self.service = ""
        self.owed = 0
        self._loop = loop
        self._is_begun = self._is_flush = self._is_closed = False
        self._sent, self._told = bytearray(), bytearray()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)

    def write(self, data: Any) -> None:
        """Send, and count what the server will answer."""
        if self._is_closed:
            return
        self._sent += data
        if not self._is_begun and len(self._sent) >= 8:
            size = int.from_bytes(self._sent[:4])
            if found := _LIFE.search(self._sent):
                self.life, self.service = found[1].decode(), found[2].decode()
            self._is_begun = True
            self.owed += 1  # of a cancel, its end
            del self._sent[:size]
        for kind in _messages(self._sent):
            self.owed += kind in b"QSH"
            self._is_flush |= kind in b"H"
        try:
            self.socket.sendall(bytes(data))
        except OSError as error:
            self._loop.lose(self, error)

    def writelines(self, parts: Any) -> None:
        """Send all of them."""
        self.write(b"".join(parts))

    def read(self) -> None:
        """Take what the server has sent."""
        try:
            data = self.socket.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._loop.lose(self, None)
            return
        self._told += data
        for kind in _messages(self._told):
            # A flush, as of a statement that is prepared, ends with what it describes.
            is_described = self._is_flush and kind in b"TnE"
            self._is_flush &= not is_described
            self.owed -= is_described or kind in b"Z"
        self._loop.call_soon(self._receive, data, context=self.context)

    def _receive(self, data: bytes) -> None:
        if not self._is_closed:
            self.protocol.data_received(data)

    def end(self) -> bool:
        """Close the socket; False where it was closed before."""
        was_open, self._is_closed, self.owed = not self._is_closed, True, 0
        self.socket.close()
        return was_open

    def abort(self) -> None:
        """Close it now."""
        self._loop.lose(self, None)

    close = abort

    def is_closing(self) -> bool:
        """Return whether it is closed."""
        return self._is_closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the socket, or nothing."""
        return self.socket if name == "socket" else default

    def pause_reading(self) -> None:
        """Go on: what is asked here is small."""

    resume_reading = pause_reading


def _messages(data: bytearray) -> Iterator[int]:
    """Take the whole messages out of a stream, and return their kinds."""
    while len(data) >= 5 and len(data) > (size := int.from_bytes(data[1:5])):
        yield data[0]
        del data[: size + 1]


class PostgresLoop(SimLoop):
    """A simulation's loop whose processes reach the server. Each begins with empty tables."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._links: set[ServerLink] = set()
        self._selector = selectors.DefaultSelector()
        self._picks = 0
        for service in _databases:
            audit(_FORGET, service=service)

    async def create_unix_connection(  # type: ignore[override]
        self, factory: Callable[[], Any], path: str, **_: Any
    ) -> Any:
        """Connect to the server."""
        protocol = factory()
        link = ServerLink(self, path, protocol)
        self._links.add(link)
        self._selector.register(link.socket, selectors.EVENT_READ, link)
        protocol.connection_made(link)
        return link, protocol

    def lose(self, link: ServerLink, error: Exception | None) -> None:
        """Close a connection, and tell its protocol."""
        self._forget(link)
        if link.end():
            self.call_soon(link.protocol.connection_lost, error, context=link.context)

    def kill(self, process: SimProcess) -> None:
        """Kill a process: the server finds its connections closed, and nobody renews its lease."""
        super().kill(process)
        for link in [each for each in self._links if each.context.get(PROCESS) is process]:
            self._cut(link)
            if link.life:
                forget = "delete from sm_replica where id = %s"
                audit(forget, link.life, service=link.service)

    def close(self) -> None:
        """End the simulation, and with it all connections."""
        super().close()
        for link in list(self._links):
            self._cut(link)
        self._selector.close()

    def _cut(self, link: ServerLink) -> None:
        """Close a connection of which nobody will be told, but for its driver."""
        self._forget(link)
        if link.end():
            link.context.run(link.protocol.connection_lost, None)

    def _forget(self, link: ServerLink) -> None:
        if link in self._links:
            self._links.discard(link)
            self._selector.unregister(link.socket)

    def _pick(self) -> Any:
        self._picks += 1
        if self._links and self._picks % _LOOK_EVERY == 0:
            self._look(0.0)
        return super()._pick()

    def _jump(self) -> None:
        if not self._look(0.0):
            if any(link.owed > 0 for link in self._links):
                if not self._look(_ANSWER_S):
                    raise RuntimeError("a statement waits for what virtual time holds")
            else:
                super()._jump()

    def _look(self, wait_s: float) -> bool:
        """Take what the server has sent; return whether it was anything."""
        found = self._selector.select(wait_s) if self._links else ()
        for key, _ in found:
            key.data.read()
        return bool(found)


def audit(sql: str, *values: Any, service: str = "orders") -> list[Any]:
    """Run a statement on a connection of the test's own, and return its rows."""
    if service not in _auditors:
        _auditors[service] = psycopg.connect(url_of(service), autocommit=True)
    cursor = _auditors[service].execute(sql, values or None)
    return cursor.fetchall() if cursor.description else []


_auditors: dict[str, Any] = {}
_databases: dict[str, str] = {}


def url_of(service: str) -> str:
    """Return the address of a service's database, which is there from its first use on."""
    server, name = shared_server(), f"virtual_{service}"
    if str(server.folder) not in _databases.get(service, ""):
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(f"create database {name}")
        _databases[service] = server.url(name)
    return _databases[service]


def stores(runtime: Runtime) -> PostgresStores:
    """Return what opens the databases that the simulations of this process share, in turn."""
    return PostgresStores(runtime, url_of, OPTIONS)


def few(every: Sequence[T], count: int) -> Sequence[T]:
    """Return all of them; on the server about so many, evenly."""
    return every[:: max(1, len(every) // count)] if is_on() else every


def is_on() -> bool:
    """Return whether simulations reach the server now."""
    return vars(world)["SimLoop"] is PostgresLoop


@contextmanager
def turned_on() -> Iterator[None]:
    """Let simulations reach the server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "SimLoop", PostgresLoop)
        patch.setattr(
            import_module("synchromesh.testing.serving"),
            "SqliteStores",
            lambda runtime, _: stores(runtime),
        )
        yield
    for each in _auditors.values():
        each.close()
    _auditors.clear()
