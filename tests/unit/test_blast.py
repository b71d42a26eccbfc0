"""What `blast` says of declarations and calls that were seen, on small systems by hand."""

from __future__ import annotations

import pytest

from synchromesh.gateway.outlining import BranchOutline, RouteOutline
from synchromesh.system.control.blast import Blast, Declarations, blast
from synchromesh.telemetry import SpanRecord
from synchromesh.telemetry.observed import ObservedCall, merged, observed_calls


def route(
    name: str,
    operation: str = "",
    *branches: BranchOutline,
    kind: str = "query",
    fallback: str = "",
    is_whole: bool = False,
) -> RouteOutline:
    """Return a route to an operation, or of branches."""
    kind = "aggregate" if branches else kind
    return RouteOutline(
        name, kind, operation, True, (), "5s", None, branches, fallback, is_whole=is_whole
    )  # fmt: skip


def branch(name: str, operation: str, *after: str, **more: object) -> BranchOutline:
    """Return a branch that needs others."""
    given = {"is_required": False, "fallback": "", **more}
    return BranchOutline(
        name, operation, {}, 1 + len(after), after, bool(given["is_required"]), None,
        str(given["fallback"]),
    )  # fmt: skip


def effects(found: Blast) -> dict[str, str]:
    """Return the effects by what they are on."""
    return {hit.what: hit.effect for hit in found.hits}


def of_route(one: RouteOutline, *calls: ObservedCall, service: str = "bank") -> str:
    """Return the effect on a single route."""
    return effects(blast(service, Declarations([service], routes=[one]), calls)).get(one.route, "")


@pytest.mark.parametrize(
    ("calls", "effect"),
    [
        ([], ""),
        ([ObservedCall("shop.a", "bank.x", 5, 0, 0)], "stops or degrades"),
        ([ObservedCall("shop.a", "bank.x", 5, 2, 0)], "stops"),
        ([ObservedCall("shop.a", "bank.x", 5, 2, 2)], "degrades"),
        ([ObservedCall("shop.a", "bank.x", 5, 2, 1)], "stops or degrades"),
        ([ObservedCall("shop.a", "shop.a", 5, 2, 2)], ""),
        ([ObservedCall("shop.a", "till.y", 5, 0, 0), ObservedCall("till.y", "bank.x", 5, 3, 3)],
         "degrades"),
        ([ObservedCall("shop.a", "saga shop.buy", 1, 0, 0),
          ObservedCall("saga shop.buy", "bank.x", 1, 1, 0)], "waits"),
    ],
)  # fmt: skip
def test_a_route_is_hit_by_what_its_handler_was_seen_to_call(
    calls: list[ObservedCall], effect: str
) -> None:
    """What a handler does with a call that fails is known once one has failed."""
    assert of_route(route("GET /a", "shop.a"), *calls) == effect


def test_a_fallback_stands_in_for_a_service_and_not_for_a_saga() -> None:
    """A route with one degrades; what waits behind a command goes on waiting."""
    assert of_route(route("GET /a", "bank.a", fallback="a static value")) == "degrades"
    calls = [
        ObservedCall("shop.a", "saga shop.s", 1, 0, 0),
        ObservedCall("saga shop.s", "bank.x", 1, 0, 0),
    ]
    assert of_route(route("POST /a", "shop.a", fallback="a static value"), *calls) == "waits"


def test_a_page_stops_by_what_it_requires_alone() -> None:
    """A branch that needs a lost one is lost with it; one that is whole or none stops by any."""
    first, second = branch("a", "bank.a"), branch("b", "shop.b", "a", is_required=True)
    assert of_route(route("GET /p", "", first)) == "degrades"
    assert of_route(route("GET /p", "", branch("a", "bank.a", is_required=True))) == "stops"
    assert of_route(route("GET /p", "", first, second)) == "stops"
    kept = branch("a", "bank.a", is_required=True, fallback="its last answer")
    assert of_route(route("GET /p", "", kept, second)) == "degrades"
    assert of_route(route("GET /p", "", first, is_whole=True)) == "stops"


def test_what_is_passed_on_stops_with_its_upstream() -> None:
    """A share that goes to another one stops with that."""
    passed = route("GET /old", "bank /old, 5 % to till /new", kind="forward")
    assert of_route(passed) == "stops"
    assert of_route(passed, service="till") == "stops or degrades"
    assert of_route(passed, service="shop") == ""


def test_sagas_and_messages_wait_and_what_was_never_seen_is_unknown() -> None:
    """Own sagas, those that call it, both sides of subscriptions; unused imports."""
    declared = Declarations(
        ["shop", "bank", "mail"],
        sagas={"shop": ["buy"], "bank": ["audit"], "mail": ["send"]},
        imports={"shop": {"bank"}, "mail": {"bank"}, "bank": {"bank"}},
        takes={"mail": ["bank.paid"], "bank": ["shop.sold"]},
    )
    found = blast("bank", declared, [ObservedCall("saga shop.buy", "bank.charge", 2, 0, 0)])
    assert set(effects(found)) == {
        "saga shop.buy", "saga bank.audit", "mail, taking bank.paid", "bank, taking shop.sold",
    }  # fmt: skip
    assert set(effects(found).values()) == {"waits"}
    assert found.unknown == ("mail imports the contract of bank, and was not seen to call it",)


