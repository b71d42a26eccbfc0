"""Two PostgreSQL servers on one machine, of which one stands by and takes over when it is told to.

What a manager of clusters does is done here, and no more: a commit is acknowledged once the standby
has it too, for as long as there is one; the primary is fenced, which here is killed with all its
processes, before the standby is promoted; and what was the primary is made anew as a standby.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import asyncpg

from synchromesh.errors import SynchromeshError
from synchromesh.system.supervise.children import ChildEnded
from synchromesh.system.supervise.postgres_engine import PostgresEngine

SETTINGS = (
    "listen_addresses=", "max_connections=500", "wal_level=replica", "max_wal_senders=8",
    "wal_retrieve_retry_interval=200", "wal_sender_timeout=5000", "wal_receiver_timeout=5000",
)  # fmt: skip
AGAIN_S = 0.5
_LOOK_EVERY_S = 0.02
_HBA = "local replication postgres trust\n"


class Node(PostgresEngine):
    """One of the two servers.

    Attributes:
        socket: the path of its socket.
    """

    def __init__(self, folder: Path, settings: Sequence[str]) -> None:
        (folder / "telemetry").mkdir(parents=True, exist_ok=True)
        super().__init__(folder, settings)
        self.socket = self._socket / ".s.PGSQL.5432"
        self._primary: Node | None = None

    async def follow(self, primary: Node) -> None:
        """Start as the standby of another one, with a copy of its data."""
        shutil.rmtree(self._data, ignore_errors=True)
        self._primary = primary
        await self.start()

    async def lead(self) -> None:
        """Start as the primary, with data of its own."""
        await self.start()
        with (self._data / "pg_hba.conf").open("a") as rules:
            rules.write(_HBA)
        await self.ask("select pg_reload_conf()")

    async def promote(self) -> None:
        """End its standing by."""
        assert await self.ask("select pg_promote(true, 60)"), "it was not promoted"

    async def ask(self, sql: str) -> object:
        """Return what a statement says; raises the driver's errors."""
        connection = await asyncpg.connect(self.url, timeout=10.0)
        try:
            return await connection.fetchval(sql, timeout=30.0)
        finally:
            connection.terminate()

    async def _make_data(self) -> None:
        if self._primary is None:
            await super()._make_data()
            return
        process = await asyncio.create_subprocess_exec(
            *self._as, str(self._programs / "pg_basebackup"), "--pgdata", str(self._data),
            "--host", str(self._primary.socket.parent), "--username=postgres", "--checkpoint=fast",
            "--write-recovery-conf", "--wal-method=stream", "--no-sync", cwd=self._folder,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"pg_basebackup: {said.decode(errors='replace')}")

    def processes(self) -> list[int]:
        """Return its process and those that it has made, itself first."""
        if self.pid is None:
            return []
        with suppress(OSError):
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            return [self.pid, *map(int, children)]
        return []

    def send(self, number: signal.Signals, *, is_to_all: bool = False) -> None:
        """Send a signal to it, or to all its processes, itself first so that it makes no more."""
        for pid in self.processes()[: None if is_to_all else 1]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    async def kill(self) -> None:
        """End it, and all that it has made, as the loss of its machine does."""
        every = self.processes()
        for pid in every:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in every:
            while _is_running(pid):  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_EVERY_S)


class PostgresPair:
    """A primary, and a standby that has each commit before it is acknowledged.

    Args:
        folder: where both keep their data.
        settings: of both.

    Attributes:
        nodes: both; which is the primary changes.
        primary, standby: which is which.
    """

    def __init__(self, folder: Path, settings: Sequence[str] = SETTINGS) -> None:
        self.nodes = Node(folder / "a", settings), Node(folder / "b", settings)
        self.primary, self.standby = self.nodes
        self._keeping: dict[Node, asyncio.Task[None]] = {}

    def url(self, database: str = "postgres") -> str:
        """Return an address of both."""
        hosts = ",".join(str(each.socket.parent) for each in self.nodes)
        return f"postgresql://postgres@/{database}?host={quote(hosts, safe='/,')}"

    async def start(self) -> None:
        """Start both, and return once the standby has all; what ends is started again."""
        await self.primary.lead()
        self._keep(self.primary)
        await self._follow()

    async def fail_over(self) -> None:
        """Lose the primary and promote the standby, then make a standby anew."""
        await self.caught_up()
        await self.lose(self.primary)
        await self.promote()
        await self._follow()

    async def promote(self) -> None:
        """Promote the standby, whatever became of the primary."""
        await self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    async def lose(self, node: Node) -> None:
        """Lose a server for good: it is not started again."""
        self._keeping.pop(node).cancel()
        await node.kill()

    async def caught_up(self) -> None:
        """Return once the standby has all that the primary has written by now.

        A primary that was killed shows commits after its start that the standby has not confirmed.
        """
        has_all = (
            "select count(*) from pg_stat_replication where state = 'streaming' "
            "and sync_state in ('sync', 'quorum') and flush_lsn >= '{}'"
        )
        behind = None
        while True:
            with suppress(*_AWAY):
                behind = behind or await self.primary.ask("select pg_current_wal_lsn()::text")
                if await self.primary.ask(has_all.format(behind)):
                    return
            await asyncio.sleep(_LOOK_EVERY_S)

    async def stop(self) -> None:
        """Stop both. May be repeated."""
        for task in self._keeping.values():
            task.cancel()
        await asyncio.gather(*self._keeping.values(), return_exceptions=True)
        self._keeping.clear()
        for each in (self.standby, self.primary):
            each.send(signal.SIGCONT, is_to_all=True)
            await each.stop()

    async def _follow(self) -> None:
        """Make a standby, and have commits wait for it from then on."""
        await self.standby.follow(self.primary)
        self._keep(self.standby)
        for sql in (
            "alter system set synchronous_standby_names = '*'", "select pg_reload_conf()",
        ):  # fmt: skip
            await self._asked(sql)
        await self.caught_up()

    async def _asked(self, sql: str) -> None:
        while True:
            with suppress(*_AWAY):
                await self.primary.ask(sql)
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    def _keep(self, node: Node) -> None:
        self._keeping[node] = asyncio.get_running_loop().create_task(_kept(node))


# What asking a server comes to that is down, or comes up.
_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


async def _kept(node: Node) -> None:
    while True:
        with suppress(ChildEnded, SynchromeshError):
            await node.run()
        await asyncio.sleep(AGAIN_S)


def _is_running(pid: int) -> bool:
    """Return whether a process runs, and is not merely waited for."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
