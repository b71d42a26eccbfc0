"""servo-works as `new` writes it, in one process and split: the same tests for both, from outside.

Nothing here knows how it runs. It is reached by the URLs that `dev` prints, with a key to its
gateway, and by the verbs of the command line; each test leaves it running as it found it.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from audit import PROVIDER_DB, audit

from cli_runs import Run, runner
from processes import until
from running_works import Told, Works, ask, synchromesh
from synchromesh.system import RunDir

ALL = ("orders:write", "orders:read", "stock:read", "fleet:read", "fleet:write")
# A path of each service that is there.
SERVICES = {
    "orders": "/orders/A-1",
    "inventory": "/stock/SX90",
    "billing": "/invoices/A-1",
    "production": "/quotes/SX90",
    "configurator": "/prices",
    "fleet": "/machines/SX75-20117",
    **{f"quoting#{number}": "/quotes/SX90?qty=1" for number in (1, 2, 3)},
}
EDGE = "billing:credit_provider"
ENDED = {"completed", "undone"}

Verb = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module", params=[(), ("--split",)], ids=["one process", "split"])
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Works]:
    """servo-works by `synchromesh new`, with a key to its gateway; all tests of a mode share it."""
    folder = tmp_path_factory.mktemp("system")
    made = synchromesh(folder, "new", "works", "--example")
    works = Works(Path(made["folder"]), *request.param)
    words = [word for scope in ALL for word in ("--scope", scope)]
    works.key = synchromesh(works.folder, "gateway", "key", "add", "shop", *words)["key"]
    yield works
    works.leave()


@pytest.fixture
def works(written: Works) -> Works:
    """servo-works, running."""
    if not written.is_running:
        written.start()
    return written


@pytest.fixture
def run(works: Works, capsys: pytest.CaptureFixture[str]) -> Verb:
    """Run a verb on the system; return its exit code and the JSON that it prints."""
    invoke: Run = runner(capsys)

    def verb(*words: str) -> tuple[int, Any]:
        ran = invoke(works.folder, *words, "--json")
        assert ran.err == ""
        return ran.code, json.loads(ran.out)

    return verb


def test_what_is_printed_answers(works: Works, run: Verb) -> None:
    """All are where `dev` says, in the order of the configuration; none answers just anybody."""
    assert list(works.services) == [*SERVICES, "credit_provider"]
    for name, path in SERVICES.items():
        told = ask(works.services[name], "GET", path)
        assert (told.status, told.body["code"]) == (401, "unauthenticated"), name
    assert ask(works.control, "GET", "/status").status == 401
    assert ask(works.gateway, "GET", "/prices").status == 200
    code, status = run("status")
    assert (code, status["system"], status["findings"]) == (0, "works", [])
    assert all(each["health"]["is_healthy"] for each in status["services"].values())
    assert set(status["services"]) == set(SERVICES)


def test_an_order_is_placed_or_undone(works: Works, run: Verb) -> None:
    """Held, paid and on the bench; or, where the customer has no credit, nothing of it is left."""
    before = works.stock("SX40")
    placed = works.place("P-1", "SX40", 2)
    assert (placed.status, placed.body["type"]) == (200, "placed"), placed
    assert works.order("P-1") == "placed"
    assert works.ask("GET", "/invoices/P-1").body["status"] == "paid"
    assert works.stock("SX40") == (before[0] - 2, before[1] + 2)
    refused = works.place("P-2", "SX40", 2, customer="brassworks")
    assert (refused.status, refused.body["code"]) == (402, "credit_declined")
    assert works.order("P-2") == "rejected"
    assert works.ask("GET", "/invoices/P-2").body["status"] == "void"
    assert works.stock("SX40") == (before[0] - 2, before[1] + 2)
    _, told = run("saga", "list")
    assert {"P-1": "completed", "P-2": "undone"}.items() <= {
        saga["id"]: saga["status"] for saga in told
    }.items()
    _, story = run("saga", "show", "P-2")
    assert "undone" in {line["kind"] for line in story["lines"] if "reserve" in line["step"]}


def test_stock_adds_up(works: Works) -> None:
    """Of orders for more than there is, those that fit are placed, and no piece is sold twice."""
    on_hand, held = works.stock("LX40")
    assert on_hand == 9
    orders = [f"L-{number}" for number in range(4)]
    with ThreadPoolExecutor(4) as customers:
        told = list(customers.map(lambda order_id: works.place(order_id, "LX40", 4), orders))
    # Three slots to build one are open, and two orders find pieces enough.
    assert sorted(each.status for each in told) == [200, 200, 409, 409]
    assert {each.body["code"] for each in told if each.status == 409} == {"out_of_stock"}
    assert works.stock("LX40") == (1, held + 8)


def test_prices_follow_what_others_publish(works: Works, run: Verb) -> None:
    """The price list is the configurator's own, of events that orders and inventory publish."""

    def line() -> tuple[int, int]:
        told = ask(works.gateway, "GET", "/prices")
        lines = {each["sku"]: each for each in told.body["lines"]}
        return lines["MX10"]["price"]["minor"], lines["MX10"]["free"]

    price, free = line()
    dearer = {"sku": "MX10", "price": {"minor": price + 100, "currency": "EUR"}}
    assert run("call", "orders.set_price", f"price={json.dumps(dearer)}")[0] == 0
    assert works.place("M-1", "MX10", 3).body["total"]["minor"] == 3 * (price + 100)
    assert until(lambda: line() == (price + 100, free - 3))


