"""Faults on purpose: which attempts are struck, and what a struck attempt is to its caller."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from calls_fakes import ONCE, Bank, Leaf, System, answering, play
from synchromesh.calls import (
    Caller,
    Fault,
    FaultTable,
    Policies,
)
from synchromesh.errors import (
    BadRequest,
    CallError,
    CircuitOpen,
    ConnectionLost,
    RemoteFailed,
    TimedOut,
)
from synchromesh.resilience import BreakerOptions, Policy, RetryOptions

FAILS = Fault(errors=1.0)


class Dice:
    """Chance that is told."""

    def __init__(self, *rolls: float) -> None:
        self.rolls = list(rolls)

    def random(self) -> float:
        return self.rolls.pop(0)


# -- the machine ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "a fault does nothing"),
        ({"errors": 1.01}, "fails 1.01 of all attempts; make it 0 to 1"),
        ({"errors": -0.1}, "fails -0.1 of all attempts"),
        ({"errors": float("nan")}, "fails nan of all attempts"),
        ({"latency_s": -1.0}, "-1.0 s late; make it 0 or more"),
        ({"latency_s": float("inf")}, "inf s late"),
        ({"latency_s": float("nan")}, "nan s late"),
    ],
)
def test_a_fault_has_bounds(words: dict[str, Any], said: str) -> None:
    """Shares are 0 to 1, times are finite, and one that does nothing is none."""
    with pytest.raises(BadRequest, match=said):
        Fault(**words)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(errors=1.0), "100% errors"),
        (Fault(errors=0.07), "7% errors"),
        (Fault(errors=0.001), "0.1% errors"),
        (Fault(latency_s=0.3), "0.3 s late"),
        (Fault(is_stall=True), "stall"),
        (Fault(0.5, 2.0, is_stall=True), "2 s late, 50% errors, stall"),
    ],
)
def test_a_fault_says_what_it_does(fault: Fault, said: str) -> None:
    """In words, as status, spans and errors have it."""
    assert str(fault) == said


def test_without_a_fault_nothing_is_struck() -> None:
    """Other callers and callees are spared, and chance is not asked."""
    table = FaultTable()
    assert repr(table) == "<FaultTable 0 in force, 0 struck>"
    table.put("orders:billing", FAILS, now=0.0)
    for caller, callee in (("orders", "stock"), ("fleet", "billing"), ("billing", "orders")):
        assert table.strike(caller, callee, now=0.0, rng=Dice()) is None
    assert table.struck == 0


def test_the_share_decides_by_chance() -> None:
    """A roll below the share fails; the others are sent, and are not counted."""
    table = FaultTable()
    rule = table.put("billing", Fault(errors=0.25), now=0.0)
    dice = Dice(0.0, 0.249, 0.25, 0.999)
    struck = [table.strike("orders", "billing", now=1.0, rng=dice) for _ in range(4)]
    assert [strike is not None and strike.is_error for strike in struck] == [
        True, True, False, False,
    ]  # fmt: skip
    assert (rule.struck, table.struck) == (2, 2)


def test_an_edges_own_fault_goes_first() -> None:
    """The callee's fault is for all other callers."""
    table = FaultTable()
    table.put("billing", FAILS, now=0.0)
    table.put("orders:billing", Fault(latency_s=0.3), now=0.0)
    own = table.strike("orders", "billing", now=0.0, rng=Dice())
    other = table.strike("fleet", "billing", now=0.0, rng=Dice(0.5))
    assert own is not None
    assert (own.why, own.latency_s, own.is_error) == ("0.3 s late at orders:billing", 0.3, False)
    assert other is not None
    assert (other.why, other.is_error, other.is_stall) == ("100% errors at billing", True, False)


@pytest.mark.parametrize(
    ("caller", "instance", "why"),
    [
        ("orders", "bank#2", "1 s late at orders:bank#2"),
        ("shop", "bank#2", "2 s late at bank#2"),
        ("orders", "bank#1", "3 s late at orders:bank"),
        ("shop", "bank#1", "4 s late at bank"),
        ("shop", "", "4 s late at bank"),
    ],
)
def test_an_instances_own_fault_goes_first(caller: str, instance: str, why: str) -> None:
    """Before its service's; and for each of them an edge's before its callee's."""
    table = FaultTable()
    for latency_s, target in enumerate(("orders:bank#2", "bank#2", "orders:bank", "bank"), 1):
        table.put(target, Fault(latency_s=latency_s), now=0.0)
    struck = table.strike(caller, "bank", now=0.0, rng=Dice(), instance=instance)
    assert struck is not None
    assert struck.why == why


