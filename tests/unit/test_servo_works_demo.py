"""The demo's own parts: its verdict, what it reads in an answer, its customers and its display."""

import asyncio
import io
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from audit import Report
from contracts.orders import PlaceOrder
from demo.account import Account, Degraded, Failure, Kill, RepairByHand, ReplicaLoss, Restart, Turn
from demo.customers import Customers
from demo.display import Display
from demo.door import Door, DoorAnswer, Unanswered, degraded_in
from demo.intruders import Forgery, Intruders
from demo.issuer import Issuer
from demo.verdict import conditions, failed_by_restart
from gateway import PEOPLE
from msgspec import json
from msgspec.structs import replace
from rich.console import Console

from gateway_fakes import came
from synchromesh.gateway import Folders
from synchromesh.http import HttpResponse
from synchromesh.testing import SimRuntime, run

EDGE = "billing -> credit_provider"
STALLED_AT, HEALED_AT = "1970-01-01T00:00:15+00:00", "1970-01-01T00:00:35+00:00"
PAGE = "GET /machines/SX75-20117"


# -- the verdict ---------------------------------------------------------------------------------


def passing() -> Account:
    """Return the account of a run in which everything was seen, its acts ten seconds each."""
    account = Account(orders=2, told={"A-1": "placed", "A-2": "rejected"})
    acts = ("calm", "stall", "errors", "healed", "kill", "restart", "rest", "replicas")
    for number, act in enumerate(acts):
        account.begin(act, number * 10_000_000)
    account.end(80_000_000)
    account.turns = [
        Turn(STALLED_AT, EDGE, "closed", "open"),
        Turn(HEALED_AT, EDGE, "half_open", "closed"),
    ]
    account.degraded = [Degraded("kill", PAGE, "order", "stale", 2.5)]
    account.kills = [
        Kill({"orders": 10}, {"orders": 20}, 41_000_000, 42_000_000, tuple("abcde"), 5)
    ]
    account.ended = {"service/orders": 1}
    account.restarts = [
        Restart({"inventory": 30}, {"inventory": 40}, 51_000_000, 52_000_000, 1, 0, answered=0)
    ]
    account.losses = [
        ReplicaLoss("quoting#1", 50, "SIGKILL", 71_000_000, asked=60, failed=0),
        ReplicaLoss("quoting#2", 51, "SIGSTOP", 75_000_000, asked=40, failed=10),
    ]
    account.ended |= {"service/quoting#1": 1, "service/quoting#2": 1}
    account.intruders = {"an expired key": 3, "no credential": 3}
    account.repair = RepairByHand(
        stuck=("A-3", "A-4"),
        parked=("production:1",),
        retried=("A-3", "A-4"),
        replayed=("production:1",),
        findings=("orders: sagas that are stuck: 2", "production: messages that are parked: 1"),
    )
    return account


def clean() -> Report:
    """Return an audit that found nothing."""
    report = Report()
    report.sagas.update(completed=1, undone=1)
    return report


def unmet(account: Account, audited: Report) -> list[str]:
    """Return the conditions that are not met, with what was seen."""
    return [f"{c.must}: {c.seen}" for c in conditions(account, audited) if not c.is_met]


def test_a_run_in_which_everything_was_seen_passes() -> None:
    """Each condition is met."""
    assert unmet(passing(), clean()) == []


def of_two_each() -> Account:
    """Return the account of a run with two of each, in which everything was seen."""
    account = passing()
    account.replicas = 2
    two = {"orders#1": 10, "orders#2": 11}
    account.kills = [replace(kill, pids=two) for kill in account.kills]
    account.ended = {f"service/{name}": 1 for name in ("quoting#1", "quoting#2", *two)}
    account.restarts = [replace(each, bridged=0, answered=9) for each in account.restarts]
    account.ways_in = {"http://127.0.0.1:81": 50, "http://127.0.0.1:82": 3}
    return account


