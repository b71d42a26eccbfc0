"""Handlers: once per key, concluded, replayed; and the whole table of undo."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from service_world import (
    Bank,
    Built,
    Declined,
    Fails,
    Gate,
    Hold,
    OutOfStock,
    Stock,
    Surprise,
    Town,
    note,
    town,
)
from synchromesh.errors import (
    ContractError,
    DownstreamFailed,
    Fenced,
    ForeignAwait,
    InProgress,
    KeyReused,
    KeyUndone,
    Rejection,
    RemoteFailed,
    SagaGone,
    Shed,
    TimedOut,
)
from synchromesh.testing import SimRuntime, run

ALL_OF_BUILD = ["take A-1", "finish A-1"]


def in_town(main: Any, *names: str, seed: int = 0) -> None:
    """Run a test in a town."""

    async def whole(runtime: SimRuntime) -> None:
        async with town(runtime, *names) as made:
            await main(made)

    run(whole, seed=seed)


# -- units -----------------------------------------------------------------------------------------


def test_a_unit_answers_once_and_is_replayed_under_its_key() -> None:
    """One effect however often it is asked, also after a restart, also all at once."""

    async def main(town: Town) -> None:
        call = Stock.reserve("A-1", "bolt", 3)
        answers = await asyncio.gather(*(town.ask(call, "k1") for _ in range(5)))
        await town.restart("stock")
        answers.append(await town.ask(call, "k1"))
        assert answers == [Hold("A-1", "bolt", 3)] * 6
        assert await town.left() == 7

    in_town(main)


def test_a_rejection_is_recorded_and_replayed_with_all_that_it_said() -> None:
    """The same no under the same key, also when there would be stock by now."""

    async def main(town: Town) -> None:
        for _ in range(2):
            with pytest.raises(OutOfStock, match="fewer than 99 bolt") as caught:
                await town.ask(Stock.reserve("A-1", "bolt", 99), "k1")
            assert caught.value.details == {"sku": "bolt"}
            await town.up["stock"].store.write(
                lambda unit: unit.execute("update level set qty = 500"), name="refill"
            )
        assert await town.record("k1") == "rejection"
        assert (await town.ask(Stock.reserve("A-1", "bolt", 99), "k2")).qty == 99

    in_town(main)


def test_a_key_belongs_to_one_input() -> None:
    """Another input, or another operation, under a used key is refused without an effect."""

    async def main(town: Town) -> None:
        await town.ask(Stock.reserve("A-1", "bolt", 1), "k1")
        for other in (Stock.reserve("A-1", "bolt", 2), Stock.build("A-1", "bolt", 1)):
            with pytest.raises(KeyReused, match="new key"):
                await town.ask(other, "k1")
        await town.ask(Stock.build("A-2", "nut", 1), "k2")
        with pytest.raises(KeyReused):
            await town.ask(Stock.build("A-2", "nut", 2), "k2")
        assert await town.left() == 9

    in_town(main)


def test_keys_of_two_callers_do_not_meet() -> None:
    """A key is the caller's own."""

    async def main(town: Town) -> None:
        await town.ask(Stock.reserve("A-1", "bolt", 1), "k1")
        other = town.deps.caller("somebody")
        await other.call(Stock.reserve("A-2", "bolt", 2), context=other.root(key="k1"))
        assert await town.left() == 7

    in_town(main)


@pytest.mark.parametrize(
    ("error", "heard"),
    [
        (lambda: Surprise("not declared"), RemoteFailed),
        (lambda: Declined("of another operation"), RemoteFailed),
        (lambda: OutOfStock("with a file", file=object()), RemoteFailed),
        (lambda: ValueError("a secret"), RemoteFailed),
        (lambda: Shed("asked to shed"), Shed),
    ],
)
def test_what_the_contract_does_not_declare_is_a_bug_and_is_not_recorded(
    error: Any, heard: type[Exception]
) -> None:
    """Nothing of the unit is written, nothing is told, and the key may be used again."""

    async def main(town: Town) -> None:
        town.hooks.at["reserve"] = Fails(error)
        with pytest.raises(heard) as caught:
            await town.ask(Stock.reserve("A-1", "bolt", 1), "k1")
        assert "secret" not in str(caught.value)
        assert await town.record("k1") is None
        assert (await town.ask(Stock.reserve("A-1", "bolt", 1), "k1")).qty == 1

    in_town(main)


def test_a_unit_that_answers_the_wrong_thing_is_rolled_back() -> None:
    """What does not fit the contract never leaves the service, and never commits."""

    async def main(town: Town) -> None:
        async def wrong(tx: Any, order_id: str, sku: str, qty: int) -> Any:
            await note(tx, "wrong")
            return answers.pop()

        answers: list[Any] = [{"id": 7}, object()]
        handled = town.services["stock"].operations["reserve"]
        town.services["stock"].operations["reserve"] = replace(handled, function=wrong)
        for _ in range(2):
            with pytest.raises(RemoteFailed):
                await town.ask(Stock.reserve("A-1", "bolt", 1), "k1")
        assert await town.notes() == []

    in_town(main)


