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
from synchromesh.system.control.advising import projections, set_aside
from synchromesh.system.control.status import Status
from synchromesh.system.control.status_parts import (
    HealthStatus,
    ParkedStatus,
    ProjectionStatus,
    ServiceStatus,
    SetAsideStatus,
)
from synchromesh.telemetry import SpanRecord
from synchromesh.telemetry.trace_tree import TraceTree, tree_of
from traces import span

KEY = 'policies."gateway:shop".timeout = 2s'


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


def reports(*ends: str) -> list[Sequence[SpanRecord]]:
    """Return requests for a report, a second apart: quick, slow and answered, or slow and cut."""
    found: list[Sequence[SpanRecord]] = []
    for at, end in enumerate(ends):
        took, status = (20, "ok") if end == "ok" else (2100, "ok" if end == "slow" else "timed_out")
        noted = {"limit": KEY} if status == "timed_out" else {}
        found.append(
            trace(
                at,
                span("g", "", "gateway gateway GET /report", 0, took, status),
                span("c", "g", "gateway call shop.report", 0, took, status, **noted),
                span("h", "c", "shop handle shop.report", 1, took - 1, status),
                later_s=at * 5.0,
            )
        )
    return found


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
    "time-out-too-short": Bait(
        Facts(traces=reports("ok", "cut", "ok", "cut", "ok", "cut")),
        Facts(traces=reports("ok", "slow", "ok", "slow", "ok", "slow")),
        "3 of 6 calls of shop.report by gateway were cut while it was at work, and none that takes",
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


def replicated(facts: Facts) -> Facts:
    """Return the same facts of services that have two replicas each, the gateway left out."""
    return replace(
        facts,
        traces=[
            [
                each if each.service == "gateway"
                else replace(each, service=f"{each.service}#{1 + (at + number) % 2}")
                for number, each in enumerate(spans)
            ]
            for at, spans in enumerate(facts.traces)
        ],
    )  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        code for code, bait in BAITS.items()
        if bait.bait.traces and not code.startswith("breaker-")
    ],
)  # fmt: skip
def test_replicas_of_a_service_are_one_service(code: str) -> None:
    """What is found of a service, and what is not, is the same where it has replicas."""
    bait, twin, _ = BAITS[code]
    assert [each.what for each in advise(replicated(bait))] == [each.what for each in advise(bait)]
    assert advise(replicated(twin)) == []


def test_a_time_out_is_told_with_its_key_and_traces() -> None:
    """Also of one that is never answered; and of who was asked, not of who waits for it."""
    (found,) = advise(Facts(traces=reports("cut", "cut", "cut")))
    assert (found.code, found.evidence) == ("time-out-too-short", (KEY, "t0", "t1", "t2"))
    waiting = [
        [*spans, replace(spans[1], span_id="d", parent_id="h", service="shop", name="bank.sum"),
         replace(spans[2], span_id="i", parent_id="d", service="bank", name="bank.sum")]
        for spans in reports("cut", "cut", "cut")
    ]  # fmt: skip
    (found,) = advise(Facts(traces=waiting))
    assert "calls of bank.sum by shop" in found.what


@pytest.mark.parametrize(
    "traces",
    [
        # An outage is in one piece, and has quick ones before and after.
        reports("ok", "cut", "cut", "cut", "cut", "ok"),
        reports("ok", "cut", "ok", "cut", "ok"),
        # Some that take as long are answered.
        reports("ok", "cut", "slow", "cut", "ok", "cut", "ok"),
        # Nobody was at work on it.
        [spans[:2] for spans in reports("cut", "cut", "cut")],
    ],
    ids=["an outage", "two", "some are answered", "no callee"],
)
def test_a_time_out_that_does_what_it_should_is_right(traces: list[Sequence[SpanRecord]]) -> None:
    """Services that are down are cut, and so is now and then one of many that take long."""
    assert advise(Facts(traces=traces)) == []


