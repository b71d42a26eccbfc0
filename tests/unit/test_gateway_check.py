"""A gateway's definition: every mistake in it is named before anything listens."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple, NewType

import msgspec
import pytest

from gateway_fakes import GATEWAY, SHOP, Fleet, Orders, Production
from synchromesh.errors import ConfigError
from synchromesh.gateway import (
    Aggregate,
    ApiKeys,
    Branch,
    Cache,
    Each,
    Forward,
    Gateway,
    Mirror,
    Rate,
    Route,
    Split,
    Stale,
    Static,
    check,
)
from synchromesh.gateway.checking import compiled
from synchromesh.gateway.forward import size_of
from synchromesh.gateway.outlining import RateOutline, outline
from synchromesh.gateway.shapes import fields_of, fits, is_text, without_null

MACHINE = Branch(Fleet.machine, args={"id": "path.id"}, required=True)


def with_route(*routes: Route | Aggregate | Forward, auth: Any = (SHOP,)) -> Gateway:
    return Gateway(auth=auth, routes=routes)


def passing(route: str = "PUT /images/{name}", to: Any = "store", **more: Any) -> Gateway:
    return with_route(Forward(route, to=to, **more))


def with_branches(deadline: str = "1s", **branches: Branch) -> Gateway:
    return with_route(
        Aggregate(
            "GET /machines/{id}", deadline=deadline, branches={"machine": MACHINE, **branches}
        )
    )


def order(source: str, **more: Any) -> Branch:
    return Branch(Orders.one, args={"order_id": source}, **more)


def each(array: Any, source: str = "each.sku", **more: Any) -> Gateway:
    """Return a gateway with a machine for each element of an array."""
    return with_branches(
        basket=Branch(Orders.basket, args={"id": "path.id"}),
        names=Branch(Fleet.names),
        slots=Branch(Production.slot, args={"order_id": "each.sku"}, each=Each("basket.lines")),
        o=Branch(Fleet.machine, args={"id": source}, each=array, **more),
    )


def kept(cache: Any) -> Gateway:
    """Return a gateway of one route that has a cache."""
    return with_route(Route("GET /o/{order_id}", Orders.one, cache=cache))


def whole(**more: Any) -> Gateway:
    """Return a gateway whose aggregate is all or nothing."""
    machine = Branch(Fleet.machine, args={"id": "path.id"}, **more)
    return with_route(Aggregate("GET /m/{id}", branches={"o": machine}, all_or_nothing=True))


MISTAKES: list[tuple[Gateway, str]] = [
    (passing("PUT images"), "is not a route"),
    (passing(to="Store 1"), "leads to 'Store 1'; name an upstream"),
    (passing(to=Fleet), "name an upstream, such as"),
    (passing(path="images/{name}"), "'images/{name}' is no path"),
    (passing(path="/images/{name}?x=1"), "is no path"),
    (passing(path="/images/x{name}"), "is no path"),
    (passing(path=7), "'7' is no path"),
    (passing(path="/a/../{name}"), "has a segment of dots"),
    (passing("PUT /a/{b...}", path="/b/{b}"), "have to end in the same rest, or both in none"),
    (passing("POST /live", websocket=True), "asked for by GET; write GET or ANY, not POST"),
    (passing("GET /live", encoded_slashes="yes"), "encoded_slashes is 'yes'; write True or False"),
    (passing("GET /live", websocket="yes"), "websocket is 'yes'; write True or False"),
    (passing("GET /live", quiet="long"), "its quiet: 'long' is not a duration"),
    (passing("GET /live", quiet=5), "its quiet: "),
    (Gateway(routes=[], tunnels_max=0), "tunnels_max is 0"),
    (passing(principal=True, public=True), "is public, so that nobody is known whom principal"),
    (passing(principal="yes"), "principal is 'yes'; write True or False"),
    (passing(path="/b/{name...}"), "have to end in the same rest, or both in none"),
    (passing("PUT /a/{b...}/c"), "a {rest...} all that follows, at its end"),
    (
        with_route(Route("GET /o/{order_id...}", Orders.one)),
        "only a Forward takes the rest of a path",
    ),
    (with_route(Route("ANY /o/{order_id}", Orders.one)), "is a GET in its contract"),
    (
        with_route(Forward("ANY /a/{p...}", to="a"), Forward("GET /{x}/b", to="b")),
        "both match /a/b, and neither is the closer",
    ),
    *(
        (passing(host=host), "write it in lower case, without a port, as")
        for host in ("Shop.example", "shop:80", "*", "*.", "a.*.b", "-a", "a..b", "a.", "a b", 7)
    ),
    (
        with_route(
            Forward("GET /a/{x}", to="a", host="*.a.b"), Forward("GET /a/{y}", to="b", host="*.a.b")
        ),
        "GET *.a.b/a/{x} and GET *.a.b/a/{y} have the same path",
    ),
    (
        with_route(
            Forward("ANY /a/{p...}", to="a", encoded_slashes=True),
            Forward("GET /a/b", to="b", host="a.b", scopes={"a:b"}),
        ),
        "encoded_slashes would lead past GET a.b/a/b, which asks for more",
    ),
    (passing(split="inventory"), "split is a str; write Split(to, percent=5)"),
    (
        passing(split=Split("store", percent=5)),
        "its split: leads to 'store', where the route itself",
    ),
    (passing(split=Split("In", percent=5)), "its split: leads to 'In'; name an upstream"),
    (
        passing(split=Split("b", percent=101)),
        "its split: percent is '101'; make it a number from 0",
    ),
    (passing(split=Split("b", percent=True)), "its split: percent is 'True'; make it a number"),
    (passing(split=Split("b", percent=5, sticky=1)), "its split: sticky is '1'; write True"),  # type: ignore[arg-type]
    (
        passing(split=Split("b", percent=5, path="/b/{id}")),
        "its split: {id} in '/b/{id}' is no place",
    ),
    (passing(mirror=Split("b", percent=5)), "mirror is a Split; write Mirror(to)"),
    (passing(mirror=Mirror("b")), "its mirror: PUT changes something, and writes are not copied"),
    (passing("GET /a", mirror=Mirror("b", percent=0)), "percent is '0'; make it a number above 0"),
    (passing("GET /a", mirror=Mirror("b", ignore="/a")), "its mirror: ignore is a text"),  # type: ignore[arg-type]
    (passing("GET /a", mirror=Mirror("b", ignore={"a"})), "its mirror: 'a' is no JSON pointer"),
    (
        passing("GET /a", mirror=Mirror("b", kept_max=0)),
        "its mirror: kept_max is 0; make it a whole",
    ),
    (passing("GET /a", mirror=Mirror("store")), "its mirror: leads to 'store', where"),
    (passing(path="/images/{id}"), "{id} in '/images/{id}' is no place of the route; it has: "),
    (passing(path="/images/{id}"), "{name} is not used in '/images/{id}'; use it there, or drop"),
    (passing(body_max="64"), "its body_max: '64' is no size"),
    (passing(body_max="64MB"), "'64MB' is no size; write a whole number of B, KiB, MiB or GiB"),
    (passing(body_max="-1B"), "'-1B' is no size"),
    (passing(body_max=64), "its body_max: '64' is no size"),
    (passing(headers="x-a"), 'headers is a text; write a set of texts, such as {"x-a"}'),
    (passing(headers={"X-A"}), "'X-A' is no header in lower case"),
    (passing(headers={"x_a"}), "'x_a' is no header in lower case"),
    (passing(headers={"authorization"}), "'authorization' never passes where"),
    (passing(headers={"x-forwarded-for"}), "'x-forwarded-for' never passes"),
    (passing(headers={"connection"}), "'connection' never passes"),
    (passing(headers={"x-http-method-override"}), "'x-http-method-override' never passes"),
    (passing(headers={"x-rewrite-url"}), "'x-rewrite-url' never passes"),
    (passing(headers={"synchromesh-credential"}), "never passes"),
    (passing(headers={"idempotency-key"}), "never passes"),
    (passing(deadline="soon"), "'soon' is not a duration"),
    (passing(rate=5), "its rate is 5"),
    (passing(scopes={"a:b"}, public=True), "public and asks for"),
    (
        with_route(Forward("GET /o/{x}", to="a"), Route("GET /o/{order_id}", Orders.one)),
        "have the same path",
    ),
    (Gateway(routes=[]), "has no routes"),
    (Gateway(routes=[], in_flight_max=0), "in_flight_max is 0"),
    (with_route("GET /x"), "routes[0] is 'GET /x'; write Route, Aggregate or Forward"),  # type: ignore[arg-type]
    (with_route(Route("FETCH /x", Orders.one)), "'FETCH /x' is not a route"),
    (with_route(Route("GET x", Orders.one)), "is not a route"),
    (with_route(Route("GET /x{id}", Orders.one)), "is not a route"),
    (with_route(Route("GET /{id}/{id}", Orders.one)), "names a place twice"),
    (with_route(Route("GET /x", GATEWAY)), "leads to no operation"),  # type: ignore[arg-type]
    (with_route(Route("GET /o/{order_id}", Orders.one), auth=()), "has no auth"),
    (with_route(Route("GET /o", Orders.one, scopes="a:b")), "scopes is a text"),  # type: ignore[arg-type]
    (with_route(Route("GET /o", Orders.one, scopes={"A B"})), "'A B' is no scope"),
    (with_route(Route("GET /o", Orders.one, scopes={"a"}, public=True)), "public and asks for"),
    (with_route(Route("GET /o", Orders.one, deadline="soon")), "'soon' is not a duration"),
    (with_route(Route("GET /o", Orders.one, fallback=Stale("old"))), "'old' is not a duration"),
    (with_route(Route("GET /o", Orders.one, fallback=Static(7))), "is no answer of the operation"),
    (with_route(Route("GET /o", Orders.one, fallback="none")), "write Static or Stale"),  # type: ignore[arg-type]
    (
        with_route(Route("POST /orders", Orders.place, fallback=Stale("1m"))),
        "POST /orders: orders.place is a command; a fallback must never stand for a write",
    ),
    (with_route(Route("GET /o", Orders.one, deadline=5)), "its deadline: 5 is no duration"),  # type: ignore[arg-type]
    (with_route(Route("GET /o", Orders.one, rate=Rate("20"))), "'20' is no rate"),
    (with_route(Route("GET /o", Orders.one, rate=Rate("0/s"))), "'0/s' is no rate"),
    (with_route(Route("GET /o", Orders.one, rate=Rate("1/s", burst=0))), "a burst of 0"),
    (with_route(Route("GET /o", Orders.one, rate="1/s")), "its rate is '1/s'"),  # type: ignore[arg-type]
    (with_route(Route("POST /o", Orders.one)), "orders.one is a GET in its contract"),
    (with_route(Route("GET /o/{id}", Orders.one)), "{id} is no parameter of orders.one"),
    (with_route(Route("POST /o/{request}", Orders.place)), "have the same here"),
    (with_route(Route("PUT /notes", Orders.note)), "places in its contract: {order_id}"),
    (with_route(Route("GET /m/{ids}", Fleet.machines)), "{ids} of fleet.machines is no plain"),
    (
        with_route(Route("GET /o/{order_id}", Orders.one), Route("GET /o/{order_id}", Orders.one)),
        "have the same path",
    ),
    (
        with_route(
            Route("GET /a/{order_id}/c", Orders.one), Route("GET /a/b/{order_id}", Orders.one)
        ),
        "both match /a/b/c, and neither is the closer",
    ),
    (with_route(Aggregate("POST /m/{id}", branches={"m": MACHINE})), "write GET, not POST"),
    (with_route(Aggregate("GET /m", branches={})), "no branch is required"),
    (with_route(Aggregate("GET /m/{id}/{x}", branches={"m": MACHINE})), "{x} is used by no branch"),
    (with_branches(path=order("machine.id")), "'path' cannot name a branch"),
    (with_branches(Order=order("machine.id")), "'Order' cannot name a branch"),
    (with_branches(o=Branch(Fleet)), "branch o leads to no operation"),  # type: ignore[arg-type]
    (with_branches(o=Branch(Fleet.scrap, args={"id": "path.id"})), "is the command fleet.scrap"),
    (with_branches(o=Branch(Orders.one)), "branch o: orders.one needs 'order_id'"),
    (
        with_branches(o=Branch(Orders.one, args={"order_id": "path.id", "x": "path.id"})),
        "'x' is no parameter of orders.one; it has: order_id",
    ),
    (with_branches(o=order("path.nr")), "'path.nr' is no place of the path; it has: path.id"),
    (with_branches(o=order("path")), "'path' is no place"),
    (with_branches(o=order("machine .id")), "'machine .id' is no source"),
    (with_branches(o=order("machin.id")), "names no branch; there are: path, machine, o"),
    (
        with_branches(o=order("machine.orderid")),
        "there is no 'orderid'; Machine has the fields id, order_id, number, grade, site",
    ),
    (with_branches(o=order("machine.id.x")), "there is no 'x'; str has no fields"),
    (with_branches(o=order("machine.number")), "'machine.number' is int and 'order_id' of orders"),
    (with_branches(o=order("machine")), "'machine' is Machine and 'order_id'"),
    (with_branches(o=order("machine.order_id", required=True)), "may be null"),
    (with_branches(o=order("machine.site.city", required=True)), "may be null"),
    (with_branches(o=order("o.id")), "in a circle: o -> o"),
    (
        with_branches(a=order("b.id"), b=order("c.id"), c=order("a.id")),
        "in a circle: a -> b -> c -> a",
    ),
    (
        with_branches(a=order("machine.id"), b=order("a.id", required=True)),
        "is required and needs a, which is not",
    ),
    (with_branches(o=order("path.id", timeout="2s")), "is longer than the deadline"),
    (with_branches(o=order("path.id", timeout="2")), "'2' is not a duration"),
    (with_branches(o=order("path.id", fallback=Stale("ever"))), "'ever' is not a duration"),
    (
        with_branches(o=order("path.id", fallback=Static({"id": 1}))),
        "is no answer of the operation",
    ),
    (with_branches(o=order("path.id", fallback="none")), "its fallback is a str"),
    (
        with_route(Route("GET /o/{order_id}", Orders.one, strict=True)),
        "strict is about a body, and",
    ),
    (with_route(Route("POST /orders", Orders.place, strict="yes")), "strict is 'yes'; write True"),  # type: ignore[arg-type]
    (kept("30s"), "its cache is a str; write one such as Cache("),
    (kept(Cache("soon")), "its cache: max_age: 'soon' is not a duration"),
    (kept(Cache(30)), "its cache: max_age: 30 is no duration"),  # type: ignore[arg-type]
    (kept(Cache("500ms")), "its cache has a max_age of 500ms; write 1s to 365d"),
    (kept(Cache("366d")), "its cache has a max_age of 366d"),
    (kept(Cache("1m", shared="yes")), "its cache is shared='yes'; write True or False"),  # type: ignore[arg-type]
    (
        with_route(Route("POST /orders", Orders.place, cache=Cache("1m"))),
        "has a cache, and only what a query answers by GET can be kept",
    ),
    (with_route(Aggregate("POST /m/{id}", branches={"m": MACHINE}, cache=Cache())), "has a cache,"),
    (Gateway(routes=[], cache_max=0), "cache_max is 0"),
    (Gateway(routes=[], cache_bytes_max=0), "cache_bytes_max is 0"),
    (each("basket.lines"), "branch o: each names no array; write such as each=Each("),
    (each(Each(7)), "each names no array"),  # type: ignore[arg-type]
    (each(Each("basket .lines")), "'basket .lines' is no array"),
    (each(Each("path.id")), "'path.id' is no array"),
    (each(Each("bask.lines")), "'bask.lines' names no branch"),
    (each(Each("basket.line")), "'basket.line': there is no 'line'; Basket has the fields id, "),
    (each(Each("basket.id")), "'basket.id' is str; each takes a list, a set or a tuple[T, ...]"),
    (each(Each("slots")), "'slots' is of a branch that has an answer for each of an array"),
    (each(None, "slots.starts"), "'slots.starts' is of a branch that has an answer for each"),
    (each(None), "'each.sku' is of an element; say by each=Each(...) of which array"),
    (each(Each("basket.lines"), "each.sk"), "'each.sk': there is no 'sk'; Line has the fields"),
    (each(Each("basket.lines"), "each"), "'each' is Line and 'id' of fleet.machine takes str"),
    (each(Each("names"), "path.id"), "asks the same for each element"),
    (each(Each("names"), "each", required=True), "is required and needs names, which is not"),
    (each(Each("basket.lines"), required=True), "'basket.lines' may be null; there would be no"),
    (each(Each("names", at_most=0), "each"), "each is at_most 0; write 1 to 1000"),
    (each(Each("names", at_most=1001), "each"), "each is at_most 1001"),
    (each(Each("names", at_once=0), "each"), "each is at_once 0; write 1 to 1000"),
    (each(Each("names", beyond="drop"), "each"), "each is 'drop' beyond at_most; write \"fail\""),
    (with_branches(each=order("path.id")), "'each' cannot name a branch"),
    (with_branches(o=order("path.id", pick="id")), "branch o: pick is a text"),
    (with_branches(o=order("path.id", pick=7)), "branch o: pick names no fields"),
    (with_branches(o=order("path.id", pick=())), "branch o: pick names no field; drop it"),
    (with_branches(o=order("path.id", pick=("nr",))), "pick takes 'nr': there is no 'nr'; Order"),
    (with_branches(o=order("path.id", pick={"a b": "id"})), "pick shows 'id' as 'a b'"),
    (with_branches(o=order("path.id", pick=(7,))), "pick shows '7' as '7'"),
    (with_branches(o=order("path.id", empty={"id": "x"})), "empty is no value; write one such as"),
    (with_branches(o=order("path.id", empty=Static({"id": 1}))), "empty: its static value is no"),
    (whole(fallback=Stale("1m")), "branch o: has a fallback, and the aggregate is all_or_nothing"),
    (
        with_route(
            Aggregate("GET /m/{id}", branches={"m": MACHINE}, all_or_nothing="yes")  # type: ignore[arg-type]
        ),
        "all_or_nothing is 'yes'; write True or False",
    ),
    (
        with_route(
            Aggregate(
                "GET /m",
                branches={
                    "n": Branch(Fleet.names),
                    "o": Branch(Fleet.machine, args={"id": "each"}, each=Each("n", beyond="cut")),
                },
                all_or_nothing=True,
            )
        ),
        "each cuts a longer array, and the aggregate is all_or_nothing",
    ),
    (
        with_branches(ms=Branch(Fleet.machines, args={"ids": "path.id"})),
        "'ids' is no plain value",
    ),
]


@pytest.mark.parametrize(("gateway", "words"), MISTAKES, ids=[words for _, words in MISTAKES])
def test_a_mistake_is_named(gateway: Gateway, words: str) -> None:
    """Each mistake of a definition is told with where it is, and nothing is served."""
    assert [mistake for mistake in check(gateway) if words in mistake]
    with pytest.raises(ConfigError) as refused:
        compiled(gateway)
    assert words in refused.value.message


def calls_of(work: Callable[[], object]) -> int:
    """Count the calls of Python and C functions that some work makes."""
    calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def test_many_routes_are_checked_in_time_that_grows_with_their_number() -> None:
    """Four times the routes take four times the steps, also where half of them begin with a place.

    The check was once of every pair: sixteen times the steps, 17 s for 2,000 routes.
    """

    def routes(number: int) -> Gateway:
        paths = [f"/a{n}/{{name}}" for n in range(number // 2)]
        paths += [f"/{{name}}/b{n}/x/{{part}}" for n in range(number // 4)]
        paths += [f"/a{n}/{{name}}/y/{{part}}" for n in range(number // 4)]
        return with_route(*(Forward(f"GET {path}", to="store", public=True) for path in paths))

    few, many = routes(500), routes(2000)
    assert check(few) == ()
    assert calls_of(lambda: check(many)) < 5 * calls_of(lambda: check(few))


@pytest.mark.parametrize(
    ("outer", "closer", "is_wrong"),
    [
        ("ANY /app/{path...}", Forward("GET /app/admin/{x...}", to="store"), True),
        ("ANY /app/{path...}", Forward("GET /app/admin", to="store", public=True), False),
        ("PUT /app/{path...}", Forward("GET /app/admin", to="store"), False),
        ("ANY /app/{path...}", Forward("GET /other", to="store"), False),
        ("GET /app/{id}", Forward("GET /app/{id}/keys", to="store"), True),
        ("GET /app/{id}", Forward("GET /app/{path...}", to="store"), True),
        ("ANY /{path...}", Route("GET /orders/{order_id}", Orders.one), True),
    ],
)
def test_encoded_slashes_lead_past_nobody(outer: str, closer: Any, is_wrong: bool) -> None:
    """They are refused where a route beneath asks for more than this one."""
    open_to_all = Forward(outer, to="store", public=True, encoded_slashes=True)
    found = check(Gateway(auth=[ApiKeys()], routes=[open_to_all, closer]))
    assert [("encoded_slashes would lead past" in mistake) for mistake in found] == [
        True
    ] * is_wrong
    asking = replace(open_to_all, public=False, scopes={"a"})
    assert check(Gateway(auth=[ApiKeys()], routes=[asking, closer])) == ()
    assert (
        check(
            Gateway(auth=[ApiKeys()], routes=[replace(open_to_all, encoded_slashes=False), closer])
        )
        == ()
    )


def test_many_guarded_routes_are_checked_in_time_that_grows_with_their_number() -> None:
    """Forwards that are public beside others that are not."""

    def routes(number: int) -> Gateway:
        paths = [f"/a{n}" for n in range(number // 2)]
        return Gateway(
            auth=[ApiKeys()],
            routes=[
                *(Forward(f"ANY {path}/{{x...}}", to="store", public=True) for path in paths),
                *(Forward(f"GET {path}/admin", to="store") for path in paths),
            ],
        )

    few, many = routes(100), routes(400)
    assert check(few) == ()
    assert calls_of(lambda: check(many)) < 5 * calls_of(lambda: check(few))


def test_all_mistakes_are_named_at_once() -> None:
    """Nobody has to start a gateway as often as there are mistakes in it."""
    gateway = with_route(Route("GET x", Orders.one), Route("GET /o", Orders.one, deadline="soon"))
    assert len(check(gateway)) == 2
    with pytest.raises(ConfigError, match="mistakes: 2\n"):
        compiled(gateway)


def test_one_mistake_is_named_once() -> None:
    """A wrong branch is not blamed again for what follows from it."""
    assert len(check(with_branches(o=order("machin.id")))) == 1


def test_a_right_gateway_has_no_mistakes() -> None:
    """The gateway of the other tests is one that can be served."""
    assert check(GATEWAY) == ()
    assert [entry.name for entry in compiled(GATEWAY)] == [
        "POST /orders",
        "PUT /orders/{order_id}/notes",
        "GET /orders/{order_id}",
        "GET /fleet/{id}",
        "GET /machines/{id}",
    ]


def test_routes_of_different_hosts_do_not_clash() -> None:
    """The closer host decides; and what is on another host guards nothing here."""
    hosts = ("", "a.b", "*.b", "*.a.b")
    same = [Forward("GET /a/{x}", to="a", host=host) for host in hosts]
    crossing = [Forward("GET /{x}/c", to="a", host="d"), Forward("GET /c/{x}", to="a", host="e")]
    apart = [
        Forward("ANY /p/{p...}", to="a", encoded_slashes=True, host="a.c"),
        Forward("GET /p/b", to="b", host="a.b", scopes={"a:b"}),
    ]
    assert check(with_route(*same, *crossing, *apart)) == ()


def test_arguments_of_a_query_may_leave_the_path() -> None:
    """A route may have fewer places than its query: the rest comes from the URL's query."""
    assert check(with_route(Route("GET /o", Orders.one))) == ()