def test_of_two_each_others_answer_meanwhile() -> None:
    """No call has to be held over a restart of one after the other; both gateways are used."""
    assert unmet(of_two_each(), clean()) == []
    account = of_two_each()
    account.restarts = [replace(each, bridged=1, answered=0) for each in account.restarts]
    del account.ways_in["http://127.0.0.1:82"]
    account.ended["service/orders#2"] += 1
    assert unmet(account, clean()) == [
        "inventory answered while its replicas were restarted one by one: 0",
        "customers were answered by 2 gateways: 1 gateways",
        "no process ended that was not killed: 1 did",
    ]


def never_killed(account: Account) -> None:
    account.kills.clear()
    account.ended.clear()


def few_in_flight(account: Account) -> None:
    account.kills = [replace(kill, in_flight=kill.in_flight[:4]) for kill in account.kills]


def nothing_recovered(account: Account) -> None:
    account.kills = [replace(kill, recovered=0) for kill in account.kills]


def never_tripped(account: Account) -> None:
    account.turns.clear()


def tripped_by_errors_alone(account: Account) -> None:
    account.turns[0] = replace(account.turns[0], at="1970-01-01T00:00:25+00:00")


def tripped_elsewhere(account: Account) -> None:
    account.turns[0] = replace(account.turns[0], edge="gateway -> orders")


def never_recovered(account: Account) -> None:
    account.turns.pop()


def recovered_before(account: Account) -> None:
    account.turns[1] = replace(account.turns[1], at="1970-01-01T00:00:11+00:00")


def nothing_in_part(account: Account) -> None:
    account.degraded = [Degraded("kill", "GET /stock/SX75", "", "stale", 2.5)]


def nothing_bridged(account: Account) -> None:
    account.restarts = [replace(restart, bridged=0) for restart in account.restarts]


def never_restarted(account: Account) -> None:
    account.restarts.clear()


def failed_over_the_restart(account: Account) -> None:
    account.failures.append(Failure(51_500_000, "restart", "GET /stock/{sku}", "no_instance"))


def unanswered(account: Account) -> None:
    account.told.popitem()


def undecided(account: Account) -> None:
    account.told["A-1"] = "accepted"


def failed_in_calm(account: Account) -> None:
    account.failures.append(Failure(1_000_000, "calm", "GET /prices", "remote_failed"))


def failed_at_rest(account: Account) -> None:
    account.failures.append(Failure(61_000_000, "rest", "GET /prices", "call_failed"))


def ended_by_itself(account: Account) -> None:
    account.ended = {"service/orders": 1, "gateway": 1, "external/credit_provider": 2}


def ended_after_the_kill(account: Account) -> None:
    account.ended = {"service/orders": 2}


def never_lost(account: Account) -> None:
    account.losses.clear()
    account.ended = {"service/orders": 1}


def quotes_failed(account: Account) -> None:
    account.losses[0] = replace(account.losses[0], failed=1)


def nothing_was_repaired(account: Account) -> None:
    account.repair = None


def not_named(account: Account) -> None:
    account.repair = replace(repaired(account), findings=())


def not_all_repaired(account: Account) -> None:
    account.repair = replace(repaired(account), retried=(), replayed=("production:1",))


def repaired(account: Account) -> RepairByHand:
    assert account.repair is not None
    return account.repair


def let_in(account: Account) -> None:
    account.note_intruder("an expired key", 200, 401)


def nobody_tried(account: Account) -> None:
    account.intruders = {}


def noted(account: Account) -> None:
    account.notes.append("the system stopped with exit code 3, expected 0")


QUOTES = "90 of 100 quotes succeeded while one of three replicas was lost"
IN_PEACE = "no request failed while all was well: 1 failed"
ENDED = "no process ended that was not killed"
LET_IN = "none of them was let in"
REFUSED = "wrong and expired credentials were refused"
TRIPPED, RECOVERED = f"{EDGE} tripped by the stall: 0", "and recovered after that: 0"
STUCK = "sagas were stuck by a bug, and status said so"
PARKED = "messages were parked by it, and status said so"
MET, WENT_ON = "orders was killed with 5 sagas in flight or more", "sagas were recovered after it"