def test_what_does_not_fail_may_stall() -> None:
    """Errors are drawn first; what they leave hangs."""
    table = FaultTable()
    table.put("billing", Fault(errors=0.5, is_stall=True), now=0.0)
    strikes = [table.strike("a", "billing", now=0.0, rng=Dice(roll)) for roll in (0.4, 0.6)]
    assert [(s.is_error, s.is_stall) for s in strikes if s] == [(True, False), (False, True)]


def test_a_fault_ends_by_itself() -> None:
    """At its end to the moment; the table is empty from then on, whatever is asked."""
    table = FaultTable()
    table.put("billing", FAILS, now=10.0, until_s=30.0)
    assert table.strike("a", "billing", now=29.999, rng=Dice(0.0)) is not None
    assert [rule.target for rule in table.in_force(29.999)] == ["billing"]
    assert table.strike("a", "orders", now=30.0, rng=Dice()) is None
    assert table.is_empty
    assert table.in_force(30.0) == table.heal(None, now=30.0) == []
    assert table.struck == 1


def test_a_fault_is_replaced_on_its_target() -> None:
    """The newest is in force, with its own end and count."""
    table = FaultTable()
    table.put("billing", FAILS, now=0.0, until_s=5.0)
    table.strike("a", "billing", now=1.0, rng=Dice(0.0))
    rule = table.put("billing", Fault(is_stall=True), now=2.0)
    assert table.in_force(100.0) == [rule]
    assert (rule.fault, rule.until_s, rule.struck) == (Fault(is_stall=True), None, 0)


def test_healing_says_what_it_healed() -> None:
    """One target or all; what is not in force is nothing."""
    table = FaultTable()
    for target in ("b", "a", "a:b"):
        table.put(target, FAILS, now=0.0)
    assert [rule.target for rule in table.in_force(0.0)] == ["a", "a:b", "b"]
    assert [rule.target for rule in table.heal("a", now=0.0)] == ["a"]
    assert table.heal("a", now=0.0) == []
    assert len(table.heal(None, now=0.0)) == 2
    assert repr(table) == "<FaultTable 0 in force, 0 struck>"


def test_the_table_has_a_bound() -> None:
    """One more target is refused; a replaced one and one that is over make no more."""
    table = FaultTable(rules_max=2)
    table.put("a", FAILS, now=0.0, until_s=5.0)
    table.put("b", FAILS, now=0.0)
    table.put("b", FAILS, now=1.0)
    with pytest.raises(BadRequest, match="2 faults are in force already; heal one first"):
        table.put("c", FAILS, now=4.9)
    assert [rule.target for rule in table.in_force(4.9)] == ["a", "b"]
    table.put("c", FAILS, now=5.0)


# -- the shell -----------------------------------------------------------------------------------


def broken(
    system: System, table: FaultTable, policies: Policies | None = None, caller: str = "client"
) -> Caller:
    """Return a caller that the faults of a table strike."""
    return system.caller(caller, policies or ONCE, faults=table)


async def ask(caller: Caller, timeout_s: float | None = None) -> int:
    """Call the leaf."""
    return await caller.call(Leaf.ask(1), context=caller.root(), timeout_s=timeout_s)


async def leaf(system: System) -> list[int]:
    """Serve a leaf that answers 7; return the list that grows with each call."""
    asked: list[int] = []

    async def handle(_: object) -> bytes:
        asked.append(1)
        return b"7"

    await system.serve(Leaf, {"ask": handle})
    return asked


@pytest.mark.parametrize("kind", ["inproc", "http"])
def test_an_error_is_a_failure_of_the_callee(kind: str) -> None:
    """Nothing is sent; the call fails, its span says why, and healing ends it."""

    async def main(system: System) -> None:
        asked, table = await leaf(system), FaultTable()
        caller = broken(system, table)
        table.put("leaf", FAILS, now=0.0)
        with pytest.raises(RemoteFailed, match="on purpose: 100% errors at leaf; heal it"):
            await ask(caller)
        assert asked == []
        span = system.span("call", "client")
        assert (span.status, span.attributes["fault"]) == ("remote_failed", "100% errors at leaf")
        table.heal("leaf", now=0.0)
        assert await ask(caller) == 7

    play(kind, main)


