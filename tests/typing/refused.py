"""Mistakes that mypy --strict refuses: each marked line, for the reason that it names.

This file is never run; `tests/unit/test_typing.py` has mypy check that exactly these lines fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from calls_fakes import Hold, Reserve, Shop
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
    query,
)
from synchromesh.context import CallContext
from synchromesh.events import Decider, Decision
from synchromesh.personal import Personal, Subject
from synchromesh.saga import Saga
from synchromesh.service import Context, Service, Transaction


async def calls(caller: Caller, context: CallContext) -> None:
    """Wrong arguments, and an operation where a call is wanted."""
    Shop.reserve("nope")  # refused: arg-type
    Shop.reserve()  # refused: call-arg
    Shop.reserve(Reserve("a", 1), 3)  # refused: call-arg
    Shop.reserve(req=Reserve("a", 1))  # refused: call-arg
    Shop.nothing(Hold("h"))  # refused: call-arg
    Shop.stock("a", "two")  # refused: arg-type
    await Shop.reserve(Reserve("a", 1))  # refused: misc
    await caller.call(Shop.reserve, context=context)  # refused: arg-type
    await caller.call(Shop.stock("a"))  # refused: call-arg
    hold: Hold = await caller.call(Shop.stock("a"), context=context)  # refused: arg-type
    Shop.reserve(hold)  # refused: arg-type
    Shop.restock("a")  # refused: attr-defined


def kinds(write: Command[[Reserve], Hold], read: Query[..., int], made: Call[Hold]) -> None:
    """Take an operation of each kind."""


kinds(Shop.stock, Shop.stock, Shop.reserve(Reserve("a", 1)))  # refused: arg-type
kinds(Shop.reserve, Shop.reserve, Shop.reserve(Reserve("a", 1)))  # refused: arg-type
kinds(Shop.nothing, Shop.stock, Shop.reserve(Reserve("a", 1)))  # refused: arg-type
kinds(Shop.reserve, Shop.stock, Shop.stock("a"))  # refused: arg-type


class Wrong(Contract, Protocol, service="wrong", version="1.0"):
    @command("POST /a", raises=(ValueError,))  # refused: arg-type
    async def a(self) -> None: ...
    @query("GET /b")  # refused: arg-type
    def b(self) -> Hold: ...


# What follows up to the next mark is right, and the mistakes below are made with it.


@dataclass(frozen=True)
class Wanted:
    sku: str
    qty: int


@dataclass(frozen=True)
class Held:
    id: str


@dataclass(frozen=True)
class Quote:
    cents: int


class Inventory(Contract, Protocol, service="inventory", version="1.0"):
    @command("POST /reservations")
    async def reserve(self, request: Wanted) -> Held: ...
    @command("POST /releases")
    async def release(self, hold: Held) -> None: ...
    @query("GET /stock/{sku}")
    async def stock(self, sku: str, least: int = 0) -> int: ...
    @query("GET /quotes/{sku}")
    async def quote(self, sku: str) -> Quote: ...

    stock_reserved: PublicEvent[Held] = event(Held, key="id")


def holding(wanted: Wanted, left: int) -> Decision[Held]:
    return Decision(Held(wanted.sku))


def evolve(left: int, happened: object) -> int:
    return left


shelf = Decider("shelf", initial=10, decide=holding, evolve=evolve, events=())
inventory = Service("inventory", implements=Inventory)


async def note(tx: Transaction, sku: str, qty: int) -> Quote:
    return Quote(qty)


async def unnote(tx: Transaction, quote: Quote) -> None:
    await tx.execute("delete from note")


@inventory.saga(Wanted, deadline="1m")
async def order(s: Saga, wanted: Wanted) -> Held:
    return await s.call(Inventory.reserve(wanted), undo=Inventory.release)


@inventory.writes(Inventory.reserve)  # refused: arg-type
async def other_name(tx: Transaction, req: Wanted) -> Held:
    return Held("1")


@inventory.writes(Inventory.reserve)  # refused: arg-type
async def other_type(tx: Transaction, request: Reserve) -> Held:
    return Held("1")


@inventory.writes(Inventory.reserve)  # refused: arg-type
async def other_answer(tx: Transaction, request: Wanted) -> str:
    return "1"


@inventory.writes(Inventory.reserve)  # refused: arg-type
async def other_first(ctx: Context, request: Wanted) -> Held:
    return Held("1")


@inventory.writes(Inventory.stock)  # refused: arg-type
async def a_query(tx: Transaction, sku: str, least: int = 0) -> int:
    return least


@inventory.handles(Inventory.stock)  # refused: arg-type
async def too_few(ctx: Context) -> int:
    return 0


@inventory.on(Inventory.stock_reserved)  # refused: arg-type
async def other_payload(tx: Transaction, quote: Quote) -> None:
    """Takes what the event does not carry."""


@inventory.on(Inventory.reserve)  # refused: arg-type
async def no_event(tx: Transaction, quote: Quote) -> None:
    """Takes a command for an event."""


async def unit(tx: Transaction) -> None:
    """What a transaction refuses."""
    await tx.decide(shelf, "a", Quote(1))  # refused: misc
    wrong: str = await tx.decide(shelf, "a", Wanted("a", 1))  # refused: arg-type
    tx.publish(Inventory.stock_reserved, Quote(1))  # refused: misc
    await tx.call(Inventory.quote("a"))  # refused: attr-defined
    await tx.execute("select ?", [wrong])  # refused: call-overload


async def handler(ctx: Context) -> None:
    """What a context refuses."""
    await ctx.call(Inventory.reserve)  # refused: arg-type
    await ctx.call(Inventory.reserve(Wanted("a")))  # refused: call-arg
    await Inventory.reserve(Wanted("a", 1))  # refused: misc
    quote: str = await ctx.call(Inventory.quote("a"))  # refused: arg-type
    await ctx.write(note, quote)  # refused: arg-type
    await ctx.write(note, "a", "two")  # refused: arg-type
    await ctx.execute("select 1")  # refused: attr-defined
    await order.start(ctx, Quote(1), id="1")  # refused: arg-type
    await order.start(ctx, Wanted("a", 1))  # refused: call-arg
    run = await order.start(ctx, Wanted("a", 1), id="1")
    held: Held = await run.result(within_s=1.0)  # refused: assignment
    await ctx.write(unnote, held)  # refused: arg-type


async def upload(key: str, name: str) -> Quote:
    """A step."""
    return Quote(len(key + name))


async def remove_certain(key: str, done: Quote) -> None:
    """Takes no `Unknown`."""


async def saga(s: Saga) -> None:
    """What a saga refuses."""
    await s.call(Inventory.quote("a"), undo=Inventory.release)  # refused: arg-type
    await s.call(Inventory.reserve(Wanted("a", 1)), undo=Inventory.stock)  # refused: arg-type
    await s.call(Inventory.reserve)  # refused: arg-type
    await s.write(note, "a")  # refused: arg-type
    await s.write(note, "a", "two")  # refused: arg-type
    await s.write(note, "a", 2, 3)  # refused: arg-type
    await s.write(note, "a", 2, undo=note)  # refused: arg-type
    await s.step(upload, "a", "two")  # refused: arg-type
    await s.step(upload)  # refused: arg-type
    await s.step(upload, "a", undo=remove_certain)  # refused: arg-type
    await s.step(upload, "a", name="b")  # refused: arg-type
    s.each(["a"], lambda sku: s.call(Inventory.stock(sku)))  # refused: call-arg
    await s.each([1], lambda item: s.call(Inventory.stock(item)), cap=2)  # refused: arg-type
    await s.each({"a"}, lambda sku: s.call(Inventory.stock(sku)), cap=2)  # refused: arg-type
    two = await s.all(s.call(Inventory.quote("a")), s.call(Inventory.stock("b")))
    swapped: tuple[int, Quote] = two  # refused: assignment
    await s.write(unnote, swapped[0])  # refused: arg-type
    await s.all(Inventory.quote("a"), s.call(Inventory.quote("b")))  # refused: call-overload


@inventory.saga(Wanted, deadline="1m")  # refused: arg-type
async def other_input(s: Saga, wanted: Quote) -> None:
    """Takes another input than it is declared with."""


Decider("wrong", initial="", decide=holding, evolve=evolve, events=())  # refused: arg-type
happened: Held = Inventory.stock_reserved  # refused: assignment


async def rows(ctx: Context, tx: Transaction) -> None:
    """Rows that are read as another type than they are used as."""
    holds = await ctx.read("select id from hold", as_=Hold)
    holds[0].release()  # refused: attr-defined
    (count,) = await tx.execute("select count(*) from hold", as_=int)
    count.upper()  # refused: attr-defined
    await ctx.read("select id from hold", as_="Hold")  # refused: call-overload


@dataclass(frozen=True)
class Registered:
    customer_id: Subject
    email: Personal[str]


def personal(registered: Registered) -> str:
    """What may be of somebody erased is used as if it never were."""
    Registered("c-17", 5)  # refused: arg-type
    return registered.email  # refused: return-value


alone = Alone("shop")


async def enter(session: AsyncSession, wanted: Wanted) -> int:
    """Is a step in a session."""
    return 0


@alone.saga(Wanted, deadline="1m")
async def alone_saga(s: Saga, wanted: Wanted) -> int:
    """Runs without a system."""
    await s.write(enter, 5)  # refused: arg-type
    return await s.write(enter, wanted)


async def without_a_system(sessions: async_sessionmaker[AsyncSession], wanted: Wanted) -> None:
    """Another input than the saga's, another result, and a session for what begins one."""
    async with sessions.begin() as session, alone.unit(session) as unit:
        await unit.start(alone_saga, Hold("h"), id="A-1")  # refused: misc
        await unit.start(alone_saga, wanted)  # refused: call-arg
    async with alone.open("postgresql:///shop") as store:
        await alone.run_sagas(store, sessions.begin())  # refused: arg-type
        runs = alone.runs(store)
        ended = await runs.result(alone_saga, "A-1", within_s=1.0)
    ended.upper()  # refused: union-attr