def test_calls_that_go_round_in_a_circle_hide_nothing() -> None:
    """Each of a circle is hit by what one of them calls, whichever is asked of first."""
    seen = [
        ObservedCall("shop.a", "till.b", 3, 0, 0),
        ObservedCall("till.b", "shop.a", 3, 0, 0),
        ObservedCall("shop.a", "bank.x", 3, 2, 0),
        ObservedCall("till.b", "till.b", 1, 0, 0),
    ]
    for calls in (seen, seen[::-1]):
        for names in (("shop.a", "till.b"), ("till.b", "shop.a")):
            routes = [route(f"GET /{name}", name) for name in names]
            found = blast("bank", Declarations(["bank"], routes=routes), calls)
            assert effects(found) == {"GET /shop.a": "stops", "GET /till.b": "stops or degrades"}


def test_a_large_circle_is_looked_at_in_little_time() -> None:
    """Where everybody calls everybody there are more ways than can be tried."""
    names = [f"s{number}.x" for number in range(40)]
    calls = [ObservedCall(a, b, 1, 0, 0) for a in names for b in names]
    calls.append(ObservedCall(names[-1], "bank.x", 1, 0, 0))
    routes = [route(f"GET /{name}", name) for name in names]
    found = blast("bank", Declarations(["bank"], routes=routes), calls)
    assert len(found.hits) == len(names)


def test_a_route_that_may_need_it_unseen_is_not_as_always() -> None:
    """It is named with the import that nobody has seen used; others are as always."""
    routes = [route("GET /a", "shop.a"), route("GET /b", "till.b"), route("GET /c", "desk.c")]
    declared = Declarations(["bank"], routes=routes, imports={"shop": {"bank"}, "till": set()})
    found = blast("bank", declared, [ObservedCall("desk.c", "shop.a", 1, 0, 0)])
    assert found.untouched == ("GET /b",)
    assert found.unknown == (
        "shop imports the contract of bank, and was not seen to call it: GET /a, GET /c",
    )


def span(span_id: str, parent: str, what: str, status: str = "ok") -> SpanRecord:
    """Return a span of `service kind name`."""
    service, kind, name = what.split(" ", 2)
    return SpanRecord("t", span_id, parent, service, kind, name, 0, 1, status, {})


def test_calls_are_counted_by_who_made_them() -> None:
    """Of handlers, routes and sagas; deliveries, clients and what has lost its parent are not."""
    spans = [
        span("g", "", "gateway gateway GET /a"),
        span("c", "g", "gateway call shop.a", "timed_out"),
        span("h", "c", "shop handle shop.a"),
        span("d", "h", "shop call bank.x", "circuit_open"),
        span("r", "h", "shop call bank.y", "credit_declined"),
        span("s", "h", "shop saga buy", "undone"),
        span("st", "s", "shop step bank.charge#1"),
        span("sc", "st", "shop call bank.charge"),
        span("un", "s", "shop undo bank.charge#1"),
        span("uc", "un", "shop call bank.charge"),
        span("f", "g", "gateway call GET /old"),
        span("o", "gone", "shop call bank.z"),
        span("m", "", "shop relay shop.sold"),
        span("mc", "m", "shop call mail.deliver"),
    ]
    assert [(c.source, c.target, c.seen, c.failed, c.survived) for c in observed_calls(spans)] == [
        ("GET /a", "shop.a", 1, 1, 1),
        ("saga shop.buy", "bank.charge", 2, 0, 0),
        ("shop.a", "bank.x", 1, 1, 1),
        ("shop.a", "bank.y", 1, 0, 0),
        ("shop.a", "saga shop.buy", 1, 0, 0),
    ]
    assert merged([]) == []


def test_a_saga_is_the_same_in_each_replica() -> None:
    """Its runs, what starts it and what it calls are of its service, whoever of it runs them."""
    spans = [
        span("h", "", "shop#1 handle shop.a"),
        span("s", "h", "shop#1 saga buy"),
        span("st", "s", "shop#1 step bank.charge#1"),
        span("c", "st", "shop#1 call bank.charge"),
        span("s2", "", "shop#2@north saga buy"),
        span("c2", "s2", "shop#2@north call bank.charge"),
    ]
    seen = observed_calls(spans)
    assert [(each.source, each.target, each.seen) for each in seen] == [
        ("saga shop.buy", "bank.charge", 2),
        ("shop.a", "saga shop.buy", 1),
    ]
    declared = Declarations(["shop", "bank"], sagas={"shop": ["buy"]})
    assert effects(blast("bank", declared, seen)) == {"saga shop.buy": "waits"}
