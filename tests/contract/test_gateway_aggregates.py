"""What an aggregate promises: whole where it can be, and where it is not, it says so."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from gateway_fakes import (
    NO_RETRY,
    PLACE,
    SECRET,
    SHOP,
    Fleet,
    Machine,
    Order,
    Orders,
    Plant,
    Production,
    Slot,
    UnknownMachine,
    behind,
    json_of,
    now,
    stalls,
)
from synchromesh.calls import (
    Incoming,
    InProcessTransport,
    Policies,
    Reply,
    Request,
)
from synchromesh.discovery import Endpoint
from synchromesh.errors import (
    BadRequest,
    ConfigError,
    Shed,
)
from synchromesh.gateway import (
    Aggregate,
    Branch,
    Gateway,
    Stale,
)
from synchromesh.gateway.metrics import BRANCH_TOOK
from synchromesh.resilience import BreakerOptions, Policy

pytestmark = pytest.mark.usefixtures("each_way", "http_way")

TRIPS = BreakerOptions(
    minimum_calls=1, failure_rate=0.01, open_for_s=0.1, open_jitter=0.0, probes_max=1
)
FRAGILE = Policies(default=Policy(retry=None, breaker=TRIPS))


@pytest.fixture(params=["inproc", "http"])
def kind(request: pytest.FixtureRequest) -> str:
    """The transport behind the gateway."""
    return str(request.param)


WHOLE = {
    "machine": {"id": "M-1", "order_id": "A-1", "number": 7, "grade": "a", "site": None},
    "order": {"id": "A-1", "customer": "ada"},
    "production": {"starts": "monday"},
    "line": "north",
}


def marks_of(answer: Any) -> dict[str, str]:
    return {name: mark["status"] for name, mark in json_of(answer)["branches"].items()}


def test_an_aggregate_is_whole(kind: str) -> None:
    """All branches answer, each with the arguments that path and other branches give it."""

    async def main(plant: Plant) -> None:
        answer = await plant.ask("GET /machines/M-1")
        assert answer.status == 200
        assert json_of(answer)["data"] == WHOLE
        assert set(marks_of(answer).values()) == {"ok"}
        assert "synchromesh-partial" not in answer.headers
        given = {a.operation.full_name: json.loads(a.arguments) for a in plant.asked}
        assert given == {
            "fleet.machine": {"id": "M-1"},
            "orders.one": {"order_id": "A-1"},
            "production.slot": {"order_id": "A-1"},
            "production.line": {"number": 7},
        }

    behind(main, kind=kind)


def test_branches_run_at_once_and_what_needs_another_after_it() -> None:
    """The answer takes as long as the longest way, not as the sum; each is timed from its begin."""

    def after(delay_s: float, value: object) -> Any:
        async def answer(_: Incoming) -> object:
            await asyncio.sleep(delay_s)
            return value

        return answer

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = after(0.1, Machine("M-1", "A-1", 7))
        plant.orders.answers["one"] = after(0.2, Order("A-1", "ada"))
        plant.production.answers["slot"] = after(0.2, Slot("monday"))
        plant.production.answers["line"] = after(0.15, "north")
        began = now()
        assert json_of(await plant.ask("GET /machines/M-1"))["data"] == WHOLE
        assert now() - began == pytest.approx(0.3, abs=1e-6)
        (timed,) = (
            each for each in plant.engine.state.families("http") if each.metric is BRANCH_TOOK
        )
        took = {sample.labels[1:]: sample.value for sample in timed.samples}
        assert took == {
            ("machine", "ok"): pytest.approx(0.1, abs=1e-6),
            ("order", "ok"): pytest.approx(0.2, abs=1e-6),
            ("production", "ok"): pytest.approx(0.2, abs=1e-6),
            ("line", "ok"): pytest.approx(0.15, abs=1e-6),
        }

    behind(main)


def test_a_failed_branch_is_marked(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A branch that failed is null, with the kind of its error; a header names it (G4)."""

    async def main(plant: Plant) -> None:
        plant.orders.answers["one"] = ValueError(SECRET)
        answer = await plant.ask("GET /machines/M-1")
        assert answer.status == 200
        assert json_of(answer)["data"] == WHOLE | {"order": None}
        assert json_of(answer)["branches"]["order"] == {"status": "failed", "code": "remote_failed"}
        assert answer.headers.get("synchromesh-partial") == "order"
        assert SECRET not in answer.body.decode()

    with caplog.at_level(logging.ERROR):
        behind(main, kind=kind, policies=NO_RETRY)


