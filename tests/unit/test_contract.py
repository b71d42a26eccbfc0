"""Contracts: what may be declared, how calls are described, and what HTTP makes of arguments."""

from __future__ import annotations

import datetime as dt
import enum
import types
from typing import Annotated, Any, Protocol

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calls_fakes import Bank, Hold, OutOfStock, Reserve, Shop
from synchromesh.calls import (
    Call,
    Contract,
    Operation,
    PublicEvent,
    command,
    event,
    events_of,
    operations_of,
    query,
)
from synchromesh.errors import BadRequest, ContractError

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Colour(enum.Enum):
    RED = "red"
    ONE = "1"


class Moved(msgspec.Struct):
    crate: str
    to: str


class Everything(Contract, Protocol, service="everything", version="2.0"):
    @query("GET /a/{number}/b/{day}")
    async def texts(
        self,
        number: int,
        day: dt.date,
        share: float = 0.5,
        is_new: bool = False,
        colour: Colour = Colour.RED,
        tags: list[str] | None = None,
        maybe: str | None = "x",
        request: Reserve | None = None,
    ) -> None: ...
    @command("PATCH /crates/{crate}")
    async def move(self, crate: str, to: str, times: Positive = 1) -> None: ...
    @command("DELETE /crates/{crate}")
    async def drop(self, crate: str, why: str = "") -> None: ...

    moved: PublicEvent[Moved] = event(Moved, key="crate")
    emptied: PublicEvent[Moved] = event(Moved)


def declare(route: str, **words: Any) -> Operation[..., Any]:
    async def odd(self: object, n: int = 0) -> None: ...

    return command(route, **words)(odd)


# -- declaring -----------------------------------------------------------------------------------


def test_a_contract_names_its_operations_and_events() -> None:
    """Full names are made of service and name, as keys and traces show them."""
    assert operations_of(Shop)["reserve"] is Shop.reserve
    assert repr(Shop.reserve) == "<command shop.reserve POST /reservations>"
    assert repr(Shop.stock) == "<query shop.stock GET /stock/{sku}>"
    assert set(events_of(Everything)) == {"moved", "emptied"}
    assert repr(Everything.moved) == "<event everything.moved>"
    assert not Shop.reserve.is_external
    assert Bank.charge.is_external


def test_a_public_event_is_ordered_by_its_key() -> None:
    """The key is an attribute of the payload; without one, all of a name are one key."""
    moved = Moved("c-1", "hall")
    assert Everything.moved.partition_key(moved) == "c-1"
    assert Everything.emptied.partition_key(moved) == ""


@pytest.mark.parametrize(
    "route",
    ["/a", "GET a", "FETCH /a", "GET /a b", "GET /a?x=1", "GET /{a}.json", "GET /x{a}", "GET /{}"],
)
def test_a_route_that_cannot_be_served_is_refused(route: str) -> None:
    """A route is a method and a path; a place is a whole segment."""
    with pytest.raises(ContractError, match="route"):
        declare(route)


def test_a_place_is_named_once() -> None:
    """Two places of one name could differ, so they are refused."""
    with pytest.raises(ContractError, match="twice"):
        declare("GET /{n}/{n}")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"service": "Shop", "version": "1.0"}, "names the service 'Shop'"),
        ({"version": "1.0"}, "names the service ''"),
        ({"service": "shop", "version": "1"}, "major.minor"),
    ],
)
def test_a_contract_needs_a_service_and_a_version(words: dict[str, str], text: str) -> None:
    """Both are checked where the contract is declared."""
    with pytest.raises(ContractError, match=text):
        types.new_class("Odd", (Contract, Protocol), words)


def test_two_operations_of_one_route_are_refused() -> None:
    """Places of different names are the same route."""
    with pytest.raises(ContractError, match="the same route"):

        class Odd(Contract, Protocol, service="odd", version="1.0"):
            @query("GET /a/{x}")
            async def one(self, x: int) -> None: ...
            @query("GET /a/{y}")
            async def two(self, y: int) -> None: ...


def test_an_operation_belongs_to_one_contract() -> None:
    """One that is part of a contract already cannot be put into another."""
    with pytest.raises(ContractError, match="already part of"):
        types.new_class(
            "Odd",
            (Contract, Protocol),
            {"service": "odd", "version": "1.0"},
            lambda body: body.update(reserve=Shop.reserve),
        )


