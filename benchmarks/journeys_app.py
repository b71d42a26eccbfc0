"""The system whose journeys are counted: a scout goes each of them while it counts its own steps.

All runs in one process, so that both sides of everything are counted, and the threads of databases
and spans with them.
"""

from __future__ import annotations

import asyncio
import http.client
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from benchmarks.app import ANSWER, ITEM, Free, Item, Shelf, answer
from benchmarks.harness import Passed, check, watch_threads
from synchromesh import (
    ApiKeys,
    Context,
    Contract,
    Gateway,
    Migration,
    Rate,
    Route,
    Saga,
    Service,
    Transaction,
    command,
    event,
)
from synchromesh.calls import PublicEvent

# Before a database or a ring of spans has a thread.
watch_threads()

CONFIG = """
[system]
name = "journeys"

[services.shelf]
app = "benchmarks.app:shelf"

[services.scout]
app = "benchmarks.journeys_app:scout"

[services.listener]
app = "benchmarks.journeys_app:listener"

[gateway]
app = "benchmarks.journeys_app:gateway"

[policies."gateway:scout"]
timeout = "60s"
retry = { attempts = 1 }
"""
SCOPE = "shelf:read"
WARM_UP = 100
TRIES = 7
# A saga of so many steps more tells what a step costs.
STEPS_MORE = 8
# Longer than what follows a unit takes: the relay, the subscriber, the spans.
SETTLE_S = 0.3


class Gone(Struct, frozen=True):
    """What a journey passed: Python calls of all threads, and files of synchromesh."""

    calls: int
    files: list[str]


class Scout(Contract, Protocol, service="scout", version="1.0"):
    """Goes a journey and tells what it passed."""

    @command("POST /go")
    async def go(self, journey: str, url: str, key: str) -> Gone: ...

    placed: PublicEvent[Item] = event(Item, key="sku")


class Listener(Contract, Protocol, service="listener", version="1.0"):
    """Offers nothing; it takes the scout's event."""


TABLE = Migration(
    1,
    ("create table note(id text primary key, sku text not null, n bigint not null)",),
    readable_by_min=1,
)
scout = Service("scout", implements=Scout, migrations=[TABLE])
listener = Service("listener", implements=Listener, migrations=[TABLE])
gateway = Gateway(
    auth=[ApiKeys()],
    routes=[
        Route("POST /go", Scout.go, public=True, deadline="60s"),
        Route("POST /look", Shelf.look, scopes={SCOPE}, rate=Rate("1000/s")),
    ],
)
_taken = asyncio.Event()
# How a journey is gone once.
Go = Callable[[], Awaitable[object]]


async def note(tx: Transaction, item: Item) -> Free:
    """Write one row."""
    await tx.execute("insert into note values (?, ?, ?)", tx.new_id(), item.sku, item.qty)
    return answer(item)


async def place(tx: Transaction, item: Item) -> Free:
    """Write one row, and tell of it."""
    tx.publish(Scout.placed, item)
    return await note(tx, item)


@listener.on(Scout.placed)
async def placed(tx: Transaction, item: Item) -> None:
    """Write one row."""
    await note(tx, item)
    _taken.set()


@scout.saga(Item, version=1, deadline="1m", key=lambda item: item.sku)
async def look_often(s: Saga, item: Item) -> int:
    """Look as often as the item says, a step each."""
    for _ in range(item.qty):
        await s.call(Shelf.look(ITEM))
    return item.qty


@scout.handles(Scout.go)
async def go(ctx: Context, journey: str, url: str, key: str) -> Gone:
    """Go a journey until it is warm, then count it; of several tries the one that passed least."""
    if journey == "gateway request":
        with ThreadPoolExecutor(1) as thread:
            client = _Client(url, key)
            return await _less(lambda: _in(thread, client.look), lambda: _in(thread, client.think))
    if journey == "saga step":
        return await _saga_step(ctx)
    journeys: dict[str, Go] = {
        "call": lambda: ctx.call(Shelf.look(ITEM)),
        "unit": lambda: ctx.write(note, ITEM),
    }
    if journey == "event":
        return await _less(lambda: _event(ctx), lambda: asyncio.sleep(SETTLE_S), warm_up=3)
    return await _least(journeys[journey])


async def _least(journey: Go, *, warm_up: int = WARM_UP, expected: object = ANSWER) -> Gone:
    """What else the process did meanwhile is in every try, but not much of it in the least one."""
    for _ in range(warm_up):
        check(await journey(), expected, "the journey")
    least: Passed | None = None
    for _ in range(TRIES):
        with Passed() as passed:
            await journey()
        if least is None or passed.calls < least.calls:
            least = passed
    assert least is not None
    return Gone(least.calls, least.files)


async def _less(journey: Go, without: Go, *, warm_up: int = WARM_UP) -> Gone:
    """Take away what passes where the journey is not gone: the thread, the timer."""
    gone = await _least(journey, warm_up=warm_up)
    idle = await _least(without, warm_up=1, expected=None)
    return Gone(gone.calls - idle.calls, gone.files)


async def _event(ctx: Context) -> Free:
    _taken.clear()
    found = await ctx.write(place, ITEM)
    await _taken.wait()
    await asyncio.sleep(SETTLE_S)
    return found


async def _saga_step(ctx: Context) -> Gone:
    number = 0

    async def run(steps: int) -> int | None:
        nonlocal number
        number += 1
        saga = await look_often.start(ctx, Item(f"{ctx.key}-{number}", steps), id=f"{number}")
        return await saga.result(within_s=5.0)

    few = await _least(lambda: run(1), warm_up=10, expected=1)
    many = await _least(lambda: run(1 + STEPS_MORE), warm_up=10, expected=1 + STEPS_MORE)
    return Gone((many.calls - few.calls) // STEPS_MORE, many.files)


async def _in(thread: ThreadPoolExecutor, work: Callable[[], Free | None]) -> Free | None:
    return await asyncio.get_running_loop().run_in_executor(thread, work)


class _Client:
    """A client of the gateway, in a thread of its own that is not counted."""

    def __init__(self, url: str, key: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        self._headers = {"Content-Type": "application/json", "X-Api-Key": key}

    def look(self) -> Free:
        """Send one request."""
        sys.setprofile(None)
        body = b'{"sku":"%s","qty":%d}' % (ITEM.sku.encode(), ITEM.qty)
        self._connection.request("POST", "/look", body, self._headers)
        response = self._connection.getresponse()
        data = response.read()
        check((response.status, len(data) > 0), (200, True), "the gateway")
        return msgspec.json.decode(data, type=Free)

    def think(self) -> None:
        """Send none."""
        sys.setprofile(None)