def test_a_required_branch_decides(kind: str) -> None:
    """The rejection of a required branch is the answer, and what was under way is cancelled."""
    gateway = Gateway(
        auth=[SHOP],
        routes=[
            Aggregate(
                "GET /m/{id}",
                branches={
                    "machine": Branch(Fleet.machine, args={"id": "path.id"}, required=True),
                    "order": Branch(Orders.one, args={"order_id": "path.id"}),
                },
            )
        ],
    )

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = UnknownMachine("there is no M-9")
        plant.orders.answers["one"] = stalls
        began = now()
        answer = await plant.ask("GET /m/M-9")
        assert (answer.status, json_of(answer)["code"]) == (404, "unknown_machine")
        assert json_of(answer)["detail"] == "there is no M-9"
        assert now() - began < 0.1

    behind(main, gateway=gateway, kind=kind)


FLAT = Gateway(
    auth=[SHOP],
    routes=[
        Aggregate(
            "GET /m/{id}",
            deadline="1s",
            branches={
                "machine": Branch(Fleet.machine, args={"id": "path.id"}, required=True),
                "order": Branch(Orders.one, args={"order_id": "path.id"}, timeout="300ms"),
            },
        )
    ],
)


def test_a_call_carries_the_same_whether_it_is_prepared_or_not(kind: str) -> None:
    """A service is told the same of who asks, for how long, and what it may spend."""

    async def main(plant: Plant) -> None:
        told, spent, answers = [], [], []
        for is_slow in (False, True):
            plant.caller.is_slow = is_slow
            answers.append((await plant.ask("GET /m/M-1")).body)
            told.append(
                [
                    (
                        each.operation.full_name,
                        each.arguments,
                        each.context.caller,
                        each.context.principal.name,
                        each.context.priority,
                        each.context.key,
                        round((each.context.deadline_s or 0) - now(), 2),
                    )
                    for each in plant.asked
                ]
            )
            # Which of them is sent first is not said.
            spent.append(sorted(each.context.attempts_left for each in plant.asked))
            for service in (plant.fleet, plant.orders):
                service.asked.clear()
        assert answers[0] == answers[1]
        assert told[0] == told[1]
        assert spent[0] == spent[1]
        # A callee keeps a part of its time for the way back.
        within_s = [each[-1] for each in told[0]]
        assert within_s[1] == pytest.approx(0.3 * within_s[0], abs=0.01)

    behind(main, gateway=FLAT, kind=kind)


def test_a_branch_that_no_other_needs_may_fail_alone(kind: str) -> None:
    """The others answer, and it is marked (G4); so it is where it ends last."""

    async def main(plant: Plant) -> None:
        plant.orders.answers["one"] = BadRequest("no")
        answer = await plant.ask("GET /m/M-1")
        assert marks_of(answer) == {"machine": "ok", "order": "failed"}
        assert answer.headers.get("synchromesh-partial") == "order"
        plant.orders.answers["one"] = stalls
        began = now()
        assert marks_of(await plant.ask("GET /m/M-1")) == {"machine": "ok", "order": "failed"}
        assert now() - began == pytest.approx(0.3, abs=0.01)

    behind(main, gateway=FLAT, kind=kind, policies=NO_RETRY)


def test_a_no_of_an_optional_branch_is_told_and_hides_nothing() -> None:
    """A rejection is an answer: it is told, and no fallback stands in for it."""

    async def main(plant: Plant) -> None:
        await plant.ask("GET /machines/M-1")
        plant.production.answers["slot"] = BadRequest("no")
        answer = await plant.ask("GET /machines/M-1")
        mark = json_of(answer)["branches"]["production"]
        assert mark == {"status": "failed", "code": "bad_request"}
        assert json_of(answer)["data"]["production"] is None

    behind(main)


def test_null_leaves_a_branch_absent() -> None:
    """A machine without an order has none to be shown: nothing is asked, nothing is missing."""

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = Machine("M-1", None, 7)
        answer = await plant.ask("GET /machines/M-1")
        assert json_of(answer)["branches"]["order"] == {"status": "absent", "because": "machine"}
        assert "synchromesh-partial" not in answer.headers
        assert plant.orders.asked == []

    behind(main)


