"""What PostgreSQL costs here, and costs others: units, a log of events, sagas, on one server.

    python -m benchmarks.postgres

The server is the one of `dev --engine postgres`, with its data on the disk; every contestant has a
database of its own on it, and each is asked whether its commits are flushed. In turn, in one run:

- units of five statements, 64 in flight, against bare asyncpg at SERIALIZABLE: the same statements,
  as many connections, and run again by hand for as long as they are in conflict;
- a log of events against `eventsourcing`, as `benchmarks.events` has both on SQLite;
- sagas of three stubbed steps against DBOS, as `benchmarks.saga` has both on SQLite;
- processes on PostgreSQL and NATS, as `dev --split --engine all` runs them: from publish to effect,
  and two replicas of a service against one;
- a registry on NATS, whose instances renew their leases before all who watch.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg

from benchmarks import events, product, replicas, saga_runs, units
from benchmarks.bench_registry_nats import measure_registry
from benchmarks.harness import Measures, Report, at_least, at_most, check, in_turn_async, size
from benchmarks.saga_services import place
from synchromesh import Migration
from synchromesh.system.supervise.postgres_engine import PostgresEngine

BARE = "bare asyncpg"
IN_FLIGHT = 64
SAGAS_IN_FLIGHT = 50
# Those that a service has by default, and many.
CONNECTIONS = (4, 16)
_APPENDS = size(21, 2)
# What a commit has to be flushed by, as each database is asked.
_FLUSHED = ("fsync", "synchronous_commit", "full_page_writes")


class Server:
    """The server that all contestants are on."""

    def __init__(self, engine: PostgresEngine) -> None:
        self._engine = engine

    @classmethod
    @asynccontextmanager
    async def started(cls) -> AsyncIterator[Server]:
        """Start one with new data, and remove it at the end."""
        with tempfile.TemporaryDirectory() as name:
            run_directory = Path(name)
            (run_directory / "telemetry").mkdir()
            engine = PostgresEngine(run_directory)
            await engine.start()
            try:
                yield cls(engine)
            finally:
                await engine.stop()

    @property
    def host(self) -> str:
        """The folder of its socket."""
        return parse_qs(urlsplit(self._engine.url).query)["host"][0]

    async def database(self, name: str) -> str:
        """Make a database, check that it flushes its commits, and return its address."""
        connection = await asyncpg.connect(self._engine.url)
        await connection.execute(f"create database {name}")
        await connection.close()
        url = urlsplit(self._engine.url)._replace(path=f"/{name}").geturl()
        connection = await asyncpg.connect(url)
        settings = [await connection.fetchval(f"show {each}") for each in _FLUSHED]
        await connection.close()
        check(settings, ["on"] * len(_FLUSHED), f"{name}, asked whether it flushes commits,")
        return url


# -- units ---------------------------------------------------------------------------------------


def _numbered(sql: str) -> str:
    """Return a statement with the server's marks, as one writes them by hand."""
    parts = sql.split("?")
    return "".join(f"{part}${number}" for number, part in enumerate(parts[:-1], 1)) + parts[-1]


READ, TAKE, HOLD, LOG = map(_numbered, (units.READ, units.TAKE, units.HOLD, units.LOG))
KNOWN = "select answer from inbox where key = $1"
KEEP = "insert into inbox values ($1, $2)"


