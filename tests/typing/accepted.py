"""Calls, services and sagas as users write them: mypy --strict accepts each line and its type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, assert_type

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from synchromesh.alone import Alone
from synchromesh.calls import (
    Call,
    Caller,
    Command,
    Contract,
    PublicEvent,
    Query,
    command,
    event,
    events_of,
    operations_of,
    query,
)
from synchromesh.context import CallContext
from synchromesh.errors import Rejection
from synchromesh.events import Decider, Decision
from synchromesh.personal import Erased, Personal, Subject
from synchromesh.saga import Saga, SagaDefinition, SagaPolicy, SagaRun, Unknown
from synchromesh.service import Context, Service, Transaction
from synchromesh.store import Row


@dataclass(frozen=True)
class Reserve:
    sku: str
    qty: int


@dataclass(frozen=True)
class Hold:
    id: str


@dataclass(frozen=True)
class StockReserved:
    hold_id: str


class OutOfStock(Rejection, code="out_of_stock", status=409):
    """Tells that fewer are in stock than were asked for."""


class Inventory(Contract, Protocol, service="inventory", version="1.2"):
    @command("POST /reservations", raises=(OutOfStock,))
    async def reserve(self, request: Reserve) -> Hold: ...
    @command("POST /releases")
    async def release(self, hold: Hold, /) -> None: ...
    @query("GET /stock/{sku}")
    async def stock(self, sku: str, least: int = 0) -> int: ...

    stock_reserved: PublicEvent[StockReserved] = event(StockReserved, key="hold_id")


async def calls(caller: Caller, context: CallContext) -> None:
    """Answers have the contract's types, whether arguments are given by name or by place."""
    assert_type(Inventory.reserve(Reserve("a", 1)), Call[Hold])
    assert_type(Inventory.reserve(request=Reserve("a", 1)), Call[Hold])
    assert_type(Inventory.stock("a", least=2), Call[int])
    hold = await caller.call(Inventory.reserve(Reserve("a", 1)), context=context, timeout_s=0.3)
    assert_type(hold, Hold)
    await caller.call(Inventory.release(hold), context=context)
    left = await caller.call(Inventory.stock(sku="a"), context=context)
    assert_type(left, int)
    assert_type(Inventory.stock_reserved, PublicEvent[StockReserved])


def kinds(undo: Command[[Hold], None], read: Query[..., int], any_call: Call[object]) -> None:
    """Operations can be passed on; a `Call` of a narrower answer is one of a wider."""


kinds(Inventory.release, Inventory.stock, Inventory.reserve(Reserve("a", 1)))
assert_type(operations_of(Inventory)["reserve"].raises, tuple[type[Rejection], ...])
names: dict[str, PublicEvent[Any]] = events_of(Inventory)


@dataclass(frozen=True)
class Quote:
    cents: int


class Pricing(Contract, Protocol, service="pricing", version="1.0"):
    @query("GET /quote/{sku}")
    async def quote(self, sku: str) -> Quote: ...


@dataclass(frozen=True)
class Reserved:
    qty: int


def reserving(wanted: Reserve, left: int) -> Decision[Hold]:
    return Decision(Hold(wanted.sku), (Reserved(wanted.qty),))


def evolve(left: int, event: Reserved) -> int:
    return left - event.qty


shelf = Decider("shelf", initial=10, decide=reserving, evolve=evolve, events=(Reserved,))
inventory = Service("inventory", implements=Inventory)


@inventory.writes(Inventory.reserve)
async def reserve(tx: Transaction, request: Reserve) -> Hold:
    """A unit of work knows what its decider answers, and what its rows may be."""
    hold = await tx.decide(shelf, request.sku, request)
    assert_type(hold, Hold)
    version = await tx.append("shelf/a", [Reserved(1)], expected=0)
    assert_type(version, int)
    tx.publish(Inventory.stock_reserved, StockReserved(hold.id))
    return hold


@inventory.writes(Inventory.release)
async def release(tx: Transaction, hold: Hold, /) -> None:
    rows = await tx.execute("delete from hold where id = ?", hold.id)
    assert_type(rows, list[Row])
    gone = await tx.execute("delete from hold where id = ? returning id", hold.id, as_=Hold)
    assert_type(gone, list[Hold])
    assert_type(await tx.execute("select id from hold", as_=str), list[str])


async def note(tx: Transaction, sku: str, qty: int) -> Quote:
    """A unit of a handler: its arguments are those that it is asked for with."""
    return Quote(qty)