def test_what_needs_a_failed_branch_is_skipped() -> None:
    """A branch that cannot be asked without a failed one says so."""
    gateway = Gateway(
        auth=[SHOP],
        routes=[
            Aggregate(
                "GET /m/{number}",
                branches={
                    "line": Branch(Production.line, args={"number": "path.number"}, required=True),
                    "order": Branch(Orders.one, args={"order_id": "line"}),
                    "slot": Branch(Production.slot, args={"order_id": "order.id"}),
                },
            )
        ],
    )

    async def main(plant: Plant) -> None:
        plant.system.known.endpoints["orders"] = []
        answer = await plant.ask("GET /m/7")
        assert marks_of(answer) == {"line": "ok", "order": "failed", "slot": "skipped"}
        assert json_of(answer)["branches"]["slot"]["because"] == "order"
        assert answer.headers.get("synchromesh-partial") == "order, slot"
        wrong = await plant.ask("GET /m/seven")
        assert (wrong.status, "'number' in the path" in json_of(wrong)["detail"]) == (400, True)

    behind(main, gateway=gateway, policies=NO_RETRY)


def test_a_deadline_ends_an_aggregate_with_what_there_is() -> None:
    """At its deadline the branches that have not answered are marked, and the rest is answered."""

    async def main(plant: Plant) -> None:
        plant.orders.answers["one"] = stalls
        began = now()
        answer = await plant.ask("GET /machines/M-1")
        assert answer.status == 200
        assert now() - began == pytest.approx(1.0, abs=0.01)
        assert json_of(answer)["branches"]["order"] == {"status": "failed", "code": "timed_out"}
        assert marks_of(answer)["production"] == "ok"
        plant.fleet.answers["machine"] = stalls
        cut = await plant.ask("GET /machines/M-1")
        assert (cut.status, json_of(cut).get("limit")) == (
            504, "the deadline of this route, 1s, or the timeout of a branch",
        )  # fmt: skip

    behind(main, policies=NO_RETRY)


def test_a_timeout_ends_one_branch_alone() -> None:
    """A branch that takes longer than its own timeout is given up; the rest goes on."""

    async def main(plant: Plant) -> None:
        plant.production.answers["slot"] = stalls
        began = now()
        answer = await plant.ask("GET /machines/M-1")
        assert now() - began == pytest.approx(0.3, abs=0.01)
        assert json_of(answer)["branches"]["production"] == {
            "status": "failed",
            "code": "timed_out",
        }
        assert marks_of(answer)["order"] == "ok"

    behind(main, policies=NO_RETRY)


def test_an_answer_that_another_does_not_take_is_a_failure_of_that_branch() -> None:
    """A value of the right type that the parameter's bounds refuse is sent nowhere."""

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = Machine("M-1", "A-1", -7)
        answer = await plant.ask("GET /machines/M-1")
        assert json_of(answer)["branches"]["line"] == {"status": "failed", "code": "bad_request"}
        assert [asked.operation.name for asked in plant.production.asked] == ["slot"]

    behind(main)


@pytest.mark.parametrize("target", ["GET /machines/M-1", "GET /orders/A-1"])
def test_a_client_that_leaves_takes_its_work_along(kind: str, target: str) -> None:
    """Once nobody waits for the answer any more, what was asked for it is cancelled (D4)."""
    ended: list[str] = []

    async def endless(incoming: Incoming) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(incoming.operation.name)

    async def main(plant: Plant) -> None:
        plant.orders.answers["one"] = endless
        asked = asyncio.ensure_future(plant.ask(target))
        await asyncio.sleep(0.1)
        asked.cancel()
        await asyncio.sleep(0.1)
        assert asked.cancelled()
        assert ended == ["one"]
        assert repr(plant.engine) == "<GatewayEngine 0 in flight>"

    behind(main, kind=kind)


def test_a_bug_of_ours_is_500_and_ends_what_runs(caplog: pytest.LogCaptureFixture) -> None:
    """What nobody foresaw is logged with its trace, told without its words, and leaves no task."""

    class Broken(InProcessTransport):
        async def send(self, endpoint: Endpoint, request: Request) -> Reply:
            if request.operation is Orders.one:
                raise ZeroDivisionError(SECRET)
            return await super().send(endpoint, request)

    async def main(plant: Plant) -> None:
        broken = Broken()
        for dispatcher in plant.system.dispatchers:
            broken.add(f"{dispatcher.service}-1", dispatcher)
        plant.system.transports["inproc"] = broken
        plant.production.answers |= {"slot": stalls, "line": stalls}
        answer = await plant.ask("GET /machines/M-1")
        assert (answer.status, json_of(answer)["code"]) == (500, "remote_failed")
        assert SECRET not in answer.body.decode()
        assert answer.headers.get("synchromesh-trace", "?") in caplog.text
        assert "ZeroDivisionError" in caplog.text

    with caplog.at_level(logging.ERROR):
        behind(main, policies=NO_RETRY)


