"""What benchmarks use of the product beyond its front door: one place to follow its renames."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from synchromesh import Migration, SagaRun
from synchromesh.calls import Operation
from synchromesh.context import CallContext
from synchromesh.events import SCHEMA as EVENTS_SCHEMA
from synchromesh.runtime import RealRuntime
from synchromesh.saga import Engine, SagaDefinition, SagaVersions
from synchromesh.saga.schema import SCHEMA as SAGA_SCHEMA
from synchromesh.store import Schema, SqliteStore, Store, Unit
from synchromesh.system import System, load_config
from synchromesh.telemetry import SqliteRing, Tracer

R = TypeVar("R")

_CONTEXT = CallContext(trace_id="0af7651916cd43dd8448eb211c80319c", span_id="b7ad6b7169203331")


@asynccontextmanager
async def open_store(path: Path, migrations: Sequence[Migration] = ()) -> AsyncIterator[Store]:
    """Open a service's database with its event log, sagas and its own tables."""
    schemas = [EVENTS_SCHEMA, SAGA_SCHEMA]
    if migrations:
        schemas.append(Schema("bench", tuple(migrations)))
    store = await SqliteStore.open(
        str(path), service="bench", schemas=schemas, runtime=RealRuntime()
    )
    try:
        yield store
    finally:
        await store.close()


Answer = Callable[[str], Awaitable[bytes]]
"""Answers a step, by the full name of its operation, with JSON."""


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
        del arguments, context, timeout_s
        return await self._answer(operation.full_name)


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


@asynccontextmanager
async def saga_engine(
    folder: Path, saga: SagaDefinition[Any, Any], answer: Answer
) -> AsyncIterator[Sagas]:
    """Run a saga engine over `orders.db`; runs that it finds unfinished there are continued."""
    runtime = RealRuntime()
    async with AsyncExitStack() as enter:
        ring = SqliteRing(str(folder / "spans.db"), runtime)
        enter.push_async_callback(ring.close)
        store = await enter.enter_async_context(open_store(folder / "orders.db"))
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
        yield Sagas(engine)


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
