"""The demo as its user runs it, smaller: what it shows, what it finds, and how it ends."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from audit import main as audit_main
from demo import account as accounts
from demo.account import Account
from demo.main import main
from msgspec.structs import replace
from shop import order_book

from processes import ends, family_of, is_alive

DEMO = (sys.executable, "-m", "synchromesh.examples.servo_works.demo")
ORDERS = 60
REPLICAS = {"quoting#1", "quoting#2", "quoting#3"}
SINGLE = {"orders", "inventory", "billing", "production", "configurator", "fleet", "gateway"}
PARTS = SINGLE | REPLICAS
WITHIN_S = 300.0


@dataclass(frozen=True)
class Kept:
    """A run of the demo that ended, and the folder that it left."""

    folder: Path
    code: int
    said: str


def customers() -> set[str]:
    """Return whose the orders are."""
    return {order.customer for order in order_book()[:ORDERS]}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Run the demo once."""
    return run_in(tmp_path_factory.mktemp("demo") / "kept")


def run_in(folder: Path, *options: str) -> Kept:
    """Run the demo and keep what it leaves."""
    done = subprocess.run(
        [*DEMO, "--orders", str(ORDERS), "--keep", str(folder), *options],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    return Kept(folder, done.returncode, done.stdout + done.stderr)


@pytest.fixture
def copied(kept: Kept, tmp_path: Path) -> Path:
    """Return a copy of what the demo left, to be spoilt."""
    shutil.copytree(kept.folder, tmp_path / "copied")
    return tmp_path / "copied"


@contextmanager
def running(temporary: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the demo until its system answers; yields both, the supervisor by its process id."""
    demo = subprocess.Popen(
        DEMO,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert demo.stdout is not None
        found = next(
            filter(None, (re.search(r"supervisor (\d+) runs", line) for line in demo.stdout))
        )
        yield demo, int(found[1])
    finally:
        demo.kill()
        demo.communicate()


def test_the_demo_passes_and_reports(kept: Kept) -> None:
    """It exits 0 and tells of orders, breaker, pages, kill, restart, audit and verdict."""
    assert kept.code == 0, kept.said
    for wanted in (
        rf"of {len(customers())} customers 9 get an API key to the gateway, and 8 sign in at ",
        rf"servo-works: {ORDERS} orders in ",
        r"processes +billing \d+, configurator \d+, fleet \d+, gateway \d+, inventory \d+, ",
        r"orders +\d+ placed, [1-9]\d* undone",
        r"undone: .*\d+ credit_declined",
        r"requests +\d+ sent: .*\d+ GET /machines/{machine_id}",
        r"\d+ turned away by a rate",
        r"\d+ failed, \d+ of them for want of time",
        r"sagas +\d+ completed, [1-9]\d* undone\n",
        r"breaker +billing -> credit_provider: tripped \d+, [1-9]\d* of them by the stall; recov",
        r"[\d:.]+ closed -> open, act stall",
        r"[\d:.]+ half_open -> closed, act ",
        r"degraded +[1-9]\d* answers",
        r"act kill: \d+ GET /machines/[A-Z\d-]+: its order is stale, up to [\d.]+ s old",
        r"kill -9 +orders, process \d+, at [\d:.]+, with ([5-9]|\d\d) sagas in flight",
        r"recovered +[1-9]\d* sagas went on there",
        r"restart +inventory, process \d+, at [\d:.]+; after [\d.]+ s it is inventory, process",
        r"bridged: [1-9]\d* calls were held until it was there",
        r"longest: [1-9]\d* ms, \w+ -> inventory\.\w+, trace [0-9a-f]{32}",
        r" 0 requests failed because of it",
        r"bug +releases with bugs left [1-9]\d* sagas stuck, [1-9]\d* messages parked",
        r" [1-9]\d* were retried, [1-9]\d* were replayed",
        r"everything adds up",
        r"passed: nothing was lost and nothing is half done",
    ):
        assert re.search(wanted, kept.said), (wanted, kept.said)
    assert " NOT " not in kept.said
    # The last thing that it says is where to go on.
    verdict, _, further = kept.said.rpartition("look at such a system")
    assert "nothing is half done" in verdict
    assert re.search(
        r"synchromesh new works --example\n +.*synchromesh --folder works dev\n", further
    )
    assert 'the URL that it prints as "console"' in further


def test_what_it_reports_is_what_was_seen(kept: Kept) -> None:
    """Every part has a process of its own, a killed or replaced one another; no act is missing."""
    seen = accounts.load(kept.folder)
    assert [act.name for act in seen.acts] == [
        "calm", "stall", "errors", "healed", "kill", "restart", "replicas", "bug", "rest",
    ]  # fmt: skip
    assert all(act.began_us < act.ended_us for act in seen.acts)
    assert seen.processes.keys() == PARTS
    assert len(set(seen.processes.values())) == len(PARTS)
    assert seen.kills[0].pids == {"orders": seen.processes["orders"]}
    assert seen.kills[-1].successors["orders"] not in (seen.processes["orders"], 0)
    restart = seen.restarts[-1]
    assert seen.restarts[0].pids == {"inventory": seen.processes["inventory"]}
    assert restart.successors["inventory"] not in (seen.processes["inventory"], 0)
    assert seen.longest_hold is not None
    assert restart.at_us <= seen.longest_hold.started_us <= restart.back_us
    assert {"POST /orders", "GET /machines/{machine_id}", "GET /stock/{sku}"} <= set(seen.requests)
    assert seen.requests["POST /orders"] >= ORDERS
    lost = {loss.instance: (loss.how, loss.asked > 0) for loss in seen.losses}
    assert lost == {"quoting#1": ("SIGKILL", True), "quoting#2": ("SIGSTOP", True)}
    answered_us = [each.at_us for each in seen.failures if each.act == "restart"]
    assert answered_us == []


def test_each_customer_has_a_key_or_a_token(kept: Kept) -> None:
    """The gateway knows each as another principal; what is wrong or over opens nothing."""
    file = msgspec.json.decode((kept.folder / ".synchromesh" / "api-keys.json").read_bytes())
    with_keys = sorted(customers())[::2]
    assert sorted(key["principal"] for key in file["keys"]) == sorted(
        [*with_keys, "former", "looker", "visitor"]
    )
    seen = accounts.load(kept.folder)
    assert (seen.with_keys, seen.with_tokens) == (len(with_keys), len(customers()) - len(with_keys))
    assert seen.with_tokens > 0
    assert len(seen.intruders) == 12
    assert min(seen.intruders.values()) >= 6
    assert seen.let_in == []
    # Whose token it was is in the spans of the gateway, and no credential is in any file of logs.
    telemetry = kept.folder / ".synchromesh" / "telemetry"
    kept_texts = [path.read_bytes() for path in telemetry.rglob("*") if path.is_file()]
    assert any(b"jwt:" in text for text in kept_texts)
    assert not any(b"eyJ" in text or b"Bearer " in text for text in kept_texts)


def test_it_passes_however_quick_the_customers_are(tmp_path: Path) -> None:
    """Orders come five times as fast, at a small part of the rate: nothing of it is a finding.

    What a rate turned away is counted apart, and is no failure.
    """
    ended = run_in(tmp_path / "kept", "--pace", "5", "--rate", "2/s")
    assert ended.code == 0, ended.said
    seen = accounts.load(ended.folder)
    assert len(seen.told) == ORDERS
    assert not any(failure.reason == "rate_limited" for failure in seen.failures)
    # Three orders of one customer are among the first twelve, which come at once.
    assert seen.turned_away["POST /orders"] > 0
    assert re.search(r"[1-9]\d* turned away by a rate: \d+ POST /orders", ended.said)


def test_the_demo_shows_a_trace_across_the_kill_and_a_saga_undone(kept: Kept) -> None:
    """The waterfall has spans of orders from before and after the kill; the timeline has undos."""
    seen = accounts.load(kept.folder)
    starts_us = [span.started_us for span in seen.spans if span.service == "orders"]
    assert min(starts_us) < seen.kills[-1].at_us < max(starts_us)
    assert re.search(r"KILL -9 until its successor +orders +down", kept.said)
    assert re.search(r"saga place_order +orders +ok", kept.said)
    assert re.search(r"turned +billing.charge#1: rejected: credit_declined", kept.said)
    assert re.search(r"undone +inventory.reserve#1", kept.said)
    assert re.search(r"why the slowest .*\n(.*\n){2}(.*\n)?where the time went *\n", kept.said)


def test_what_was_kept_can_be_judged_again(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    """`--judge` gives the same verdict on the same folder, from databases and account alone."""
    assert main(["--judge", str(kept.folder)]) == 0
    assert "passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("database", "statement", "finding"),
    [
        (
            "orders",
            (
                "update orders set total_minor = total_minor + 1 where order_id = "
                "(select order_id from orders where status = 'placed' limit 1)"
            ),
            "placed orders come to",
        ),
        (
            "orders",
            (
                "delete from orders where order_id = "
                "(select order_id from orders where status = 'placed' limit 1)"
            ),
            "but it does not exist",
        ),
        (
            "inventory",
            (
                "update stock_level__1 set held = held - 1 where sku = "
                "(select sku from hold where status = 'active' limit 1)"
            ),
            "its events add up to",
        ),
        (
            "billing",
            (
                "update invoice set status = 'open' where id = "
                "(select id from invoice where status = 'paid' limit 1)"
            ),
            "neither paid nor void",
        ),
        (
            "production",
            (
                "update build_sheet set times = 2 where order_id = "
                "(select order_id from build_sheet limit 1)"
            ),
            "has the build sheet",
        ),
        (
            "configurator",
            "update price set price_minor = 1 where sku = 'SX90'",
            "SX90: the configurator's price is 1 EUR",
        ),
        (
            "fleet",
            "update condition__1 set readings = 3 where machine_id = 'SX40-05511'",
            "SX40-05511: 2 readings were taken, 2 are kept as events, 3 are worked out",
        ),
        (
            "credit_provider",
            "delete from charge where id = (select id from charge limit 1)",
            "the provider charged",
        ),
        (
            "orders",
            (
                "update sm_saga set status = 'stuck', reason = 'spoilt' where id = "
                "(select id from sm_saga limit 1)"
            ),
            "is stuck: spoilt",
        ),
    ],
)
def test_one_spoilt_row_is_found(
    copied: Path, database: str, statement: str, finding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row of one database makes the audit, and so the demo, exit 1 and say which."""
    data = copied / ".synchromesh" / "data"
    with closing(sqlite3.connect(data / f"{database}.db", isolation_level=None)) as spoilt:
        assert spoilt.execute(statement).rowcount == 1
    assert main(["--judge", str(copied)]) == 1
    told = capsys.readouterr().out
    assert finding in told
    assert "failed: " in told
    assert audit_main([str(data)]) == 1


def nothing_bridged(account: Account) -> None:
    account.restarts = [replace(restart, bridged=0) for restart in account.restarts]


def unanswered(account: Account) -> None:
    account.told.popitem()


@pytest.mark.parametrize(
    ("spoil", "finding"),
    [
        (nothing_bridged, "calls were bridged over the restart of inventory: 0"),
        (unanswered, f"every order has its answer: {ORDERS - 1} of {ORDERS}"),
    ],
)
def test_a_run_that_did_not_show_everything_fails(
    copied: Path,
    spoil: Callable[[Account], None],
    finding: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Databases that add up are not enough: what was not seen is a finding, and exits 1."""
    account = accounts.load(copied)
    spoil(account)
    account.save(copied)
    assert main(["--judge", str(copied)]) == 1
    told = capsys.readouterr().out
    assert f"NOT {finding}" in told
    assert "everything adds up" in told


def test_a_run_in_which_nothing_was_undone_fails(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At least one saga must have been undone."""
    path = copied / ".synchromesh" / "data" / "orders.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as spoilt:
        spoilt.execute("update sm_saga set status = 'completed'")
    assert main(["--judge", str(copied)]) == 1
    assert "NOT sagas were undone: 0" in capsys.readouterr().out


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too few or too many orders, a folder that is in use or holds no run: exit 2 and why."""
    (tmp_path / "mine.txt").write_text("mine")
    for arguments, why in (
        (["--orders", "5"], "--orders 5: use 60 to 320"),
        (["--orders", "9999"], "--orders 9999: use 60 to 320"),
        (["--pace", "0"], "--pace 0: use 1 to 20"),
        (["--rate", "often"], "--rate: 'often' is no rate"),
        (["--keep", str(tmp_path)], "it is not empty"),
        (["--keep", str(tmp_path / "mine.txt")], "name a new folder"),
        (["--judge", str(tmp_path)], "does not hold a whole run of the demo"),
    ):
        assert main(arguments) == 2
        assert why in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT] * 2])
def test_ctrl_c_stops_everything(tmp_path: Path, signals: list[signal.Signals]) -> None:
    """Stopped in the middle, by one Ctrl-C or two, it exits 130 and no process is left."""
    with running(tmp_path) as (demo, system):
        below = [system, *family_of(system)]
        # Itself, the fork server, all parts, and the credit provider.
        assert len(set(below)) == 3 + len(PARTS)
        for number in signals:
            demo.send_signal(number)
        said, _ = demo.communicate(timeout=WITHIN_S)
        assert demo.returncode == 130
        assert said.endswith("demo: stopped; no process is left\n")
        assert not any(map(is_alive, below))
        assert list(tmp_path.iterdir()) == []


def test_killed_itself_it_leaves_nothing_running(tmp_path: Path) -> None:
    """SIGKILL to the demo takes its supervisor, and all that one runs, with it."""
    with running(tmp_path) as (demo, system):
        below = [system, *family_of(system)]
        demo.kill()
        assert all(map(ends, below))


def test_a_system_that_ends_by_itself_is_told(tmp_path: Path) -> None:
    """Where the system dies of its own, the demo says so at once and exits 3."""
    with running(tmp_path) as (demo, system):
        below = family_of(system)
        os.kill(system, signal.SIGKILL)
        said, _ = demo.communicate(timeout=WITHIN_S)
        assert demo.returncode == 3
        assert "demo: the system ended by itself with exit code -9; its last words:" in said
        assert all(map(ends, below))
