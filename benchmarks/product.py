"""What benchmarks use of the product beyond its front door: one place to follow its renames."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from synchromesh import Migration
from synchromesh.calls import Command, Operation
from synchromesh.calls.routes import Match, Routes
from synchromesh.codec import encode
from synchromesh.context import CallContext
from synchromesh.events import SCHEMA as EVENTS_SCHEMA
from synchromesh.gateway.router import Template, find
from synchromesh.runtime import RealRuntime
from synchromesh.saga import Engine, SagaDefinition, SagaRun, SagaVersions
from synchromesh.saga import tables as saga_tables
from synchromesh.saga.records import RecordKind, SagaRecord
from synchromesh.saga.schema import SCHEMA as SAGA_SCHEMA
from synchromesh.saga.shards import shards_of
from synchromesh.saga.starting import new_row
from synchromesh.saga.writing import write_all
from synchromesh.store import Schema, SqliteStore, Store, Unit
from synchromesh.system import System, load_config
from synchromesh.system.host.process import spare_collector as spare_collector
from synchromesh.telemetry import SqliteRing, Tracer

R = TypeVar("R")

_CONTEXT = CallContext(trace_id="0af7651916cd43dd8448eb211c80319c", span_id="b7ad6b7169203331")


@asynccontextmanager
async def open_store(path: Path, migrations: Sequence[Migration] = ()) -> AsyncIterator[Store]:
    """Open a service's database with its event log, sagas and its own tables."""
    store = await SqliteStore.open(
        str(path), service="bench", schemas=_schemas(migrations), runtime=RealRuntime()
    )
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def open_postgres(
    url: str, migrations: Sequence[Migration] = (), *, connections: int = 0
) -> AsyncIterator[Store]:
    """Open the same on a PostgreSQL server; by default with as many connections as a service."""
    # Only where the extra is there.
    from synchromesh.store.postgres import PostgresOptions, PostgresStore

    usual = PostgresOptions()
    store = await PostgresStore.open(
        url,
        service="bench",
        schemas=_schemas(migrations),
        runtime=RealRuntime(),
        options=replace(usual, connections_max=connections or usual.connections_max),
    )
    try:
        yield store
    finally:
        await store.close()


def _schemas(migrations: Sequence[Migration]) -> list[Schema]:
    schemas = [EVENTS_SCHEMA, SAGA_SCHEMA]
    if migrations:
        schemas.append(Schema("bench", tuple(migrations)))
    return schemas


Answer = Callable[[str, str], Awaitable[bytes]]
"""Answers a step, by the full name of its operation and its key, with JSON."""


class _Stub:
    """The other services, as far as the saga engine sees them: an answer, and no work."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def send(
        self,
        operation: Operation[..., Any],
        arguments: bytes,
        *,
        context: CallContext,
        timeout_s: float | None = None,
    ) -> bytes:
        """Answer at once."""
        del arguments, timeout_s
        return await self._answer(operation.full_name, context.key)


async def _as_itself(
    unit: Unit, context: CallContext, body: Callable[[Unit], Awaitable[R]], /
) -> R:
    del context
    return await body(unit)


class Sagas:
    """The saga engine as a service has it, with its spans kept on the disk."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def start(
        self,
        saga: SagaDefinition[Any, R],
        given: object,
        *,
        id: str,  # noqa: A002
    ) -> SagaRun[R]:
        """Start a run; returns once that is durable."""
        return await self._engine.start(saga, given, id=id, context=_CONTEXT)

    async def statuses(self) -> dict[str, int]:
        """Return how many runs have which status."""
        return await self._engine.statuses()

    async def listed(self, count: int) -> int:
        """List the newest runs, and return how many they are."""
        return len(await self._engine.runs(limit=count))


