"""Rejections that a saga takes for answers, and values that it may not make itself."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from saga_fakes import (
    CONTEXT,
    HANGS,
    LOST,
    PATIENT,
    Bank,
    Declined,
    Hold,
    Order,
    OutOfStock,
    Participants,
    Plant,
    Stock,
    at_work,
)
from synchromesh.calls import Contract, query
from synchromesh.errors import ContractError, NoInstance, Rejection, SagaUndone
from synchromesh.saga import Saga, SagaDefinition
from synchromesh.saga.records import SagaStatus
from synchromesh.testing import SimRuntime, run

FOREVER_S = 10_000.0


async def branching(s: Saga, order: Order) -> str:
    """What is out of stock is booked; a customer who is declined tries another card."""
    hold = await s.try_call(Stock.reserve(order.id, order.qty), OutOfStock, undo=Stock.release)
    if isinstance(hold, OutOfStock):
        hold = await s.call(Plant.book(order.id), undo=Plant.unbook)
    paid = await s.try_call(Bank.charge(order.id), Declined, pivot=True)
    if isinstance(paid, Declined):
        paid = await s.call(Bank.charge("another card"), pivot=True)
    return f"{hold.id} {paid.id}"


class Prices(Contract, Protocol, service="prices", version="1.0"):
    """Answers with what has an order of its own."""

    @query("GET /prices")
    async def prices(self) -> dict[str, int]: ...


class Unsorted(Participants):
    """Answers in another order than JSON of ours has."""

    def _handle(self, operation: Any, arguments: bytes, context: Any) -> Any:
        if operation is Prices.prices:
            return b'{"b":1,"a":2}'
        return super()._handle(operation, arguments, context)


BRANCHING = SagaDefinition(branching, "branching", deadline_s=60.0, policy=PATIENT)


class Fussy(Participants):
    """Declines the first card of each run."""

    def _handle(self, operation: Any, arguments: bytes, context: Any) -> Any:
        if operation.full_name == "bank.charge":
            is_first = b"another" not in arguments
            (self.refuses.add if is_first else self.refuses.discard)("bank.charge")
        return super()._handle(operation, arguments, context)


def test_a_function_is_given_what_it_will_be_given_when_it_is_run_again() -> None:
    """Also where the answer had another form: the order of a dict is that of the record."""
    seen: list[list[str]] = []

    async def looks(s: Saga, order: Order) -> str:
        prices = await s.call(Prices.prices())
        seen.append(list(prices))
        hold = await s.call(Stock.reserve(order.id, order.qty), undo=Stock.release)
        return f"{prices['a']} {hold.id}"

    saga = SagaDefinition(looks, "looks", deadline_s=60.0, policy=PATIENT)

    async def main(runtime: SimRuntime) -> None:
        others = Unsorted(faults={"stock.reserve": [HANGS]})
        async with at_work(runtime, others, saga) as engine:
            await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(0.5)
        async with at_work(runtime, others, saga) as engine:
            ended = await engine.conclusion("A-1", FOREVER_S)
            assert ended is not None
            assert ended.result == b'"2 stock.reserve/0"'
        assert seen == [["a", "b"], ["a", "b"]]

    run(main)


def test_a_declared_rejection_is_an_answer_that_the_function_goes_on_with() -> None:
    """The run does not turn; after a crash the function is given the same rejection again."""

    async def main(runtime: SimRuntime, held: str) -> None:
        others = Fussy(refuses={"stock.reserve"}, faults={held: [HANGS]})
        async with at_work(runtime, others, BRANCHING) as engine:
            await engine.start(BRANCHING, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(0.5)
        async with at_work(runtime, others, BRANCHING) as engine:
            ended = await engine.conclusion("A-1", FOREVER_S)
            assert ended is not None
            assert ended.status is SagaStatus.COMPLETED
            kinds = [(line.kind, line.step) for line in (await engine.show("A-1")).lines]
            assert ("rejected", "stock.reserve#1") in kinds
            assert ("rejected", "bank.charge#1") in kinds
            assert kinds[-2:] == [("done", "bank.charge#2"), ("ended", "")]
        assert +others.live == {"plant.book": 1, "bank.charge": 1}

    for held in ("stock.reserve", "plant.book", "bank.charge"):
        run(lambda runtime, held=held: main(runtime, held))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fault", "status"),
    [([NoInstance("down")] * 999, SagaStatus.UNDONE), ([LOST] * 9999, SagaStatus.STUCK)],
)
def test_what_is_no_rejection_is_as_with_any_call(fault: Any, status: SagaStatus) -> None:
    """A pivot that was certainly not run turns, one that may have been is stuck."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"bank.charge": fault})
        async with at_work(runtime, others, BRANCHING) as engine:
            await engine.start(BRANCHING, Order("A-1"), id="A-1", context=CONTEXT)
            ended = await engine.conclusion("A-1", FOREVER_S)
            assert ended is not None
            assert ended.status is status

    run(main)