def test_what_is_no_contract_has_no_operations() -> None:
    """A class that is no contract is named, with how one is declared."""
    with pytest.raises(ContractError, match="Reserve is not a contract"):
        operations_of(Reserve)


def test_stubs_have_to_be_annotated_in_full() -> None:
    """What cannot be decoded later is refused when the types are first needed."""

    async def bare(self: object, n) -> None: ...  # type: ignore[no-untyped-def]
    async def star(self: object, *n: int) -> None: ...
    async def silent(self: object, n: int): ...  # type: ignore[no-untyped-def]
    async def lost(self: object, n: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    async def unplaced(self: object) -> None: ...

    texts: dict[Any, str] = {
        bare: "parameter 'n' has no annotation",
        star: r"\*args and \*\*kwargs cannot be sent",
        silent: "no return annotation",
        lost: "Nowhere",
    }
    for stub, text in texts.items():
        with pytest.raises(ContractError, match=text):
            _ = command("POST /a")(stub).shape
    with pytest.raises(ContractError, match="'n', which is not a parameter"):
        _ = command("POST /a/{n}")(unplaced).shape


# -- calls as values -----------------------------------------------------------------------------


def test_equal_calls_are_equal_values() -> None:
    """A call is told by its operation and arguments, however they were given."""
    one, other = Shop.stock("a", least=1), Shop.stock(least=1, sku="a")
    assert one == other
    assert hash(one) == hash(other)
    assert one.digest == other.digest
    assert one != Shop.stock("a", least=2)
    assert one != "a"
    assert repr(one) == '<Call shop.stock {"least":1,"note":"","sku":"a"}>'


def test_the_digest_is_that_of_the_values_not_of_their_spelling() -> None:
    """An integer where the contract says float is the same input as the float."""
    assert Shop.label("a", "b", 1).digest == Shop.label("a", "b", 1.0).digest
    assert Shop.label("a", "b").digest != Shop.nothing().digest


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Shop.reserve("nope"), r"shop\.reserve: .*Expected `object`, got `str`"),  # type: ignore[arg-type]
        (lambda: Shop.reserve(), r"shop\.reserve: missing a required argument: 'request'"),  # type: ignore[call-arg]
        (lambda: Shop.reserve(speed=1), "shop.reserve: .*'(request|speed)'"),  # type: ignore[call-arg]
        (lambda: Shop.stock(sku=object()), r"a call of shop\.stock cannot be sent"),  # type: ignore[arg-type]
        (lambda: Everything.move("c", "hall", 0), r"Expected `int` >= 1 - at `\$.times`"),
    ],
)
def test_wrong_arguments_are_refused_where_the_call_is_made(make: Any, text: str) -> None:
    """The one who made the mistake is told, and what would be right."""
    with pytest.raises(BadRequest, match=text):
        make()


# -- HTTP ----------------------------------------------------------------------------------------


def round_trip(call: Call[Any]) -> bytes:
    operation = call.operation
    target, body = operation.to_http(call.arguments)
    path, _, text = target.partition("?")
    template = operation.path.split("/")
    places = {
        name[1:-1]: value
        for name, value in zip(template, path.split("/"), strict=True)
        if name.startswith("{")
    }
    return operation.from_http(places, text, body)


def test_http_spreads_arguments_over_path_query_and_body() -> None:
    """Places go into the path, the rest into query or body, a single struct is the body."""
    assert Shop.stock.to_http(Shop.stock("a b/c").arguments) == ("/stock/a%20b%2Fc?note=", b"")
    assert Shop.reserve.to_http(Shop.reserve(Reserve("a", 1)).arguments) == (
        "/reservations",
        b'{"sku":"a","qty":1,"notes":{}}',
    )
    assert Everything.move.to_http(Everything.move("c-1", "hall").arguments) == (
        "/crates/c-1",
        b'{"times":1,"to":"hall"}',
    )
    assert Everything.drop.to_http(Everything.drop("..").arguments) == ("/crates/%2E%2E?why=", b"")
    call = Everything.texts(1, dt.date(2026, 1, 2), tags=["a"], colour=Colour.ONE, maybe="null")
    assert Everything.texts.to_http(call.arguments)[0] == (
        "/a/1/b/2026-01-02?colour=%221%22&is_new=false&maybe=%22null%22&share=0.5&tags=%5B%22a%22%5D"
    )


