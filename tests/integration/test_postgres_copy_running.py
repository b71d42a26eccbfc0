"""`db copy SERVICE` while the system runs: that service pauses, the others do not, and kills at any
moment leave one history, which goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from copy_app import ON_SERVER, TOML
from notes_app import TESTS, write_config
from postgres_server import shared_server
from processes import COMMAND, announced, dev, ends, family_of
from split_world import WAIT_S, ControlSocket, running
from synchromesh.errors import SynchromeshError
from synchromesh.http import HttpPool
from synchromesh.store.postgres_migrations import MIGRATING
from synchromesh.system import load_config
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.control.copying import copy_services
from synchromesh.system.control.offline import create_databases

pytestmark = pytest.mark.anyio

PACE_S = 0.02
ASKED = {"who": "me", "why": "one machine is too small"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("MESH_KEY", "00" * 32)
    monkeypatch.setenv("DATABASE_URL", shared_server().url("postgres"))


def config(name: str, *files: str) -> str:
    """Return a configuration in which these services are on their files."""
    kept = f"sqlite = {json.dumps(files)}\n" if files else ""
    return TOML.format(name=name) + ON_SERVER + kept


async def until(check: Any) -> None:
    async with asyncio.timeout(120.0):
        while not await check():
            await asyncio.sleep(0.02)


class Customers:
    """Buys at the till under one key each until that is answered, and reads the books beside it.

    Attributes:
        numbers: what was answered, by sale.
        failed: the codes of what was not, of the till and of the ledger.
    """

    def __init__(self, ask: Any) -> None:
        self._ask = ask
        self.numbers: dict[str, int] = {}
        self.failed: dict[str, set[str]] = {"till": set(), "ledger": set()}
        self._is_over = False
        self._there: set[asyncio.Task[None]] = set()

    async def call(self, operation: str, key: str = "", **arguments: str) -> Any:
        """Make a call, again after each failure that says it may be made again."""
        wanted = {"operation": operation, "arguments": arguments, "timeout_s": WAIT_S}
        while True:
            answer = await self._ask("/call", {**wanted, **({"key": key} if key else {})})
            if answer is not None and answer["problem"] is None:
                return answer["result"]
            code = "down" if answer is None else answer["problem"]["code"]
            self.failed[operation.partition(".")[0]].add(code)
            await asyncio.sleep(PACE_S)

    @asynccontextmanager
    async def buying(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            self._there = {
                group.create_task(each) for each in (self._buy("a"), self._buy("b"), self._read())
            }
            for each in self._there:
                each.add_done_callback(self._there.discard)
            try:
                yield
            finally:
                self.stop()

    def stop(self) -> None:
        """Have them go once their last purchase is answered."""
        self._is_over = True

    async def have_gone(self) -> bool:
        """Return whether they have."""
        return not self._there

    async def bought(self, more: int) -> None:
        """Wait until that many more are answered."""
        wanted = len(self.numbers) + more

        async def is_so() -> bool:
            return len(self.numbers) >= wanted

        await until(is_so)

    async def _buy(self, who: str) -> None:
        number = 0
        while not self._is_over:
            number += 1
            sale = f"{who}{number:06}"
            self.numbers[sale] = await self.call("till.sell", f"sell-{sale}", id=sale, cents="7")
            await asyncio.sleep(PACE_S)

    async def _read(self) -> None:
        while not self._is_over:
            await self.call("ledger.entries")
            await asyncio.sleep(PACE_S)


async def test_one_service_moves_and_the_others_go_on(tmp_path: Path, pool: HttpPool) -> None:
    """No call of others fails, none of its own is lost or run twice; a run that waits goes on, the
    log keeps its id and positions, and subscribers miss and repeat nothing."""
    await create_databases(write_config(tmp_path, config("live")), is_new_key=False)
    async with running(tmp_path, config("live", "till", "ledger")) as system:
        asking = ControlSocket(system, pool)

        async def ask(path: str, body: Any) -> Any:
            return await asking.ask("POST", path, body)

        async def copy(name: str) -> Any:
            return await asking.said("POST", f"/services/{name}/copy", ASKED)

        customers = Customers(ask)
        code, told = await copy("till")
        assert (code, '[engine]\nsqlite = ["ledger"]' in told["detail"]) == (400, True)
        write_config(tmp_path, config("live"))
        system.reread = lambda: load_config(tmp_path)
        code, told = await copy("till")
        assert (code, 'sqlite = ["ledger"]' in told["detail"]) == (400, True)
        write_config(tmp_path, config("live", "ledger"))
        assert await customers.call("till.order", "order-c", id="c") == "order-c"
        pids = [await asking.pid("till"), await asking.pid("ledger")]
        async with customers.buying():
            await customers.bought(10)
            await execute("live_till", "create table odd(n int)")
            code, told = await copy("till")
            assert (code, "is not empty" in told["detail"]) == (400, True)
            # It was found while the old one served.
            assert [await asking.pid("till"), await asking.pid("ledger")] == pids
            await execute("live_till", "drop table odd")
            code, told = await copy("till")
            assert (code, told["copied"]["outcome"]) == (200, "copied"), told
            await customers.bought(10)
            code, again = await copy("till")
            assert again["copied"]["outcome"] == "there"
        assert customers.failed["ledger"] == set()
        assert customers.failed["till"] <= {"unavailable"}
        assert await asking.pid("till") != pids[0]
        assert await asking.pid("ledger") == pids[1]
        assert await customers.call("till.pay", "pay-c", id="c", cents="9") is True
        assert await customers.call("till.ended", "ended-c", id="c") == "c is number 1, 9 paid"
        sold = sorted([*customers.numbers, "c"])

        async def has_all() -> bool:
            entries: list[str] = await customers.call("ledger.entries")
            assert len(entries) == len(set(entries))
            return entries == sold

        await until(has_all)
        assert len({1, *customers.numbers.values()}) == len(sold)
        status = await asking.ask("GET", "/status")
        assert status["engines"]["databases"].endswith("and SQLite files of ledger")
    connection = await asyncpg.connect(shared_server().url("live_till"))
    kept = dict(await connection.fetch("select name, value from sm_meta"))
    count, last = await connection.fetchrow("select count(*), max(position) from sm_event")
    await connection.close()
    assert (kept["log_id"], count) == (told["copied"]["log_id"], last)


async def execute(database: str, sql: str) -> None:
    connection = await asyncpg.connect(shared_server().url(database))
    await connection.execute(sql)
    await connection.close()


class Gates:
    """Holds up who would copy to a database or make its tables, at one gate after the other.

    All of them take one lock of the database, in the order in which they ask for it.
    """

    def __init__(self, database: str) -> None:
        self._url = shared_server().url(database)
        self._gates: list[tuple[asyncpg.Connection, asyncio.Task[Any]]] = []

    async def close_another(self) -> None:
        """Ask for the lock, behind those who wait for it now."""
        waited = await self._waiting()
        connection = await asyncpg.connect(self._url)
        asked = connection.execute(f"select pg_advisory_lock({MIGRATING})")
        self._gates.append((connection, asyncio.ensure_future(asked)))
        if len(self._gates) > 1:
            await self.reached(waited + 1)
        else:
            await self._gates[0][1]

    async def open_first(self) -> None:
        """Let those before the next gate go on."""
        connection, asked = self._gates.pop(0)
        await asked
        await connection.close()
        if self._gates:
            await self._gates[0][1]

    async def reached(self, count: int = 1) -> None:
        """Wait until so many wait for the lock."""

        async def is_so() -> bool:
            return await self._waiting() == count

        await until(is_so)

    async def _waiting(self) -> int:
        connection = await asyncpg.connect(self._url)
        try:
            return int(
                await connection.fetchval(
                    "select count(*) from pg_locks where locktype = 'advisory' and not granted and "
                    "database = (select oid from pg_database where datname = current_database())"
                )
            )
        finally:
            await connection.close()


async def test_killed_at_any_moment_it_is_run_again(tmp_path: Path, pool: HttpPool) -> None:
    """Its process while it rehearses, copies, and starts on the copy; the system and the verb while
    it copies: each sale is answered once and entered once, and the numbers go on."""
    folder = write_config(tmp_path, config("kills"))
    await create_databases(folder, is_new_key=False)
    write_config(folder, config("kills", "till", "ledger"))

    async def said(path: str, body: Any) -> tuple[int, Any]:
        info = RunDir(folder).read()
        headers = [("authorization", f"Bearer {info.token}")]
        response = await pool.request(
            "127.0.0.1", int(info.control.rpartition(":")[2]), "POST", path, headers,
            json.dumps(body).encode(), timeout_s=600.0,
        )  # fmt: skip
        return response.status, json.loads(response.body)

    async def ask(path: str, body: Any) -> Any:
        try:
            return (await said(path, body))[1]
        except SynchromeshError:
            return None  # it is down

    customers, gates = Customers(ask), Gates("kills_till")
    async with customers.buying():
        with dev(folder, "--split") as process:
            await asyncio.to_thread(announced, process)
            await customers.bought(3)
            write_config(folder, config("kills", "ledger"))
            for is_copying in (False, True):
                before = {*family_of(process.pid)}
                await gates.close_another()
                verb = asyncio.ensure_future(said("/services/till/copy", ASKED))
                await gates.reached()
                (copier,) = {*family_of(process.pid)} - before
                if is_copying:
                    await gates.close_another()
                    await gates.open_first()
                    await gates.reached()
                os.kill(copier, signal.SIGKILL)
                code, told = await verb
                assert (code, "till goes on with its file" in told["detail"]) == (400, True)
                await gates.open_first()
                await customers.bought(3)
            await gates.close_another()
            verb = asyncio.ensure_future(said("/services/till/copy", ASKED))
            await gates.reached()
            await gates.close_another()
            await gates.open_first()
            await gates.reached()
            process.kill()
        with pytest.raises(SynchromeshError):
            await verb
        await gates.open_first()
        with dev(folder, "--split") as process, pytest.raises(AssertionError) as refused:
            await asyncio.to_thread(announced, process)
        assert "till was being copied to" in str(refused.value)
        (done,) = await copy_services(folder, "till", who="me", why="to end it")
        assert done.outcome == "copied"
        gates = Gates("kills_ledger")
        with dev(folder, "--split") as process:
            await asyncio.to_thread(announced, process)
            await customers.bought(3)
            write_config(folder, config("kills"))
            await gates.close_another()
            before = {*family_of(process.pid)}
            command = (
                *COMMAND,
                "--folder",
                str(folder),
                "db",
                "copy",
                "ledger",
                "--why",
                "it grew",
            )
            cut = await asyncio.create_subprocess_exec(*command)
            await gates.reached()
            (copier,) = {*family_of(process.pid)} - before
            await gates.close_another()
            await gates.open_first()
            await gates.reached()
            cut.kill()
            await cut.wait()
            await gates.close_another()
            await gates.open_first()
            await gates.reached()
            os.kill(copier, signal.SIGKILL)
            assert ends(copier)
            await gates.open_first()
            assert isinstance(await customers.call("ledger.entries"), list)
            code, told = await said("/services/ledger/copy", ASKED)
            assert (code, told["copied"]["outcome"]) == (200, "there")
            await customers.bought(3)
            customers.stop()
            await until(customers.have_gone)
            await until(lambda: has_entered(customers))
            process.terminate()
            await asyncio.to_thread(process.wait)
    assert len({*customers.numbers.values()}) == len(customers.numbers)


async def has_entered(customers: Customers) -> bool:
    """Return whether the ledger has all that was bought; nothing of it may be there twice."""
    entries: list[str] = await customers.call("ledger.entries")
    assert len(entries) == len(set(entries))
    return entries == sorted(customers.numbers)