def test_a_unit_may_await_nothing_but_its_transaction() -> None:
    """A call, a sleep or another unit inside it is refused, and nothing is written (I2)."""

    async def main(town: Town) -> None:
        stock = town.up["stock"]

        async def sleep(_: Any) -> None:
            await asyncio.sleep(1.0)

        async def call(_: Any) -> None:
            await stock.caller.call(Bank.charge("A-1", 1), context=stock.caller.root())

        async def write(tx: Any) -> None:
            await stock.store.write(lambda unit: unit.execute("delete from level"), name="within")

        async def read(tx: Any) -> None:
            await stock.store.read("select 1")

        for forbidden in (sleep, call, write, read):
            town.hooks.at["reserve"] = forbidden
            with pytest.raises(ForeignAwait):
                await town.ask(Stock.reserve("A-1", "bolt", 1), "k1")
        del town.hooks.at["reserve"]
        assert await town.left() == 10
        assert await town.notes("bank") == []

    in_town(main)


def test_a_caller_without_a_key_gets_one_effect_a_call() -> None:
    """Two calls without a key are two."""

    async def main(town: Town) -> None:
        from service_world import SIGNER
        from synchromesh.calls.wire import Request
        from synchromesh.context import CallContext

        call = Stock.reserve("A-1", "bolt", 1)
        context = CallContext(trace_id="1" * 32, span_id="2" * 16)
        token = SIGNER.token("client", audience="stock", now_us=town.runtime.wall_us())
        for _ in range(2):
            request = Request(call.operation, call.arguments, context, token)
            assert (await town.request("stock", request)).status == 200
        assert await town.left() == 8

    in_town(main)


# -- queries ---------------------------------------------------------------------------------------


def test_a_query_reads_and_may_do_nothing_else() -> None:
    """Writing, starting a saga and calling a command are refused; other queries may be called."""

    async def main(town: Town) -> None:
        assert await town.ask(Stock.level("bolt")) == 10
        tried: list[str] = []

        async def misbehave(ctx: Any) -> None:
            del town.hooks.at["level"]
            assert ctx.key == ""
            assert await ctx.call(Stock.level("nut")) == 10
            pay = town.services["stock"].sagas["pay"]
            for name, effect in (
                ("write", lambda: ctx.write(note, "x")),
                ("call", lambda: ctx.call(Bank.charge("A-1", 1))),
                ("saga", lambda: pay.start(ctx, 1, id="s1")),
            ):
                with pytest.raises(ContractError, match="in a query"):
                    await effect()
                tried.append(name)

        town.hooks.at["level"] = misbehave
        assert await town.ask(Stock.level("bolt")) == 10
        assert tried == ["write", "call", "saga"]
        assert await town.notes() == await town.notes("bank") == []
        assert await town.up["stock"].store.read("select count(*) from sm_inbox") == [(0,)]

    in_town(main)


def test_a_query_is_run_each_time_and_its_undeclared_rejection_is_a_bug() -> None:
    """Nothing is recorded under a query."""

    async def main(town: Town) -> None:
        await town.ask(Stock.level("bolt"), "k1")
        await town.ask(Stock.reserve("A-1", "bolt", 4), "k2")
        assert await town.ask(Stock.level("bolt"), "k1") == 6
        town.hooks.at["level"] = Fails(lambda: OutOfStock("undeclared here"))
        with pytest.raises(RemoteFailed):
            await town.ask(Stock.level("bolt"))

    in_town(main)


# -- handlers of several units ---------------------------------------------------------------------


def test_the_key_of_a_nested_command_is_no_key_of_a_saga_step() -> None:
    """Callers choose both an id and a key: neither may take the effect of the other for its own."""

    async def main(town: Town) -> None:
        # Both charge for "saga": the same arguments, under every pair of id and key.
        for id, key in (("client/k1", "k1"), ("k1", "k1"), ("k2@client", "k2")):  # noqa: A001
            before = len(await town.notes("bank"))
            await town.ask(Stock.build("saga", "bolt", 5), key)
            await town.ask(Stock.order(id, 5), f"order {id}")
            charged = 1 if id == "k1" else 2  # "k1" has been built already
            assert len(await town.notes("bank")) == before + charged

    in_town(main, "stock", "bank")


def test_a_start_of_a_saga_that_was_given_up_is_in_doubt() -> None:
    """Its commit may yet stand: its handler cannot say that nothing was done."""

    async def main(town: Town) -> None:
        stock, tried = town.up["stock"], []

        async def never(*_: object, **__: object) -> None:
            await asyncio.get_running_loop().create_future()

        async def give_up(ctx: Any) -> None:
            pay = town.services["stock"].sagas["pay"]
            with patch.object(stock.store, "write", never):
                starting = asyncio.ensure_future(pay.start(ctx, 1, id="s1"))
                await asyncio.sleep(0.1)
                await stock.engine.close()
            with pytest.raises(SagaGone):
                await starting
            tried.append("s1")
            raise Shed("meanwhile too many wait")

        town.hooks.at["build begins"] = give_up
        with pytest.raises(DownstreamFailed):
            await town.ask(Stock.build("A-1", "bolt", 1), "k1")
        assert tried == ["s1"]

    in_town(main, "stock")


def test_the_longest_key_leaves_room_for_those_of_nested_commands() -> None:
    """A key that is taken can be finished, and is told apart from others of its beginning."""

    async def main(town: Town) -> None:
        for last in "ab":
            key = "k" * 511 + last
            for _ in range(2):
                await town.ask(Stock.build(f"A-{last}", "bolt", 5), key)
        assert await town.notes("bank") == ["charge A-a", "charge A-b"]

    in_town(main, "stock", "bank")


