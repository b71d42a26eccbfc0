"""Walks one saga through its failures, in simulation: the table of docs/saga-reference.md.

Each row is a run of its own: four services and a provider, a fault, and what the databases say in
the end. Run as a program it writes the table anew:

    python tests/saga_walk.py
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from synchromesh import Context, Contract, Migration, Rejection, Saga, Service, Transaction, command
from synchromesh.calls import Operation, Reply, Request
from synchromesh.calls.dispatcher import Dispatcher
from synchromesh.errors import CallError, SagaError, SynchromeshError
from synchromesh.saga import SagaPolicy, Unknown
from synchromesh.saga.records import RepairVerb
from synchromesh.saga.repair import RepairWish
from synchromesh.testing import SimRuntime, World
from synchromesh.testing.serving import InProcess

PAGE = Path(__file__).parents[1] / "docs/saga-reference.md"
HEAD = (
    "what fails", "what the owner does", "it ends", "the caller is told",
    "order", "stock", "parcel", "charge", "booking",
)  # fmt: skip
ALWAYS = 10**9
_WITHIN_S = 3 * 3600.0


class No(Rejection, code="walk_no", status=409):
    """Tells that it will not be done."""


class Order(Struct, frozen=True):
    id: str


class Inventory(Contract, Protocol, service="inventory", version="1.0"):
    @command("POST /holds", raises=(No,))
    async def reserve(self, order_id: str) -> str: ...

    @command("POST /releases", raises=(No,))
    async def release(self, held: str) -> None: ...


class Billing(Contract, Protocol, service="billing", version="1.0"):
    @command("POST /charges", raises=(No,))
    async def charge(self, order_id: str) -> str: ...


class Shipping(Contract, Protocol, service="shipping", version="1.0"):
    @command("POST /bookings", raises=(No,))
    async def book(self, order_id: str) -> str: ...


class Paid(Struct, frozen=True):
    receipt: str


class Shop(Contract, Protocol, service="shop", version="1.0"):
    @command("POST /offers")
    async def offer(self, order: Order) -> str: ...

    @command("POST /payments")
    async def paid(self, order_id: str) -> bool: ...


class Orders(Contract, Protocol, service="orders", version="1.0"):
    @command("POST /orders", raises=(No,))
    async def place(self, order: Order) -> str: ...


@dataclass
class Fate:
    """What goes wrong: operations by name, and how often.

    Attributes:
        lost: requests that never arrive.
        unheard: requests that are done, and whose answers are lost.
        refused: requests that are rejected.
        cut: operations at whose first request the process of the owner dies, after they are done.
        cancelled: operations in the middle of whose first request a person cancels the run.
        away: services that nobody can connect to, and for how many seconds.
    """

    lost: Counter[str] = field(default_factory=Counter)
    unheard: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    cancelled: Counter[str] = field(default_factory=Counter)
    away: dict[str, float] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a run came to: its story, how it ended, what the caller was told, what others hold."""

    story: str
    status: str
    told: str
    held: tuple[str, ...]


