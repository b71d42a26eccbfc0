"""The recorded histories of servo-works' sagas: each outcome is there, and the code follows all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from contracts.billing import Billing, Charge
from contracts.inventory import Inventory, Receive, Reserve
from contracts.money import Money
from contracts.orders import Accepted, Orders, Placed, PlaceOrder, Price
from contracts.production import Book, OpenSlots, Production
from credit_provider import DECLINED_CUSTOMERS
from services.orders import orders
from services.orders.units import confirm_order, create_order, reject_order

from servo_works_world import FOLDER, works
from synchromesh import Saga, Service
from synchromesh.errors import Rejection
from synchromesh.saga.backlog import with_records
from synchromesh.saga.recorded import RecordedRun, recorded
from synchromesh.saga.versions import SagaVersions
from synchromesh.system.config.histories import read_histories, write_histories
from synchromesh.testing import SimRuntime, replay_histories, run

PLACE = FOLDER / "histories"
OUTCOMES = {
    "completed",
    "undone-create_order",
    "undone-inventory.reserve",
    "undone-production.quote",
    "undone-billing.charge",
    "undone",
}


async def played(runtime: SimRuntime) -> list[RecordedRun]:
    """Place orders of every fate, and return the histories of their sagas."""
    names = ("orders", "inventory", "billing", "production", "configurator")
    async with works(runtime, *names) as shop:
        shop.start_provider()
        for sku in ("SX90", "LX40", "MX10"):
            await shop.call(Orders.set_price(Price(sku, Money(50_000, "EUR"))))
        await shop.call(Inventory.receive(Receive("L-1", "SX90", 10)))
        await shop.call(Inventory.receive(Receive("L-2", "MX10", 10)))
        await shop.call(Production.open_slots(OpenSlots("SX90", 40, 9)))
        broke = min(DECLINED_CUSTOMERS)
        for request in (
            PlaceOrder("H-1", "SX90", 2, "ada"),
            PlaceOrder("H-2", "none", 1, "ada"),
            PlaceOrder("H-3", "SX90", 99, "ada"),
            PlaceOrder("H-4", "MX10", 1, "ada"),
            PlaceOrder("H-5", "SX90", 1, broke),
        ):
            try:
                await shop.call(Orders.place(request), key=request.order_id)
            except Rejection:
                continue
        await shop.stop("inventory")
        accepted = await shop.call(Orders.place(PlaceOrder("H-6", "SX90", 1, "ada")), key="H-6")
        assert isinstance(accepted, Accepted)
        await shop.up["orders"].engine.cancel("H-6", "the customer has called")
        await shop.start("inventory")
        assert await shop.up["orders"].engine.conclusion("H-6", 600.0) is not None
        store = shop.up["orders"].store
        found = await with_records(store, [f"H-{n}" for n in range(1, 7)])
    runs = []
    for row, records in found:
        assert isinstance(records, list), records
        runs.append(recorded("orders", row, records))
    return runs


def test_the_code_of_today_follows_every_history() -> None:
    """A run of any release that is in the field goes on: change sagas by `version=`."""
    assert len(replay_histories(PLACE, orders)) >= len(OUTCOMES)


def test_each_outcome_is_among_the_histories(tmp_path: Path) -> None:
    """Done, undone, and refused at each step that may refuse; with one that was cancelled.

    What is missing: play it, and commit what `write_histories(PLACE, ...)` writes.
    """
    runs = run(played)
    assert {each.outcome for each in runs} == OUTCOMES
    there = {(each.version, each.outcome) for each in read_histories(PLACE).values()}
    assert {(each.version, each.outcome) for each in runs} <= there
    assert len(write_histories(tmp_path, runs)) == len(OUTCOMES)
    assert len(replay_histories(tmp_path, orders)) == len(OUTCOMES)


# -- deliberate changes --------------------------------------------------------------------------


async def charged_first(s: Saga, request: PlaceOrder) -> Placed:
    """The charge comes before the reservation."""
    order = await s.write(create_order, request, undo=reject_order)
    await s.call(Billing.charge(Charge(order.order_id, order.customer, order.total)))
    hold = await s.call(Inventory.reserve(Reserve(order.order_id, order.sku, order.qty)))
    return Placed(order.order_id, hold.id, 0, order.total)


async def one_more(s: Saga, request: PlaceOrder) -> Placed:
    """One piece more is reserved."""
    order = await s.write(create_order, request, undo=reject_order)
    hold, quote = await s.all(
        s.call(
            Inventory.reserve(Reserve(order.order_id, order.sku, order.qty + 1)),
            undo=Inventory.release,
        ),
        s.call(Production.quote(order.sku)),
    )
    await s.call(Billing.charge(Charge(order.order_id, order.customer, order.total)), pivot=True)
    slot = await s.call(Production.book(Book(order.order_id, quote)))
    await s.write(confirm_order, order)
    return Placed(order.order_id, hold.id, slot.week, order.total)


async def raises(s: Saga, request: PlaceOrder) -> Placed:
    """A bug behind the first step."""
    order = await s.write(create_order, request, undo=reject_order)
    raise ValueError(order.customer)


@contextmanager
def changed(fn: object) -> Iterator[Service]:
    """Let the service have other code for its saga."""
    definition = dataclasses.replace(orders.sagas["place_order"], fn=fn)  # type: ignore[arg-type]
    before = orders.sagas
    orders.sagas = SagaVersions([definition])
    try:
        yield orders
    finally:
        orders.sagas = before


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (charged_first, "the code asks for billing.charge#1 where inventory.reserve#1"),
        (one_more, "step inventory.reserve#1 is recorded with other arguments"),
        (raises, "the code never asks for"),
    ],
)
def test_a_changed_saga_fails_with_the_step_that_differs(fn: object, said: str) -> None:
    """The message names the file, the saga, its version and the first difference."""
    with changed(fn) as service, pytest.raises(AssertionError) as told:
        replay_histories(PLACE, service)
    message = str(told.value)
    assert "orders.place_order.v1.completed.json: orders.place_order v1 would wait for" in message
    assert said in message
    assert "ada" not in message


def test_the_old_code_beside_the_new_one_follows_the_histories() -> None:
    """That is what `version=` is for."""
    old = orders.sagas["place_order"]
    new = dataclasses.replace(old, fn=charged_first, version=2)
    before = orders.sagas
    orders.sagas = SagaVersions([old, new])
    try:
        assert replay_histories(PLACE, orders)
    finally:
        orders.sagas = before