@inventory.handles(Inventory.stock)
async def stock(ctx: Context, sku: str, least: int = 0) -> int:
    """A handler knows the types of calls, units and sagas that it starts."""
    assert_type(await ctx.call(Pricing.quote(sku), timeout_s=0.3), Quote)
    assert_type(await ctx.write(note, sku, 2), Quote)
    assert_type(await ctx.read("select id from hold where id = ?", sku), list[Row])
    assert_type(await ctx.read("select id from hold where id = ?", sku, as_=Hold), list[Hold])
    assert_type(await ctx.read("select cents from quote", as_=Quote), list[Quote])
    (count,) = await ctx.read("select count(*) from hold", as_=int)
    assert_type(count, int)
    run = await order.start(ctx, Reserve(sku, 1), id=sku)
    assert_type(run, SagaRun[Hold])
    assert_type(await run.result(within_s=1.0), Hold | None)
    return least


@inventory.on(Inventory.stock_reserved)
async def count(tx: Transaction, reserved: StockReserved) -> None:
    tx.notify(reserved.hold_id)


async def detail(
    tx: Transaction, sku: str, qty: int, cents: int, note: str, is_rush: bool = False
) -> Quote:
    """A unit of a step may take as many arguments as it likes, and leave some to their defaults."""
    return Quote(cents)


async def unnote(tx: Transaction, quote: Quote) -> None:
    """The undo of a unit is given its result."""


@inventory.saga(Reserve, deadline="10m", key=lambda r: r.sku, policy=SagaPolicy())
async def order(s: Saga, wanted: Reserve) -> Hold:
    """Each step has the type of what it asks for; `all` has the tuple of them."""
    quote = await s.write(note, wanted.sku, wanted.qty, undo=unnote)
    assert_type(quote, Quote)
    assert_type(await s.write(detail, "a", 1, 2, "b", undo=unnote), Quote)
    assert_type(await s.write(detail, "a", 1, 2, "b", True), Quote)
    hold, price = await s.all(
        s.call(Inventory.reserve(wanted), undo=Inventory.release),
        s.call(Pricing.quote(wanted.sku)),
    )
    assert_type(hold, Hold)
    assert_type(price, Quote)
    three = await s.all(
        s.write(note, "a", 1), s.call(Inventory.stock("a")), s.call(Pricing.quote("a"))
    )
    assert_type(three, tuple[Quote, int, Quote])
    many = await s.all(*[s.call(Pricing.quote(sku)) for sku in ("a", "b")])
    assert_type(many, tuple[Quote, ...])
    assert_type(await s.step(upload, "a", 1, undo=remove, attempts_max=2), Quote)
    each = await s.each(
        [wanted], lambda item: s.call(Inventory.reserve(item), undo=Inventory.release), cap=8
    )
    assert_type(each, tuple[Hold, ...])
    assert_type(
        await s.each(("a", "b"), lambda name: s.step(upload, name, 1), cap=2), tuple[Quote, ...]
    )
    await s.call(Inventory.reserve(wanted), pivot=True, timeout_s=1.0)
    return hold


async def upload(key: str, name: str, size: int) -> Quote:
    """A step of any function is given its key, and what the saga gives it."""
    return Quote(len(key) + len(name) + size)


async def remove(key: str, done: Quote | Unknown) -> None:
    """Its undo may be given that nobody knows."""
    if isinstance(done, Unknown):
        assert_type(done.args, tuple[Any, ...])
    else:
        assert_type(done, Quote)


async def told(tx: Transaction, order_id: str) -> bool:
    """A unit tells a run something."""
    return await order.tell(tx, order_id, Quote(1))


assert_type(order, SagaDefinition[Reserve, Hold])


@dataclass(frozen=True)
class Registered:
    customer_id: Subject
    email: Personal[str]
    born: Personal[int] | None = None


async def persons(s: Saga) -> str:
    """A subject is a text, a personal value is its type or what stands for somebody erased."""
    registered = Registered("c-17", "anna@example.org", born=1990)
    assert_type(registered.customer_id, str)
    assert_type(registered.email, str | Erased)
    assert_type(registered.born, int | Erased | None)
    if isinstance(registered.email, Erased):
        return f"Dear {registered.email}"
    return registered.email.partition("@")[0]


alone = Alone("shop")


async def enter(session: AsyncSession, reserve: Reserve) -> Hold:
    """Is a step in a session of the application's."""
    return Hold(str(reserve))


async def strike(session: AsyncSession, hold: Hold) -> None:
    """Undo it."""


@alone.saga(Reserve, deadline="1m", key=lambda reserve: str(reserve))
async def noting(s: Saga, reserve: Reserve) -> Hold:
    """Runs without a system."""
    return await s.write(enter, reserve, undo=strike)


async def without_a_system(sessions: async_sessionmaker[AsyncSession], reserve: Reserve) -> None:
    """A start is of the saga's input, and what is waited for of its result."""
    async with sessions.begin() as session, alone.unit(session) as unit:
        assert_type(await unit.start(noting, reserve, id="A-1"), bool)
    async with alone.open("postgresql:///shop") as store:
        assert_type(await alone.runs(store).result(noting, "A-1", within_s=1.0), Hold | None)
        await alone.run_sagas(store, sessions.begin)