@pytest.mark.parametrize("code", ["no-fallback", "breaker-flaps", "time-out-too-short"])
def test_what_was_broken_on_purpose_is_no_evidence(code: str) -> None:
    """Neither what a fault struck nor what failed meanwhile, and for a while after it."""
    bait, _, _ = BAITS[code]
    first = min(span.started_us for spans in bait.traces for span in spans)
    last = max(span.started_us for spans in bait.traces for span in spans)
    struck = [
        replace(span("f", "", "cron call bank.pay", 0, 1, "remote_failed"), trace_id=f"f{at_us}",
                started_us=at_us, attributes={"fault": "100% errors at bank"})
        for at_us in range(first, last + 1, 20_000_000)
    ]  # fmt: skip
    assert advise(replace(bait, traces=[*bait.traces, struck])) == []
    long_before = [replace(each, started_us=each.started_us - 3_600_000_000) for each in struck]
    assert [each.code for each in advise(replace(bait, traces=[*bait.traces, long_before]))] == [
        code
    ]


def test_replicas_of_few_callers_make_no_hub() -> None:
    """Two callers and two callees with three replicas each are two of each."""
    names = [f"{name}#{number}:hub" for name in "ab" for number in (1, 2, 3)]
    called = [f"hub#{number}:{name}" for name in "vwxyz" for number in (1, 2, 3)]
    assert advise(edges(*names, *called)) == []


def test_each_replica_has_breakers_of_its_own() -> None:
    """One opens again and again, and no other; and a window has the calls of one alone."""
    first, second = (
        [[replace(span, service=f"shop#{number}") for span in spans] for spans in calls]
        for number, calls in enumerate(
            (calls_at(0, 5, 10, status="circuit_open"), calls_at(2, 7, status="circuit_open")), 1
        )
    )
    (found,) = advise(Facts(traces=[*first, *second]))
    assert found.what == "the breaker of shop#1:bank opened 3 times"
    # Together they would be 20 in 10 s.
    traces = replicated(Facts(traces=calls_at(*(at / 2 for at in range(40))))).traces
    (found,) = advise(Facts(breakers=[BREAKER], traces=traces))
    assert found.code == "breaker-never-opens"
    assert found.what.endswith("and there were never more than 11")
    assert advise(Facts(breakers=[replace(BREAKER, minimum_calls=11)], traces=traces)) == []


def test_what_is_set_aside_and_behind_is_gathered_of_each_service_once() -> None:
    """Messages and parked projections, of which all replicas tell; and lag, of what was known."""
    parked = ParkedStatus(7, "e", "Sold", "KeyError", since_us=0, is_poison=True)
    lists = ProjectionStatus("list", 2, 1, "live", 6, 3_000, 0, is_waiting=False, parked=parked)
    fresh = replace(lists, name="fresh", parked=None)
    letter = SetAsideStatus("parked", "stock", "", "stock.sold", "KeyError", 2, 60.0)
    health = HealthStatus("shop", True, False, {})
    told = ServiceStatus(1, health, projections=[lists, fresh], set_aside=[letter])
    then = Status("town", 1, services={"shop#1": told, "shop#2": told})
    assert set_aside(then, now_us=7_200_000_000) == (
        SetAsideFacts("shop", "stock.sold (KeyError)", 2, 60.0),
        SetAsideFacts("shop", "projection list, parked at event 7 (KeyError),", 1, 7_200.0),
    )
    (found,) = advise(Facts(set_aside=set_aside(then, now_us=7_200_000_000)))
    assert found.code == "parked"
    assert found.what == ("shop: projection list, parked at event 7 (KeyError), waits since 2 h")
    earlier = replace(told, projections=[replace(lists, behind=2_000)])
    first = Status("town", 1, services={"shop#1": earlier, "shop#2": earlier})
    assert projections(first, then) == (ProjectionFacts("shop", "list", 2_000, 3_000),)


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
