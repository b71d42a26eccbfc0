"""What the tests of sagas share: contracts, participants with an inbox, and an engine to run."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec
import pytest

import virtual_postgres
from synchromesh import events
from synchromesh.calls.contract import Contract, Operation, command, query
from synchromesh.codec import encode
from synchromesh.context import CallContext
from synchromesh.errors import ConnectionLost, Rejection, SagaGone, TimedOut
from synchromesh.saga import (
    Engine,
    EngineOptions,
    Saga,
    SagaDefinition,
    SagaPolicy,
    SagaRun,
    SagaVersions,
)
from synchromesh.saga.engine import DEFAULTS
from synchromesh.saga.schema import SCHEMA
from synchromesh.store import Migration, Schema, SqliteStore, Store, Unit
from synchromesh.telemetry import MemoryRing, Tracer
from synchromesh.testing import SimRuntime, World


class OutOfStock(Rejection, code="test_out_of_stock", status=409):
    """Tells that too few are left."""


class Declined(Rejection, code="test_declined", status=402):
    """Tells that the customer does not pay."""


class Order(msgspec.Struct, frozen=True):
    id: str
    qty: int = 1
    is_bad: bool = False


class Created(msgspec.Struct, frozen=True):
    order: str


class Hold(msgspec.Struct, frozen=True):
    id: str


class Quote(msgspec.Struct, frozen=True):
    slot: str


class Placed(msgspec.Struct, frozen=True):
    order: str
    hold: str
    slot: str


class Stock(Contract, Protocol, service="stock", version="1.0"):
    @command("POST /holds", raises=(OutOfStock,))
    async def reserve(self, order: str, qty: int) -> Hold: ...
    @command("POST /releases")
    async def release(self, hold: Hold) -> None: ...


class Plant(Contract, Protocol, service="plant", version="1.0"):
    @query("GET /quotes/{order}")
    async def quote(self, order: str) -> Quote: ...
    @command("POST /slots", raises=(OutOfStock,))
    async def book(self, slot: str) -> Hold: ...
    @command("POST /unbookings")
    async def unbook(self, hold: Hold) -> None: ...


class Bank(Contract, Protocol, service="bank", version="1.0"):
    @command("POST /charges", raises=(Declined,))
    async def charge(self, order: str) -> Hold: ...
    @command("POST /refunds")
    async def refund(self, hold: Hold) -> None: ...


TABLES = Schema(
    "orders",
    (
        Migration(
            1,
            ("create table orders(id text primary key, state text not null, n integer not null)",),
            readable_by_min=1,
        ),
    ),
)


async def create_order(tx: Unit, order: Order) -> Created:
    """Insert the order; a bad one is refused after the row was written."""
    await tx.execute(
        "insert into orders values (?, 'open', 1) on conflict(id) do update set n = orders.n + 1",
        order.id,
    )
    if order.is_bad:
        raise OutOfStock("bad order")
    return Created(order.id)


async def reject_order(tx: Unit, created: Created) -> None:
    await tx.execute("update orders set state = 'rejected', n = n - 1 where id = ?", created.order)


async def place_order(s: Saga, order: Order) -> Placed:
    """A write, two calls side by side, a pivot, and a call after it."""
    created = await s.write(create_order, order, undo=reject_order)
    hold, quote = await s.all(
        s.call(Stock.reserve(created.order, order.qty), undo=Stock.release),
        s.call(Plant.quote(created.order)),
    )
    await s.call(Bank.charge(created.order), pivot=True)
    booked = await s.call(Plant.book(quote.slot))
    return Placed(created.order, hold.id, booked.id)


async def three_calls(s: Saga, order: Order) -> str:
    """Three calls one after the other, each with an undo."""
    hold = await s.call(Stock.reserve(order.id, order.qty), undo=Stock.release)
    slot = await s.call(Plant.book(hold.id), undo=Plant.unbook)
    paid = await s.call(Bank.charge(order.id), undo=Bank.refund)
    return f"{hold.id} {slot.id} {paid.id}"


PATIENT = SagaPolicy(step_timeout_s=1.0, attempts_max=3, backoff_cap_s=0.5)
PLACE = SagaDefinition(place_order, "place_order", deadline_s=60.0, policy=PATIENT)
THREE = SagaDefinition(three_calls, "three_calls", deadline_s=60.0, policy=PATIENT)

LOST = "lost"  # the request never arrives
DUMB = "dumb"  # it runs, and its answer is lost
HANGS = "hangs"  # no answer ever

Fault = str | Exception


@dataclass
class Participants:
    """The other services: an inbox by key, effects by operation, and faults to come.

    A fault is used up by one send; `refuses` lists what is refused for good reasons.
    """

    faults: dict[str, list[Fault]] = field(default_factory=dict)
    refuses: set[str] = field(default_factory=set)
    latency_s: float = 0.001
    inbox: dict[str, bytes | Rejection | None] = field(default_factory=dict)
    live: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    sent: list[tuple[str, bytes, CallContext]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    async def send(
        self,
        operation: Operation[..., Any],
        arguments: bytes,
        *,
        context: CallContext,
        timeout_s: float | None = None,
    ) -> bytes:
        """Deliver a request to its participant, under this operation's next fault."""
        name = operation.full_name
        self.sent.append((name, arguments, context))
        await asyncio.sleep(self.latency_s)
        waiting = self.faults.get(name)
        fault = waiting.pop(0) if waiting else None
        if isinstance(fault, Exception):
            raise fault
        if fault == LOST:
            raise TimedOut(f"{name} did not answer")
        if fault == HANGS:
            await asyncio.Event().wait()
        answer = self._handle(operation, arguments, context)
        await asyncio.sleep(self.latency_s)
        if fault == DUMB:
            raise ConnectionLost(f"{name} broke off")
        if isinstance(answer, Rejection):
            raise answer
        return answer

    def _handle(
        self, operation: Operation[..., Any], arguments: bytes, context: CallContext
    ) -> bytes | Rejection:
        name = operation.full_name
        if not operation.is_command:
            self.log.append(name)
            return encode(Quote("slot-1"))
        if context.key in self.inbox:
            self.seen["asked again"] += 1
            recorded = self.inbox[context.key]
            return b"null" if recorded is None else recorded
        if context.undoes:
            return self._undo(name, context)
        self.log.append(name)
        if name in self.refuses:
            rejection: Rejection = operation.raises[0](f"{name} says no")
            self.inbox[context.key] = rejection
            return rejection
        self.live[name] += 1
        self.inbox[context.key] = encode(Hold(f"{name}/{len(self.inbox)}"))
        return encode(Hold(f"{name}/{len(self.inbox) - 1}"))

    def _undo(self, name: str, context: CallContext) -> bytes:
        done = context.undoes.split("/")[-1].split("#")[0]
        recorded = self.inbox.get(context.undoes, "")
        self.inbox[context.key] = b"null"
        if recorded == "":
            self.seen["tombstone"] += 1
            self.inbox[context.undoes] = None
        elif isinstance(recorded, bytes):
            self.log.append(name)
            self.live[done] -= 1
        return b"null"

    def sends_of(self, name: str) -> list[CallContext]:
        """Return the contexts that an operation was sent with."""
        return [context for sent, _, context in self.sent if sent == name]