def test_a_handler_has_nested_keys_and_each_effect_once() -> None:
    """Its units are recorded under its key, its commands sent under theirs (D3)."""

    async def main(town: Town) -> None:
        built = await town.ask(Stock.build("A-1", "bolt", 100), "k1")
        assert built == Built("A-1", "receipt A-1")
        rows = await town.up["stock"].store.read("select key, kind from sm_inbox order by key")
        assert rows == [
            ("k1", "answer"),
            ("k1/finish#1", "answer"),
            ("k1/take_one#1", "answer"),
        ]
        rows = await town.up["bank"].store.read("select caller, key from sm_inbox")
        assert rows == [("stock", "k1/bank.charge#1@client")]
        assert await town.ask(Stock.build("A-1", "bolt", 100), "k1") == built
        assert town.hooks.reached["build begins"] == 1
        assert await town.notes() == ALL_OF_BUILD

    in_town(main)


def test_commands_of_two_callers_under_one_key_do_not_meet_further_down() -> None:
    """What is nested is told apart by whose key it is nested in."""

    async def main(town: Town) -> None:
        await town.ask(Stock.build("A-1", "bolt", 1), "k1")
        other = town.deps.caller("somebody")
        context = other.root(key="k1")
        built = await other.call(Stock.build("A-2", "bolt", 2), context=context)
        assert built.receipt == "receipt A-2"
        assert await town.notes("bank") == ["charge A-1", "charge A-2"]

    in_town(main)


def test_a_key_that_has_begun_belongs_to_its_input_too() -> None:
    """Another input after a crash is refused before it has any effect."""

    async def main(town: Town) -> None:
        town.hooks.at["build has taken"] = Fails(ValueError)
        with pytest.raises(RemoteFailed):
            await town.ask(Stock.build("A-1", "bolt", 1), "k1")
        await town.restart("stock")
        with pytest.raises(KeyReused):
            await town.ask(Stock.build("A-2", "bolt", 1), "k1")
        assert town.hooks.reached["build begins"] == 1
        assert await town.notes() == ["take A-1"]

    in_town(main)


def test_a_run_that_another_one_has_concluded_meanwhile_has_no_effect_of_its_own() -> None:
    """A conclusion that was under way when its caller gave up may commit during the next run.

    What that run still wanted to write is refused, and the recorded answer returned.
    """
    fenced: list[str] = []

    async def main(town: Town) -> None:
        moment: list[tuple[asyncio.Task[Any], float]] = []

        async def extra(ctx: Any) -> None:
            if town.hooks.at.pop("second run", None) is not None:
                await asyncio.sleep(0.004)
                try:
                    await ctx.write(note, f"extra {ctx.key}")
                except Fenced:
                    fenced.append(ctx.key)
                    raise

        async def give_up(_: Any) -> None:
            asking, after_s = moment[-1]
            asyncio.get_running_loop().call_later(after_s, asking.cancel)

        for n in range(40):
            town.hooks.at |= {"build begins": extra, "build ends": give_up}
            call, key = Stock.build(f"A-{n}", "bolt" if n % 4 == 0 else "nut", 1), f"k{n}"
            asking = asyncio.get_running_loop().create_task(town.ask(call, key))
            moment.append((asking, n * 0.00005))
            await asyncio.gather(asking, return_exceptions=True)
            town.hooks.at |= {"second run": give_up}
            del town.hooks.at["build ends"]
            assert await town.ask(call, key) == Built(f"A-{n}", f"receipt A-{n}")
            town.hooks.at.pop("second run", None)
            await town.up["stock"].store.write(
                lambda unit: unit.execute("update level set qty = 10"), name="refill"
            )
        notes = await town.notes()
        assert not {f"extra {key}" for key in fenced} & set(notes)

    in_town(main, "stock", "bank")
    assert len(fenced) >= 3


def test_a_handler_that_was_fenced_for_another_reason_says_so() -> None:
    """Where nothing is concluded under the key, the error is the store's own."""

    async def main(town: Town) -> None:
        town.hooks.at["build has taken"] = Fails(lambda: Fenced("another owner has taken over"))
        with pytest.raises(Fenced):
            await town.ask(Stock.build("A-1", "bolt", 1), "k1")
        assert await town.record("k1") == "begun"

    in_town(main)


def test_a_record_that_goes_while_it_is_asked_for_is_asked_for_again() -> None:
    """A conclusion that is swept at that very moment is neither invented nor run again at once."""

    async def main(town: Town) -> None:
        stock = town.up["stock"]
        read = stock.store.read

        async def stale(sql: str, *values: Any) -> Any:
            if "from sm_inbox" in sql:
                return [("answer", "whatever", b"1")]
            return await read(sql, *values)

        stock.store.read = stale  # type: ignore[method-assign]
        with pytest.raises(InProgress, match="just gone"):
            await town.ask(Stock.build("A-1", "bolt", 1), "k1")
        stock.store.read = read  # type: ignore[method-assign]
        assert await town.notes() == []

    in_town(main)


class Callable:
    """A unit that is no function."""

    async def __call__(self, tx: Any, what: str) -> str:
        await note(tx, what)
        return what


