"""What user code gets wrong: a result of another type, a function that cannot be called so."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from saga_fakes import CONTEXT, PATIENT, Bank, Order, Participants, Stock, at_work
from synchromesh.errors import BadRequest, SagaUndone, Stuck, SynchromeshError
from synchromesh.saga import Saga, SagaDefinition, Unknown
from synchromesh.saga.records import RepairVerb
from synchromesh.saga.repair import RepairWish
from synchromesh.testing import SimRuntime, run

pytestmark = pytest.mark.usefixtures("each_engine")

FOREVER_S = 10_000.0


class Effects:
    """Functions that have an effect, and return what is not theirs to return."""

    def __init__(self, result: object, error: Exception | None = None) -> None:
        self.keys: list[str] = []
        self.undone: list[int | Unknown] = []
        self.result: Any = result
        self.error = error

    async def count(self, key: str) -> int:
        """Count, and return what is no count."""
        self.keys.append(key)
        await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[no-any-return]

    async def uncount(self, key: str, done: int | Unknown) -> None:
        """Take back what was counted."""
        self.undone.append(done)


async def played(
    runtime: SimRuntime, saga: SagaDefinition[Any, Any], others: Participants
) -> tuple[object, str, list[Any]]:
    """Return how a run ended, its reason, and its lines."""
    async with at_work(runtime, others, saga) as engine:
        handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
        try:
            ended: object = await handle.result(FOREVER_S)
        except SynchromeshError as error:
            ended = error
        story = await engine.show("A-1")
        return ended, story.summary.reason, list(story.lines)


@pytest.mark.parametrize(
    ("result", "why"),
    [("text", "Expected `int`, got `str`"), (object(), "a object cannot be sent")],
)
def test_a_result_that_cannot_be_recorded_ends_the_step(
    result: object, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The same code would end the same way: one effect, which is undone as one unknown."""
    effects = Effects(result)

    async def counts(s: Saga, order: Order) -> int:
        await s.call(Stock.reserve(order.id, 1), undo=Stock.release)
        return await s.step(effects.count, undo=effects.uncount)

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        saga = SagaDefinition(counts, "counts", deadline_s=600.0, policy=PATIENT)
        ended, reason, lines = await played(runtime, saga, others)
        key = "A-1/count#1"
        assert effects.keys == [key]
        assert effects.undone == [Unknown(key, ())]
        assert isinstance(ended, SagaUndone)
        assert f"broken: function count: {why}" in reason
        assert ("begun", 1) in [(line.kind, line.attempt) for line in lines]
        assert +others.live == {}

    with caplog.at_level(logging.ERROR, "synchromesh.saga"):
        run(main)
    told = [each for each in caplog.messages if "is broken: function count" in each]
    assert len(told) == 1
    assert why in told[0]


def test_a_pivot_that_has_run_is_never_undone_for_its_result() -> None:
    """It had its effect: a person says what it gave."""
    effects = Effects("text")

    async def counts(s: Saga, order: Order) -> int:
        await s.call(Stock.reserve(order.id, 1), undo=Stock.release)
        return await s.step(effects.count, pivot=True)

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        saga = SagaDefinition(counts, "counts", deadline_s=600.0, policy=PATIENT)
        async with at_work(runtime, others, saga) as engine:
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            with pytest.raises(Stuck, match="broken: function count: Expected `int`, got `str`"):
                await handle.result(FOREVER_S)
            assert +others.live == {"stock.reserve": 1}
            skip = RepairWish("ada", "seen at the provider", result=b"7")
            await engine.repair("A-1", RepairVerb.SKIP, skip)
            assert await handle.result(FOREVER_S) == 7
        assert len(effects.keys) == 1

    run(main)


def test_an_error_that_no_attempt_would_mend_uses_up_attempts() -> None:
    """What a function cannot send, as after its effect, is not tried until the deadline."""
    effects = Effects(0, BadRequest("the data does not fit"))

    async def counts(s: Saga, order: Order) -> int:
        return await s.step(effects.count, undo=effects.uncount, attempts_max=3)

    async def main(runtime: SimRuntime) -> None:
        saga = SagaDefinition(counts, "counts", deadline_s=600.0, policy=PATIENT)
        ended, reason, _ = await played(runtime, saga, Participants())
        assert isinstance(ended, SagaUndone)
        assert len(effects.keys) == 3
        assert "unknown: bad_request" in reason

    run(main)


