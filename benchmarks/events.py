"""Appending to a log of events and reading it, against `eventsourcing` on SQLite.

    python -m benchmarks.events

Both write WAL with `synchronous=FULL`, one durable event before the next, in streams that refuse a
version that is taken; both encode the same payload as JSON, decode it to objects and fold those to
a state, which is compared. Snapshots and caches are off on both sides. Concurrent writers are tasks
here and threads there, each writer with a stream of its own; `eventsourcing` is given 8 threads for
64 writers: more are no faster. How cost grows with the log is measured by `benchmarks.growth`.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import msgspec
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

from benchmarks import durability, growth, product
from benchmarks.harness import (
    Measures,
    Report,
    Results,
    at_least,
    check,
    in_turn_async,
    size,
)
from synchromesh import Decider, Decision
from synchromesh.events import Checkpoint, EventTypes, append, load, read
from synchromesh.store import Store, Unit

PEER = "eventsourcing"
CUSTOMER = "bob"
SKU, QTY, PRICE = "SKU-12345", 3, 19.99
NOTE = "please leave the parcel at the back door, ring twice" + "x" * 20
STREAM_EVENTS = 100
PAGE = 1_000

# -- ours ----------------------------------------------------------------------------------------


class Created(msgspec.Struct, frozen=True):
    """The first event of a stream."""

    customer: str


class ItemAdded(msgspec.Struct, frozen=True):
    """Each further event."""

    sku: str
    qty: int
    price: float
    note: str


class State(msgspec.Struct, frozen=True):
    """What a stream's events lead to."""

    items: int = 0
    total: float = 0.0


def _decide(_: object, __: State) -> Decision[None]:
    return Decision(None)


def _evolve(state: State, happened: object) -> State:
    if isinstance(happened, ItemAdded):
        return State(state.items + 1, state.total + happened.qty * happened.price)
    return state


ORDER = Decider("order", State(), _decide, _evolve, events=(Created, ItemAdded))
TYPES = EventTypes("bench", *ORDER.events)