def test_a_page_is_composed_and_degrades(works: Works, run: Verb) -> None:
    """The page of a machine says which branch is stale while production is broken; healed, none."""
    assert works.place("SW-1001", "SX75").status == 200

    def page() -> Told:
        return works.ask("GET", "/machines/SX75-20117")

    whole = page()
    assert (whole.status, whole.headers.get("synchromesh-partial")) == (200, None)
    assert whole.body["data"]["order"]["order_id"] == "SW-1001"
    assert run("break", "gateway:production", "--errors", "100%")[0] == 0
    partial = page()
    assert (partial.status, partial.headers["synchromesh-partial"]) == (200, "slot")
    assert partial.body["branches"]["slot"]["status"] == "stale"
    assert partial.body["branches"]["slot"]["age_s"] >= 0
    assert partial.body["data"] == whole.body["data"]
    assert run("break", "gateway:fleet", "--errors", "100%")[0] == 0
    assert page().status >= 500
    assert run("heal")[0] == 0
    assert until(lambda: page().status == 200 and "synchromesh-partial" not in page().headers)


def test_a_key_is_made_and_removed_while_it_runs(works: Works) -> None:
    """A key without a scope is 403 where it is asked for; once removed it is nobody's, 401."""
    add = ("gateway", "key", "add", "reader", "--scope", "orders:read")
    made = synchromesh(works.folder, *add)

    def status(method: str, path: str, body: object = None) -> int:
        return works.ask(method, path, body, key=made["key"]).status

    assert until(lambda: status("GET", "/orders/none") == 404)
    assert status("POST", "/orders", {"order_id": "R-1", "sku": "SX60", "qty": 1}) == 403
    keys = RunDir(works.folder).path / "api-keys.json"
    assert keys.stat().st_mode & 0o777 == 0o600
    assert synchromesh(works.folder, "gateway", "key", "remove", made["id"])["id"] == made["id"]
    assert until(lambda: status("GET", "/orders/none") == 401)
    secret = made["key"][-43:]
    assert secret not in keys.read_text() + works.log()