def test_units_may_be_objects_and_their_annotations_must_resolve() -> None:
    """An object has no name and no annotation of a result; a broken annotation is named."""

    async def broken(tx: Any) -> Nowhere:  # type: ignore[name-defined]  # noqa: F821
        return None

    async def main(town: Town) -> None:
        async def units(ctx: Any) -> None:
            assert await ctx.write(Callable(), "said") == "said"
            with pytest.raises(ContractError, match="Nowhere"):
                await ctx.write(broken)

        town.hooks.at["build begins"] = units
        await town.ask(Stock.build("A-1", "bolt", 1), "k1")
        rows = await town.up["stock"].store.read("select key from sm_inbox where key like '%unit%'")
        assert rows == [("k1/unit#1",)]

    in_town(main)


POINTS = ("build begins", "build has taken", "build has paid", "build ends")


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, lambda: Shed("full")])
def test_a_handler_that_stops_anywhere_is_run_again_and_repeats_no_effect(
    point: str, error: Any
) -> None:
    """Asked again under its key, in a new process, it continues from what is recorded."""

    async def main(town: Town) -> None:
        town.hooks.at[point] = Fails(error)
        with pytest.raises((RemoteFailed, DownstreamFailed, Shed)) as caught:
            await town.ask(Stock.build("A-1", "bolt", 100), "k1")
        # A refusal says "certainly not run": it may be heard only while that is true.
        assert isinstance(caught.value, Shed) == (error().__class__ is Shed and point == POINTS[0])
        assert await town.record("k1") == (None if point == POINTS[0] else "begun")
        await town.restart("stock")
        assert await town.ask(Stock.build("A-1", "bolt", 100), "k1") == Built("A-1", "receipt A-1")
        assert await town.notes() == ALL_OF_BUILD
        assert await town.notes("bank") == ["charge A-1"]
        assert await town.record("k1") == "answer"

    in_town(main)


@pytest.mark.parametrize("point", POINTS)
def test_a_handler_past_its_deadline_is_cancelled_and_can_be_asked_again(point: str) -> None:
    """The caller hears that the outcome is unknown; the next one concludes it (D1)."""

    async def main(town: Town) -> None:
        town.hooks.at[point] = Gate()
        with pytest.raises(TimedOut):
            await town.ask(Stock.build("A-1", "bolt", 100), "k1", timeout_s=1.0)
        del town.hooks.at[point]
        assert await town.ask(Stock.build("A-1", "bolt", 100), "k1") == Built("A-1", "receipt A-1")
        assert await town.notes() == ALL_OF_BUILD
        assert await town.notes("bank") == ["charge A-1"]

    in_town(main)


def test_a_cancellation_at_any_moment_repeats_no_effect() -> None:
    """The caller gives up after every so many microseconds, and asks again."""
    seen = set()

    async def main(runtime: SimRuntime) -> None:
        async with town(runtime, "stock", "bank") as made:
            for n in range(60):
                call, key = Stock.build(f"A-{n}", "bolt" if n % 8 == 0 else "nut", 1), f"k{n}"
                await made.up["stock"].store.write(
                    lambda unit: unit.execute("update level set qty = 10"), name="refill"
                )
                asking = asyncio.get_running_loop().create_task(made.ask(call, key))
                await asyncio.sleep(n * 0.0002)
                asking.cancel()
                seen.add((await asyncio.gather(asking, return_exceptions=True))[0].__class__)
                assert await made.ask(call, key) == Built(f"A-{n}", f"receipt A-{n}")
            for n in range(60):
                for what, where in (("take", "stock"), ("finish", "stock"), ("charge", "bank")):
                    assert (await made.notes(where)).count(f"{what} A-{n}") == 1

    run(main)
    assert seen == {asyncio.CancelledError, Built}


def test_calls_under_one_key_share_one_run() -> None:
    """Those that come while it runs wait for it; another input is refused meanwhile."""

    async def main(town: Town) -> None:
        gate = town.hooks.at["build has paid"] = Gate()
        call = Stock.build("A-1", "bolt", 100)
        asked = [asyncio.ensure_future(town.ask(call, "k1"))]
        await gate.arrived.wait()
        asked += [asyncio.ensure_future(town.ask(call, "k1")) for _ in range(2)]
        await asyncio.sleep(0.1)  # virtual time: both have come, and wait for the first one's run
        with pytest.raises(KeyReused):
            await town.ask(Stock.build("A-1", "bolt", 101), "k1")
        asked[1].cancel()
        gate.opened.set()
        got = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(each == Built("A-1", "receipt A-1") for each in got) == 2
        assert town.hooks.reached["build begins"] == 1

    in_town(main)


def test_one_of_those_that_wait_goes_on_where_the_first_caller_gave_up() -> None:
    """The run of a caller that stopped waiting is continued, not thrown away with it."""

    async def main(town: Town) -> None:
        gate = town.hooks.at["build has taken"] = Gate()
        call = Stock.build("A-1", "bolt", 100)
        first, *others = [
            asyncio.get_running_loop().create_task(town.ask(call, "k1", timeout_s=timeout_s))
            for timeout_s in (1.0, 3.0, 3.0)
        ]
        await gate.arrived.wait()
        with pytest.raises(TimedOut):
            await first
        gate.opened.set()
        assert await asyncio.gather(*others) == [Built("A-1", "receipt A-1")] * 2
        assert await town.notes() == ALL_OF_BUILD

    in_town(main)