@pytest.mark.parametrize(
    ("spoil", "missed"),
    [
        (never_killed, [f"{MET}: 0 in flight", f"{WENT_ON}: 0"]),
        (few_in_flight, [f"{MET}: 4 in flight"]),
        (nothing_recovered, [f"{WENT_ON}: 0"]),
        (never_tripped, [TRIPPED, RECOVERED]),
        (tripped_by_errors_alone, [TRIPPED, RECOVERED]),
        (tripped_elsewhere, [TRIPPED, RECOVERED]),
        (never_recovered, [RECOVERED]),
        (recovered_before, [RECOVERED]),
        (nothing_in_part, ["pages were answered in part: 0"]),
        (nothing_bridged, ["calls were bridged over the restart of inventory: 0"]),
        (never_restarted, ["calls were bridged over the restart of inventory: 0"]),
        (failed_over_the_restart, ["no request failed because of it: 1 failed"]),
        (unanswered, ["every order has its answer: 1 of 2"]),
        (undecided, ["every order has its answer: 1 of 2"]),
        (failed_in_calm, [IN_PEACE]),
        (failed_at_rest, [IN_PEACE]),
        (never_lost, [f"{QUOTES}: 0 of 0"]),
        (quotes_failed, [f"{QUOTES}: 89 of 100"]),
        (nothing_was_repaired, [f"{STUCK}: 0", f"{PARKED}: 0"]),
        (not_named, [f"{STUCK}: 0", f"{PARKED}: 0"]),
        (not_all_repaired, ["all of them were repaired by hand: 2 were not"]),
        (ended_by_itself, [f"{ENDED}: 3 did"]),
        (ended_after_the_kill, [f"{ENDED}: 1 did"]),
        (
            let_in,
            [
                f"{REFUSED}: 6 of 7",
                f"{LET_IN}: an expired key was answered 200, not 401, in act replicas",
            ],
        ),
        (nobody_tried, [f"{REFUSED}: 0 of 0"]),
        (noted, ["nothing else went wrong: the system stopped with exit code 3, expected 0"]),
    ],
)
def test_each_shortfall_turns_the_verdict(
    spoil: Callable[[Account], None], missed: list[str]
) -> None:
    """What was not seen is not met, and nothing else is."""
    account = passing()
    spoil(account)
    assert unmet(account, clean()) == missed


def test_what_the_audit_finds_turns_the_verdict() -> None:
    """A finding, a saga that is stuck, none that was undone: each is a condition not met."""
    report = clean()
    report.find("order A-1 is neither placed nor rejected")
    assert unmet(passing(), report) == ["the audit finds nothing: 1 findings"]
    report = clean()
    report.sagas["stuck"] = 1
    assert unmet(passing(), report) == ["no saga is stuck: 1 are"]
    report = clean()
    del report.sagas["undone"]
    assert unmet(passing(), report) == ["sagas were undone: 0"]


@pytest.mark.parametrize("act", ["calm", "restart", "rest"])
@pytest.mark.parametrize("reason", ["timed_out", "deadline_exceeded", "circuit_open", "shed"])
def test_what_ran_out_of_time_turns_no_verdict(act: str, reason: str) -> None:
    """How often a deadline passes is a matter of the machine: it is told, and is no shortfall."""
    account = passing()
    account.failures.append(Failure(0, act, "GET /stock/{sku}", reason))
    assert unmet(account, clean()) == []


def test_a_failure_elsewhere_is_not_of_the_restart() -> None:
    """Only requests that lead to inventory, and were sent in that act, fail because of it."""
    account = Account(orders=1)
    account.failures += [
        Failure(0, "kill", "GET /stock/{sku}", "no_instance"),
        Failure(0, "restart", "GET /machines/{machine_id}", "no_instance"),
        Failure(0, "restart", "POST /orders", "no_instance"),
    ]
    assert failed_by_restart(account) == account.failures[2:]
    # A process that takes longer to start than a call is held for it: that is the machine's speed.
    for back_us, found in ((1_900_000, account.failures[2:]), (8_000_000, [])):
        account.restarts = [Restart({}, {}, 0, back_us, 1, 1, 0)]
        assert failed_by_restart(account) == found


