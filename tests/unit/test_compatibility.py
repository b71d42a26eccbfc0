"""Edits of a contract, each with what it means to others: the comparison, and what really happens.

Each edit is a release of one operation, or event, and the next one. Whether the next one breaks who
has the one before is looked up by sending data of one through HTTP and the codec to the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import pytest
from msgspec import Struct

from synchromesh import Contract, Rejection, command, event, query
from synchromesh.calls import PublicEvent, Reply, events_of, operations_of
from synchromesh.calls.compatibility import Difference, differences
from synchromesh.calls.contract import Operation
from synchromesh.calls.describing import describe
from synchromesh.codec import decode, encode
from synchromesh.errors import BadRequest

T = TypeVar("T")


class OutOfStock(Rejection, code="out_of_stock", status=409):
    """Tells that too few are left."""


class NoLongerConflict(Rejection, code="out_of_stock", status=422):
    """Tells the same under another status."""


class Unpaid(Rejection, code="unpaid", status=402):
    """Tells that a bill is due."""


class Order(Struct):
    sku: str
    qty: int = 1


class OrderWithNote(Struct):
    sku: str
    qty: int = 1
    note: str = ""


class OrderForCustomer(Struct):
    sku: str
    customer: str
    qty: int = 1


class OrderOfArticle(Struct):
    article: str
    qty: int = 1


class Hold(Struct):
    id: str
    left: int


class HoldAndPlace(Struct):
    id: str
    left: int
    shelf: str


class HoldAlone(Struct):
    id: str


class HoldInWords(Struct):
    id: str
    left: str


class HoldReady(Struct):
    id: str
    left: int = 0


class HoldClosed(Struct, forbid_unknown_fields=True):
    id: str
    left: int


class Tree(Struct):
    name: str
    below: list[Tree] = []


class TreeOfNumbers(Struct):
    name: int
    below: list[TreeOfNumbers] = []


class Page(Struct, Generic[T]):
    items: list[T]


class Paid(Struct, tag="paid"):
    at: str


class Open(Struct, tag="open"):
    due: str


class Lost(Struct, tag="lost"):
    why: str


@dataclass(frozen=True)
class Edit:
    """A release and the next, with data of both.

    Attributes:
        before, after: functions that declare the operation of each.
        args: of calls by the release before.
        results: of the release after.
        broken: the places at which callers of the release before are broken; () for none.
    """

    name: str
    before: Callable[..., Any]
    after: Callable[..., Any]
    args: list[tuple[Any, ...]]
    results: list[Any]
    broken: tuple[str, ...] = ()
    routes: tuple[str, str] = ("POST /orders", "POST /orders")


class Ops(Protocol):
    """The operations of all releases."""

    async def place(self, order: Order) -> Hold: ...
    async def place_with_note(self, order: OrderWithNote) -> Hold: ...
    async def place_for_customer(self, order: OrderForCustomer) -> Hold: ...
    async def place_article(self, order: OrderOfArticle) -> Hold: ...
    async def place_renamed(self, request: Order) -> Hold: ...
    async def place_urgent(self, order: Order, urgent: bool = False) -> Hold: ...
    async def place_spread(self, sku: str, qty: int = 1) -> Hold: ...
    async def and_place(self, order: Order) -> HoldAndPlace: ...
    async def alone(self, order: Order) -> HoldAlone: ...
    async def in_words(self, order: Order) -> HoldInWords: ...
    async def ready(self, order: Order) -> HoldReady: ...
    async def closed(self, order: Order) -> HoldClosed: ...
    async def maybe(self, order: Order) -> Hold | None: ...
    async def find(self, sku: str, limit: int = 10) -> list[str]: ...
    async def find_all(self, sku: str) -> list[str]: ...
    async def find_in(self, sku: str, shelf: str) -> list[str]: ...
    async def find_perhaps_in(self, sku: str, shelf: str | None = None) -> list[str]: ...
    async def find_from(self, sku: str, limit: int = 10, start: int = 0) -> list[str]: ...
    async def find_article(self, article: str, limit: int = 10) -> list[str]: ...
    async def find_few(self, sku: str, limit: Literal[10, 20] = 10) -> list[str]: ...
    async def state(self, sku: str) -> Paid | Open: ...
    async def any_state(self, sku: str) -> Paid | Open | Lost: ...
    async def paid(self, sku: str) -> Paid: ...
    async def tree(self, root: Tree) -> Tree: ...
    async def tree_of_numbers(self, root: Tree) -> TreeOfNumbers: ...
    async def page(self, sku: str) -> Page[int]: ...
    async def page_of_words(self, sku: str) -> Page[str]: ...
    async def number(self, sku: str) -> int: ...
    async def fraction(self, sku: str) -> float: ...


ORDER, HOLD = [(Order("SX90", 2),), (Order("SX90"),)], [Hold("H", 3)]
GET = ("GET /stock/{sku}", "GET /stock/{sku}")
FOUND = [[], ["SX90"]]
EDITS = [
    Edit("nothing", Ops.place, Ops.place, ORDER, HOLD),
    Edit("a new optional field is not needed", Ops.place, Ops.place_with_note, ORDER, HOLD),
    Edit(
        "a field that callers send is gone",
        Ops.place_with_note,
        Ops.place,
        [(OrderWithNote("SX90"),)],
        HOLD,
        ("argument note",),
    ),
    Edit(
        "a field is required",
        Ops.place,
        Ops.place_for_customer,
        ORDER,
        HOLD,
        ("argument customer",),
    ),
    Edit(
        "a field is renamed",
        Ops.place,
        Ops.place_article,
        ORDER,
        HOLD,
        ("argument sku", "argument article"),
    ),
    Edit("the name of the body is not sent", Ops.place, Ops.place_renamed, ORDER, HOLD),
    Edit(
        "a second parameter puts the first one deeper",
        Ops.place,
        Ops.place_urgent,
        ORDER,
        HOLD,
        ("argument sku", "argument qty", "argument order"),
    ),
    Edit("fields of a body as parameters", Ops.place, Ops.place_spread, ORDER, HOLD),
    Edit("a new field of an answer", Ops.place, Ops.and_place, ORDER, [HoldAndPlace("H", 3, "A")]),
    Edit(
        "a field of an answer is gone",
        Ops.place,
        Ops.alone,
        ORDER,
        [HoldAlone("H")],
        ("answer left",),
    ),
    Edit("a field that has a default may go", Ops.ready, Ops.alone, ORDER, [HoldAlone("H")]),
    Edit(
        "a field has another type",
        Ops.place,
        Ops.in_words,
        ORDER,
        [HoldInWords("H", "many")],
        ("answer left",),
    ),
    Edit(
        "a new field, and who reads it forbids others",
        Ops.closed,
        Ops.and_place,
        ORDER,
        [HoldAndPlace("H", 3, "A")],
        ("answer shelf",),
    ),
    Edit("there may be no answer", Ops.place, Ops.maybe, ORDER, [None, *HOLD], ("answer",)),
    Edit("there always is an answer", Ops.maybe, Ops.place, ORDER, HOLD),
    Edit(
        "a parameter is gone", Ops.find, Ops.find_all, [("SX90",)], FOUND, ("argument limit",), GET
    ),
    Edit(
        "a parameter that is required",
        Ops.find_all,
        Ops.find_in,
        [("SX90",)],
        FOUND,
        ("argument shelf",),
        GET,
    ),
    Edit("a parameter with a default", Ops.find, Ops.find_from, [("SX90", 5)], FOUND, (), GET),
    Edit(
        "one that is left out",
        Ops.find_perhaps_in,
        Ops.find_in,
        [("SX90", "A"), ("SX90", None)],
        FOUND,
        ("argument shelf", "argument shelf"),
        GET,
    ),
    Edit(
        "a place of the path is renamed",
        Ops.find,
        Ops.find_article,
        [("SX90", 5)],
        FOUND,
        (),
        ("GET /stock/{sku}", "GET /stock/{article}"),
    ),
    Edit(
        "a parameter takes less",
        Ops.find,
        Ops.find_few,
        [("SX90", 5)],
        FOUND,
        ("argument limit",),
        GET,
    ),
    Edit("a parameter takes more", Ops.find_few, Ops.find, [("SX90", 10)], FOUND, (), GET),
    Edit(
        "a new member of a union",
        Ops.state,
        Ops.any_state,
        [("SX90",)],
        [Lost("fire")],
        ("answer",),
        GET,
    ),
    Edit(
        "a member of a union is gone", Ops.any_state, Ops.state, [("SX90",)], [Paid("now")], (), GET
    ),
    Edit("one member is left", Ops.state, Ops.paid, [("SX90",)], [Paid("now")], (), GET),
    Edit(
        "deep within itself",
        Ops.tree,
        Ops.tree_of_numbers,
        [(Tree("a", [Tree("b")]),)],
        [TreeOfNumbers(1, [TreeOfNumbers(2)])],
        ("answer name",),
    ),
    Edit(
        "within a generic type",
        Ops.page,
        Ops.page_of_words,
        [("SX90",)],
        [Page(["a"])],
        ("answer items.[]",),
        GET,
    ),
    Edit("a whole number for any", Ops.fraction, Ops.number, [("SX90",)], [1], (), GET),
    Edit(
        "any number for a whole one", Ops.number, Ops.fraction, [("SX90",)], [0.5], ("answer",), GET
    ),
    Edit("another path", Ops.place, Ops.place, ORDER, HOLD, ("",), ("POST /orders", "POST /order")),
    Edit(
        "another method", Ops.place, Ops.place, ORDER, HOLD, ("",), ("POST /orders", "PUT /orders")
    ),
]


def operation(
    stub: Callable[..., Any], route: str, *raises: type[Rejection]
) -> Operation[..., Any]:
    """Make the operation `shop.act` of a release."""
    declare = query if route.startswith("GET") else command
    made: Operation[..., Any] = declare(route, raises=raises)(stub)
    made.belong_to("shop", "act")
    return made


def found(before: Operation[..., Any], after: Operation[..., Any]) -> list[Difference]:
    return list(differences(describe([before]), describe([after]), of="shop", by="orders"))


def is_taken(before: Operation[..., Any], after: Operation[..., Any], args: Any) -> bool:
    """Say whether a call of the release before reaches the one after, and all of it is read."""
    target, body = before.to_http(before(*args).arguments)
    path, _, rest = target.partition("?")
    sent, segments = path.split("/"), after.path.split("/")
    places = {s[1:-1]: text for s, text in zip(segments, sent, strict=False) if s[:1] == "{"}
    fixed = [text for s, text in zip(segments, sent, strict=False) if s[:1] != "{"]
    if before.method != after.method or fixed != [s for s in segments if s[:1] != "{"]:
        return False
    try:
        arguments = after.from_http(places, rest, body)
    except BadRequest:
        return False
    _, again = after.to_http(arguments)
    return not body or json.loads(body).keys() <= json.loads(again).keys()


def is_read(before: Operation[..., Any], result: Any) -> bool:
    try:
        decode(encode(result), before.shape.result)
    except BadRequest:
        return False
    return True


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_an_edit_is_what_it_really_is(edit: Edit) -> None:
    """The places that are broken, and that data is refused or lost just where there are any."""
    before, after = (
        operation(stub, route)
        for stub, route in zip((edit.before, edit.after), edit.routes, strict=True)
    )
    assert tuple(each.where for each in found(before, after)) == edit.broken
    happens = [is_taken(before, after, each) for each in edit.args]
    happens += [is_read(before, each) for each in edit.results]
    assert all(happens) == (edit.broken == ())


def test_a_difference_is_a_sentence() -> None:
    """What, where, and who expects it."""
    before, after = operation(Ops.place, "POST /orders"), operation(Ops.alone, "POST /orders")
    assert list(map(str, found(before, after))) == [
        "shop.act: answer left is required, and is not sent (expected by orders)"
    ]


def test_a_command_is_no_query() -> None:
    """A query carries no key, so that neither stands for the other."""
    before = operation(Ops.find_all, "GET /stock/{sku}")
    after = command("GET /stock/{sku}")(Ops.find_all)
    after.belong_to("shop", "act")
    assert [each.what for each in found(before, after)] == ["is a command, and was a query"]


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        ((OutOfStock,), (), []),
        ((), (OutOfStock,), []),
        ((OutOfStock,), (OutOfStock, Unpaid), []),
        ((OutOfStock,), (NoLongerConflict,), ["rejection out_of_stock"]),
    ],
)
def test_rejections(
    before: tuple[type[Rejection], ...], after: tuple[type[Rejection], ...], where: list[str]
) -> None:
    """A new one is tolerated: to who does not know it, it is a refusal all the same."""
    old, new = (
        operation(Ops.place, "POST /orders", *before),
        operation(Ops.place, "POST /orders", *after),
    )
    assert [each.where for each in found(old, new)] == where
    for rejection in after:
        error = Reply.of_error(rejection("no")).to_error(before)
        is_known = rejection.code in {each.code for each in before}
        assert isinstance(error, BadRequest if where or not is_known else Rejection)


class Sold(Struct):
    sku: str
    price: int


class SoldInWords(Struct):
    sku: str
    price: str


class SoldTo(Struct):
    sku: str
    price: int
    customer: str


def release(kind: Any, key: str | None) -> PublicEvent[Any]:
    """Make the event `shop.sold` of a release."""

    class Shop(Contract, Protocol, service="shop", version="1.0"):
        sold: PublicEvent[Any] = event(kind, key=key)

    return events_of(Shop)["sold"]


@pytest.mark.parametrize(
    ("before", "after", "payload", "where"),
    [
        ((Sold, "sku"), (Sold, "sku"), Sold("a", 1), []),
        ((Sold, "sku"), (SoldTo, "sku"), SoldTo("a", 1, "b"), []),
        ((SoldTo, "sku"), (Sold, "sku"), Sold("a", 1), ["field customer"]),
        ((Sold, "sku"), (SoldInWords, "sku"), SoldInWords("a", "b"), ["field price"]),
        ((Sold, "sku"), (Sold, None), Sold("a", 1), []),
    ],
)
def test_events(before: Any, after: Any, payload: Any, where: list[str]) -> None:
    """Subscribers of the release before read what the next one publishes, or do not."""
    old, new = release(*before), release(*after)
    compared = differences(describe([], [old]), describe([], [new]), of="shop", by="orders")
    assert [each.where for each in compared] == where
    try:
        decode(encode(payload), old.kind)
    except BadRequest:
        assert where
    else:
        assert not where


@pytest.mark.parametrize("key", [None, "price"])
def test_the_order_of_an_event_is_part_of_it(key: str | None) -> None:
    """Who relies on one order cannot live with another, which is seen at no payload."""
    old, new = release(Sold, key), release(Sold, "sku")
    (found,) = differences(describe([], [old]), describe([], [new]), of="shop", by="orders")
    assert "is ordered by sku, and was ordered" in found.what
    payloads = [Sold("a", 1), Sold("b", 1)]
    assert len({old.partition_key(p) for p in payloads}) == 1
    assert len({new.partition_key(p) for p in payloads}) == 2


def test_what_is_gone_is_missed_by_who_expects_it() -> None:
    """An operation or event that is not there; others' are none of this service's matters."""

    class Shop(Contract, Protocol, service="shop", version="1.0"):
        @query("GET /now")
        async def now(self) -> str: ...

        sold: PublicEvent[Any] = event(Sold)

    expected = describe(operations_of(Shop).values(), events_of(Shop).values())
    gone = differences(expected, describe([]), of="shop", by="orders")
    assert [(each.name, each.what) for each in gone] == [
        ("shop.now", "is not offered"),
        ("shop.sold", "is not offered"),
    ]
    assert differences(expected, describe([]), of="bank", by="orders") == ()