@asynccontextmanager
async def saga_engine(
    folder: Path,
    saga: SagaDefinition[Any, Any],
    answer: Answer,
    opened: AbstractAsyncContextManager[Store] | None = None,
) -> AsyncIterator[Sagas]:
    """Run a saga engine over `orders.db`, or a store that is given.

    Runs that it finds unfinished there are continued.
    """
    runtime = RealRuntime()
    async with AsyncExitStack() as enter:
        ring = SqliteRing(str(folder / "spans.db"), runtime)
        enter.push_async_callback(ring.close)
        store = await enter.enter_async_context(opened or open_store(folder / "orders.db"))
        engine = Engine(
            store,
            _Stub(answer),
            service="orders",
            tracer=Tracer("orders", runtime, ring),
            runtime=runtime,
            versions=SagaVersions([saga]),
            run_unit=_as_itself,
        )
        await engine.recover()
        enter.push_async_callback(engine.close)
        going = asyncio.create_task(engine.keep_going())
        enter.callback(going.cancel)
        yield Sagas(engine)


_PAGE = 500


async def _leave(
    folder: Path, saga: SagaDefinition[Any, Any], count: int, records: Callable[[str], list[Any]]
) -> None:
    """Write so many runs into `orders.db`, as an engine would."""
    now_us = time.time_ns() // 1000
    async with open_store(folder / "orders.db") as store:
        fence = (await shards_of(store, cast("Any", None))).fence(())
        for first in range(0, count, _PAGE):
            parts = []
            for number in range(first, min(count, first + _PAGE)):
                id_ = f"r-{number}"
                row = new_row(saga, id_, id_, _CONTEXT, now_us=now_us, shard=0)
                parts.append(saga_tables.Part(row, 0, records(id_), is_start=True))

            async def body(unit: Unit, parts: list[saga_tables.Part] = parts) -> object:
                return await write_all(unit, parts, fence)

            await store.write(body, name="seed")


async def leave_running(
    folder: Path,
    saga: SagaDefinition[Any, Any],
    count: int,
    *,
    first: Command[..., Any],
    gives: object,
) -> None:
    """Leave runs whose first step, a command that is given the run's id, is done."""

    def records(order: str) -> list[SagaRecord]:
        key, digest = f"{first.full_name}#1", first(order).digest
        begun = SagaRecord(RecordKind.BEGUN, key, 1, digest)
        return [begun, SagaRecord(RecordKind.DONE, key, 1, digest, encode(gives))]

    await _leave(folder, saga, count, records)


async def leave_ended(folder: Path, saga: SagaDefinition[Any, Any], count: int) -> None:
    """Leave runs that were completed."""
    ended = SagaRecord(RecordKind.ENDED, body=b'"done"', at_us=time.time_ns() // 1000)
    await _leave(folder, saga, count, lambda _: [ended])


@asynccontextmanager
async def running(folder: Path, module: str, services: Sequence[str]) -> AsyncIterator[Sagas]:
    """Run services of a module as `synchromesh dev` does, in this process.

    Yields the sagas of the first one. Databases are `database(folder, service)`.
    """
    lines = ['[system]\nname = "bench"\n']
    lines += [f'[services.{name}]\napp = "bench_services:{name}"\n' for name in services]
    (folder / "synchromesh.toml").write_text("\n".join(lines))
    # Definitions have to stand below the system's folder.
    (folder / "bench_services.py").write_text(f"from {module} import {', '.join(services)}\n")
    system = System(load_config(folder), folder, RealRuntime())
    await system.start()
    try:
        yield Sagas(system.instances[services[0]].engine)
    finally:
        await system.stop()


def database(folder: Path, service: str) -> Path:
    """Return where a running system has a service's database."""
    return folder / ".synchromesh" / "data" / f"{service}.db"


def finder(routes: Sequence[str]) -> Callable[[str], str]:
    """Return what finds one of these routes for a path that is asked by GET, as the gateway does.

    It raises LookupError for a path that has none.
    """
    table: Routes[str] = Routes(has_empty_places=False)
    for route in routes:
        template = Template.of(route)
        table.add(template.method, template.path, route)

    def found(path: str) -> str:
        match = find(table, "GET", path)
        if not isinstance(match, Match):
            raise LookupError(path)
        return match.target

    return found