def test_who_asks_too_often_is_told_when_to_come_again(works: Works) -> None:
    """Beyond the rate and its burst the answer is 429, with the time to wait."""
    load = "torque_nm=4&peak_nm=8&speed_rpm=3000&supply=3x400VAC&cable_m=5"
    refused: list[Told] = []

    def is_refused() -> bool:
        told = works.ask_at_once([("GET", f"/configurations?{load}", None)] * 60)
        assert {each.status for each in told} <= {200, 429}
        refused.extend(each for each in told if each.status == 429)
        return bool(refused)

    assert until(is_refused)
    assert {each.body["code"] for each in refused} == {"rate_limited"}
    assert all(int(each.headers["retry-after"]) >= 1 for each in refused)


def test_readings_are_taken_with_back_pressure(works: Works) -> None:
    """What a drive sends beyond its room is shed, 503 with a time to wait; then there is room."""
    plate = {"machine_id": "MX25-1", "sku": "MX25", "order_id": None}

    def batch(first: int) -> dict[str, Any]:
        readings = [{"at_s": first + n, "temperature_c": 40, "current_a": 1} for n in range(100)]
        return {"machine": plate, "first": first, "readings": readings}

    def machine() -> tuple[int, int]:
        told = works.ask("GET", "/machines/MX25-1").body["data"]["machine"]
        return told["readings"], told["waiting"]

    for first in (1, 101, 201):
        told = works.ask("POST", "/readings", batch(first))
        assert (told.status, told.body["last"]) == (200, first + 99)
    assert until(lambda: machine() == (300, 0))
    shed: list[Told] = []
    firsts = count(301, 100)

    def is_shed() -> bool:
        flood = works.ask_at_once(("POST", "/readings", batch(next(firsts))) for _ in range(40))
        assert all(0 <= each.body["room"] <= 300 for each in flood if each.status == 200)
        shed.extend(each for each in flood if each.status == 503)
        return bool(shed)

    assert until(is_shed)
    assert {(each.body["code"], each.headers["retry-after"]) for each in shed} == {("shed", "1")}
    assert until(lambda: machine()[1] == 0)
    last = next(firsts)
    assert until(lambda: works.ask("POST", "/readings", batch(last)).status == 200)