class Bare:
    """A pool of connections, and a unit as one writes it by hand: the peer."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.again = 0

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str, connections: int) -> AsyncIterator[Bare]:
        """Make the tables and put the articles on the shelf."""
        async with asyncpg.create_pool(url, min_size=connections, max_size=connections) as pool:
            for table in units.TABLES:
                await pool.execute(table)
            await pool.execute("create table inbox(key text primary key, answer bytea not null)")
            for article in range(units.ARTICLES):
                await pool.execute("insert into stock values ($1, $2)", f"s{article}", units.PLENTY)
            yield cls(pool)

    async def reserve(self, key: str, sku: str) -> object:
        """Run the unit once under the key, again for as long as it is in conflict."""
        async with self._pool.acquire() as connection:
            while True:
                try:
                    async with connection.transaction(isolation="serializable"):
                        return await self._reserve(connection, key, sku)
                except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError):
                    self.again += 1

    @staticmethod
    async def _reserve(connection: Any, key: str, sku: str) -> bytes:
        known = await connection.fetch(KNOWN, key)
        if known:
            return bytes(known[0][0])
        ((n,),) = await connection.fetch(READ, sku)
        assert n > 0
        await connection.execute(TAKE, sku)
        await connection.execute(HOLD, key, sku)
        await connection.execute(LOG, key, units.BODY)
        answer = b'{"ok":true}'
        await connection.execute(KEEP, key, answer)
        return answer


class UnitSide:
    """Measures one side on a database of its own that grows from round to round."""

    def __init__(self, name: str, url: str, reserve: units.Reserve) -> None:
        self._name = name
        self._url = url
        self._reserve = reserve
        self._turn = 0
        self.done = 0

    async def prove(self) -> None:
        """Check that a key takes effect once."""
        answers = {repr(await self._reserve("same", "s0")) for _ in range(3)}
        check(len(answers), 1, f"{self._name}, asked thrice under one key,")
        self.done += 1
        await self._check()

    async def run(self, in_flight: int = IN_FLIGHT, each: int = 0) -> Measures:
        """Keep so many units under way until all have been done."""
        self._turn += 1
        turn, each = self._turn, each or size(12, 4)

        async def worker(number: int) -> None:
            for count in range(each):
                sku = f"s{(number * 7 + count) % units.ARTICLES}"
                await self._reserve(f"{turn}/{number}/{count}", sku)

        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*(worker(number) for number in range(in_flight)))
        took_s, took_cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        done = in_flight * each
        self.done += done
        await self._check()
        return {"rate": done / took_s, "cpu": took_cpu_s / done * 1e6}

    async def alone(self) -> Measures:
        """Run units one at a time."""
        return await self.run(1, size(200, 20))

    async def _check(self) -> None:
        # As an auditor sees it, by a connection of its own.
        audit = await asyncpg.connect(self._url)
        found = await audit.fetchrow(
            "select (select count(*) from hold), (select count(*) from log), "
            f"{units.ARTICLES}::bigint * {units.PLENTY} - (select sum(n) from stock)"
        )
        await audit.close()
        check(tuple(map(int, found)), (self.done,) * 3, self._name)


async def measure_units(server: Server, report: Report) -> None:
    """Run units on both sides, with few connections and with many."""
    migration = Migration(1, units.TABLES, readable_by_min=1)
    for connections in CONNECTIONS:
        names = {who: f"units_{who}_{connections}" for who in ("ours", "bare")}
        urls = {who: await server.database(name) for who, name in names.items()}
        async with (
            product.open_postgres(urls["ours"], [migration], connections=connections) as store,
            Bare.opened(urls["bare"], connections) as bare,
        ):
            ours = await units.Ours.on(store)
            sides = {
                "ours": UnitSide("ours", urls["ours"], ours.reserve),
                BARE: UnitSide(BARE, urls["bare"], bare.reserve),
            }
            for side in sides.values():
                await side.prove()
            many = await in_turn_async(
                {who: side.run for who, side in sides.items()}, rounds=size(15, 2)
            )
            alone = await in_turn_async(
                {who: side.alone for who, side in sides.items()}, rounds=size(11, 2)
            )
            figure = f"{IN_FLIGHT} in flight, {connections} connections"
            report.against(
                f"units a second, {figure}", "/s", many, "rate", peer=BARE, goal=at_least(0.7)
            )
            report.against(f"unit, CPU, {figure}", "us", many, "cpu", peer=BARE)
            if connections == CONNECTIONS[0]:
                report.against("units a second, alone", "/s", alone, "rate", peer=BARE)
            report.alone(
                f"units of {BARE} run again, {connections} connections", "of 1,000",
                bare.again / sides[BARE].done * 1000,
            )  # fmt: skip


# -- events --------------------------------------------------------------------------------------


async def measure_events(server: Server, report: Report) -> None:
    """Append to a log and read it, on both sides."""
    goals = {1: at_least(1.6), 8: at_least(7), 64: at_least(15)}
    url = await server.database("log_ours")
    theirs = await _theirs(server, "log_theirs")
    async with product.open_postgres(url) as store:
        ours = events.Ours(store)
        for writers, goal in goals.items():
            results = await events.appends(ours, theirs, writers, rounds=_APPENDS)
            figure = f"append, {writers} writer{'s' if writers > 1 else ''}"
            report.against(figure, "/s", results, "rate", peer=events.PEER, goal=goal)
    many = CONNECTIONS[-1]
    url = await server.database("log_of_many")
    async with product.open_postgres(url, connections=many) as store:
        results = await events.appends(events.Ours(store), theirs, 64, rounds=_APPENDS)
        figure = f"append, 64 writers, {many} connections"
        report.against(figure, "/s", results, "rate", peer=events.PEER)
    theirs.close()
    url = await server.database("read_ours")
    theirs = await _theirs(server, "read_theirs")
    async with product.open_postgres(url) as store:
        ours = events.Ours(store)
        results = await events.loads(ours, theirs, events.state_of(events.STREAM_EVENTS))
        report.against(
            "load a stream of 100", "/s", results, "rate", peer=events.PEER, goal=at_least(8)
        )
        more = size(36, 4)
        await ours.fill(more, 500)
        theirs.fill(more, 500)
        results = await events.catch_ups(
            ours, theirs, streams=20 + more, events=20 * events.STREAM_EVENTS + more * 500
        )
        report.against(
            "catch-up, events", "/s", results, "rate", peer=events.PEER, goal=at_least(4)
        )
    theirs.close()


async def _theirs(server: Server, name: str) -> events.Theirs:
    await server.database(name)
    return events.Theirs(
        {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": name,
            "POSTGRES_HOST": server.host,
            "POSTGRES_PORT": "5432",
            "POSTGRES_USER": "postgres",
            "POSTGRES_PASSWORD": "none",
            "POSTGRES_POOL_SIZE": str(events.THREADS),
            "POSTGRES_MAX_OVERFLOW": "0",
        }
    )


# -- sagas ---------------------------------------------------------------------------------------

Once = Callable[[str], Awaitable[None]]


async def measure_sagas(server: Server, report: Report) -> None:
    """Run sagas of three stubbed steps on both sides; DBOS has its threads in its turns alone."""
    url = await server.database("sagas_ours")
    dbos_url = (await server.database("sagas_dbos")).replace("postgresql:", "postgresql+psycopg:")
    turn = 0

    async def measured(once: Once, sagas: int) -> Measures:
        nonlocal turn
        turn += 1
        await saga_runs.load(once, f"{turn}-first", 10, 10)
        one = await saga_runs.load(once, f"{turn}-alone", size(20, 5), 1)
        many = await saga_runs.load(once, f"{turn}-many", sagas, SAGAS_IN_FLIGHT)
        return {
            "rate": sagas / many.wall_s, "cpu_ms": many.cpu_s / sagas * 1e3,
            "p50_ms": one.p50_s * 1e3,
        }  # fmt: skip

    with tempfile.TemporaryDirectory() as name:
        opened = product.open_postgres(url)
        async with product.saga_engine(Path(name), place, saga_runs.answered, opened) as sagas:

            async def ours() -> Measures:
                return await measured(
                    lambda order: saga_runs.ours_once(sagas, order, saga_runs.HELD),
                    size(1_000, 100),
                )

            async def dbos() -> Measures:
                with saga_runs.dbos_at(dbos_url):
                    return await measured(saga_runs.dbos_once, size(150, 30))

            results = await in_turn_async({"ours": ours, "dbos": dbos}, rounds=size(7, 1))
    figure = "3 stubbed steps"
    report.against(
        f"sagas a second, {figure}, {SAGAS_IN_FLIGHT} in flight", "/s", results, "rate",
        peer="dbos", goal=at_least(20),
    )  # fmt: skip
    report.against(
        f"p50 alone, {figure}", "ms", results, "p50_ms", peer="dbos", goal=at_most(1 / 5)
    )
    report.against(f"CPU a saga, {figure}", "ms", results, "cpu_ms", peer="dbos")


async def on_one_server(report: Report) -> None:
    """Run what shares one server, all contestants in turn."""
    async with Server.started() as server:
        await measure_units(server, report)
        await measure_events(server, report)
        await measure_sagas(server, report)


def main() -> None:
    """Run all contestants in turn and report."""
    report = Report("postgres", packages=["asyncpg", "dbos", "eventsourcing", "psycopg"])
    asyncio.run(on_one_server(report))
    # Not in the loop above: dbos makes its own executor the loop's, and shuts it down with itself.
    replicas.measure_effects(report)
    replicas.measure_replicas(report)
    asyncio.run(measure_registry(report))
    report.finish()


if __name__ == "__main__":
    main()