def test_an_outline_says_what_is_served() -> None:
    """Each route and branch: where it leads, for whom, how often and for how long."""
    place, note, one, machine, page = outline(GATEWAY)
    assert (place.route, place.kind, place.operation) == ("POST /orders", "command", "orders.place")
    assert (place.who, place.deadline, place.rate) == ("orders:write", "5s", RateOutline("20/s", 3))
    assert (note.operation, note.who, note.rate) == ("orders.note", "any principal", None)
    assert (one.kind, one.scopes) == ("query", ("fleet:read",))
    assert (machine.is_public, machine.who, machine.deadline) == (True, "anybody", "1s")
    assert (page.kind, page.operation) == ("aggregate", "")
    assert [
        (each.name, each.turn, each.operation, each.args, each.is_required, each.timeout)
        for each in page.branches
    ] == [
        ("machine", 1, "fleet.machine", {"id": "path.id"}, True, None),
        ("order", 2, "orders.one", {"order_id": "machine.order_id"}, False, None),
        ("production", 2, "production.slot", {"order_id": "machine.order_id"}, False, "300ms"),
        ("line", 2, "production.line", {"number": "machine.number"}, False, None),
    ]
    assert [each.fallback for each in page.branches] == [
        "", "", "its last answer, at most 10m old", "a static value",
    ]  # fmt: skip