# -- what an answer says of itself ---------------------------------------------------------------


def test_what_stands_in_is_read_from_body_and_header() -> None:
    """Branches that are stale, static or failed count, with their age; rejected and absent do not.

    A route's answer says it in a header, with its age where it has one.
    """
    marks: dict[str, Any] = {
        "machine": {"status": "ok"},
        "order": {"status": "stale", "age_s": 2.5, "code": "no_instance"},
        "slot": {"status": "failed", "code": "timed_out"},
        "invoice": {"status": "rejected"},
        "owner": {"status": "absent"},
    }
    assert degraded_in("kill", PAGE, DoorAnswer(200, {"data": {}, "branches": marks})) == [
        Degraded("kill", PAGE, "order", "stale", 2.5),
        Degraded("kill", PAGE, "slot", "failed"),
    ]
    stale = DoorAnswer(200, {}, fallback="stale;age_s=12.300;code=circuit_open")
    assert degraded_in("rest", "GET /prices", stale) == [
        Degraded("rest", "GET /prices", "", "stale", 12.3)
    ]
    static = DoorAnswer(200, {}, fallback="static;code=timed_out")
    assert degraded_in("rest", "GET /prices", static) == [
        Degraded("rest", "GET /prices", "", "static")
    ]
    assert degraded_in("rest", "GET /prices", DoorAnswer(200, [1])) == []


class Gate:
    """A gateway, its system and its pool in one: answers every request the same, and keeps keys."""

    gateway = "http://127.0.0.1:80"

    def __init__(self, status: int, code: str) -> None:
        body = json.encode({"code": code})
        self._answer = HttpResponse(status, [("retry-after", "2")], body)
        self.keys: list[str] = []

    async def request(self, *asked: Any, **_: Any) -> HttpResponse:
        self.keys.append(dict(asked[4])["authorization"])
        return self._answer


@pytest.mark.parametrize(
    ("status", "code", "turned_away", "failed"),
    [
        (429, "rate_limited", {"GET /prices": 2}, []),
        (504, "timed_out", {}, [True, True]),
        (502, "connection_lost", {}, [False, False]),
        (409, "out_of_stock", {}, []),
    ],
)
def test_what_a_rate_turns_away_is_counted_apart(
    status: int, code: str, turned_away: dict[str, int], failed: list[bool]
) -> None:
    """Neither a failure nor an answer; each asks with a key of their own."""

    async def main(runtime: SimRuntime) -> None:
        gate, account = Gate(status, code), Account(orders=1)
        keys = {"acme": "sm_1", "visitor": "sm_2"}
        door = Door(cast("Any", gate), cast("Any", gate), account, cast("Any", runtime), keys)
        assert (await door.ask("GET /prices")).retry_after_s == 2.0
        await door.ask("GET /prices", who="acme")
        assert account.requests == {"GET /prices": 2}
        assert account.turned_away == turned_away
        assert [failure.is_out_of_time for failure in account.failures] == failed
        assert gate.keys == ["Bearer sm_2", "Bearer sm_1"]

    run(main)


# -- customers -----------------------------------------------------------------------------------


class Script:
    """A door that answers as a test says, and keeps what was asked and when."""

    def __init__(self, *answers: DoorAnswer) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, str, float]] = []
        self.came: list[str] = []

    async def ask(
        self, route: str, *, who: str = "", body: object = None, key: str = "", **_: str
    ) -> DoorAnswer:
        self.asked.append((route, key, asyncio.get_running_loop().time()))
        self.came.append(who)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