def test_errors_are_the_same(works: Works, run: Verb) -> None:
    """C2: class, code and status are those of the contract, however many services they passed."""
    assert works.place("E-1", "SX60").status == 200
    order = {"order_id": "E-2", "sku": "SX60", "qty": 1}
    shop = {
        "nobody": (works.ask("POST", "/orders", order, key="none"), (401, "unauthenticated")),
        "no pieces": (works.place("E-3", "SX60", 0), (400, "bad_request")),
        "no price": (works.place("E-4", "none"), (404, "no_price")),
        "not in stock": (works.place("E-5", "SX60", 99_999), (409, "out_of_stock")),
        "no credit": (works.place("E-6", "SX60", 1, "brassworks"), (402, "credit_declined")),
        "another order": (works.place("E-1", "SX60", 2), (409, "saga_conflict")),
        "no order": (works.ask("GET", "/orders/none"), (404, "unknown_order")),
        "no path": (works.ask("GET", "/none"), (404, "unknown_operation")),
        "no method": (works.ask("DELETE", "/orders"), (405, "method_not_allowed")),
    }
    for what, (told, expected) in shop.items():
        assert (told.status, told.body["code"]) == expected, what
        assert told.headers["content-type"] == "application/problem+json", what
    price = '{"sku": "none-yet", "price": {"minor": %s, "currency": "EUR"}}'
    for words, status, code in (
        (("orders.one", "order_id=none"), 404, "unknown_order"),
        (("inventory.reserve", "order_id=E", "sku=SX60", "qty=9999"), 409, "out_of_stock"),
        (("orders.place", "order_id=E-7", "sku=SX60", "qty=9999"), 409, "out_of_stock"),
        (("orders.place", "order_id=E-8", "sku=SX60", "qty=1", "customer=brassworks"), 402,
         "credit_declined"),
        (("orders.place", "order_id=E-1", "sku=SX60", "qty=2"), 409, "saga_conflict"),
        (("orders.set_price", f"price={price % 1}", "--key", "E"), 0, ""),
        (("orders.set_price", f"price={price % 2}", "--key", "E"), 422, "key_reused"),
    ):  # fmt: skip
        _, told = run("call", *words)
        problem = told["problem"] or {"status": 0, "code": ""}
        assert (problem["status"], problem["code"]) == (status, code), words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("call credit_provider.charge", "'credit_provider' is an external service: only services"),
        ("call nobody.knows", "there is no service 'nobody'; there are "),
        ("call orders.plce order_id=M-1", "orders has no operation 'plce'; it has "),
        ("call orders.one", "orders.one"),
        ("saga show none", "no saga has the id 'none'; synchromesh saga list shows them"),
        ("trace none", "no spans of trace 'none' are kept"),
        ("break nobody --stall", "there is no service 'nobody'"),
    ],
)
def test_mistakes_are_told(
    works: Works, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    """Exit 2, one line with what would be right, and nothing on standard output."""
    ran = runner(capsys)(works.folder, *words.split())
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err


def test_traces_are_whole(works: Works, run: Verb) -> None:
    """One trace has all that an order did in six services; none is an orphan."""
    placed = works.place("T-1", "SX120")
    trace_id = placed.headers["synchromesh-trace"]
    services = {"gateway", "orders", "inventory", "production", "billing", "configurator"}

    def spans() -> list[dict[str, Any]]:
        _, told = run("trace", trace_id)
        return list(told["spans"])

    assert until(lambda: services <= {span["service"] for span in spans()})
    told = spans()
    ids = {span["span_id"] for span in told}
    begins = [span for span in told if span["parent_id"] not in ids]
    # What is published is told in the same trace, on its own.
    assert {(span["kind"], span["parent_id"]) for span in begins} == {
        ("gateway", ""),
        ("relay", ""),
    }
    assert [span["service"] for span in begins if span["kind"] == "gateway"] == ["gateway"]
    assert ("call", "credit_provider.charge") in {(span["kind"], span["name"]) for span in told}
    _, called = run("call", "orders.one", "order_id=T-1")
    assert {span["service"] for span in called["spans"]} == {"control", "orders"}
    assert {span["trace_id"] for span in called["spans"]} == {called["trace_id"]}


def test_an_edge_breaks_and_heals(works: Works, run: Verb) -> None:
    """Its breaker opens, orders are taken and wait; healed it closes, and all are placed."""

    def breaker() -> str:
        _, status = run("status")
        assert status["findings"] == []
        found = status["services"]["billing"]["breakers"].get("credit_provider", {})
        return str(found.get("state"))

    orders = [f"B-{number}" for number in range(6)]
    code, fault = run("break", EDGE, "--errors", "100%")
    assert (code, fault["what"]) == (0, "100% errors")
    with ThreadPoolExecutor(6) as customers:
        told = list(customers.map(lambda order_id: works.take(order_id, "SX90"), orders))
    assert {each.body["type"] for each in told} == {"accepted"}
    assert until(lambda: breaker() in ("open", "half_open"))
    _, status = run("status")
    assert status["services"]["orders"]["sagas"]["running"] == len(orders)
    (in_force,) = status["faults"]["in_force"]
    assert (in_force["target"], in_force["struck"] >= 5) == (EDGE, True)
    code, healed = run("heal", EDGE)
    assert (code, [each["target"] for each in healed["healed"]]) == (0, [EDGE])
    assert until(lambda: all(works.order(order_id) == "placed" for order_id in orders))
    assert until(lambda: breaker() == "closed")
    said = works.log()
    for words in (
        f"broken on purpose: 100% errors at {EDGE}",
        "breaker billing -> credit_provider: open, was closed",
        f"healed: 100% errors at {EDGE}",
        "breaker billing -> credit_provider: closed, was half_open",
    ):
        assert words in said


def test_configuration_is_explained(works: Works, run: Verb) -> None:
    """Each setting of it has a value and the place that it comes from."""
    _, told = run("config", "explain")
    settings = {
        each["name"]: (each["value"], each["source"], each["place"]) for each in told["settings"]
    }
    lines = (works.folder / "synchromesh.toml").read_text().splitlines()
    line = lines.index('name = "works"') + 1
    assert settings["system.name"] == ("works", "file", f"synchromesh.toml:{line}")
    assert settings["system.host"] == ("127.0.0.1", "default", "")


def test_a_fault_ends_by_itself(works: Works, run: Verb) -> None:
    """A stall is a timeout of its callers, and with `--for` it needs nobody to heal it."""
    assert run("break", "inventory", "--stall")[0] == 0
    look = ("call", "inventory.stock", "sku=SX90")
    code, told = run(*look, "--timeout", "0.2")
    assert (code, told["problem"]["code"], told["problem"]["status"]) == (1, "timed_out", 504)
    code, fault = run("break", "inventory", "--stall", "--for", "300ms")
    assert (code, fault["left_s"]) == (0, 0.3)
    assert until(lambda: not run("status")[1]["faults"]["in_force"])
    code, told = run(*look)
    assert (code, told["problem"]) == (0, None)


def test_a_stop_leaves_nothing_and_a_start_finds_all(works: Works, run: Verb) -> None:
    """SIGTERM with orders under way: exit 0, no process, no run.json; the next start ends them.

    What was answered under an idempotency key is answered again; a fault on purpose is over.
    """
    order = {"order_id": "K-1", "sku": "SX60", "qty": 1}
    answer = works.ask("POST", "/orders", order, idempotency="k")
    assert answer.status == 200
    assert run("break", EDGE, "--stall")[0] == 0
    assert works.take("K-2", "SX60").body["type"] == "accepted"
    code, said = works.stop(signal.SIGTERM)
    # Of a slow machine some orders have tried the stalled edge again before.
    wrong = [line for line in said.splitlines() if "; it is asked again [trace " not in line]
    assert (code, wrong) == (0, [])
    assert works.left() == []
    works.start()
    assert run("status")[1]["faults"]["in_force"] == []
    again = works.ask("POST", "/orders", order, idempotency="k")
    assert (again.status, again.body) == (200, answer.body)
    other = works.ask("POST", "/orders", {**order, "qty": 2}, idempotency="k")
    assert (other.status, other.body["code"]) == (422, "key_reused")
    assert works.order("K-1") == "placed"
    assert until(lambda: works.order("K-2") == "placed")


def test_after_a_kill_every_saga_ends(works: Works, run: Verb) -> None:
    """kill -9 of every process with orders under way; a start ends them all, and all adds up."""
    works.switch("stall")
    orders = [f"C-{number}" for number in range(6)]
    with ThreadPoolExecutor(6) as customers:
        told = list(customers.map(lambda order_id: works.take(order_id, "SX200"), orders))
    assert {each.body["type"] for each in told} == {"accepted"}
    works.kill()
    assert "run.json" in works.left()
    works.start()
    _, status = run("status")
    assert status["services"]["orders"]["sagas_since_start"]["recovered"] == len(orders)
    assert until(lambda: all(works.order(order_id) == "placed" for order_id in orders))
    assert until(lambda: is_settled(run("status")[1]))
    assert works.stop(signal.SIGINT) == (0, "")
    assert works.left() == []
    data = RunDir(works.folder).data
    came = {"accepted": "placed"}
    report = audit(data, data / PROVIDER_DB, {i: came.get(t, t) for i, t in works.told.items()})
    assert report.is_clean, report.lines()


def is_settled(status: Mapping[str, Any]) -> bool:
    """Return True where no saga is under way and every message has been taken."""
    services = status["services"].values()
    return not any({*each["sagas"]} - ENDED or any(each["behind"].values()) for each in services)