def test_a_run_turns_behind_a_pivot_that_was_refused() -> None:
    """It was none: what was done is undone, and what was refused is not."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(refuses={"stock.reserve", "bank.charge"})
        async with at_work(runtime, others, BRANCHING) as engine:
            handle = await engine.start(BRANCHING, Order("A-1"), id="A-1", context=CONTEXT)
            with pytest.raises(Declined):
                await handle.result(FOREVER_S)
        assert +others.live == {}
        assert "stock.release" not in others.log

    run(main)


def test_code_that_no_longer_takes_a_rejection_waits() -> None:
    """The records say that the function went on after it."""

    async def strict(s: Saga, order: Order) -> str:
        await s.call(Stock.reserve(order.id, order.qty), undo=Stock.release)
        return (await s.call(Plant.book(order.id), undo=Plant.unbook)).id

    async def main(runtime: SimRuntime) -> None:
        others = Participants(refuses={"stock.reserve"}, faults={"plant.book": [HANGS]})
        async with at_work(runtime, others, BRANCHING) as engine:
            await engine.start(BRANCHING, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(0.5)
        async with at_work(runtime, others, SagaDefinition(strict, "branching")) as engine:
            (left,) = await engine.runs("waiting")
            assert "stock.reserve#1 is recorded as refused, which the code does not" in left.reason

    run(main)


def test_a_rejection_that_is_not_declared_is_no_branch() -> None:
    """It would never be given; one that is declared and not named turns as ever."""
    with pytest.raises(ContractError, match=r"stock\.release does not declare Rejection.*nothing"):
        Saga("A-1", "t").try_call(Stock.release(Hold("x")), Rejection)
    with pytest.raises(ContractError, match=r"bank\.charge does not declare OutOfStock.* Declined"):
        Saga("A-1", "t").try_call(Bank.charge("x"), OutOfStock)


def drawing(draw: Callable[[], int]) -> SagaDefinition[Any, Any]:
    async def draws(s: Saga, order: Order) -> str:
        number = await s.side(draw)
        hold = await s.call(Stock.reserve(f"order {number}", 1), undo=Stock.release)
        return f"{number} {hold.id} {await s.side(draw)}"

    return SagaDefinition(draws, "draws", policy=PATIENT)


def test_a_value_on_the_side_is_made_once_and_recorded() -> None:
    """A re-run is given what the first one was, and asks the same of others."""
    numbers = itertools.count(1)

    def draw() -> int:
        return next(numbers)

    async def main(runtime: SimRuntime) -> None:
        saga, others = drawing(draw), Participants(faults={"stock.reserve": [HANGS]})
        async with at_work(runtime, others, saga) as engine:
            await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(0.5)
        async with at_work(runtime, others, saga) as engine:
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            result = await handle.result(FOREVER_S)
            assert result is not None
            first, _, second = result.split()
            assert (first, second) == ("1", str(next(numbers) - 1))
        assert {arguments for _, arguments, _ in others.sent} == {b'{"order":"order 1","qty":1}'}

    run(main)


def test_a_value_that_cannot_be_made_turns_the_run() -> None:
    """A bug of the function is one of the saga; one without a type is refused at once."""

    def draw() -> int:
        raise ZeroDivisionError

    async def main(runtime: SimRuntime) -> None:
        saga = drawing(draw)
        async with at_work(runtime, Participants(), saga) as engine:
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            with pytest.raises(SagaUndone, match="ZeroDivisionError"):
                await handle.result(FOREVER_S)

    run(main)
    with pytest.raises(ContractError, match="return annotation"):
        Saga("A-1", "t").side(lambda: 1)