def test_a_saga_that_returns_another_type_is_undone(caplog: pytest.LogCaptureFixture) -> None:
    """Its caller could never read it; behind its pivot it is stuck, with the same reason."""

    async def wrong(s: Saga, order: Order) -> str:
        await s.call(Stock.reserve(order.id, 1), undo=Stock.release)
        return 5  # type: ignore[return-value]

    async def wrong_behind(s: Saga, order: Order) -> str:
        await s.call(Bank.charge(order.id), pivot=True)
        return 5  # type: ignore[return-value]

    why = "its result: Expected `str`, got `int`"

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        ended, reason, _ = await played(runtime, SagaDefinition(wrong, "wrong"), others)
        assert isinstance(ended, SagaUndone)
        assert why in reason
        assert +others.live == {}

    async def behind(runtime: SimRuntime) -> None:
        others = Participants()
        ended, reason, _ = await played(runtime, SagaDefinition(wrong_behind, "wrong"), others)
        assert isinstance(ended, Stuck)
        assert why in reason
        assert +others.live == {"bank.charge": 1}

    for story in (main, behind):
        caplog.clear()
        run(story)
        assert [each for each in caplog.messages if why in each] == [
            f"saga wrong, run 'A-1': {why}"
        ]


async def _nokey(order_id: str) -> int:
    return 1


async def _nothing() -> int:
    return 1


async def _number(number: int) -> int:
    return 1


async def _pay(key: str, cents: int) -> int:
    return 1


async def _pays_by_name(key: str, *, cents: int) -> int:
    return 1


async def _may(key: str, cents: int = 1, *more: int) -> int:
    return 1


async def _undo_short(key: str) -> None: ...


async def _undo_long(key: str, done: int | Unknown, more: int) -> None: ...


async def _undo_keyless(done: int | Unknown) -> None: ...


async def _undo(key: str, done: int | Unknown) -> None: ...


@pytest.mark.parametrize(
    ("fn", "args", "options", "why"),
    [
        (_nokey, ("A",), {}, "_nokey takes no key; its first parameter is the key"),
        (_nothing, (), {}, "_nothing takes no key"),
        (_number, (), {}, "_number takes no key"),
        (_pay, (), {}, "_pay misses its argument 'cents'"),
        (_pay, (1, 2), {}, "_pay takes 2 arguments: s.step gives it the key and 2 further"),
        (_pays_by_name, (), {}, "its argument 'cents' can be given by name alone"),
        (_pay, (1,), {"undo": _undo_short}, "_undo_short takes 1 argument: its undo= gives it"),
        (_pay, (1,), {"undo": _undo_long}, "_undo_long misses its argument 'more'"),
        (_pay, (1,), {"undo": _undo_keyless}, "_undo_keyless takes no key"),
        (_pay, (), {"cents": 3}, "s.step was given cents= by name"),
    ],
)
def test_a_function_that_cannot_be_called_so_is_refused(
    fn: Any, args: tuple[object, ...], options: dict[str, Any], why: str
) -> None:
    """Where the step is described: before the effect, and long before the undo is needed."""
    saga = Saga("A-1", "t" * 32)
    with pytest.raises(SynchromeshError) as refused:
        saga.step(fn, *args, **options)
    assert why in refused.value.message
    assert not saga.unawaited


def test_a_function_with_defaults_is_taken() -> None:
    """Only what cannot be called is refused."""
    saga = Saga("A-1", "t" * 32)
    saga.step(_may)
    saga.step(_may, 1, 2, 3, undo=_undo)
    saga.step(_pay, 1, undo=_undo)


async def _unit(tx: Any, order: str) -> int:
    return 1


async def _undo_unit_short(tx: Any) -> None: ...


def test_a_unit_that_cannot_be_called_so_is_refused() -> None:
    """As a function is."""
    saga = Saga("A-1", "t" * 32)
    unit: Any = _unit
    short: Any = _undo_unit_short
    for options, why in (
        ({"args": ()}, "_unit misses its argument 'order'"),
        ({"args": ("A",), "undo": short}, "_undo_unit_short takes 1 argument"),
    ):
        args: Any = options.pop("args")
        with pytest.raises(SynchromeshError, match=why):
            saga.write(unit, *args, **options)
    with pytest.raises(SynchromeshError, match=r"s\.write was given order= by name"):
        saga.write(unit, order="A")  # type: ignore[arg-type]
    saga.write(unit, "A")


def test_each_needs_to_know_how_many_at_once() -> None:
    """`cap` has no default: how much a participant bears is for the caller to say."""
    saga = Saga("A-1", "t" * 32)
    with pytest.raises(SynchromeshError, match="cap= is needed: how many at once"):
        saga.each([1], lambda item: saga.step(_pay, item))  # type: ignore[call-arg]