def test_those_that_wait_for_a_run_that_stops_are_asked_to_ask_again() -> None:
    """They hear that it is in progress, which is safe to retry under the key."""

    async def main(town: Town) -> None:
        async def fail(_: Any) -> None:
            await asyncio.sleep(0.5)
            raise ValueError("a bug")

        town.hooks.at["build has taken"] = fail
        call = Stock.build("A-1", "bolt", 100)
        got = await asyncio.gather(
            *(town.ask(call, "k1") for _ in range(3)), return_exceptions=True
        )
        assert sorted(type(each).__name__ for each in got) == [
            "InProgress", "InProgress", "RemoteFailed",
        ]  # fmt: skip

    in_town(main)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (Stock.build("A-1", "gone", 1), OutOfStock),
        (Stock.build("A-1", "bolt", 2000), Declined),
    ],
)
def test_a_rejection_inside_a_handler_is_its_rejection(call: Any, said: type[Exception]) -> None:
    """A no of its own unit or of a service it calls is recorded, and replayed after a restart."""

    async def main(town: Town) -> None:
        with pytest.raises(said):
            await town.ask(call, "k1")
        assert await town.record("k1") == "rejection"
        await town.restart("stock")
        with pytest.raises(said):
            await town.ask(call, "k1")
        assert town.hooks.reached["build begins"] == 1

    in_town(main)


def test_a_recorded_rejection_of_a_unit_is_raised_again_in_the_next_run() -> None:
    """A handler that continues after a crash meets the same no at the same place."""

    async def main(town: Town) -> None:
        seen = []

        async def refused(ctx: Any) -> None:
            try:
                await ctx.write(town_refuses, 5)
            except OutOfStock as rejection:
                seen.append((rejection.message, rejection.details))
            if len(seen) == 1:
                raise ValueError("a crash")

        town.hooks.at["build begins"] = refused
        with pytest.raises(RemoteFailed):
            await town.ask(Stock.build("A-1", "bolt", 1), "k1")
        await town.ask(Stock.build("A-1", "bolt", 1), "k1")
        assert seen == [("five", {"n": 5})] * 2

    in_town(main)


async def town_refuses(tx: Any, n: int) -> str:
    """Refuse, after having written."""
    await note(tx, "not to be seen")
    raise OutOfStock("five", n=n)


class Surfeit(Rejection, code="surprise", status=409):
    """Has the code of another class, as those of two services may."""


async def is_surfeited(tx: Any) -> None:
    raise Surfeit("too much")


def test_a_recorded_code_is_read_as_the_class_that_is_meant_here() -> None:
    """Of two classes with one code the unit's own module decides, whatever else is imported."""

    async def main(town: Town) -> None:
        seen: list[type] = []

        async def refused(ctx: Any) -> None:
            try:
                await ctx.write(is_surfeited)
            except Rejection as rejection:
                seen.append(type(rejection))
            if len(seen) == 1:
                raise ValueError("a crash")

        town.hooks.at["build begins"] = refused
        with pytest.raises(RemoteFailed):
            await town.ask(Stock.build("A-1", "bolt", 1), "k1")
        await town.ask(Stock.build("A-1", "bolt", 1), "k1")
        assert seen == [Surfeit, Surfeit]

    in_town(main)


class OnlyHere(Rejection, code="only_here", status=409):
    """Has a code of its own."""


class Refuses:
    """A unit that is an object, so that no module's names belong to it."""

    async def __call__(self, tx: Any) -> None:
        raise OnlyHere("no")


def test_a_recorded_code_is_found_wherever_its_class_is_defined() -> None:
    """The last resort is any class of this process."""

    async def main(town: Town) -> None:
        async def refused(ctx: Any) -> None:
            with pytest.raises(OnlyHere, match="no"):
                await ctx.write(Refuses())

        town.hooks.at |= {"build begins": refused, "build has taken": Fails(ValueError)}
        with pytest.raises(RemoteFailed):
            await town.ask(Stock.build("A-1", "bolt", 1), "k1")
        await town.restart("stock")
        await town.ask(Stock.build("A-1", "bolt", 1), "k1")

    in_town(main)


def test_a_declared_rejection_is_told_by_its_code() -> None:
    """Another class of the same code, as a call or a record may bring, is the declared one."""

    class Sold(Rejection, code="out_of_stock", status=409):
        """Tells the same in other words."""

    async def main(town: Town) -> None:
        town.hooks.at |= {
            "reserve": Fails(lambda: Sold("none", sku="bolt")),
            "build begins": Fails(lambda: Sold("none")),
        }
        for call, key in (
            (Stock.reserve("A-1", "bolt", 1), "k1"),
            (Stock.build("A", "b", 1), "k2"),
        ):
            with pytest.raises(OutOfStock, match="none"):
                await town.ask(call, key)
            assert await town.record(key) == "rejection"

    in_town(main)