def test_an_outline_says_what_is_strict() -> None:
    """Which routes take no loose bodies."""
    routes = (Route("POST /orders", Orders.place, strict=True), Route("GET /n", Fleet.names))
    assert [each.is_strict for each in outline(with_route(*routes))] == [True, False]


def test_an_outline_says_how_long_answers_are_kept() -> None:
    """By whom and how long, as clients are told."""
    assert [each.cache for each in outline(kept(Cache("90m")))] == ["private, max-age=5400"]
    assert [each.cache for each in outline(kept(None))] == [""]


def test_an_outline_says_what_is_asked_for_each_and_what_is_shown() -> None:
    """The array, its bounds, the picked fields, and what all or nothing makes of each branch."""
    page = Aggregate(
        "GET /m",
        branches={
            "names": Branch(Fleet.names, empty=Static([])),
            "machines": Branch(
                Fleet.machine,
                args={"id": "each"},
                each=Each("names", at_most=5, at_once=2),
                pick={"nr": "id"},
            ),
        },
        all_or_nothing=True,
    )
    (told,) = outline(with_route(page))
    names, machines = told.branches
    assert told.is_whole
    assert (names.has_empty, names.is_required, names.each) == (True, True, "")
    assert (machines.turn, machines.after) == (2, ("names",))
    assert machines.each == "names, at most 5, 2 at once, else fail"
    assert machines.pick == {"nr": "id"}


