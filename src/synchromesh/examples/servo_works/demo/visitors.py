"""The visitors of the demo: look at pages, stock and prices while orders come in, and buy nothing.

A page is the aggregate `GET /machines/{machine_id}`: the drive, the order that it came with, and
the week in which another one could be built, from three services. What of it was not fresh is noted
in the account by the door.

Like customers they ask again where there was no answer in time, or where they came too soon.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count, cycle
from random import Random
from typing import TypeAlias

from contracts.orders import PlaceOrder
from shop import catalogue, field_reports

from demo.door import Door, DoorAnswer, ask_until, degraded_in

AT_ONCE = 2
PAUSE_S = 0.06
STOCK = "GET /stock/{sku}"
QUOTE = "GET /quotes/{sku}"
QUOTE_PAUSE_S = 0.1
STOCK_AT_ONCE = 4
STOCK_PAUSE_S = 0.02
# An axis that the configurator has parts for.
LOAD = {
    "torque_nm": "4", "peak_nm": "8", "speed_rpm": "3000", "supply": "3x400VAC", "cable_m": "5",
}  # fmt: skip

Told: TypeAlias = Callable[[DoorAnswer], str]


def _if_in_time(answer: DoorAnswer) -> str:
    return "" if answer.is_out_of_time or answer.is_turned_away else "answered"


def _if_fresh(answer: DoorAnswer) -> str:
    return "fresh" if answer.status == 200 and not degraded_in("", "", answer) else ""


class Visitors:
    """Looks at what the gateway shows; what fails is not looked at again, the next one comes soon.

    Args:
        orders: those that will be placed; a page of a drive of another order would miss a branch.
    """

    def __init__(self, door: Door, rng: Random, orders: Sequence[PlaceOrder]) -> None:
        self._door = door
        self._rng = rng
        known = {order.order_id for order in orders}
        plates = [batch.machine for batch in field_reports()]
        self._machines = [p.machine_id for p in plates if p.order_id in known]
        self._skus = [drive.sku for drive in catalogue()]

    @asynccontextmanager
    async def looking_round(self) -> AsyncIterator[None]:
        """Look at one thing after the other while the block runs."""
        async with self._while_it_runs(self._look_round, AT_ONCE):
            yield

    @asynccontextmanager
    async def watching_stock(self) -> AsyncIterator[None]:
        """Ask what is on the shelf, without a break, while the block runs."""
        async with self._while_it_runs(self._watch_stock, STOCK_AT_ONCE):
            yield

    @asynccontextmanager
    async def asking_quotes(self) -> AsyncIterator[None]:
        """Ask what drives cost and when they are there, while the block runs."""
        async with self._while_it_runs(self._ask_quotes, AT_ONCE):
            yield

    async def look_at_all_machines(self) -> None:
        """Look at the page of every drive at once."""
        await asyncio.gather(*map(self._look_at_machine, self._machines))

    async def see_all(self) -> None:
        """Look at every page, and the stock of every drive, until each was as it should be once.

        Only what a gateway has seen once can stand in there later, for what is not to be had then.
        """
        for at in self._door.system.gateways:
            await asyncio.gather(
                *(self._look_at_machine(each, _if_fresh, at) for each in self._machines),
                *(self._look_at_stock(sku, _if_fresh, at) for sku in self._skus),
            )

    @asynccontextmanager
    async def _while_it_runs(
        self, look: Callable[[int], Coroutine[None, None, None]], at_once: int
    ) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(look(first)) for first in range(at_once)]
            yield
            for task in tasks:
                task.cancel()

    async def _look_round(self, first: int) -> None:
        for number in count(first):
            machine_id = self._machines[number % len(self._machines)]
            await self._look_at_machine(machine_id)
            await asyncio.sleep(PAUSE_S)
            sku = self._skus[number % len(self._skus)]
            match number % 3:
                case 0:
                    await self._look_at_stock(sku)
                case 1:
                    await self._look("GET /prices")
                case _:
                    await self._look("GET /configurations", query=LOAD)
            await asyncio.sleep(PAUSE_S)

    async def _watch_stock(self, first: int) -> None:
        for sku in cycle(self._skus[first:] + self._skus[:first]):
            await self._look_at_stock(sku)
            await asyncio.sleep(STOCK_PAUSE_S)

    async def _ask_quotes(self, first: int) -> None:
        for sku in cycle(self._skus[first:] + self._skus[:first]):
            await self._look(QUOTE, query={"qty": "1"}, sku=sku)
            await asyncio.sleep(QUOTE_PAUSE_S)

    async def _look_at_machine(
        self, machine_id: str, told: Told = _if_in_time, at: str = ""
    ) -> None:
        await self._look("GET /machines/{machine_id}", told, at=at, machine_id=machine_id)

    async def _look_at_stock(self, sku: str, told: Told = _if_in_time, at: str = "") -> None:
        await self._look(STOCK, told, at=at, sku=sku)

    async def _look(
        self,
        route: str,
        told: Told = _if_in_time,
        *,
        at: str = "",
        query: Mapping[str, str] | None = None,
        **places: str,
    ) -> None:
        await ask_until(
            told,
            lambda: self._door.ask(route, at=at, query=query, **places),
            route.format_map(places),
            self._rng,
        )