class Walk:
    """One run of the saga under one fate; the provider and the fate know no power cuts."""

    def __init__(self, fate: Fate) -> None:
        self.fate = fate
        self.parcels: dict[str, str] = {}
        self.barred: set[str] = set()
        self.world = World("walk")
        self.node = self.world.node("system", self._live)
        self.served: InProcess | None = None
        self.told = ""
        self._cancelling: asyncio.Future[Any] | None = None

    def services(self) -> list[Service]:
        """Return the four of them: the saga is that of orders."""
        rows = ("create table row(id text primary key, state text not null)",)
        inventory = Service("inventory", implements=Inventory, migrations=[Migration(1, rows, 1)])
        billing = Service("billing", implements=Billing, migrations=[Migration(1, rows, 1)])
        shipping = Service("shipping", implements=Shipping, migrations=[Migration(1, rows, 1)])
        orders = Service("orders", implements=Orders, migrations=[Migration(1, rows, 1)])

        @inventory.writes(Inventory.reserve)
        async def reserve(tx: Transaction, order_id: str) -> str:
            return await self._put(tx, "reserve", order_id)

        @inventory.writes(Inventory.release)
        async def release(tx: Transaction, held: str) -> None:
            self._refuse("release")
            await tx.execute("delete from row where id = ?", held)

        @billing.writes(Billing.charge)
        async def charge(tx: Transaction, order_id: str) -> str:
            return await self._put(tx, "charge", order_id)

        @shipping.writes(Shipping.book)
        async def book(tx: Transaction, order_id: str) -> str:
            return await self._put(tx, "book", order_id)

        async def create(tx: Transaction, order: Order) -> str:
            return await self._put(tx, "create", order.id)

        async def reject(tx: Transaction, order_id: str) -> None:
            await tx.execute("update row set state = 'rejected' where id = ?", order_id)

        @orders.saga(Order, deadline="10m", policy=SagaPolicy(), owner="ada")
        async def placing(s: Saga, order: Order) -> str:
            await s.write(create, order, undo=reject)
            await s.call(Inventory.reserve(order.id), undo=Inventory.release)
            await s.step(self.register, order.id, undo=self.withdraw)
            await s.call(Billing.charge(order.id), pivot=True)
            return await s.call(Shipping.book(order.id))

        @orders.handles(Orders.place)
        async def place(ctx: Context, order: Order) -> str:
            run = await placing.start(ctx, order, id=order.id)
            return await run.result(within_s=30.0) or "accepted"

        return [orders, inventory, billing, shipping]

    async def _put(self, tx: Transaction, name: str, order_id: str) -> str:
        self._refuse(name)
        await tx.execute("insert into row values (?, 'done')", order_id)
        return order_id

    def _refuse(self, name: str) -> None:
        if self._comes(self.fate.refused, name):
            raise No(f"{name}: no")

    @staticmethod
    def _comes(faults: Counter[str], name: str) -> bool:
        faults[name] -= 1
        return faults[name] >= 0

    # -- the provider ------------------------------------------------------------------------------

    async def register(self, key: str, order_id: str) -> str:
        """Register a parcel at a carrier; what was given up stays so."""
        await self.on_the_way("register")
        self._refuse("register")
        assert key not in self.barred
        self.parcels[key] = order_id
        await self.on_the_way_back("register")
        return order_id

    async def withdraw(self, _key: str, parcel: str | Unknown) -> None:
        """Withdraw a parcel, also one of which nobody knows."""
        await self.on_the_way("withdraw")
        self._refuse("withdraw")
        if isinstance(parcel, Unknown):
            self.barred.add(parcel.key)
            self.parcels.pop(parcel.key, None)
        else:
            self.parcels.clear()
        await self.on_the_way_back("withdraw")

    # -- between them ------------------------------------------------------------------------------

    async def on_the_way(self, name: str) -> None:
        if self._comes(self.fate.lost, name):
            await asyncio.Event().wait()

    async def on_the_way_back(self, name: str) -> None:
        if self._comes(self.fate.cut, name):
            self.node.crash(1.0)
        if self._comes(self.fate.cancelled, name):
            assert self.served is not None
            engine = self.served.up["orders"].engine
            wish = RepairWish("ada", "the customer has called")
            self._cancelling = asyncio.ensure_future(engine.repair("A-1", RepairVerb.CANCEL, wish))
            await asyncio.Event().wait()
        if self._comes(self.fate.unheard, name):
            await asyncio.Event().wait()

    async def _live(self, runtime: SimRuntime) -> None:
        self.served = served = InProcess(runtime, self.services())
        await served.start(*served.services)
        for name, instance in served.up.items():
            receiver = Between(self, instance.dispatcher)
            if (away_s := self.fate.away.get(name, 0.0)) > 0.0:
                served.transport.remove(f"{name}-1")
                asyncio.get_running_loop().call_later(
                    away_s, served.transport.add, f"{name}-1", receiver
                )
            else:
                served.transport.add(f"{name}-1", receiver)
        while not self.told:
            await asyncio.sleep(1.0)
            self.told = await self._ask(served)
        await asyncio.Event().wait()

    async def _ask(self, served: InProcess) -> str:
        """Ask as a client that wants to know the end; "" where it has to ask again."""
        # An answer is kept under its key, and so is that the order was accepted: the saga's own id
        # is what makes it one run.
        key = f"A-1/{asyncio.get_running_loop().time():.0f}"
        try:
            told = await served.call(Orders.place(Order("A-1")), key=key, timeout_s=60.0)
        except No:
            return "the rejection"
        except SagaError as error:
            return "" if isinstance(error, CallError) else f"`{error.code}`"
        except SynchromeshError:
            return ""
        return "" if told == "accepted" else "the result"

    # -- the story ---------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Play it, and tell what the databases say once it has come to rest."""
        self.node.start()
        self.world.run(self._rest(), until_s=2 * _WITHIN_S)
        read = self.world.disk.rows
        ((status,),) = read("/orders.db", "select status from sm_saga")
        records = read(
            "/orders.db", "select kind, step, attempt, body from sm_saga_record order by seq"
        )
        held = (
            self._state("orders"),
            self._state("inventory"),
            "registered" if self.parcels else "key given up" if self.barred else "-",
            self._state("billing"),
            self._state("shipping"),
        )
        return Outcome(_story(records), status, self.told, held)

    def _state(self, service: str) -> str:
        read = self.world.disk.rows
        rows = read(f"/{service}.db", "select state from row")
        if rows:
            names = {"inventory": "held", "billing": "charged", "shipping": "booked"}
            state = str(rows[0][0])
            return names.get(service, "open" if state == "done" else state)
        barred = read(f"/{service}.db", "select 1 from sm_inbox where kind = 'tombstone'")
        return "key barred" if barred else "-"

    async def _rest(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if self.served is None or not self.node.is_up or not self.told:
                continue
            instance = self.served.up.get("orders")
            counts = await instance.sagas() if instance is not None else {}
            if counts and not {"running", "compensating"} & {k for k, n in counts.items() if n}:
                return


class Between:
    """Stands between callers and a service: what its fate says is lost comes no further."""

    def __init__(self, walk: Walk, dispatcher: Dispatcher) -> None:
        self._walk, self._dispatcher = walk, dispatcher

    def authenticate(self, credential: str, now: float, operation: Operation[..., Any]) -> Any:
        return self._dispatcher.authenticate(credential, now, operation)

    async def dispatch(self, request: Request) -> Reply:
        """Deliver a request, and its reply."""
        await self._walk.on_the_way(request.operation.name)
        reply = await self._dispatcher.dispatch(request)
        await self._walk.on_the_way_back(request.operation.name)
        return reply


def _story(records: list[Any]) -> str:
    """Tell a run's records in a line: each step, undo and decision once, as it came to stand."""
    told: dict[str, str] = {}
    for kind, key, attempt, body in records:
        step = str(key).partition("#")[0].rpartition(".")[2]
        if kind in ("begun", "undo_begun"):
            times = attempt if attempt <= 10 else "many"
            noted = f" ({times} attempts)" if attempt > 1 else ""
            name = f"undo {step}" if kind == "undo_begun" else step
            told[name] = f"{name}{noted}"
        elif kind == "done":
            told.setdefault(step, step)
        elif kind == "undone":
            told.setdefault(f"undo {step}", f"undo {step}")
        elif kind == "rejected":
            told[step] = f"{step} rejected"
        elif kind == "turned":
            reason = str(json.loads(body)["reason"])
            why = next((w for word, w in _TURNED.items() if reason.startswith(word)), "")
            told[kind] = f"**turns**{why}"
        elif kind == "stuck":
            cause = json.loads(body)
            step = str(cause.get("step", "")).partition("#")[0].rpartition(".")[2]
            if cause.get("is_rejected") and f"undo {step}" in told:
                told[f"undo {step}"] = f"undo {step} rejected"
            told[kind] = "**is stuck**"
    return ", ".join(told.values())


_TURNED = {"cancelled": " by a person", "its deadline": " at its deadline"}

FATES: dict[str, Callable[[], Fate]] = {
    "nothing": Fate,
    "a unit of the owner rejects": lambda: Fate(refused=Counter(create=1)),
    "a participant rejects": lambda: Fate(refused=Counter(reserve=1)),
    "a request is lost": lambda: Fate(lost=Counter(reserve=1)),
    "an answer is lost": lambda: Fate(unheard=Counter(reserve=1)),
    "a participant is away, and asked in vain": lambda: Fate(lost=Counter(reserve=4)),
    "all answers of a participant are lost": lambda: Fate(unheard=Counter(reserve=4)),
    "a participant cannot be reached, past the deadline": lambda: Fate(away={"inventory": 900.0}),
    "a function is cut at its time-out, once": lambda: Fate(lost=Counter(register=1)),
    "a function never says what it did": lambda: Fate(unheard=Counter(register=4)),
    "a function rejects": lambda: Fate(refused=Counter(register=1)),
    "the owner dies in a step": lambda: Fate(cut=Counter(reserve=1)),
    "the owner dies in a function": lambda: Fate(cut=Counter(register=1)),
    "a person cancels before the pivot": lambda: Fate(cancelled=Counter(register=1)),
    "the pivot is rejected": lambda: Fate(refused=Counter(charge=1)),
    "answers of the pivot are lost": lambda: Fate(unheard=Counter(charge=6)),
    "the owner dies in the pivot": lambda: Fate(cut=Counter(charge=1)),
    "nobody ever knows of the pivot": lambda: Fate(lost=Counter(charge=ALWAYS)),
    "an undo is lost, and asked again": lambda: Fate(
        refused=Counter(charge=1), lost=Counter(release=2)
    ),
    "an undo of a function fails, and is asked again": lambda: Fate(
        refused=Counter(charge=1), unheard=Counter(withdraw=2)
    ),
    "the owner dies in an undo": lambda: Fate(refused=Counter(charge=1), cut=Counter(release=1)),
    "an undo is rejected": lambda: Fate(refused=Counter(charge=1, release=1)),
    "behind the pivot a participant is away for minutes": lambda: Fate(lost=Counter(book=40)),
    "behind the pivot one rejects": lambda: Fate(refused=Counter(book=1)),
}


# -- timers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wait:
    """What happens to a run that waits ten minutes for an event; times are seconds from its start.

    Attributes:
        told: when it is told.
        down: when its process dies, and for how long.
        cancelled: when a person cancels it.
        deadline: of the saga.
        is_behind: whether it waits behind its pivot.
        is_held_up: whether the step before the wait takes two seconds.
    """

    told: float | None = None
    down: tuple[float, float] | None = None
    cancelled: float | None = None
    deadline: str = "1h"
    is_behind: bool = False
    is_held_up: bool = False


class Waiting:
    """One run of a saga that holds a piece, or charges for one, and waits for an event."""

    def __init__(self, wait: Wait) -> None:
        self.wait = wait
        self.world = World("waiting")
        self.node = self.world.node("system", self._live)
        self.served: InProcess | None = None
        self.is_slow = wait.is_held_up

    def services(self) -> list[Service]:
        rows = ("create table row(id text primary key)",)
        inventory = Service("inventory", implements=Inventory, migrations=[Migration(1, rows, 1)])
        billing = Service("billing", implements=Billing)
        shop = Service("shop", implements=Shop)

        @inventory.writes(Inventory.reserve)
        async def reserve(tx: Transaction, order_id: str) -> str:
            await tx.execute("insert into row values (?)", order_id)
            return order_id

        @inventory.writes(Inventory.release)
        async def release(tx: Transaction, held: str) -> None:
            await tx.execute("delete from row where id = ?", held)

        @billing.writes(Billing.charge)
        async def charge(tx: Transaction, order_id: str) -> str:
            return order_id

        async def prepare(_key: str) -> None:
            await asyncio.sleep(2.0 if self.is_slow else 0.0)

        @shop.saga(Order, deadline=self.wait.deadline)
        async def offering(s: Saga, order: Order) -> str:
            if self.wait.is_behind:
                await s.call(Billing.charge(order.id), pivot=True)
            else:
                await s.call(Inventory.reserve(order.id), undo=Inventory.release)
            await s.step(prepare, timeout_s=5.0)
            paid = await s.event(Paid, within="10m")
            return "nothing" if paid is None else "the event"

        @shop.handles(Shop.offer)
        async def offer(ctx: Context, order: Order) -> str:
            await offering.start(ctx, order, id=order.id)
            return "offered"

        @shop.writes(Shop.paid)
        async def paid(tx: Transaction, order_id: str) -> bool:
            return await offering.tell(tx, order_id, Paid("R-1"))

        return [shop, inventory, billing]

    async def _live(self, runtime: SimRuntime) -> None:
        self.served = served = InProcess(runtime, self.services())
        await served.start(*served.services)
        await served.call(Shop.offer(Order("A-1")), key="A-1", timeout_s=60.0)
        await asyncio.Event().wait()

    async def _story(self) -> None:
        loop, wait = asyncio.get_running_loop(), self.wait
        events: list[tuple[float, Callable[[], Any]]] = []
        if wait.told is not None:
            events.append((wait.told, self._tell))
        if wait.cancelled is not None:
            events.append((wait.cancelled, self._cancel))
        if wait.down is not None:
            at_s, for_s = wait.down
            events.append((at_s, lambda: self.node.crash(for_s)))
        for at_s, act in sorted(events, key=lambda each: each[0]):
            await asyncio.sleep(at_s - loop.time())
            done = act()
            if done is not None:
                await done
        while not self.world.disk.rows("/shop.db", "select 1 from sm_saga where ended_us > 0"):
            await asyncio.sleep(1.0)

    async def _tell(self) -> None:
        assert self.served is not None
        await self.served.call(Shop.paid("A-1"), key="paid", timeout_s=60.0)

    async def _cancel(self) -> None:
        assert self.served is not None
        wish = RepairWish("ada", "the customer has called")
        await self.served.up["shop"].engine.repair("A-1", RepairVerb.CANCEL, wish)

    def run(self) -> tuple[str, str, int, str]:
        """Play it; return what the step gave, how the run ended, after how long, and the stock."""
        self.node.start()
        self.world.run(self._story(), until_s=_WITHIN_S)
        read = self.world.disk.rows
        ((status, result, took_us),) = read(
            "/shop.db", "select status, result, ended_us - started_us from sm_saga"
        )
        held = "held" if read("/inventory.db", "select 1 from row") else "-"
        gave = json.loads(result) if status == "completed" else "-"
        return gave, status, round(took_us / 1e6), held


WAITS = {
    "it is told after two minutes": Wait(told=120.0),
    "it is told before it asks": Wait(told=1.0, is_held_up=True),
    "it is never told": Wait(),
    "it is told, and the process dies at once, for a minute": Wait(told=120.0, down=(120.0, 60.0)),
    "the process is down when the wait is over": Wait(down=(590.0, 60.0)),
    "the saga's deadline is five minutes": Wait(deadline="5m"),
    "the same, and it waits behind its pivot": Wait(deadline="5m", is_behind=True),
    "a person cancels it after a minute": Wait(cancelled=60.0),
}


# -- the page ------------------------------------------------------------------------------------


def page(text: str) -> str:
    """Return the page with its tables as the runs have them."""
    walks = []
    for name, fate in FATES.items():
        told = Walk(fate()).run()
        walks.append((name, told.story, told.status, told.told, *told.held))
    waits = []
    for name, wait in WAITS.items():
        gave, status, took_s, held = Waiting(wait).run()
        waits.append((name, gave, f"{status}, after {took_s} s", held))
    text = _put(text, "walk", HEAD, walks)
    return _put(text, "waits", ("what happens", "the step gives", "the run ends", "stock"), waits)


def _put(text: str, name: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]
    before, _, rest = text.partition(f"<!-- {name} -->\n")
    _, _, after = rest.partition(f"\n<!-- /{name} -->")
    return "\n".join((f"{before}<!-- {name} -->\n", *lines, f"\n<!-- /{name} -->{after}"))


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
