"""Versions of events: every released one is read by the newest code, and old code meets new ones
with an error that says so (E7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from store_fakes import HandRuntime, open_store
from synchromesh.errors import ContractError, EventTooNew
from synchromesh.events import (
    SCHEMA,
    Decider,
    Decision,
    EventTypes,
    append,
    decide,
    load,
    read_event,
)
from synchromesh.store import SqliteStore, Unit


class SoldV1(msgspec.Struct, frozen=True):
    """The first release."""

    event_name: ClassVar[str] = "sold"
    sku: str


class SoldV2(msgspec.Struct, frozen=True):
    """The second one: a field with a default, which the first one may pass over."""

    event_name: ClassVar[str] = "sold"
    event_version: ClassVar[int] = 2
    event_readable_by: ClassVar[int] = 1
    event_upcasters: ClassVar = {1: lambda sold: sold}
    sku: str
    qty: int = 1


def in_cents(sold: dict[str, Any]) -> dict[str, Any]:
    """From v2 on: a price for each."""
    return {**sold, "price": {"cents": 0, "currency": "EUR"}}


class Price(msgspec.Struct, frozen=True):
    cents: int
    currency: str


class Sold(msgspec.Struct, frozen=True):
    """Today's: `sku` is `article`, and there is a price; no older code may read it."""

    event_version: ClassVar[int] = 4
    event_upcasters: ClassVar = {
        1: lambda sold: {"qty": 1, **sold},
        2: in_cents,
        3: lambda sold: {"article": sold.pop("sku"), **sold},
    }
    article: str
    qty: int
    price: Price


FREE = Price(0, "EUR")
# A line for every version that was ever released, as it stands in databases.
RELEASED = [
    (1, b'{"sku":"SX90"}', Sold("SX90", 1, FREE)),
    (2, b'{"qty":3,"sku":"SX90"}', Sold("SX90", 3, FREE)),
    (
        3,
        b'{"price":{"cents":5,"currency":"CHF"},"qty":3,"sku":"SX90"}',
        Sold("SX90", 3, Price(5, "CHF")),
    ),
    (
        4,
        b'{"article":"SX90","price":{"cents":5,"currency":"CHF"},"qty":3}',
        Sold("SX90", 3, Price(5, "CHF")),
    ),
]


@pytest.mark.parametrize(("version", "body", "expected"), RELEASED)
def test_every_released_version_is_read_as_todays(
    version: int, body: bytes, expected: Sold
) -> None:
    """By the chain of functions from its version on (E7)."""
    assert read_event(Sold, version, body) == expected


def test_the_table_has_every_version() -> None:
    """A new release adds a line, and takes none away."""
    assert [version for version, _, _ in RELEASED] == list(range(1, Sold.event_version + 1))


def total(state: int, event: Any) -> int:
    return state + getattr(event, "qty", 1)


def selling(cls: type, made: object) -> Decider[int, int, int]:
    """Return one release's decider of sales."""
    return Decider("sales", 0, lambda _, n: Decision(n, (made,)), total, events=(cls,))


@pytest.mark.anyio
async def test_releases_follow_and_go_back_over_one_log(tmp_path: Path) -> None:
    """New code reads old events; old code reads those that it may, and loses none of the others."""
    store = await open_store(tmp_path, HandRuntime(), SCHEMA)
    first = (selling(SoldV1, SoldV1("a")), EventTypes("shop", SoldV1))
    second = (selling(SoldV2, SoldV2("a", 5)), EventTypes("shop", SoldV2))
    today = (selling(Sold, Sold("a", 7, FREE)), EventTypes("shop", Sold))
    assert await sell(store, *first) == 0
    assert await sell(store, *second) == 1
    assert await sell(store, *first) == 2  # a v2 event counts as one of v1: it may be passed over
    assert await sell(store, *today) == 1 + 5 + 1
    for older in (first, second):
        with pytest.raises(EventTooNew, match=r"position 4 holds 'shop\.sold' version 4: .*"):
            await sell(store, *older)
    assert await sell(store, *today) == 1 + 5 + 1 + 7
    stored = await load(store, "sales/a")
    assert [each.type_version for each in stored] == [1, 2, 1, 4, 4]
    assert [each.readable_by_min for each in stored] == [1, 1, 1, 4, 4]
    await store.close()


