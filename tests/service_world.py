"""Three small services wired by hand in one process: a stock, a bank, and books that only listen.

What a handler does at a named point is up to the test: `hooks.at["..."]` may raise, wait or call.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from synchromesh.calls import (
    Call,
    Contract,
    Operation,
    Policies,
    PublicEvent,
    command,
    event,
    query,
)
from synchromesh.calls.wire import Request
from synchromesh.errors import Rejection
from synchromesh.identity import Signer
from synchromesh.resilience import Policy
from synchromesh.runtime import DiskRuntime
from synchromesh.saga import Saga
from synchromesh.service import Context, Service, ServiceInstance, Transaction
from synchromesh.store import Migration
from synchromesh.testing import InProcess

R = TypeVar("R")

SIGNER = Signer(b"k" * 32)


class OutOfStock(Rejection, code="out_of_stock", status=409):
    """Tells that fewer are in stock than were asked for."""


class Declined(Rejection, code="declined", status=402):
    """Tells that the bank does not pay."""


class Surprise(Rejection, code="surprise", status=409):
    """Is declared by nobody."""


class Hold(msgspec.Struct, frozen=True):
    id: str
    sku: str
    qty: int


class Built(msgspec.Struct, frozen=True):
    order_id: str
    receipt: str


class Reserved(msgspec.Struct, frozen=True):
    sku: str
    qty: int


class Counted(msgspec.Struct, frozen=True):
    sku: str
    qty: int


class Stock(Contract, Protocol, service="stock", version="1.0"):
    @command("POST /holds", raises=(OutOfStock,))
    async def reserve(self, order_id: str, sku: str, qty: int) -> Hold: ...

    @command("POST /releases")
    async def release(self, hold: Hold) -> None: ...

    @command("POST /builds", raises=(OutOfStock, Declined))
    async def build(self, order_id: str, sku: str, cents: int) -> Built: ...

    @command("POST /scraps")
    async def scrap(self, built: Built) -> None: ...

    @command("POST /orders", raises=(Declined,))
    async def order(self, order_id: str, cents: int) -> str: ...

    @query("GET /levels/{sku}")
    async def level(self, sku: str) -> int: ...

    reserved: PublicEvent[Reserved] = event(Reserved, key="sku")


class Bank(Contract, Protocol, service="bank", version="1.0"):
    @command("POST /charges", raises=(Declined,))
    async def charge(self, order_id: str, cents: int) -> str: ...

    @command("POST /refunds")
    async def refund(self, receipt: str) -> None: ...


@dataclass
class Hooks:
    """What happens at the named points of handlers, and how often each was reached."""

    at: dict[str, Callable[[Any], Awaitable[None]]] = field(default_factory=dict)
    reached: Counter[str] = field(default_factory=Counter)

    async def reach(self, point: str, given: Any) -> None:
        """Do what the test wants at a point; in a unit it may await nothing."""
        self.reached[point] += 1
        if point in self.at:
            await self.at[point](given)


TABLES = (
    Migration(
        1,
        (
            "create table level(sku text primary key, qty integer not null check(qty >= 0))",
            "insert into level values ('bolt', 10), ('nut', 10)",
            "create table note(id integer primary key, what text not null)",
        ),
        readable_by_min=1,
    ),
)


async def note(tx: Transaction, what: str) -> None:
    """Write down that something happened: an effect that can be counted."""
    await tx.execute("insert into note(what) values (?)", what)


async def take_one(tx: Transaction, order_id: str, sku: str) -> str:
    """Take one from the stock."""
    rows = await tx.execute(
        "update level set qty = qty - 1 where sku = ? and qty > 0 returning 1", sku
    )
    if not rows:
        raise OutOfStock(f"no {sku} is left")
    await note(tx, f"take {order_id}")
    return sku


async def finish(tx: Transaction, order_id: str, receipt: str) -> Built:
    """Note that an order is built."""
    await note(tx, f"finish {order_id}")
    return Built(order_id, receipt)


async def give_back(tx: Transaction, order_id: str) -> None:
    """Undo what building took."""
    await tx.execute("update level set qty = qty + 1 where sku = 'bolt'")
    await note(tx, f"give back {order_id}")


def make_stock(hooks: Hooks) -> Service:
    """Define the stock."""
    stock = Service("stock", implements=Stock, migrations=TABLES)

    @stock.writes(Stock.reserve)
    async def reserve(tx: Transaction, order_id: str, sku: str, qty: int) -> Hold:
        await hooks.reach("reserve", tx)
        rows = await tx.execute("select qty from level where sku = ?", sku)
        if not rows or int(rows[0][0] or 0) < qty:
            raise OutOfStock(f"fewer than {qty} {sku}", sku=sku)
        await tx.execute("update level set qty = qty - ? where sku = ?", qty, sku)
        await note(tx, f"reserve {order_id}")
        tx.publish(Stock.reserved, Reserved(sku, qty))
        await tx.append(f"count/{sku}", [Counted(sku, qty)])
        return Hold(order_id, sku, qty)

    @stock.writes(Stock.release)
    async def release(tx: Transaction, hold: Hold) -> None:
        await hooks.reach("release", tx)
        await tx.execute("update level set qty = qty + ? where sku = ?", hold.qty, hold.sku)
        await note(tx, f"release {hold.id}")

    @stock.handles(Stock.build)
    async def build(ctx: Context, order_id: str, sku: str, cents: int) -> Built:
        await hooks.reach("build begins", ctx)
        await ctx.write(take_one, order_id, sku)
        await hooks.reach("build has taken", ctx)
        receipt = await ctx.call(Bank.charge(order_id, cents))
        await hooks.reach("build has paid", ctx)
        built = await ctx.write(finish, order_id, receipt)
        await hooks.reach("build ends", ctx)
        return built

    @stock.handles(Stock.scrap)
    async def scrap(ctx: Context, built: Built) -> None:
        await hooks.reach("scrap begins", ctx)
        await ctx.call(Bank.refund(built.receipt))
        await hooks.reach("scrap has refunded", ctx)
        await ctx.write(give_back, built.order_id)

    @stock.handles(Stock.order)
    async def order(ctx: Context, order_id: str, cents: int) -> str:
        run = await pay.start(ctx, cents, id=order_id)
        await hooks.reach("order has started", ctx)
        return await run.result(within_s=1.0) or "later"

    @stock.saga(int, deadline="1m")
    async def pay(s: Saga, cents: int) -> str:
        await s.write(publish_two, "bolt")
        return await s.call(Bank.charge("saga", cents), undo=Bank.refund)

    @stock.handles(Stock.level)
    async def level(ctx: Context, sku: str) -> int:
        await hooks.reach("level", ctx)
        rows = await ctx.read("select qty from level where sku = ?", sku)
        return int(rows[0][0] or 0)

    @stock.projection("totals", events=(Counted,))
    async def totals(tx: Transaction, counted: Counted) -> None:
        await note(tx, f"total {counted.sku} {counted.qty}")

    return stock


async def publish_two(tx: Transaction, sku: str) -> None:
    """Publish from a saga's unit."""
    tx.publish(Stock.reserved, Reserved(sku, 2))