def test_a_task_that_a_handler_left_behind_has_no_effect_after_it() -> None:
    """The command is answered and may be undone; nobody would undo what comes then (S7, D4)."""

    async def main(town: Town) -> None:
        came: list[str] = []

        async def leave(ctx: Any) -> None:
            made = ctx.call(Bank.charge("made early", 5)), ctx.write(note, "made early")

            async def behind() -> None:
                await asyncio.sleep(1.0)
                effects: Any = (
                    lambda: made[0],
                    lambda: made[1],
                    lambda: ctx.call(Bank.charge("late", 5)),
                    lambda: ctx.write(note, "late"),
                )
                for effect in effects:
                    with pytest.raises(ContractError, match="after its handler had ended") as error:
                        await effect()
                    came.append(error.value.code)

            left.append(asyncio.ensure_future(behind()))

        left: list[asyncio.Future[None]] = []
        town.hooks.at["build begins"] = leave
        await town.ask(Stock.build("A-1", "bolt", 5), "k1")
        await left[0]
        assert len(came) == 4
        assert await town.notes() == ALL_OF_BUILD
        assert await town.notes("bank") == ["charge A-1"]

    in_town(main, "stock", "bank")


def test_a_unit_that_a_handler_gave_up_may_stand_so_nothing_is_refused() -> None:
    """A handler with a timeout of its own cannot know; its caller must not hear "not run"."""

    async def main(town: Town) -> None:
        async def impatient(ctx: Any) -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await ctx.write(note, "stands")
            raise Shed("too slow for me")

        town.hooks.at["build begins"] = impatient
        with pytest.raises(DownstreamFailed):
            await town.ask(Stock.build("A-1", "bolt", 5), "k1")
        await asyncio.sleep(1.0)
        assert await town.notes() == ["stands"]

    in_town(main, "stock")


def test_a_conclusion_that_finds_no_room_is_no_rejection() -> None:
    """The effects stand, so the caller must not hear that nothing was done: a pivot would turn."""

    async def main(town: Town) -> None:
        full: list[Any] = []

        async def shed(ctx: Any) -> None:
            # One unit stays in the writer's queue, whose bound is one.
            store: Any = town.up["stock"].store
            store._writer._backlog_max = 1
            full.append(asyncio.ensure_future(store.write(_idle, name="idle")))
            while not store._writer.pending:
                await asyncio.sleep(0)

        town.hooks.at["build ends"] = shed
        with pytest.raises(DownstreamFailed, match="downstream_failed"):
            await town.ask(Stock.build("A-1", "bolt", 1), "k1")
        assert await town.notes() == ALL_OF_BUILD
        del town.hooks.at["build ends"]
        await asyncio.gather(*full)
        assert (await town.ask(Stock.build("A-1", "bolt", 1), "k1")).order_id == "A-1"
        assert await town.notes() == ALL_OF_BUILD

    in_town(main, "stock", "bank")


async def _idle(_: Any) -> None:
    """Do nothing."""


def test_a_unit_that_refused_does_not_count_as_begun() -> None:
    """What is then done elsewhere is preceded by a record, so that an undo finds it.

    A refused unit leaves no trace but its rejection; taking it for a beginning would let an undo
    after a crash leave a tombstone beside the charge.
    """

    async def main(town: Town) -> None:
        async def refused(ctx: Any) -> None:
            with pytest.raises(OutOfStock):
                await ctx.write(town_refuses, 5)
            assert await town.record("k1") is None
            await ctx.call(Bank.charge("early", 1))
            assert await town.record("k1") == "begun"

        town.hooks.at["build begins"] = refused
        await town.ask(Stock.build("A-1", "bolt", 1), "k1")

    in_town(main)


def test_calls_made_together_have_keys_in_the_order_in_which_they_were_made() -> None:
    """Whatever order they run in, a second run asks under the same keys."""

    async def main(town: Town) -> None:
        async def together(ctx: Any) -> None:
            got = await asyncio.gather(*(ctx.call(Bank.charge(f"B-{n}", n)) for n in range(6)))
            assert got == [f"receipt B-{n}" for n in range(6)]
            await asyncio.gather(*(ctx.write(note, f"note {n}") for n in range(6)))

        town.hooks.at["build begins"] = together
        town.hooks.at["build ends"] = Fails(ValueError)
        with pytest.raises(RemoteFailed):
            await town.ask(Stock.build("A-1", "bolt", 1), "k1")
        await town.ask(Stock.build("A-1", "bolt", 1), "k1")
        assert len(await town.notes("bank")) == 7
        assert len(await town.notes()) == 8

    for seed in range(5):
        in_town(main, seed=seed)


async def says_int(tx: Any) -> int:
    return "seven"  # type: ignore[return-value]


async def says_object(tx: Any) -> object:
    return object()