ON_SQLITE = pytest.mark.parametrize("each_engine", ["sqlite"], indirect=True)
ON_POSTGRES = pytest.mark.parametrize("each_engine", ["postgres"], indirect=True)
"""Of a suite on each engine, mark what is about one of them, or long and of code they share."""

R = TypeVar("R")

CONTEXT = CallContext(trace_id="0af7651916cd43dd8448eb211c80319c", span_id="b7ad6b7169203331")


def as_itself(
    unit: Unit, context: CallContext, body: Callable[[Unit], Awaitable[R]]
) -> Awaitable[R]:
    """Give steps the bare unit."""
    return body(unit)


def engine_on(
    store: Store,
    others: Participants,
    runtime: SimRuntime,
    definitions: Iterable[SagaDefinition[Any, Any]] = (PLACE, THREE),
    ring: MemoryRing | None = None,
    options: EngineOptions = DEFAULTS,
) -> Engine:
    """Return an engine that has not recovered yet."""
    return Engine(
        store,
        others,
        service="orders",
        tracer=Tracer("orders", runtime, ring if ring is not None else MemoryRing()),
        runtime=runtime,
        versions=SagaVersions(definitions),
        run_unit=as_itself,
        options=options,
    )


async def open_store(runtime: SimRuntime, *more: Schema) -> Any:
    """Open the service's database, on the simulated disk or on the server (`each_engine`)."""
    schemas = [events.SCHEMA, SCHEMA, TABLES, *more]
    if virtual_postgres.is_on():
        return await virtual_postgres.stores(runtime).open("orders", schemas)
    return await SqliteStore.open("/orders.db", service="orders", schemas=schemas, runtime=runtime)


@asynccontextmanager
async def at_work(
    runtime: SimRuntime,
    others: Participants,
    *definitions: SagaDefinition[Any, Any],
    ring: MemoryRing | None = None,
    options: EngineOptions = DEFAULTS,
) -> AsyncIterator[Engine]:
    """Open a store and a recovered engine on it; leave memory at the end.

    Another one on the same disk afterwards is what a restart is.
    """
    store = await open_store(runtime)
    engine = engine_on(store, others, runtime, definitions or (PLACE, THREE), ring, options)
    await engine.recover()
    loops = [asyncio.create_task(loop()) for loop in (engine.keep_time, engine.keep_going)]
    try:
        yield engine
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.wait(loops)
        await engine.close()
        await store.close()


async def has_left(run: SagaRun[Any]) -> None:
    """Wait until a run has left memory; on the server it may be in that of another process."""
    if virtual_postgres.is_on():
        assert await run.result(10.0) is None
    else:
        with pytest.raises(SagaGone):
            await run.result(60.0)


async def rows(runtime: SimRuntime, sql: str) -> list[Any]:
    """Return committed rows, as an audit sees them."""
    return audit(runtime, sql)


def audit(world: World | SimRuntime, sql: str) -> list[Any]:
    """Return committed rows, also after the end of a world."""
    on_server = virtual_postgres.is_on()
    return virtual_postgres.audit(sql) if on_server else world.disk.rows("/orders.db", sql)