@given(
    number=st.integers(-(2**63), 2**63 - 1),
    day=st.dates(),
    share=st.floats(allow_nan=False, allow_infinity=False),
    is_new=st.booleans(),
    colour=st.sampled_from(Colour),
    tags=st.none() | st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=3),
    maybe=st.none() | st.text(st.characters(codec="utf-8"), max_size=8) | st.just('"null"'),
    qty=st.none() | st.integers(0, 9),
)
def test_any_arguments_survive_the_way_over_http(qty: int | None, **arguments: Any) -> None:
    """The callee has the very bytes that an in-process callee has (C1)."""
    request = None if qty is None else Reserve("a", qty, {"n": "1"})
    call = Everything.texts(**arguments, request=request)
    assert round_trip(call) == call.arguments


@given(sku=st.text(st.characters(codec="utf-8"), max_size=12))
def test_any_text_survives_as_a_segment_of_a_path(sku: str) -> None:
    """Slashes, dots, per cents and blanks included."""
    call = Shop.stock(sku)
    assert round_trip(call) == call.arguments


@pytest.mark.parametrize(
    ("operation", "places", "text", "body", "expected"),
    [
        (Shop.stock, {"sku": "5"}, "", b"", b'{"least":null,"note":"","sku":"5"}'),
        (Shop.stock, {"sku": "a"}, "least=3&note=x+y", b"", b'{"least":3,"note":"x y","sku":"a"}'),
        (Shop.stock, {"sku": "a"}, "note=5", b"", b'{"least":null,"note":"5","sku":"a"}'),
        (Shop.stock, {"sku": "a"}, "note=null", b"", b'{"least":null,"note":null,"sku":"a"}'),
        (Shop.nothing, {}, "", b"", b"{}"),
        (Everything.move, {"crate": "c"}, "", b'{"to":"b"}', b'{"crate":"c","times":1,"to":"b"}'),
    ],
)
def test_people_may_write_texts_without_quotes(
    operation: Operation[..., Any], places: dict[str, str], text: str, body: bytes, expected: bytes
) -> None:
    """What is typed into an address bar is read as the contract's types."""
    assert operation.from_http(places, text, body) == expected


@pytest.mark.parametrize(
    ("operation", "places", "text", "body", "message"),
    [
        (Shop.stock, {"sku": "a"}, "sku=b", b"", "argument 'sku' is given twice"),
        (Shop.stock, {"sku": "a"}, "least=1&least=2", b"", "argument 'least' is given twice"),
        (Shop.stock, {"sku": "a"}, "speed=1", b"", "unknown argument 'speed'; known: sku, least"),
        (Shop.stock, {"sku": "a"}, "least=two", b"", "argument 'least': "),
        (Shop.stock, {"sku": "a"}, "", b"{}", "GET takes no body"),
        (Shop.stock, {"sku": "%FF"}, "", b"", "not UTF-8"),
        (Shop.stock, {"sku": "a"}, "note=%FF", b"", "not UTF-8"),
        (Shop.nothing, {}, "a=1", b"", "takes no query"),
        (Shop.nothing, {}, "", b'{"a":1}', "unknown argument 'a' in the body; it takes none"),
        (Shop.reserve, {}, "", b"", "Input data was truncated"),
        (Shop.reserve, {}, "", b'{"sku":"a","qty":1},"x":2', "trailing characters"),
        (
            Everything.move,
            {"crate": "c"},
            "",
            b'{"crate":"d","to":"b"}',
            "unknown argument 'crate'",
        ),
        (Everything.move, {"crate": "c"}, "", b"{}", "Missing required argument 'to'"),
        (Everything.move, {"crate": "c"}, "", b'{"to":5}', "argument 'to': .*Expected `str`"),
        (Everything.move, {"crate": "c"}, "", b'{"to":"b","times":0}', ">= 1"),
        (Everything.move, {"crate": "c"}, "", b"[1]", "Expected `object`"),
    ],
)
def test_requests_that_do_not_fit_are_refused(
    operation: Operation[..., Any], places: dict[str, str], text: str, body: bytes, message: str
) -> None:
    """Each says which operation, which argument and what was expected."""
    with pytest.raises(BadRequest, match=message) as caught:
        operation.from_http(places, text, body)
    assert operation.full_name in caught.value.message


def test_results_are_typed() -> None:
    """The shape knows what an answer decodes to, None included."""
    assert Shop.reserve.shape.result is Hold
    assert Shop.nothing.shape.result is type(None)
    assert Shop.reserve.raises == (OutOfStock,)