class Ours:
    """Our log: appends are awaited; those that wait at the same moment share a commit."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._streams = 0

    async def _begin(self) -> str:
        self._streams += 1
        stream = ORDER.stream(str(self._streams))
        await self._append(stream, [Created(CUSTOMER)], expected=0)
        return stream

    async def _append(self, stream: str, happened: list[object], *, expected: int) -> int:
        async def body(unit: Unit) -> int:
            new = [TYPES.encode(each) for each in happened]
            return await append(unit, stream, new, expected=expected)

        return await self._store.write(body, name="append")

    async def append(self, writers: int, each: int) -> float:
        """Let so many writers append so many events each, one by one; return the seconds."""
        streams = [await self._begin() for _ in range(writers)]

        async def writer(stream: str) -> None:
            version = 1
            for _ in range(each):
                added = ItemAdded(SKU, QTY, PRICE, NOTE)
                version = await self._append(stream, [added], expected=version)

        began_s = time.perf_counter()
        await asyncio.gather(*(writer(stream) for stream in streams))
        took_s = time.perf_counter() - began_s
        for stream in streams:
            check((await self.state(stream)).items, each, "our log")
        return took_s

    async def state(self, stream: str) -> State:
        """Load a stream and fold it."""
        return ORDER.fold(TYPES.decode(each) for each in await load(self._store, stream))

    async def fill(self, streams: int, events: int) -> list[str]:
        """Append streams of so many events, each stream in one unit."""
        names = []
        for _ in range(streams):
            stream = await self._begin()
            added: list[object] = [ItemAdded(SKU, QTY, PRICE, NOTE)] * (events - 1)
            await self._append(stream, added, expected=1)
            names.append(stream)
        return names

    async def catch_up(self) -> State:
        """Read and decode the whole log, page by page."""
        at, items, total = Checkpoint(self._store.log_id), 0, 0.0
        while page := await read(self._store, after=at, limit=PAGE):
            for stored in page:
                happened = TYPES.decode(stored)
                if isinstance(happened, ItemAdded):
                    items += 1
                    total += happened.qty * happened.price
            at = at.past(page[-1])
        return State(items, total)


# -- theirs --------------------------------------------------------------------------------------


class Order(Aggregate):  # type: ignore[misc]  # as untyped as what it comes from
    """An aggregate as its documentation writes one."""

    @event("Created")  # type: ignore[untyped-decorator]
    def __init__(self, customer: str) -> None:
        self.customer = customer
        self.items = 0
        self.total = 0.0

    @event("ItemAdded")  # type: ignore[untyped-decorator]
    def add(self, sku: str, qty: int, price: float, note: str) -> None:
        """Add an item."""
        del sku, note
        self.items += 1
        self.total += qty * price


class Theirs:
    """An application of `eventsourcing` with its own recorder, as its environment says."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._app = Application(env=dict(environment))

    @classmethod
    def on_sqlite(cls, path: Path) -> Theirs:
        """Open a file."""
        return cls(
            {
                "PERSISTENCE_MODULE": "eventsourcing.sqlite",
                "SQLITE_DBNAME": str(path),
                "SQLITE_LOCK_TIMEOUT": "10",
            }
        )

    def _begin(self) -> Order:
        order: Order = Order(CUSTOMER)
        self._app.save(order)
        return order

    def _add(self, order: Order) -> None:
        order.add(SKU, QTY, PRICE, NOTE)
        self._app.save(order)

    async def append_awaited(self, each: int) -> float:
        """Append from a coroutine, as an asyncio service has to: in a thread, awaited."""
        order = self._begin()
        began_s = time.perf_counter()
        for _ in range(each):
            order.add(SKU, QTY, PRICE, NOTE)
            await asyncio.to_thread(self._app.save, order)
        took_s = time.perf_counter() - began_s
        check(self.state(order.id).items, each, PEER)
        return took_s

    def append_directly(self, each: int) -> float:
        """Append from the one thread there is: its best, and it blocks a loop."""
        order = self._begin()
        began_s = time.perf_counter()
        for _ in range(each):
            self._add(order)
        return time.perf_counter() - began_s

    def append(self, threads: int, each: int) -> float:
        """Let so many threads append so many events each, one by one; return the seconds."""
        orders = [self._begin() for _ in range(threads)]

        def writer(order: Order) -> None:
            for _ in range(each):
                self._add(order)

        running = [threading.Thread(target=writer, args=(order,)) for order in orders]
        began_s = time.perf_counter()
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        took_s = time.perf_counter() - began_s
        for order in orders:
            check(self.state(order.id).items, each, PEER)
        return took_s

    def state(self, id: uuid.UUID) -> State:  # noqa: A002
        """Load an aggregate."""
        order = self._app.repository.get(id)
        return State(order.items, order.total)

    def fill(self, streams: int, events: int) -> list[uuid.UUID]:
        """Save aggregates of so many events, each in one transaction."""
        ids = []
        for _ in range(streams):
            order = Order(CUSTOMER)
            for _ in range(events - 1):
                order.add(SKU, QTY, PRICE, NOTE)
            self._app.save(order)
            ids.append(order.id)
        return ids

    def catch_up(self) -> State:
        """Read and decode the whole log, page by page."""
        at, items, total = 0, 0, 0.0
        while page := self._app.recorder.select_notifications(
            start=at, limit=PAGE, inclusive_of_start=False
        ):
            for stored in page:
                happened = self._app.mapper.to_domain_event(stored)
                if isinstance(happened, Order.ItemAdded):
                    items += 1
                    total += happened.qty * happened.price
            at = page[-1].id
        return State(items, total)

    def close(self) -> None:
        """Close the database."""
        self._app.close()


async def prove(ours: Ours, theirs: Theirs, folder: Path) -> None:
    """Check that both sync every commit, and commit once for each event of a single writer."""
    with durability.commits(folder / "ours.db") as seen:
        await ours.append(1, 9)
    check(seen.total, 1 + 9, "our log, asked how often it committed,")
    # In threads, so that every connection of its pool is there to be asked.
    theirs.append(THREADS, 9)
    with durability.commits(folder / "theirs.db") as seen:
        theirs.append(THREADS, 9)
    check(seen.total, THREADS * (1 + 9), f"{PEER}, asked how often it committed,")
    durability.prove_synced(folder / "ours.db", who="our log")
    durability.prove_synced(folder / "theirs.db", who=PEER)


# -- in turn -------------------------------------------------------------------------------------

WRITERS = (1, 8, 64)
THREADS = 8