# -- F: fallbacks ------------------------------------------------------------------------------


def test_a_stale_answer_says_its_age(kind: str) -> None:
    """While a service fails its last answer stands in, marked with source and age (F1)."""

    async def main(plant: Plant) -> None:
        assert (await plant.ask("GET /machines/M-1")).status == 200
        plant.system.known.endpoints["production"] = []
        await asyncio.sleep(12.3)
        answer = await plant.ask("GET /machines/M-1")
        assert json_of(answer)["data"] == WHOLE | {"line": "unknown"}
        marks = json_of(answer)["branches"]
        assert marks["production"] == {
            "status": "stale",
            "age_s": pytest.approx(12.3, abs=0.1),
            "code": "no_instance",
        }
        assert marks["line"] == {"status": "static", "code": "no_instance"}
        assert answer.headers.get("synchromesh-partial") == "production, line"
        await asyncio.sleep(600)
        answer = await plant.ask("GET /machines/M-1")
        assert marks_of(answer)["production"] == "failed"

    behind(main, kind=kind, policies=NO_RETRY)


def test_recovery_needs_no_restart() -> None:
    """Once the service answers again so does the branch, fresh and unmarked (F3)."""

    async def main(plant: Plant) -> None:
        await plant.ask("GET /machines/M-1")
        plant.production.answers["slot"] = ValueError("down")
        assert marks_of(await plant.ask("GET /machines/M-1"))["production"] == "stale"
        plant.production.answers["slot"] = Slot("tuesday")
        assert marks_of(await plant.ask("GET /machines/M-1"))["production"] == "stale"
        await asyncio.sleep(0.1)
        await plant.ask("GET /machines/M-1")  # one branch of it is the breaker's probe
        answer = await plant.ask("GET /machines/M-1")
        assert marks_of(answer)["production"] == "ok"
        assert json_of(answer)["data"]["production"] == {"starts": "tuesday"}

    behind(main, policies=FRAGILE)


def test_an_open_breaker_answers_the_fallback_at_once() -> None:
    """Where a breaker is open and an answer is at hand, nobody waits for the breaker."""

    async def main(plant: Plant) -> None:
        await plant.ask("GET /machines/M-1")
        plant.caller.edge("production").breaker.isolate(now())  # type: ignore[union-attr]
        began, asked = now(), len(plant.production.asked)
        answer = await plant.ask("GET /machines/M-1")
        assert json_of(answer)["branches"]["production"] == {
            "status": "stale",
            "age_s": 0.0,
            "code": "circuit_open",
        }
        assert (now(), len(plant.production.asked)) == (began, asked)

    behind(main)


def test_a_tripped_breaker_makes_nobody_wait() -> None:
    """B2: a branch that has a fallback falls back at once, and one that has none fails at once."""

    async def main(plant: Plant) -> None:
        await plant.ask("GET /machines/M-1")
        for service in ("production", "orders"):
            began = now()
            breaker = plant.caller.edge(service).breaker
            assert breaker is not None
            breaker.failure(breaker.admit(began), began)
            marks = json_of(await plant.ask("GET /machines/M-1"))["branches"]
            assert now() == began
            if service == "production":
                assert marks["order"]["status"] == "ok"
                assert marks["production"]["code"] == marks["line"]["code"] == "circuit_open"
                await asyncio.sleep(0.1)
            else:
                assert marks["order"] == {"status": "failed", "code": "circuit_open"}

    behind(main, policies=Policies(default=Policy(breaker=TRIPS)))


def test_a_probe_that_is_under_way_is_not_waited_for() -> None:
    """While one call tries a service that failed, others fall back; nobody else tries it."""

    async def main(plant: Plant) -> None:
        await plant.ask("GET /machines/M-1")
        breaker = plant.caller.edge("production").breaker
        assert breaker is not None
        breaker.failure(breaker.admit(now()), now())
        await asyncio.sleep(0.1)
        plant.production.answers |= {"slot": stalls, "line": stalls}
        probing = asyncio.ensure_future(plant.ask("GET /machines/M-1"))
        await asyncio.sleep(0.01)
        began, asked = now(), len(plant.production.asked)
        marks = json_of(await plant.ask("GET /machines/M-1"))["branches"]
        assert marks["production"]["code"] == marks["line"]["code"] == "circuit_open"
        assert (now(), len(plant.production.asked)) == (began, asked)
        await probing

    behind(main, policies=Policies(default=Policy(breaker=TRIPS)))