async def buy(runtime: SimRuntime, door: Script) -> Account:
    """Let one customer place one order, and ask what became of it."""
    account = Account(orders=1)
    customers = Customers(cast("Door", door), runtime.rng, account)
    async with customers.buying():
        customers.hand_in([PlaceOrder("A-1", "SX90", 1, "acme")])
        await customers.all_answered()
        await customers.settle()
    return account


PLACED = DoorAnswer(200, {"type": "placed"})


@pytest.mark.parametrize(
    "failure",
    [DoorAnswer(0, code="connection_lost"), DoorAnswer(503, code="no_instance"), DoorAnswer(502)],
)
def test_a_customer_asks_again_under_the_same_key(failure: DoorAnswer) -> None:
    """No answer, or one that is none: the same order again, later each time."""

    async def main(runtime: SimRuntime) -> None:
        door = Script(failure, failure, failure, PLACED)
        assert (await buy(runtime, door)).told == {"A-1": "placed"}
        assert {(route, key) for route, key, _ in door.asked} == {("POST /orders", "demo/A-1")}
        times = [at_s for _, _, at_s in door.asked]
        waits = [b - a for a, b in pairwise(times)]
        assert len(waits) == 3
        for wait_s, cap_s in zip(waits, (0.05, 0.1, 0.2), strict=True):
            assert cap_s / 2 <= wait_s <= cap_s

    run(main)


def test_a_customer_comes_no_sooner_than_asked() -> None:
    """429 says when to come again."""

    async def main(runtime: SimRuntime) -> None:
        door = Script(DoorAnswer(429, code="rate_limited", retry_after_s=2.0), PLACED)
        await buy(runtime, door)
        assert door.asked[1][2] - door.asked[0][2] >= 2.0

    run(main)


def test_who_is_turned_away_by_a_rate_does_not_give_up() -> None:
    """Waiting for one's turn is not waiting in vain, however long it takes."""

    async def main(runtime: SimRuntime) -> None:
        door = Script(*[DoorAnswer(429, code="rate_limited", retry_after_s=2.0)] * 50, PLACED)
        assert (await buy(runtime, door)).told == {"A-1": "placed"}
        assert door.asked[-1][2] >= 100.0

    run(main)


def test_a_no_is_an_answer() -> None:
    """What services say no with is not asked again."""

    async def main(runtime: SimRuntime) -> None:
        door = Script(DoorAnswer(409, code="out_of_stock"))
        assert (await buy(runtime, door)).told == {"A-1": "rejected"}
        assert len(door.asked) == 1

    run(main)


def test_an_accepted_order_is_asked_for_until_it_is_decided() -> None:
    """Accepted is taken for now; later the order itself says what became of it."""

    async def main(runtime: SimRuntime) -> None:
        door = Script(
            DoorAnswer(200, {"type": "accepted"}),
            DoorAnswer(200, {"status": "pending"}),
            DoorAnswer(503, code="no_instance"),
            DoorAnswer(200, {"status": "rejected"}),
        )
        account = await buy(runtime, door)
        assert (account.told, account.accepted) == ({"A-1": "rejected"}, 1)
        assert [route for route, _, _ in door.asked[1:]] == ["GET /orders/{order_id}"] * 3
        assert door.came == ["acme"] * 4

    run(main)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (DoorAnswer(401, code="unauthenticated"), "order A-1 is refused: unauthenticated"),
        (DoorAnswer(503, code="shed"), "no answer for 300 s; the last attempt came to shed"),
    ],
)
def test_what_no_asking_mends_is_told(answer: DoorAnswer, why: str) -> None:
    """A mistake is told at once, a failure that lasts after five minutes."""

    async def main(runtime: SimRuntime) -> None:
        with pytest.raises(ExceptionGroup) as caught:
            await buy(runtime, Script(answer))
        (error,) = caught.value.exceptions
        assert isinstance(error, Unanswered)
        assert why in str(error)

    run(main)