def test_the_fallback_of_a_route_is_in_its_outline() -> None:
    """It is described in the words of a branch's."""
    stale = Route("GET /o", Orders.one, fallback=Stale("10m"))
    static = Route("GET /l/{number}", Production.line, fallback=Static("none"))
    assert [each.fallback for each in outline(with_route(stale, static))] == [
        "its last answer, at most 10m old", "a static value",
    ]  # fmt: skip


# -- types -------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"


class Pair(NamedTuple):
    left: int
    right: str | None


@dataclass
class Box:
    inside: Pair


class Small(msgspec.Struct):
    n: int


class Smaller(Small):
    m: int


Sku = NewType("Sku", str)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (str, str, True),
        (int, float, True),
        (float, int, False),
        (bool, int, False),
        (str, Any, True),
        (Sku, str, True),
        (Annotated[str, msgspec.Meta(max_length=3)], str, True),
        (str | None, str, True),
        (str, str | int, True),
        (str | int, str, False),
        (Literal["a"], str, True),
        (Literal["a"], Literal["a", "b"], True),
        (Literal["a", "c"], Literal["a", "b"], False),
        (Literal[1], str, False),
        (str, Literal["a"], False),
        (list[str], list[str], True),
        (list[str], list[int], False),
        (Smaller, Small, True),
        (Small, Smaller, False),
        (None, str, False),
    ],
)
def test_types_fit_or_they_do_not(source: Any, target: Any, expected: bool) -> None:
    """Every value of a source has to be one of the target; what cannot be told does not fit."""
    assert fits(source, target) is expected


