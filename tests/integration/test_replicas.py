"""Replicas of a service of queries only: killed, stopped, broken and restarted under load."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from notes_app import TESTS, write_config
from processes import ends
from replicas_app import INSTANCES, SLOWER, TOML, Clients
from split_world import ControlSocket, running
from synchromesh.errors import ConfigError
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.system import RunDir, System, load_config
from synchromesh.system.control.catalogue import EJECTED
from synchromesh.system.control.remote import MetricsAnswer
from synchromesh.system.supervise.child_process import ChildProcess

pytestmark = pytest.mark.anyio

MANY = 300
AT_LEAST = 20
WRITER = """
[system]
name = "offers"

[services.prices]
app = "replicas_app:prices"
replicas = 3
"""


@pytest.fixture(autouse=True)
def path_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes import what tests do."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


@asynccontextmanager
async def served(
    folder: Path, *, is_split: bool
) -> AsyncIterator[tuple[System, ControlSocket, Clients]]:
    """Run the system, in one process or split, with somebody who asks its control socket."""
    async with (
        HttpPool(network=RealRuntime().network) as pool,
        running(folder, TOML, is_split=is_split) as system,
    ):
        yield system, ControlSocket(system, pool), Clients(system)


async def pids_of(asking: ControlSocket) -> dict[str, int]:
    """Return the process of each instance."""
    services = (await asking.ask("GET", "/status"))["services"]
    return {name: each["pid"] for name, each in services.items()}


async def struck_of(asking: ControlSocket) -> int:
    """Return how many attempts the fault in force has struck."""
    (fault,) = (await asking.ask("GET", "/status"))["faults"]["in_force"]
    struck: int = fault["struck"]
    return struck


def check(clients: Clients) -> None:
    """Check that at least 99 of 100 requests succeeded."""
    assert clients.failed <= clients.asked // 100, clients.statuses


@pytest.mark.parametrize("is_split", [False, True])
async def test_three_answer_in_turn_and_keep_nothing(tmp_path: Path, is_split: bool) -> None:
    """Each is listed, shown with its process, and called; no database is opened."""
    async with served(tmp_path, is_split=is_split) as (system, asking, clients):
        await clients.ask(MANY)
        status = await asking.ask("GET", "/status")
        assert tuple(status["services"]) == INSTANCES
        assert tuple(system.info.services) == INSTANCES
        for name, each in status["services"].items():
            (listed,) = each["instances"]
            assert (listed["instance"], each["health"]["service"]) == (name, "quotes")
            assert (each["in_flight"], each["health"]["is_healthy"]) == (0, True)
        pids = {each["pid"] for each in status["services"].values()}
        assert len(pids) == (3 if is_split else 1)
        assert set(clients.pids) == set(map(str, pids))
        assert list(RunDir(tmp_path).data.iterdir()) == []
        assert (await asking.ask("POST", "/actions/saga.list", {}))["answers"] == {}
        assert await asking.call("quotes.kept") == "remote_failed"
    assert clients.failed == 0


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("fault", [{"errors": "100%"}, {"stall": True}, {"latency": "300ms"}])
async def test_one_that_is_broken_is_passed_over(
    tmp_path: Path, is_split: bool, fault: dict[str, object]
) -> None:
    """Requests succeed elsewhere; the gateway's status says whom it has ejected."""
    async with served(tmp_path, is_split=is_split) as (_, asking, clients):
        await clients.ask(MANY)
        await asking.ask("POST", "/faults", {"target": "quotes#2", **fault})
        await clients.ask(MANY)
        status = await asking.ask("GET", "/status")
        (struck,) = status["faults"]["in_force"]
        assert (struck["target"], struck["struck"] > 0) == ("quotes#2", True)
        assert await asking.ask("POST", "/faults/heal", {"target": "quotes#2"})
        check(clients)


async def hardly_asked(asking: ControlSocket, clients: Clients) -> None:
    """Wait until at most 1 in 100 attempts goes to the instance that the fault in force is on."""
    share = 1.0
    while share > 0.01:
        asked, struck = clients.asked, await struck_of(asking)
        await clients.ask(MANY)
        share = (await struck_of(asking) - struck) / (clients.asked - asked)