async def appends(
    ours: Ours, theirs: Theirs, writers: int, *, rounds: int = size(41, 2)
) -> Results:
    """Measure events a second by so many writers."""
    ours_each = size({1: 80, 8: 30, 64: 15}[writers], 10)
    threads = min(writers, THREADS)
    peer_each = size(80 if threads == 1 else 30, 10)

    async def run_ours() -> Measures:
        return _rate(writers * ours_each, await ours.append(writers, ours_each))

    async def run_peer() -> Measures:
        if threads == 1:
            return _rate(peer_each, await theirs.append_awaited(peer_each))
        return _rate(threads * peer_each, theirs.append(threads, peer_each))

    async def run_directly() -> Measures:
        return _rate(peer_each, theirs.append_directly(peer_each))

    sides = {"ours": run_ours, PEER: run_peer}
    if threads == 1:
        sides[f"{PEER}, blocking"] = run_directly
    # Many short rounds: how long a sync takes changes from one second to the next.
    return await in_turn_async(sides, rounds=rounds)


async def loads(ours: Ours, theirs: Theirs, expected: State) -> Results:
    """Measure streams of 100 events loaded and folded a second."""
    streams, ids = await ours.fill(20, STREAM_EVENTS), theirs.fill(20, STREAM_EVENTS)

    async def run_ours() -> Measures:
        began_s = time.perf_counter()
        for stream in streams * 5:
            check(await ours.state(stream), expected, "our log")
        return _rate(len(streams) * 5, time.perf_counter() - began_s)

    async def run_peer() -> Measures:
        began_s = time.perf_counter()
        for each in ids:
            check(theirs.state(each), expected, PEER)
        return _rate(len(ids), time.perf_counter() - began_s)

    return await in_turn_async({"ours": run_ours, PEER: run_peer}, rounds=size(15, 2))


async def catch_ups(ours: Ours, theirs: Theirs, *, streams: int, events: int) -> Results:
    """Measure events read and decoded a second, from the log's beginning to its end."""

    expected = theirs.catch_up()
    check(expected.items, events - streams, PEER)  # all but the first of each stream

    async def run_ours() -> Measures:
        began_s = time.perf_counter()
        seen = await ours.catch_up()
        took_s = time.perf_counter() - began_s
        check(seen, expected, "our log")
        return _rate(events, took_s)

    async def run_peer() -> Measures:
        began_s = time.perf_counter()
        seen = theirs.catch_up()
        took_s = time.perf_counter() - began_s
        check(seen, expected, PEER)
        return _rate(events, took_s)

    return await in_turn_async({"ours": run_ours, PEER: run_peer}, rounds=size(9, 2))


def _rate(done: int, took_s: float) -> Measures:
    return {"rate": done / took_s}


def state_of(events: int) -> State:
    """Return the state of a stream with so many events, added up here."""
    state = State()
    for _ in range(events - 1):
        state = _evolve(state, ItemAdded(SKU, QTY, PRICE, NOTE))
    return state


async def main() -> None:
    """Run both in turn and report."""
    durability.watch()
    report = Report("events", packages=[PEER])
    goals = {1: at_least(1.3), 8: at_least(4), 64: at_least(10)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs = Theirs.on_sqlite(folder / "theirs.db")
        async with product.open_store(folder / "ours.db") as store:
            ours = Ours(store)
            await prove(ours, theirs, folder)
            for writers, goal in goals.items():
                results = await appends(ours, theirs, writers)
                figure = f"append, {writers} writer{'s' if writers > 1 else ''}"
                report.against(figure, "/s", results, "rate", peer=PEER, goal=goal)
                if writers == 1:
                    peer = f"{PEER}, blocking"
                    report.against(figure, "/s", results, "rate", peer=peer)
        theirs.close()
        durability.forget()
        theirs = Theirs.on_sqlite(folder / "theirs-read.db")
        async with product.open_store(folder / "ours-read.db") as store:
            ours = Ours(store)
            results = await loads(ours, theirs, state_of(STREAM_EVENTS))
            report.against(
                "load a stream of 100", "/s", results, "rate", peer=PEER, goal=at_least(15)
            )
            more = size(36, 4)
            await ours.fill(more, 500)
            theirs.fill(more, 500)
            results = await catch_ups(
                ours, theirs, streams=20 + more, events=20 * STREAM_EVENTS + more * 500
            )
            report.against("catch-up, events", "/s", results, "rate", peer=PEER, goal=at_least(5))
        theirs.close()
        await growth.rows(report, folder)
    report.finish()
    print("where the time goes: python -m benchmarks.profiles append load catch-up")


if __name__ == "__main__":
    asyncio.run(main())
