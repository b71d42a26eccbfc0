"""Deciders, scenarios and event types: an account that never goes below zero."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, assert_type

import msgspec
import pytest

from store_fakes import HandRuntime, open_store
from synchromesh.errors import ContractError, Rejection
from synchromesh.events import (
    SCHEMA,
    Decider,
    Decision,
    EventTypes,
    StoredEvent,
    decide,
    given,
    load,
    snake_case,
)
from synchromesh.store import Unit


@dataclass(frozen=True)
class Paid:
    cents: int


class Drawn(msgspec.Struct, frozen=True):
    cents: int


@dataclass(frozen=True)
class Receipt:
    balance: int


class Overdrawn(Rejection, code="overdrawn"):
    """Tells that the account holds less."""


def on_command(cents: int, balance: int) -> Decision[Receipt]:
    if cents == 0:
        return Decision(Receipt(balance))
    if cents > 0:
        return Decision(Receipt(balance + cents), (Paid(cents),))
    if balance + cents < 0:
        raise Overdrawn("too little", balance=balance)
    return Decision(Receipt(balance + cents), (Drawn(-cents),))


def on_event(balance: int, event: Paid | Drawn) -> int:
    return balance + event.cents if isinstance(event, Paid) else balance - event.cents


ACCOUNT = Decider("account", initial=0, decide=on_command, evolve=on_event, events=(Paid, Drawn))
TYPES = EventTypes("bank", Paid, Drawn)


def test_a_scenario_reads_as_the_specification() -> None:
    """Given, when, then; the result and the rejection's details can be expected too."""
    given(ACCOUNT).when(5).then(Paid(5)).returns(Receipt(5))
    given(ACCOUNT, Paid(5), Drawn(2)).when(-3).returns(Receipt(0)).then(Drawn(3))
    given(ACCOUNT, Paid(5)).when(0).then().returns(Receipt(5))
    given(ACCOUNT, Paid(5)).when(-6).rejects(Overdrawn).rejects(Rejection, balance=5)


def test_a_scenario_that_does_not_hold_says_what_happened() -> None:
    """Each expectation fails with both sides in its message."""
    paid = given(ACCOUNT).when(5)
    with pytest.raises(AssertionError, match=r"made Paid\(cents=5\), expected no event"):
        paid.then()
    with pytest.raises(AssertionError, match=r"returned Receipt\(balance=5\), expected"):
        paid.returns(Receipt(6))
    with pytest.raises(AssertionError, match="expected the rejection Overdrawn"):
        paid.rejects(Overdrawn)
    refused = given(ACCOUNT).when(-1)
    with pytest.raises(AssertionError, match="was rejected"):
        refused.then(Drawn(1))
    with pytest.raises(AssertionError, match=r"expected \{'balance': 7\}"):
        refused.rejects(Overdrawn, balance=7)


def test_an_event_that_a_decider_does_not_list_is_refused() -> None:
    """`events=` is complete, in scenarios as in units."""
    loose = Decider("loose", initial=0, decide=on_command, evolve=on_event, events=(Paid,))
    with pytest.raises(ContractError, match="made a Drawn"):
        given(loose, Paid(5)).when(-1)


@pytest.mark.anyio
async def test_a_decider_runs_against_its_stream(tmp_path: Path) -> None:
    """Each command sees the events before it, and the result has its type."""
    store = await open_store(tmp_path, HandRuntime(), SCHEMA)

    def command(cents: int) -> object:
        async def body(unit: Unit) -> Receipt:
            receipt = await decide(unit, ACCOUNT, TYPES, "7", cents, trace_id="t-1")
            assert_type(receipt, Receipt)
            return receipt

        return store.write(body, name="command")

    assert await command(5) == Receipt(5)  # type: ignore[misc]
    assert await command(-2) == Receipt(3)  # type: ignore[misc]
    assert await command(0) == Receipt(3)  # type: ignore[misc]
    with pytest.raises(Overdrawn):
        await command(-4)  # type: ignore[misc]
    stored = await load(store, "account/7")
    assert [TYPES.decode(each) for each in stored] == [Paid(5), Drawn(2)]
    assert [each.name for each in stored] == ["bank.paid", "bank.drawn"]
    assert {each.trace_id for each in stored} == {"t-1"}
    await store.close()


def stored(name: str, body: bytes = b'{"cents":1}', type_version: int = 1) -> StoredEvent:
    return StoredEvent(4, "id", "account/7", 1, name, type_version, body, False, "", "", 0, 2)


def test_events_are_stored_under_names_that_outlive_their_classes() -> None:
    """Service and words in lower case, and the version of the type."""

    class Paid2(msgspec.Struct):
        event_version: ClassVar[int] = 3
        cents: int

    types = EventTypes("bank")
    assert types.add(Paid2) is types.add(Paid2) is Paid2
    assert types.name_of(Paid2) == "bank.paid2"
    new = types.encode(Paid2(1), is_public=True, partition_key="k", trace_id="t")
    assert (new.name, new.type_version, new.body) == ("bank.paid2", 3, b'{"cents":1}')
    assert (new.is_public, new.partition_key, new.trace_id) == (True, "k", "t")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("StockReserved", "stock_reserved"),
        ("HTTPCallFailed", "http_call_failed"),
        ("OrderV2Placed", "order_v2_placed"),
        ("A", "a"),
        ("lower", "lower"),
    ],
)
def test_class_names_become_words(name: str, expected: str) -> None:
    """Capitals begin words; a run of them is one word."""
    assert snake_case(name) == expected


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (stored("bank.payd"), "did you mean 'bank.paid'"),
        (stored("zzz"), r"no class here; the classes known are those of \['bank.drawn'"),
        (
            stored("bank.paid", type_version=2),
            r"Paid is version 1 here, and version 2 .*: run the release",
        ),
        (stored("bank.paid", type_version=0), "has no upcaster from 0"),
        (stored("bank.paid", b'{"cents":"x"}'), r"does not fit Paid.*\$\.cents"),
    ],
)
def test_an_event_that_cannot_be_read_says_why(event: StoredEvent, words: str) -> None:
    """The position, the name, what is known and what to do."""
    with pytest.raises(ContractError, match=words) as caught:
        TYPES.decode(event)
    assert "position 4" in caught.value.message


def test_classes_that_cannot_be_told_apart_are_refused() -> None:
    """One stored name is one class, and versions begin at 1."""
    other = type("Paid", (), {})
    with pytest.raises(ContractError, match=r"both stored as 'bank\.paid'"):
        EventTypes("bank", Paid, other)
    with pytest.raises(ContractError, match="must be 1, 2, 3"):
        EventTypes("bank", type("Odd", (), {"event_version": 0}))
    with pytest.raises(ContractError, match="Receipt is not an event of 'bank'"):
        TYPES.encode(Receipt(1))