@pytest.mark.parametrize("fault", [{"errors": "100%"}, {"stall": True}])
async def test_an_ejected_one_is_named_by_who_ejected_it(
    tmp_path: Path, fault: dict[str, object]
) -> None:
    """As long as it fails, or hangs, it stays out, but for a probe now and then; metrics count it.

    At most 1 in 100 attempts goes to it then, once that has been so for a while.
    """
    async with served(tmp_path, is_split=True) as (_, asking, clients):
        await clients.ask(MANY)
        await asking.ask("POST", "/faults", {"target": "gateway:quotes#3", **fault})
        ejected: dict[str, list[str]] = {}
        counted: dict[tuple[str, ...], float] = {}
        async with clients.asking():
            while not (ejected and counted.get(("gateway", "gateway", "quotes"))):
                ejected = (await asking.ask("GET", "/status"))["clients"]["gateway"]["ejected"]
                told = msgspec.convert(await asking.ask("GET", "/metrics"), MetricsAnswer)
                counted = {
                    sample.labels: sample.value
                    for family in told.families if family.metric.name == EJECTED.name
                    for sample in family.samples
                }  # fmt: skip
        assert ejected == {"quotes": ["quotes#3"]}
        assert counted == {("gateway", "gateway", "quotes"): 1.0}
        await hardly_asked(asking, clients)
        check(clients)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_one_that_stays_dead_or_hangs_is_hardly_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """After a while at most 1 in 100 attempts goes to it; 99 of 100 requests succeed meanwhile."""

    async def never(_: ChildProcess) -> None:
        await asyncio.Event().wait()

    async with served(tmp_path, is_split=True) as (_, asking, clients):
        await clients.ask(MANY)
        # What is a little late is counted.
        await asking.ask("POST", "/faults", {"target": "gateway:quotes#2", "latency": "0.1ms"})
        while not await struck_of(asking):
            await clients.ask(AT_LEAST)
        pid = (await pids_of(asking))["quotes#2"]
        monkeypatch.setattr(ChildProcess, "_spawn", never)
        os.kill(pid, number)
        await hardly_asked(asking, clients)
        check(clients)
        if number == signal.SIGSTOP:
            os.kill(pid, signal.SIGKILL)


async def test_one_that_is_three_times_slower_costs_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets less than its third, and the slowest of 100 take at most twice as long, as a ratio.

    Compared with those just before, when all are well, as often as the machine has other things to
    do in one of the two.
    """
    slower = tmp_path / "slower"
    monkeypatch.setenv(SLOWER, str(slower))

    async def asked(system: System) -> tuple[float, Clients]:
        """Return the p99 of many requests, and who answered them."""
        clients = Clients(system, 3, "/worked/SX90")
        await clients.ask(MANY)
        assert clients.failed == 0
        return sorted(clients.took_s)[-MANY // 100], clients

    async with served(tmp_path, is_split=True) as (system, asking, clients):
        await clients.ask(MANY)
        slow, ratio = str((await pids_of(asking))["quotes#2"]), math.inf
        while ratio > 2.0:
            slower.write_text("")
            healthy_s, _ = await asked(system)
            slower.write_text(slow)
            slow_s, seen = await asked(system)
            ratio = slow_s / healthy_s
            assert seen.pids[slow] < 0.25 * seen.asked


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_one_that_dies_or_hangs_costs_no_request(tmp_path: Path, number: int) -> None:
    """The others answer meanwhile; the trace of a request names the instance."""
    async with served(tmp_path, is_split=True) as (_, asking, clients):
        await clients.ask(MANY)
        pids = await pids_of(asking)
        async with clients.asking():
            before = clients.asked
            os.kill(pids["quotes#2"], number)
            while clients.asked < before + MANY:
                await asking.call("quotes.one", sku="SX90")
        if number == signal.SIGSTOP:
            os.kill(pids["quotes#2"], signal.SIGKILL)
        assert ends(pids["quotes#2"])
        check(clients)
        last = await asking.ask("GET", "/traces/last")
        handled = {each["service"] for each in last["spans"] if each["kind"] == "handle"}
        assert handled
        assert handled <= set(INSTANCES)


async def test_all_are_restarted_one_after_the_other(tmp_path: Path) -> None:
    """No request fails, one of them alone can be restarted too, and a single name is one more."""
    async with served(tmp_path, is_split=True) as (_, asking, clients):
        before = await pids_of(asking)
        async with clients.asking():
            told = await asking.ask("POST", "/services/quotes/restart", {})
            assert tuple(told["pids"]) == INSTANCES
            between = await pids_of(asking)
            assert between == told["pids"]
            one = await asking.ask("POST", "/services/quotes%232/restart", {})
            after = await pids_of(asking)
            assert one["pids"] == {"quotes#2": after["quotes#2"]}
        assert not set(before.values()) & set(between.values())
        assert {name for name in INSTANCES if after[name] != between[name]} == {"quotes#2"}
        assert (clients.failed, clients.asked > AT_LEAST) == (0, True)
        status = await asking.ask("GET", "/status")
        restarts = [status["children"][f"service/{name}"]["restarts"] for name in INSTANCES]
        assert restarts == [0, 0, 0]
        code, problem = await asking.said("POST", "/services/quotes%234/restart", {})
        assert (code, "'quotes#4'" in problem["detail"]) == (404, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WRITER, "a SQLite file has one writer. Keep databases on PostgreSQL"),
        (TOML.replace("= 3", "= 0"), "[services.quotes] replicas is 0; use 1 to 64"),
        (TOML.replace("= 3", "= 65"), "[services.quotes] replicas is 65; use 1 to 64"),
        (TOML.replace("= 3", '= "three"'), "services.quotes.replicas: expected `int`, got `str`"),
        (TOML.replace("= 3", "= 3\nport = 8001"), "3 replicas and one port, 8001"),
    ],
)
async def test_what_cannot_have_replicas_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """A writer, none at all, too many, no number, one port for all: one sentence each."""
    write_config(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        await System(load_config(tmp_path), tmp_path, RealRuntime()).start()
    assert said in refused.value.message