def test_fields_are_those_of_structs_dataclasses_and_named_tuples() -> None:
    """A reference can lead through whatever has named fields, and through nothing else."""
    assert fields_of(Smaller) == {"n": int, "m": int}
    assert fields_of(Box) == {"inside": Pair}
    assert fields_of(Pair) == {"left": int, "right": str | None}
    assert fields_of(dict[str, int]) is None
    assert fields_of(int) is None


def test_a_plain_value_is_one_segment() -> None:
    """A path carries texts, numbers and enums; no collections and no structs."""
    assert all(is_text(kind) for kind in (str, int, bool, Colour, Sku, str | None, Literal["a"]))
    assert not any(is_text(kind) for kind in (list[str], Small, bytes | dict[str, int], Pair))


def test_null_is_taken_apart_from_a_type() -> None:
    """`str | None` is a `str` that may be null."""
    assert without_null(str | int | None) == (str | int, True)
    assert without_null(None) == (None, True)
    assert without_null(Sku) == (str, False)


def test_a_rate_may_be_slow_and_a_burst_its_own() -> None:
    """A rate below one a second has bursts of one where nothing else is said."""
    entry = compiled(with_route(Route("GET /o", Orders.one, rate=Rate("30/m"))))[0]
    assert (entry.interval_s, entry.burst) == (2.0, 1)
    entry = compiled(with_route(Route("GET /l/{number}", Production.line, rate=Rate("5/h"))))[0]
    assert (entry.interval_s, entry.burst) == (720.0, 1)