def test_errors_open_the_breaker_and_healing_lets_it_close() -> None:
    """B1 to B3 hold for faults on purpose as for any other."""

    async def main(system: System) -> None:
        asked, table = await leaf(system), FaultTable()
        breaker = BreakerOptions(minimum_calls=4, open_for_s=0.5, open_for_max_s=0.5, probes_max=1)
        caller = broken(system, table, Policies(Policy(retry=None, breaker=breaker)))
        table.put("client:leaf", FAILS, now=0.0)
        for _ in range(4):
            with pytest.raises(RemoteFailed):
                await ask(caller)
        with pytest.raises(CircuitOpen):
            await ask(caller)
        assert (caller.edges["leaf"].state.value, table.struck) == ("open", 4)
        table.heal(None, now=0.0)
        await asyncio.sleep(0.5)
        assert await ask(caller) == 7
        assert (caller.edges["leaf"].state.value, asked) == ("closed", [1])

    play("inproc", main)


def test_a_struck_attempt_is_tried_again() -> None:
    """A fault strikes attempts, not calls: retries may get through."""

    async def main(system: System) -> None:
        asked, table = await leaf(system), FaultTable()
        caller = broken(system, table, Policies(Policy(retry=RetryOptions(attempts_max=3))))
        rule = table.put("leaf", FAILS, now=0.0, until_s=asyncio.get_running_loop().time() + 1e-6)
        assert await ask(caller) == 7
        assert (asked, rule.struck) == ([1], 1)
        span = system.span("call", "client")
        assert (span.status, span.attributes["attempts"]) == ("ok", "2")
        assert span.attributes["fault"] == "100% errors at leaf"

    play("inproc", main)


@pytest.mark.parametrize(("latency_s", "timeout_s"), [(0.3, 1.0), (0.3, None)])
def test_latency_comes_before_the_call(latency_s: float, timeout_s: float | None) -> None:
    """The answer is later by just that, and is the callee's."""

    async def main(system: System) -> None:
        asked, table = await leaf(system), FaultTable()
        caller = broken(system, table)
        table.put("leaf", Fault(latency_s=latency_s), now=0.0)
        began_s = asyncio.get_running_loop().time()
        assert await ask(caller, timeout_s) == 7
        assert asyncio.get_running_loop().time() - began_s == pytest.approx(latency_s)
        assert asked == [1]

    play("inproc", main)


@pytest.mark.parametrize("fault", [Fault(is_stall=True), Fault(latency_s=60.0)])
def test_a_stall_lasts_until_the_callers_timeout(fault: Fault) -> None:
    """Nothing is sent, the caller is released in time, and its breaker counts it."""

    async def main(system: System) -> None:
        asked, table = await leaf(system), FaultTable()
        caller = broken(system, table, Policies(Policy(retry=None, timeout_s=0.2)))
        table.put("leaf", fault, now=0.0)
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(TimedOut):
            await ask(caller)
        assert asyncio.get_running_loop().time() - began_s == pytest.approx(0.2)
        assert (asked, caller.edges["leaf"].failures) == ([], 1)

    play("inproc", main)


def test_a_stall_of_a_caller_without_a_timeout_ends() -> None:
    """After five minutes, with an outcome that is unknown."""

    async def main(system: System) -> None:
        table = FaultTable()
        await leaf(system)
        caller = broken(system, table, Policies(Policy(retry=None, timeout_s=None)))
        table.put("leaf", Fault(is_stall=True), now=0.0)
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(ConnectionLost, match="on purpose: stall at leaf"):
            await ask(caller)
        assert asyncio.get_running_loop().time() - began_s == pytest.approx(300.0)

    play("inproc", main)


def test_a_service_that_is_not_ours_can_be_broken() -> None:
    """The fault is at our side of the edge: the stranger hears nothing of it."""

    async def main(system: System) -> None:
        await system.serve(Bank, {"charge": answering("paid")}, is_external=True)
        table = FaultTable()
        caller = broken(system, table, caller="billing")
        table.put("billing:bank", FAILS, now=0.0)
        with pytest.raises(CallError) as caught:
            await caller.call(Bank.charge(1), context=caller.root())
        assert type(caught.value) is RemoteFailed
        table.heal("billing:bank", now=0.0)
        assert await caller.call(Bank.charge(1), context=caller.root()) == "paid"

    play("http", main)
