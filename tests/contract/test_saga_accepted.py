"""A handler that waits for the end of a run has time left to say that it was accepted."""

from __future__ import annotations

import asyncio
from typing import Protocol

import pytest
from msgspec import Struct

from synchromesh import Context, Contract, Gateway, Route, Saga, Service, command, query
from synchromesh.testing import SimRuntime, run, serving


class Order(Struct, frozen=True):
    id: str
    within_s: float


class Bank(Contract, Protocol, service="bank", version="1.0", external=True):
    @command("POST /charges")
    async def charge(self, order: str) -> str: ...


class Orders(Contract, Protocol, service="orders", version="1.0"):
    @command("POST /orders")
    async def place(self, order: Order) -> str: ...

    @query("GET /orders/{order_id}")
    async def one(self, order_id: str) -> str: ...


orders, bank = Service("orders", implements=Orders), Service("bank", implements=Bank)
gateway = Gateway(
    routes=[
        Route("POST /orders", Orders.place, public=True),
        Route("GET /orders/{order_id}", Orders.one, public=True),
    ]
)


@orders.saga(Order, deadline="1h")
async def place_order(s: Saga, order: Order) -> str:
    return await s.call(Bank.charge(order.id), pivot=True)


@orders.handles(Orders.place)
async def place(ctx: Context, order: Order) -> str:
    run = await place_order.start(ctx, order, id=order.id)
    return await run.result(within_s=order.within_s) or "accepted"


@orders.handles(Orders.one)
async def one(ctx: Context, order_id: str) -> str:
    return order_id


@bank.handles(Bank.charge)
async def charge(ctx: Context, order: str) -> str:
    await asyncio.sleep(3600.0)
    return order


@pytest.mark.parametrize(("within_s", "waits_s"), [(1.0, 1.0), (2.0, 1.9), (30.0, 1.9)])
def test_a_run_that_is_slow_is_accepted_and_is_no_failure_of_its_service(
    within_s: float, waits_s: float
) -> None:
    """With the defaults: nobody is told that it timed out, and no breaker opens (B5)."""

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, orders, externals=[bank], gateway=gateway) as client:

            async def buy(number: int) -> tuple[int, str]:
                order = Order(f"A-{number}", within_s)
                answer = await client.gateway.send("POST /orders", order)
                return answer.status, answer.value(str)

            began_s = asyncio.get_running_loop().time()
            answers = await asyncio.gather(*(buy(number) for number in range(20)))
            assert answers == [(200, "accepted")] * 20
            assert asyncio.get_running_loop().time() - began_s == pytest.approx(waits_s, abs=0.1)
            assert (await client.gateway.send("GET /orders/A-1")).status == 200

    run(main)