def test_the_branch_that_finds_a_rested_breaker_is_its_probe() -> None:
    """Where a breaker has rested the next branch asks again, although it has a fallback."""

    async def main(plant: Plant) -> None:
        breaker = plant.caller.edge("production").breaker
        assert breaker is not None
        breaker.failure(breaker.admit(now()), now())
        await asyncio.sleep(0.1)
        permit = breaker.admit(now())
        breaker.neutral(permit, now())  # the probe ended without an outcome: its place is free
        plant.fleet.answers["machine"] = Machine("M-1", None, 7)
        assert marks_of(await plant.ask("GET /machines/M-1"))["line"] == "ok"
        assert breaker.state.value == "closed"

    behind(main, policies=FRAGILE)


def test_without_a_breaker_a_fallback_waits_for_the_failure() -> None:
    """A policy without a breaker is asked each time, and its failures fall back."""

    async def main(plant: Plant) -> None:
        plant.system.known.endpoints["production"] = []
        marks = json_of(await plant.ask("GET /machines/M-1"))["branches"]
        assert marks["line"] == {"status": "static", "code": "no_instance"}

    behind(main, policies=Policies(default=Policy(retry=None, breaker=None)))


def test_a_stale_answer_is_for_the_same_question_of_the_same_principal() -> None:
    """What one principal was answered stands in for nobody else's answer, nor for another id's."""

    async def main(plant: Plant) -> None:
        await plant.ask("GET /machines/M-1", by="shop")
        plant.system.known.endpoints["production"] = []
        assert marks_of(await plant.ask("GET /machines/M-1", by="shop"))["production"] == "stale"
        other = await plant.ask("GET /machines/M-1", by="visitor")
        assert marks_of(other)["production"] == "failed"
        plant.fleet.answers["machine"] = Machine("M-2", "A-2", 7)
        other = await plant.ask("GET /machines/M-2", by="shop")
        assert marks_of(other)["production"] == "failed"

    behind(main, policies=NO_RETRY)


def test_a_write_is_never_answered_by_a_fallback() -> None:
    """A command that failed is a failure, whatever was answered before (F2)."""

    async def main(plant: Plant) -> None:
        headers = {"idempotency-key": "1"}
        assert (await plant.ask("POST /orders", PLACE, headers=headers)).status == 200
        plant.system.known.endpoints["orders"] = []
        assert (await plant.ask("POST /orders", PLACE, headers=headers)).status == 503

    behind(main, policies=NO_RETRY)
    branch = Branch(Orders.place, args={"request": "path.id"}, required=True, fallback=Stale("1m"))
    with pytest.raises(ConfigError, match="a fallback must never stand for a write"):
        behind(
            lambda _: None,
            gateway=Gateway(auth=[SHOP], routes=[Aggregate("GET /m/{id}", branches={"b": branch})]),
        )


DEGRADES = {
    "fleet": (503, None),
    "orders": (200, {"machine": "ok", "order": "failed", "production": "ok", "line": "ok"}),
    "production": (200, {"machine": "ok", "order": "ok", "production": "stale", "line": "static"}),
}


@pytest.mark.parametrize(("service", "end"), DEGRADES.items(), ids=DEGRADES.keys())
def test_what_degrades_how_when_one_is_down(
    service: str, end: tuple[int, dict[str, str] | None]
) -> None:
    """Each service is switched off in turn: what is left is answered, and what is not is said."""
    status, marks = end

    async def main(plant: Plant) -> None:
        assert (await plant.ask("GET /machines/M-1")).status == 200
        plant.system.known.endpoints[service] = []
        answer = await plant.ask("GET /machines/M-1")
        assert answer.status == status
        if marks is not None:
            assert marks_of(answer) == marks

    behind(main, policies=NO_RETRY)


def test_all_branches_share_the_attempts_of_one_request() -> None:
    """However many branches fail, one request has the extra attempts of one tree (D2)."""

    async def main(plant: Plant) -> None:
        plant.orders.answers["one"] = Shed("full")
        plant.production.answers |= {"slot": Shed("full"), "line": Shed("full")}
        await plant.ask("GET /machines/M-1")
        assert len(plant.orders.asked) + len(plant.production.asked) <= 3 + 2

    behind(main, policies=Policies(attempts_per_tree=2))