def test_the_outline_of_a_forward() -> None:
    """A forward says to whom it leads, under which path, how much, and what else passes."""
    gateway = with_route(
        Forward("PUT /firmware/{name}", to="store", path="/i/{name}", body_max="64MiB"),
        Forward("GET /reports/{id}", to="reports", public=True, headers={"x-b", "x-a"}),
    )
    assert check(gateway) == ()
    put, get = outline(gateway)
    assert (put.kind, put.operation, put.body_max) == ("forward", "store /i/{name}", "64MiB")
    assert (put.who, put.headers) == ("any principal", ())
    assert (get.operation, get.body_max) == ("reports /reports/{id}", "1MiB")
    assert (get.who, get.headers) == ("anybody", ("x-a", "x-b"))


@pytest.mark.parametrize("size", ["", "64", "MiB", "1.5MiB", "64MB", "64 k", "-1B", "1e3B"])
def test_what_is_no_size_is_refused(size: str) -> None:
    """A size is a whole number of B, KiB, MiB or GiB."""
    with pytest.raises(ConfigError, match="is no size"):
        size_of(size)


def test_where_else_a_forward_leads_is_told_with_its_path() -> None:
    """The path of the first upstream, unless another is written."""
    forward = Forward(
        "GET /shop/{sku}",
        to="shop",
        path="/{sku}",
        split=Split("prices", percent=50),
        mirror=Mirror("copies", path="/v2/{sku}"),
    )
    (route,) = outline(with_route(forward))
    assert route.operation == "shop /{sku}, 50 % to prices /{sku}, copied to copies /v2/{sku}"
