"""Each code of advice: a bait in which it is found, and a clean twin, right by one change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from pages import ROOT
from synchromesh.advisor import (
    CODES,
    AdviceCode,
    BranchFacts,
    BreakerFacts,
    EventFacts,
    Facts,
    OperationFacts,
    ProjectionFacts,
    RouteFacts,
    SagaStepFacts,
    ServiceFacts,
    SetAsideFacts,
    advise,
)
from synchromesh.telemetry import SpanRecord
from synchromesh.telemetry.trace_tree import TraceTree, tree_of
from traces import span


class Bait(NamedTuple):
    """What is found, and the same with one thing made right."""

    bait: Facts
    twin: Facts
    said: str


def trace(number: int, *spans: SpanRecord, later_s: float = 0.0) -> list[SpanRecord]:
    """Return the spans as a trace of its own."""
    later_us = round(later_s * 1e6)
    return [
        replace(each, trace_id=f"t{number}", started_us=each.started_us + later_us)
        for each in spans
    ]


def chain(*services: str) -> list[SpanRecord]:
    """Return a trace in which each service waits for the next."""
    spans, parent = [], ""
    for depth, service in enumerate(services):
        call = span(f"c{depth}", parent, f"x call {service}.ask", depth, 100 - depth)
        caller = services[depth - 1] if depth else "gateway"
        spans += [
            replace(call, service=caller),
            span(f"h{depth}", f"c{depth}", f"{service} handle {service}.ask", depth, 100 - depth),
        ]
        parent = f"h{depth}"
    return trace(1, *spans)


def asking(*calls: tuple[str, float, float]) -> list[SpanRecord]:
    """Return a handler of 100 ms that makes calls, each from and to a time."""
    return [
        span("h", "", "shop handle shop.page", 0, 100),
        *(
            span(f"c{at}", "h", f"shop call {name}", began_ms, ended_ms)
            for at, (name, began_ms, ended_ms) in enumerate(calls)
        ),
    ]


def edges(*pairs: str) -> Facts:
    """Return calls, each "caller:callee"."""
    return Facts(
        traces=[
            trace(at, span("c", "", f"{caller} call {callee}.ask", 0, 1))
            for at, (caller, callee) in enumerate(each.split(":") for each in pairs)
        ]
    )


def page(status: str, times: int = 3) -> list[Sequence[SpanRecord]]:
    """Return requests whose call of `orders.one` ended so."""
    return [
        trace(
            at,
            span("g", "", "gateway gateway GET /orders", 0, 10),
            span("c", "g", "gateway call orders.one", 1, 9, status),
        )
        for at in range(times)
    ]


def calls_at(*seconds: float, status: str = "ok") -> list[Sequence[SpanRecord]]:
    """Return calls of the edge shop:bank at these times."""
    return [
        trace(at, span("c", "", "shop call bank.charge", 0, 1, status), later_s=second)
        for at, second in enumerate(seconds)
    ]


def handled(*statuses: str) -> Facts:
    """Return handlers that ended so."""
    return Facts(
        traces=[
            trace(at, span("h", "", "shop handle shop.order", 0, 1, status))
            for at, status in enumerate(statuses)
        ]
    )


def saga(*steps: SagaStepFacts) -> Facts:
    return Facts(steps=steps)


RESERVE = SagaStepFacts("shop.order", "sagas.py:7", "stock.reserve", True, True, False)
CHARGE = SagaStepFacts("shop.order", "sagas.py:8", "bank.charge", True, False, True, ("declined",))
SHIP = SagaStepFacts("shop.order", "sagas.py:9", "post.ship", True, False, False)
HUB = [f"{name}:hub" for name in "abcde"] + [f"hub:{name}" for name in "vwxyz"]
SMALL = ServiceFacts("tax", operations=1, has_state=False)
READ = RouteFacts(
    "GET /orders",
    is_public=False,
    has_rate=False,
    is_read=True,
    branches=(BranchFacts("", "orders.one", is_required=True, has_fallback=False),),
)
WRITE = RouteFacts("POST /people", is_public=True, has_rate=False, is_read=False)
BREAKER = BreakerFacts("shop:bank", 'policies."shop:bank".breaker', minimum_calls=20, window_s=10)
LAG = ProjectionFacts("shop", "list", behind_first=5_000, behind_then=5_000)
WAITING = [
    trace(
        at,
        span("g", "", "gateway gateway GET /x", 0, 100),
        span("c", "g", "gateway call shop.ask", 0, 100, place_ms="60"),
        span("h", "c", "shop handle shop.ask", 60, 100),
    )
    for at in range(3)
]

BAITS = {
    "cyclic-calls": Bait(
        Facts(traces=[chain("shop", "stock", "shop")]),
        Facts(traces=[chain("shop", "stock", "bank")]),
        "calls go in a circle: shop → stock → shop",
    ),
    "chain-too-long": Bait(
        Facts(traces=[chain("a", "b", "c", "d", "e")]),
        Facts(traces=[chain("a", "b", "c", "d")]),
        "a request waits for 5 services in a row: a → b → c → d → e",
    ),
    "chatty-calls": Bait(
        Facts(traces=[trace(1, *asking(*[("stock.one", at, at + 1) for at in range(10)]))]),
        Facts(traces=[trace(1, *asking(*[("stock.one", at, at + 1) for at in range(9)]))]),
        "shop.page calls stock.one 10 times for one request",
    ),
    "serial-fan-out": Bait(
        Facts(
            traces=[
                trace(at, *asking(("a.one", 0, 30), ("b.one", 30, 60), ("c.one", 60, 90)))
                for at in range(3)
            ]
        ),
        Facts(
            traces=[
                trace(at, *asking(("a.one", 0, 30), ("b.one", 0, 60), ("c.one", 0, 90)))
                for at in range(3)
            ]
        ),
        "shop.page asks one after the other: a.one, b.one, c.one",
    ),
    "hub": Bait(edges(*HUB), edges(*HUB[1:]), "hub is called by 5 services and calls 5"),
    "nanoservice": Bait(
        replace(edges(*["shop:tax"] * 20), services=[SMALL]),
        replace(edges(*["shop:tax"] * 20), services=[replace(SMALL, has_state=True)]),
        "tax has 1 operations, keeps nothing, and is called by shop alone",
    ),
    "bottleneck": Bait(
        Facts(traces=WAITING),
        Facts(traces=[[replace(s, attributes={}) for s in spans] for spans in WAITING]),
        "60 % of the time of requests is waiting at ",
    ),
    "no-fallback": Bait(
        Facts(routes=[READ], traces=page("timed_out")),
        Facts(
            routes=[replace(READ, branches=(replace(READ.branches[0], has_fallback=True),))],
            traces=page("timed_out"),
        ),
        "GET /orders failed 3 times as orders.one did",
    ),
    "breaker-flaps": Bait(
        Facts(traces=calls_at(0, 0.1, 5, 10, status="circuit_open")),
        Facts(traces=calls_at(0, 0.1, 0.2, 1, status="circuit_open")),
        "the breaker of shop:bank opened 3 times",
    ),
    "breaker-never-opens": Bait(
        Facts(breakers=[BREAKER], traces=calls_at(*range(0, 200, 5))),
        Facts(breakers=[replace(BREAKER, minimum_calls=3)], traces=calls_at(*range(0, 200, 5))),
        "the breaker of shop:bank counts from 20 calls in 10 s on, and there were never more",
    ),
    "lock-contention": Bait(
        handled(*["ok"] * 5, *["saga_locked"] * 3),
        handled(*["ok"] * 5, *["saga_locked"] * 2),
        "shop.order was refused 3 of 8 times by a lock key",
    ),
    "open-command": Bait(
        Facts(routes=[WRITE]),
        Facts(routes=[replace(WRITE, has_rate=True)]),
        "POST /people is public, changes data, and has no rate",
    ),
    "over-scoped-key": Bait(
        Facts(routes=[replace(READ, scopes=("read",))], keys={"k1": ["read", "admin"]}),
        Facts(routes=[replace(READ, scopes=("read",))], keys={"k1": ["read"]}),
        "key k1 has scopes that no route asks for",
    ),
    "step-without-undo": Bait(
        saga(replace(RESERVE, has_undo=False), CHARGE, SHIP),
        saga(RESERVE, CHARGE, SHIP),
        "shop.order: stock.reserve is not undone",
    ),
    "refusal-after-pivot": Bait(
        saga(RESERVE, CHARGE, replace(SHIP, refuses=("no_address",))),
        saga(replace(RESERVE, refuses=("out_of_stock",)), CHARGE, SHIP),
        "shop.order: post.ship may refuse with no_address",
    ),
    "personal-data-in-event": Bait(
        Facts(events=[EventFacts("shop.signed_up", "contracts.py:9", ("id", "contact_email"))]),
        Facts(events=[EventFacts("shop.signed_up", "contracts.py:9", ("id", "name", "product"))]),
        "shop.signed_up tells contact_email in plain text",
    ),
    "unused-operation": Bait(
        Facts(operations=[OperationFacts("shop.old", "contracts.py:5", is_named=False)]),
        Facts(operations=[OperationFacts("shop.old", "contracts.py:5", is_named=True)]),
        "nothing calls shop.old",
    ),
    "unused-event": Bait(
        Facts(events=[EventFacts("shop.sold", "contracts.py:6", is_taken=False)]),
        Facts(events=[EventFacts("shop.sold", "contracts.py:6", is_taken=True)]),
        "nobody takes shop.sold",
    ),
    "projection-lag": Bait(
        Facts(projections=[LAG]),
        Facts(projections=[replace(LAG, behind_then=4_000)]),
        "shop: projection list is 5000 events behind, and was 5000 a moment before",
    ),
    "parked": Bait(
        Facts(set_aside=[SetAsideFacts("shop", "stock.sold (KeyError)", 2, oldest_s=7_200)]),
        Facts(set_aside=[SetAsideFacts("shop", "stock.sold (KeyError)", 2, oldest_s=60)]),
        "shop: stock.sold (KeyError) waits since 2 h",
    ),
    "unbounded-growth": Bait(
        Facts(keeps={"retention.sagas": "runs of sagas that have ended"}),
        Facts(),
        "runs of sagas that have ended are kept for ever",
    ),
    "contract-drift": Bait(
        Facts(drift=["shop.order: field qty is gone"]), Facts(), "shop.order: field qty is gone"
    ),
    "blocking-code": Bait(
        Facts(blocked={"shop": "time.sleep in services/shop.py:12"}),
        Facts(),
        "the event loop of shop stood still",
    ),
}


def test_each_code_has_a_bait() -> None:
    """None is left out, and none is there twice."""
    codes = [each.code for each in CODES]
    assert sorted(codes) == sorted(BAITS)
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("code", BAITS)
def test_a_bait_is_found_and_its_twin_is_clean(code: str) -> None:
    """What is wrong is told with evidence; its twin is clean, and so is what is ignored."""
    bait, twin, said = BAITS[code]
    (found,) = advise(bait)
    assert (found.code, found.what[: len(said)]) == (code, said)
    assert all(found.evidence)
    assert found.evidence
    assert advise(twin) == []
    assert advise(bait, ignored={code}) == []


@pytest.mark.parametrize("each", CODES, ids=lambda each: each.code)
def test_each_code_leads_to_a_page(each: AdviceCode) -> None:
    """Its page is there."""
    assert (ROOT / "docs" / each.page).is_file()


@pytest.mark.parametrize(
    "broken",
    [
        [span("a", "b", "shop handle shop.x", 0, 1), span("b", "a", "shop call shop.x", 0, 1)],
        [span("a", "gone", "shop handle shop.x", 5, 1)],
        [span("a", "", "shop unit x", 0, 0)],
    ],
    ids=["a circle of parents", "a lost parent", "no time"],
)
def test_traces_that_are_not_whole_are_no_trouble(broken: list[SpanRecord]) -> None:
    """Spans are best effort; nothing is advised of what is not known."""
    assert advise(Facts(traces=[broken, []])) == []


def test_each_trace_is_worked_out_once_for_all_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many checks look at it; and where nobody waited its time is not explained."""
    made: list[int] = []

    def counted(spans: Sequence[SpanRecord]) -> TraceTree:
        made.append(len(spans))
        return tree_of(spans)

    def explained(_: object) -> None:
        raise AssertionError("nobody waited")

    monkeypatch.setattr("synchromesh.advisor.traces.tree_of", counted)
    monkeypatch.setattr("synchromesh.advisor.traces.explain", explained)
    traces = [trace(number, span("1", "", "gateway gateway GET /a", 0, 9)) for number in range(5)]
    assert advise(Facts(traces=traces)) == []
    assert made == [1] * 5