def make_bank(hooks: Hooks) -> Service:
    """Define the bank."""
    bank = Service("bank", implements=Bank, migrations=TABLES)

    @bank.writes(Bank.charge)
    async def charge(tx: Transaction, order_id: str, cents: int) -> str:
        await hooks.reach("charge", tx)
        if cents > 1000:
            raise Declined("too much", cents=cents)
        await note(tx, f"charge {order_id}")
        return f"receipt {order_id}"

    @bank.writes(Bank.refund)
    async def refund(tx: Transaction, receipt: str) -> None:
        await hooks.reach("refund", tx)
        await note(tx, f"refund {receipt}")

    return bank


def make_books(hooks: Hooks) -> Service:
    """Define the books, which only listen."""
    books = Service("books", migrations=TABLES)

    @books.on(Stock.reserved)
    async def on_reserved(tx: Transaction, reserved: Reserved) -> None:
        await hooks.reach("on reserved", tx)
        await note(tx, f"book {reserved.sku} {reserved.qty}")

    return books


class Town(InProcess):
    """The services of a test, and a client that calls them."""

    def __init__(self, runtime: DiskRuntime, hooks: Hooks | None = None, folder: str = "") -> None:
        self.hooks = hooks or Hooks()
        one_try = Policies(default=Policy(timeout_s=5.0, retry=None, breaker=None))
        super().__init__(
            runtime,
            [make(self.hooks) for make in (make_stock, make_bank, make_books)],
            policies=lambda _: one_try,
            signer=SIGNER,
            folder=folder,
        )

    async def restart(self, name: str) -> ServiceInstance:
        """Stop a service, and start it on the same database."""
        await self.stop(name)
        await self.start(name)
        return self.up[name]

    async def ask(self, call: Call[R], key: str = "", *, timeout_s: float | None = None) -> R:
        """Call as the client does, on behalf of a person."""
        return await self.call(call, key=key, principal="ada", timeout_s=timeout_s)

    async def undo(
        self, operation: Operation[..., Any], undoes: str, *, timeout_s: float | None = None
    ) -> bytes:
        """Undo what was called under a key, as a saga does."""
        context = self.client.root(principal="ada", key=f"{undoes}/undo")
        return await self.client.send(
            operation, b"{}", context=replace(context, undoes=undoes), timeout_s=timeout_s
        )

    async def request(self, service: str, request: Request) -> Any:
        """Hand a request to a service's dispatcher, past the caller's checks."""
        return await self.up[service].dispatcher.dispatch(request)

    async def notes(self, service: str = "stock") -> list[Any]:
        """Return the effects in a service's database."""
        rows = await self.up[service].store.read("select what from note order by id")
        return [what for (what,) in rows]

    async def left(self, sku: str = "bolt") -> Any:
        """Return how many are in stock."""
        rows = await self.up["stock"].store.read("select qty from level where sku = ?", sku)
        return rows[0][0]

    async def record(self, key: str, service: str = "stock") -> Any:
        """Return the kind of the client's record under a key; None where there is none."""
        rows = await self.up[service].store.read(
            "select kind from sm_inbox where caller = 'client' and key = ?", key
        )
        return rows[0][0] if rows else None


@asynccontextmanager
async def town(
    runtime: DiskRuntime, *names: str, hooks: Hooks | None = None
) -> AsyncIterator[Town]:
    """Start services (all three where none is named), and stop them in the end."""
    made = Town(runtime, hooks)
    for name in names or ("stock", "bank", "books"):
        await made.start(name)
    try:
        yield made
    finally:
        for name in list(made.up):
            await made.stop(name)


class Gate:
    """Holds a handler at a point until the test opens it."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, _: Any) -> None:
        self.arrived.set()
        await self.opened.wait()


class Fails:
    """Raises at a point, a number of times."""

    def __init__(self, error: Callable[[], BaseException], times: int = 1) -> None:
        self.error, self.times = error, times

    async def __call__(self, _: Any) -> None:
        if self.times:
            self.times -= 1
            raise self.error()