async def sell(store: SqliteStore, decider: Decider[int, int, int], types: EventTypes) -> int:
    """Decide once, and return the state before."""
    return await store.write(lambda unit: decide(unit, decider, types, "a", 1), name="sell")


@pytest.mark.anyio
async def test_a_change_of_an_upcaster_is_another_state(tmp_path: Path) -> None:
    """Snapshots that were folded through the one before are not used (E6)."""
    store = await open_store(tmp_path, HandRuntime(), SCHEMA)
    old = EventTypes("shop", SoldV1)
    events = [old.encode(SoldV1("a"))] * 150

    async def fill(unit: Unit) -> None:
        await append(unit, "sales/a", events, expected=0)

    await store.write(fill, name="fill")

    def release(upcaster: Any) -> type:
        class Changed(msgspec.Struct, frozen=True):
            event_name: ClassVar[str] = "sold"
            event_version: ClassVar[int] = 2
            event_upcasters: ClassVar = {1: upcaster}
            sku: str
            qty: int

        return Changed

    for upcaster, expected in (
        (lambda sold: {**sold, "qty": 1}, 150),
        (lambda sold: {**sold, "qty": 2}, 300),
    ):
        cls = release(upcaster)
        decider: Decider[int, int, int] = Decider(
            "sales", 0, lambda _, n: Decision(n), total, events=(cls,)
        )
        assert await sell(store, decider, EventTypes("shop", cls)) == expected
    await store.close()


def fails(_: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("qty")


@pytest.mark.parametrize(
    ("upcasters", "body", "words"),
    [
        ({1: fails}, b'{"sku":"a"}', "Changed from version 1 failed: KeyError: 'qty'"),
        ({1: lambda sold: {}}, b'{"sku":"a"}', "does not fit .*Changed: .*missing required field"),
        ({1: lambda sold: sold}, b"{", "does not fit .*Changed"),
        ({}, b'{"sku":"a"}', "has no upcaster from 1; add it to event_upcasters"),
    ],
)
def test_an_old_event_that_cannot_be_read_says_why(
    upcasters: dict[int, Any], body: bytes, words: str
) -> None:
    """The class, the version and what to do."""

    class Changed(msgspec.Struct, frozen=True):
        event_version: ClassVar[int] = 2
        event_upcasters: ClassVar = upcasters
        sku: str

    with pytest.raises(ContractError, match=words):
        read_event(Changed, 1, body)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"event_version": 0}, "must be 1, 2, 3"),
        ({"event_version": "2"}, "must be 1, 2, 3"),
        ({"event_version": 2, "event_readable_by": 3}, "from 1 to its event_version, 2"),
        ({"event_version": 2, "event_readable_by": 0}, "from 1 to its event_version, 2"),
        ({"event_version": 3, "event_upcasters": {1: fails}}, "the last one is from 2"),
        ({"event_version": 3, "event_upcasters": {1: fails, 3: fails}}, "without a gap"),
        ({"event_upcasters": {1: fails}}, r"lead without a gap to its event_version, 1"),
    ],
)
def test_a_class_that_contradicts_itself_is_refused(attributes: dict[str, Any], words: str) -> None:
    """When it is registered, before anything is read."""
    with pytest.raises(ContractError, match=words):
        EventTypes("shop", type("Odd", (), attributes))


def test_old_versions_may_be_given_up() -> None:
    """Once no event of theirs is left, their upcasters can go."""

    class Kept(msgspec.Struct, frozen=True):
        event_version: ClassVar[int] = 4
        event_upcasters: ClassVar = {3: lambda kept: kept}
        sku: str

    assert read_event(Kept, 3, b'{"sku":"a"}') == Kept("a")