@pytest.mark.parametrize(
    ("misuse", "said"),
    [
        (lambda ctx: ctx.write(note, object()), "arguments of unit 'note' cannot be recorded"),
        (lambda ctx: ctx.write(says_int), "not what its annotation says"),
        (lambda ctx: ctx.write(says_object), "result of unit 'says_object' cannot be recorded"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_a_reason(misuse: Any, said: str) -> None:
    """The handler's author is told; nothing of the unit is written."""

    async def main(town: Town) -> None:
        async def misbehave(ctx: Any) -> None:
            with pytest.raises(ContractError, match=said):
                await misuse(ctx)

        town.hooks.at["build begins"] = misbehave
        await town.ask(Stock.build("A-1", "bolt", 1), "k1")
        assert await town.notes() == ALL_OF_BUILD

    in_town(main)


def test_a_context_says_for_whom_and_until_when() -> None:
    """Principal, caller, key, trace and remaining time are those of the call."""

    async def main(town: Town) -> None:
        seen: list[Any] = []

        async def look(ctx: Any) -> None:
            seen.append(
                (ctx.principal.name, ctx.caller, ctx.key, len(ctx.trace_id), ctx.remaining_s())
            )
            assert ctx.new_id() != ctx.new_id()

        async def look_inside(tx: Any) -> None:
            seen.append((tx.principal.name, tx.service, len(tx.trace_id), len(tx.unit_id)))
            assert tx.new_id() != tx.new_id()
            assert tx.now_us <= town.runtime.wall_us()
            tx.notify("anything")

        town.hooks.at |= {"build begins": look, "charge": look_inside}
        await town.ask(Stock.build("A-1", "bolt", 1), "k1", timeout_s=2.0)
        (principal, caller, key, trace, remaining_s), inside = seen
        assert (principal, caller, key, trace) == ("ada", "client", "k1", 32)
        assert 1.5 < remaining_s <= 2.0
        assert inside == ("ada", "bank", 32, 36)

    in_town(main)


# -- undo ------------------------------------------------------------------------------------------


UNDOS = [
    pytest.param(Stock.reserve("A-1", "bolt", 3), Stock.release, id="unit"),
    pytest.param(Stock.build("A-1", "bolt", 100), Stock.scrap, id="handler"),
]


@pytest.mark.parametrize(("call", "undo"), UNDOS)
def test_an_undo_before_its_call_leaves_a_tombstone(call: Any, undo: Any) -> None:
    """The late call has no effect and says why, for ever (S6, S7)."""

    async def main(town: Town) -> None:
        for _ in range(2):
            assert await town.undo(undo, "k1") == b"null"
        assert await town.record("k1") == "tombstone"
        await town.restart("stock")
        for _ in range(2):
            with pytest.raises(KeyUndone):
                await town.ask(call, "k1")
        assert await town.undo(undo, "k1") == b"null"
        assert await town.left() == 10
        assert await town.notes() == await town.notes("bank") == []

    in_town(main)


@pytest.mark.parametrize(
    ("call", "undo"),
    [
        (Stock.reserve("A-1", "bolt", 99), Stock.release),
        (Stock.build("A-1", "gone", 1), Stock.scrap),
    ],
)
def test_an_undo_of_a_rejection_does_nothing(call: Any, undo: Any) -> None:
    """There was no effect, so there is nothing to undo; the rejection stays."""

    async def main(town: Town) -> None:
        with pytest.raises(OutOfStock):
            await town.ask(call, "k1")
        assert await town.undo(undo, "k1") == b"null"
        assert await town.record("k1") == "rejection"
        assert town.hooks.reached["release"] == town.hooks.reached["scrap begins"] == 0

    in_town(main)


@pytest.mark.parametrize(("call", "undo"), UNDOS)
def test_an_undo_of_an_answer_is_given_the_answer_and_takes_effect_once(
    call: Any, undo: Any
) -> None:
    """Also when it is repeated, at once or after a restart; the late call changes nothing."""

    async def main(town: Town) -> None:
        await town.ask(call, "k1")
        await asyncio.gather(*(town.undo(undo, "k1") for _ in range(4)))
        await town.restart("stock")
        assert await town.undo(undo, "k1") == b"null"
        assert await town.left() == 10
        await town.ask(call, "k1")
        assert await town.left() == 10
        both = [*await town.notes(), *await town.notes("bank")]
        assert len(both) == len(set(both))

    in_town(main)


@pytest.mark.parametrize("point", POINTS)
def test_an_undo_during_its_call_waits_for_it_and_undoes_it(point: str) -> None:
    """It is known what there is to undo only when the call has concluded."""

    async def main(town: Town) -> None:
        gate = town.hooks.at[point] = Gate()
        asked = asyncio.get_running_loop().create_task(
            town.ask(Stock.build("A-1", "bolt", 100), "k1")
        )
        await gate.arrived.wait()
        undone = asyncio.get_running_loop().create_task(town.undo(Stock.scrap, "k1"))
        await asyncio.sleep(1.0)
        assert not undone.done()
        gate.opened.set()
        assert await asked == Built("A-1", "receipt A-1")
        assert await undone == b"null"
        assert await town.left() == 10
        assert await town.notes() == [*ALL_OF_BUILD, "give back A-1"]
        assert await town.notes("bank") == ["charge A-1", "refund receipt A-1"]

    in_town(main)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("undo_with", [Stock.scrap])
def test_an_undo_of_what_a_crash_left_begun_concludes_it_first(point: str, undo_with: Any) -> None:
    """After a restart the call is run to its end under its own key, then undone."""

    async def main(town: Town) -> None:
        town.hooks.at[point] = Fails(ValueError)
        with pytest.raises(RemoteFailed):
            await town.ask(Stock.build("A-1", "bolt", 100), "k1")
        await town.restart("stock")
        seen: list[Any] = []

        async def look(ctx: Any) -> None:
            seen.append((ctx.principal.name, ctx.key, ctx.caller))

        town.hooks.at["build begins"] = look
        assert await town.undo(undo_with, "k1") == b"null"
        assert await town.left() == 10
        if point == POINTS[0]:
            assert await town.record("k1") == "tombstone"
            assert await town.notes() == await town.notes("bank") == []
        else:
            assert seen == [("ada", "k1", "client")]
            assert await town.notes() == [*ALL_OF_BUILD, "give back A-1"]
            assert await town.notes("bank") == ["charge A-1", "refund receipt A-1"]

    in_town(main)


def test_an_undo_of_what_then_concludes_with_a_no_does_nothing_more() -> None:
    """What was begun may yet be refused; its own handler has then cleaned up."""

    async def main(town: Town) -> None:
        town.hooks.at["build has taken"] = Fails(ValueError)
        with pytest.raises(RemoteFailed):
            await town.ask(Stock.build("A-1", "bolt", 2000), "k1")
        assert await town.undo(Stock.scrap, "k1") == b"null"
        assert await town.record("k1") == "rejection"
        assert town.hooks.reached["scrap begins"] == 0

    in_town(main)


def test_an_undo_of_what_cannot_be_concluded_fails_and_is_tried_again() -> None:
    """Nothing is hidden: the undo succeeds only once the call is concluded (S5)."""

    async def main(town: Town) -> None:
        town.hooks.at["build has paid"] = Fails(ValueError, times=3)
        with pytest.raises(RemoteFailed):
            await town.ask(Stock.build("A-1", "bolt", 100), "k1")
        for _ in range(2):
            with pytest.raises(RemoteFailed):
                await town.undo(Stock.scrap, "k1")
        assert await town.undo(Stock.scrap, "k1") == b"null"
        assert await town.left() == 10

    in_town(main)


def test_an_undo_that_stops_half_way_continues_under_its_key() -> None:
    """A handler that undoes is a handler like any other: no effect twice."""

    async def main(town: Town) -> None:
        await town.ask(Stock.build("A-1", "bolt", 100), "k1")
        town.hooks.at["scrap has refunded"] = Fails(ValueError)
        with pytest.raises(RemoteFailed):
            await town.undo(Stock.scrap, "k1")
        await town.restart("stock")
        assert await town.undo(Stock.scrap, "k1") == b"null"
        assert await town.notes("bank") == ["charge A-1", "refund receipt A-1"]
        assert await town.left() == 10

    in_town(main)


def test_an_undo_that_fails_leaves_what_it_undoes_as_it_was() -> None:
    """A unit that undoes and raises is rolled back whole, and may be asked again."""

    async def main(town: Town) -> None:
        await town.ask(Stock.reserve("A-1", "bolt", 3), "k1")
        town.hooks.at["release"] = Fails(ValueError)
        with pytest.raises(RemoteFailed):
            await town.undo(Stock.release, "k1")
        assert await town.left() == 7
        await town.undo(Stock.release, "k1")
        assert await town.left() == 10

    in_town(main)


def test_an_undo_at_any_moment_of_its_call_leaves_nothing_behind() -> None:
    """The call is cut off and undone after every so many microseconds: stock and money add up."""
    ends = set()

    async def main(runtime: SimRuntime) -> None:
        async with town(runtime, "stock", "bank") as made:
            for n in range(60):
                call, key = Stock.build(f"A-{n}", "bolt", 1), f"k{n}"
                asking = asyncio.get_running_loop().create_task(made.ask(call, key))
                await asyncio.sleep(n * 0.0002)
                asking.cancel()
                while True:
                    try:
                        await made.undo(Stock.scrap, key)
                    except InProgress:
                        continue
                    break
                await asyncio.gather(asking, return_exceptions=True)
                ends.add(await made.record(key))
            await asyncio.sleep(1.0)
            assert await made.left() == 10
            bank = await made.notes("bank")
            charges = [each for each in bank if each.startswith("charge")]
            assert len(bank) == 2 * len(charges)

    for seed in range(4):
        run(main, seed=seed)
    assert ends == {"tombstone", "answer"}


def test_an_undo_right_after_a_cut_off_unit_undoes_it() -> None:
    """A unit that its caller gave up still commits; the undo that follows stands behind it."""

    async def main(runtime: SimRuntime) -> None:
        async with town(runtime, "stock", "bank") as made:
            for n in range(40):
                asking = asyncio.get_running_loop().create_task(
                    made.ask(Stock.reserve(f"A-{n}", "bolt", 1), f"k{n}")
                )
                await asyncio.sleep(n * 0.0001)
                asking.cancel()
                await made.undo(Stock.release, f"k{n}")
                await asyncio.gather(asking, return_exceptions=True)
            await asyncio.sleep(1.0)
            assert await made.left() == 10

    run(main)


def test_what_was_begun_by_an_operation_that_is_gone_is_named() -> None:
    """A release that dropped a handler says so, instead of undoing half of it."""

    async def main(town: Town) -> None:
        town.hooks.at["build has taken"] = Fails(ValueError)
        with pytest.raises(RemoteFailed):
            await town.ask(Stock.build("A-1", "bolt", 100), "k1")
        del town.services["stock"].operations["build"]
        with pytest.raises(RemoteFailed):
            await town.undo(Stock.scrap, "k1")
        assert await town.record("k1") == "begun"

    in_town(main)