# -- the display ---------------------------------------------------------------------------------


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_as_it_can_be(is_terminal: bool) -> None:
    """A terminal has a bar that is gone at the end; elsewhere a plain line comes now and then."""

    async def main(runtime: SimRuntime) -> None:
        written = io.StringIO()
        out = Console(file=written, force_terminal=is_terminal, width=120, color_system=None)
        account = Account(orders=3)
        display = Display(out, account)
        with display.shown():
            account.begin("calm", 0)
            account.told["A-1"] = "placed"
            await asyncio.sleep(2.5)
            display.say("the credit provider stalls")
            await asyncio.sleep(2.5)
        said = written.getvalue()
        assert "  2.5 s  the credit provider stalls\n" in said
        assert ("━" in said) == ("\x1b[2K" in said) == is_terminal
        assert ("  1 of 3 orders answered, 0 requests, 0 failed" in said) == (not is_terminal)

    run(main)


def test_progress_fits_on_80_columns() -> None:
    """Numbers are whole there, and what is said goes on below itself."""

    async def main(runtime: SimRuntime) -> None:
        written = io.StringIO()
        out = Console(file=written, force_terminal=True, width=80, color_system=None)
        account = Account(orders=320)
        account.requests["GET /prices"] = 1000
        display = Display(out, account)
        with display.shown():
            account.begin("restart", 0)
            await asyncio.sleep(0.5)
            display.say("the credit provider " + "stalls " * 10)
        said = written.getvalue()
        assert "  0/320 orders, 1000 requests, 0 failed, 0 degraded" in said
        assert "…" not in said
        assert "  0.5 s  the credit provider stalls" in said
        assert "\n         stalls stalls" in said

    run(main)


# -- credentials -----------------------------------------------------------------------------------


def test_every_second_customer_signs_in(tmp_path: Path) -> None:
    """Tokens are those that the gateway asks for, and made anew before they are over."""
    now = {"s": 1_800_000_000.0}
    issuer = Issuer.opened(tmp_path, lambda: now["s"])
    assert issuer is not None

    async def main(runtime: SimRuntime) -> None:
        verifier = PEOPLE.open(Folders(tmp_path, tmp_path), runtime)
        now["s"] = runtime.wall_us() / 1e6
        first = issuer.token("acme", ["orders:read"])
        assert issuer.token("acme", ["orders:read"]) == first
        found = await verifier.authenticate(came([("authorization", f"Bearer {first}")]))
        assert found is not None
        assert (found.name, found.scopes) == ("jwt:acme", frozenset({"orders:read"}))
        now["s"] += 181.0
        assert issuer.token("acme", ["orders:read"]) != first

    run(main)


def test_without_the_extra_there_are_keys_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file of keys is written, and the gateway asks for nothing that is not installed."""
    monkeypatch.setitem(sys.modules, "joserfc", None)
    assert Issuer.opened(tmp_path, lambda: 0.0) is None
    assert list(tmp_path.iterdir()) == []


class Lax:
    """A door that lets in whoever asks often enough, and first says that it is busy."""

    def __init__(self, *statuses: int) -> None:
        self.account, self.statuses, self.asked = Account(0), list(statuses), 0

    async def try_in(self, route: str, authorization: str, body: object) -> DoorAnswer:
        self.asked += 1
        return DoorAnswer(self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])


def test_an_intruder_asks_until_it_is_told_something() -> None:
    """That nobody had time says nothing; whoever is let in is named."""

    async def main(runtime: SimRuntime) -> None:
        door = Lax(0, 503, 429, 504, 401)
        forgery = Forgery("a wrong key", "Bearer x", 401)
        await Intruders(cast("Any", door), runtime.rng, [forgery]).try_all()
        assert (door.asked, door.account.intruders, door.account.let_in) == (
            7, {"a wrong key": 3}, [],
        )  # fmt: skip
        door = Lax(200)
        await Intruders(cast("Any", door), runtime.rng, [forgery]).try_all()
        assert door.account.let_in == ["a wrong key was answered 200, not 401, in act "] * 3
        with pytest.raises(Unanswered, match="with a wrong key was never answered"):
            await Intruders(cast("Any", Lax(503)), runtime.rng, [forgery]).try_all()

    run(main)
