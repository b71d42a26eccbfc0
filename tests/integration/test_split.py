"""`System(is_split=True)`: a process for each service, watched, restarted, all stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from notes_app import STOPS, TESTS, TOML, write_config
from parcels_app import TOML as PARCELS
from processes import children_of, is_alive
from split_world import WAIT_S, ControlSocket, processes_of, running, what_failed
from synchromesh.discovery import LeaseOptions, Resolved
from synchromesh.errors import ConfigError
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.service.restarts import RestartOptions
from synchromesh.system import System, load_config

pytestmark = pytest.mark.anyio

TWO = TOML + '\n[services.broken]\napp = "notes_app:broken"\n'


@pytest.fixture
async def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[System]:
    """A system of one service, with a process for it; it is stopped at the end."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    async with running(tmp_path, TOML) as system:
        yield system


@pytest.fixture
def asking(system: System, pool: HttpPool) -> ControlSocket:
    """Asks that system."""
    return ControlSocket(system, pool)


async def test_a_killed_service_comes_back(system: System, asking: ControlSocket) -> None:
    """At the same URL and with its data; calls that come meanwhile are held, and none fails."""
    assert await asking.call("notes.write", note='{"id":"a","text":"x"}') == 1
    before = await asking.pid("notes")
    url = system.info.services["notes"]
    os.kill(before, signal.SIGKILL)
    assert await asking.call("notes.write", note='{"id":"b","text":"x"}') == 2
    assert await asking.pid("notes") != before
    assert system.info.services["notes"] == url
    status = await asking.ask("GET", "/status")
    assert status["children"]["service/notes"]["restarts"] == 1
    assert status["services"]["notes"]["health"]["is_healthy"]


async def test_a_restart_under_load_fails_no_call(asking: ControlSocket) -> None:
    """G7: the new process takes over while calls are held; each is run once, and answered."""
    is_over = asyncio.Event()
    written: list[Any] = []

    async def write(customer: int) -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            note = json.dumps({"id": f"{customer}-{number}", "text": "x"})
            written.append(await asking.call("notes.write", note=note))

    async with asyncio.TaskGroup() as group:
        for customer in range(4):
            group.create_task(write(customer))
        pids = {await asking.pid("notes")}
        for _ in range(2):
            answer = await asking.ask("POST", "/services/notes/restart", {})
            pids.add(answer["pids"]["notes"])
        is_over.set()
    assert len(pids) == 3
    assert sorted(written) == list(range(1, len(written) + 1))
    status = await asking.ask("GET", "/status")
    assert status["children"]["service/notes"]["restarts"] == 0
    holds = status["clients"]["control"]["holds"]
    assert holds["bridged"] >= 2
    assert (holds["held"], holds["given_up"], holds["refused"]) == (0, 0, 0)


async def test_what_dies_too_often_is_given_up_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: HttpPool
) -> None:
    """`status` says which, how it ended and the verb, by which a mended one is there at once."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr(
        "synchromesh.service.supervisor.RestartOptions", lambda: RestartOptions(restarts_max=0)
    )
    (tmp_path / "moody.py").write_text("from notes_app import broken\n")
    async with running(tmp_path, TWO.replace("notes_app:broken", "moody:broken")) as system:
        asking = ControlSocket(system, pool)
        (tmp_path / "moody.py").write_text("raise LookupError\n")
        before = await asking.pid("broken")
        os.kill(before, signal.SIGKILL)
        finding = await what_failed(asking)
        assert finding.startswith("broken/process is failed: service 'broken' ended by SIGKILL; ")
        assert finding.endswith(" s, and at once by: synchromesh restart broken")
        assert await asking.call("notes.write", note='{"id":"a","text":"x"}') == 1
        code, told = await asking.said("POST", "/services/broken/restart", {})
        assert (code, "LookupError" in told["detail"]) == (400, True)
        (tmp_path / "moody.py").write_text("from notes_app import broken\n")
        answer = await asking.ask("POST", "/services/broken/restart", {})
        assert answer["pids"]["broken"] not in (None, before)
        assert await asking.call("broken.now") is None


async def test_a_broken_file_of_one_service_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: HttpPool
) -> None:
    """A release of a subscriber that cannot be imported: its publisher starts, publishes, and
    keeps for it what it took last; mended, it takes what came meanwhile (O1)."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    stock = tmp_path / "own_stock.py"
    stock.write_text("from parcels_app import stock\n")
    async with running(tmp_path, PARCELS.replace("parcels_app:stock", "own_stock:stock")) as system:
        asking = ControlSocket(system, pool)
        await asking.call("shop.sell", sku='"a"', n="1")
        before = {name: await asking.pid(name) for name in ("shop", "stock")}
        stock.write_text("def (\n")
        for pid in before.values():
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        await asking.call("shop.sell", sku='"a"', n="2")
        assert await asking.pid("shop") not in (None, before["shop"])
        answer = await asking.ask("POST", "/services/shop/restart", {})
        assert answer["is_refused"] is False
        await asking.call("shop.sell", sku='"a"', n="3")
        finding = await what_failed(asking)
        assert "service 'stock': synchromesh.toml: [services.stock]" in finding
        assert "SyntaxError" in finding
        stock.write_text("from parcels_app import stock\n")
        async with asyncio.timeout(WAIT_S):
            while await asking.call("stock.taken") != [1, 2, 3]:
                await asyncio.sleep(0.02)


async def test_a_child_within_a_process_is_restarted_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: HttpPool
) -> None:
    """One loop that fails each time is given up; all else of its service goes on."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    # The test's own process imports the module too, to check it: only the child's loops fail.
    (tmp_path / "given_up.py").write_text(
        "import os\n"
        "import synchromesh.service.supervisor as supervisor\n"
        "from synchromesh.service.restarts import RestartOptions\n"
        "from synchromesh.saga.engine import Engine\n"
        "from synchromesh.saga import revival\n"
        "recover = Engine.recover\n"
        "async def fails(): raise RuntimeError('secret')\n"
        "async def recovers(engine):\n"
        "    await recover(engine)\n"
        "    if engine._service == 'broken': engine._revival.adopt = fails\n"
        f"if os.getpid() != {os.getpid()}:\n"
        "    supervisor.RestartOptions = lambda: RestartOptions(restarts_max=0)\n"
        "    revival._LOOK_EVERY_S = 0.2\n"
        "    Engine.recover = recovers\n"
        "from notes_app import broken\n"
    )
    async with running(tmp_path, TWO.replace("notes_app:broken", "given_up:broken")) as system:
        asking = ControlSocket(system, pool)
        before = await asking.pid("broken")
        finding = await what_failed(asking)
        name = "broken/saga recovery"
        assert finding.startswith(f"{name} is failed: RuntimeError; it is tried again in ")
        assert finding.endswith(f"synchromesh restart {name}")
        answer = await asking.ask("POST", "/services/broken%2Fsaga%20recovery/restart", {})
        assert answer["is_refused"] is False
        assert await asking.call("broken.now") is None
        assert await asking.pid("broken") == before
        loops = (await asking.ask("GET", "/status"))["services"]["broken"]["health"]["children"]
        assert loops["saga recovery"]["restarts"] == 1
        code, told = await asking.said("POST", "/services/broken%2Fnobody/restart", {})
        assert (code, "is called 'broken/nobody'" in told["detail"]) == (404, True)


async def test_what_gave_up_ends_the_system(
    tmp_path: Path, pool: HttpPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that is asked for: a process that ends with 3 is not restarted, and its word told."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    (tmp_path / "gives_up.py").write_text(
        "import os, sys\nfrom notes_app import Broken, Service\n"
        "broken = Service('broken', implements=Broken)\n"
        "@broken.handles(Broken.now)\n"
        "async def now(ctx):\n"
        "    sys.stderr.write('synchromesh: broken: projection/x failed too often: Lookup\\n')\n"
        "    sys.stderr.flush()\n    os._exit(3)\n"
    )
    text = STOPS + '[services.broken]\napp = "gives_up:broken"\n'
    async with running(tmp_path, text) as system:
        asking = asyncio.ensure_future(ControlSocket(system, pool).call("broken.now"))
        failure = await system.wait(asyncio.Event())
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert "RestartsExhausted: broken: projection/x failed too often: Lookup; see " in failure


async def test_a_killed_process_is_off_the_list_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6: its end is what counts; the lease would have run for another hour."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr("synchromesh.discovery.memory.LeaseOptions", lambda: LeaseOptions(3600.0))
    monkeypatch.setattr(
        "synchromesh.service.supervisor.RestartOptions", lambda: RestartOptions(restarts_max=0)
    )
    async with running(tmp_path, TOML) as system:
        assert len((await system._registry.resolve("notes")).endpoints) == 1
        (child,) = children_of(os.getpid())
        os.kill(child, signal.SIGKILL)
        async with asyncio.timeout(WAIT_S):
            while (await system._registry.resolve("notes")).endpoints:
                await system._registry.changed("")
        assert await system._registry.resolve("notes") == Resolved(())


async def test_a_hung_process_goes_with_its_lease_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: HttpPool
) -> None:
    """R1, R6: nobody sees it end; once it goes on it registers again, and is called."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr("synchromesh.discovery.memory.LeaseOptions", lambda: LeaseOptions(0.6))
    async with running(tmp_path, TOML) as system:
        (child,) = children_of(os.getpid())
        os.kill(child, signal.SIGSTOP)
        async with asyncio.timeout(WAIT_S):
            while (await system._registry.resolve("notes")).endpoints:
                await system._registry.changed("")
        assert is_alive(child)
        # A call is held until it is there again.
        calling = asyncio.ensure_future(ControlSocket(system, pool).call("notes.count"))
        os.kill(child, signal.SIGCONT)
        assert await calling == 0
        assert len((await system._registry.resolve("notes")).endpoints) == 1
        assert children_of(os.getpid()) == [child]


async def test_the_control_socket_answers_for_all(asking: ControlSocket) -> None:
    """Sagas, traces and mistakes are told as by a system of one process."""
    assert (await asking.ask("POST", "/actions/saga.list", {}))["answers"] == {"notes": []}
    assert await asking.call("notes.plan", name="p") is not None
    listed = await asking.ask("POST", "/actions/saga.list", {"service": "notes", "limit": 1})
    (saga,) = listed["answers"]["notes"]
    completed = {"status": "completed"}
    assert await asking.ask("POST", "/actions/saga.list", completed) == listed
    shown = await asking.ask("POST", "/actions/saga.show", {"id": saga["id"]})
    story = shown["answers"]["notes"]
    assert (story["id"], story["service"]) == (saga["id"], "notes")
    repair = {"id": "none", "who": "ada", "why": "a test"}
    status, problem = await asking.said("POST", "/actions/saga.retry", repair)
    assert (status, problem["code"]) == (404, "unknown_saga")
    trace = await asking.ask("GET", "/traces/last")
    assert {span["service"] for span in trace["spans"]} == {"control", "notes"}
    for method, path, body in (
        ("POST", "/actions/saga.show", {"id": "none"}),
        ("POST", "/actions/saga.list", {"limit": 0}),
        ("POST", "/actions/saga.list", {"service": "nobody"}),
        ("GET", "/traces/none", None),
        ("POST", "/call", {"operation": "nobody.knows"}),
        ("POST", "/call", {"operation": "notes.knows"}),
        ("POST", "/services/nobody/restart", {}),
        ("POST", "/credentials", {"client": "notes", "service": "notes"}),
        ("POST", "/credentials", {"client": "shop", "service": "nobody"}),
        ("POST", "/registry/register", {}),
    ):
        status, problem = await asking.said(method, path, body)
        assert 400 <= status < 500, problem


async def test_faults_reach_the_processes(asking: ControlSocket) -> None:
    """What is broken at the control socket is broken for every caller, until it is healed."""
    told = await asking.ask("POST", "/faults", {"target": "notes", "errors": "100%"})
    assert told["target"] == "notes"
    assert await asking.call("notes.tag", names='["a"]') != 1
    faults = await asking.ask("GET", "/faults")
    assert faults["in_force"][0]["struck"] >= 1
    await asking.ask("POST", "/faults/heal", {})
    assert await asking.call("notes.tag", names='["a"]') == 1


async def test_faults_in_force_outlive_a_process(
    system: System, asking: ControlSocket, pool: HttpPool
) -> None:
    """The next one begins with them, each with its original end, and can be healed of them."""
    for fault in ({"target": "notes", "stall": True}, {"target": "control:notes", "for": "1h"}):
        await asking.ask("POST", "/faults", {"errors": "100%", **fault})
    before = await asking.ask("GET", "/status")
    (child,) = processes_of(system).values()
    port = child.control_port
    os.kill(await asking.pid("notes"), signal.SIGKILL)
    while child.control_port in (None, port):
        await asyncio.sleep(0.02)
    limited, endless = await faults_of_the_process(system, pool)
    assert (limited["target"], endless["target"]) == ("control:notes", "notes")
    assert (endless["what"], endless["left_s"]) == ("100% errors, stall", None)
    assert 3000.0 < limited["left_s"] <= before["faults"]["in_force"][0]["left_s"]
    await asking.ask("POST", "/faults/heal", {})
    assert await faults_of_the_process(system, pool) == []


async def faults_of_the_process(system: System, pool: HttpPool) -> Any:
    """Return the faults in force as the one process of a system itself has them."""
    (child,) = processes_of(system).values()
    assert child.control_port is not None
    token = [("authorization", f"Bearer {system.info.token}")]
    response = await pool.request(
        "127.0.0.1", child.control_port, "GET", "/faults", token, timeout_s=WAIT_S
    )
    return json.loads(response.body)["in_force"]


async def test_an_isolated_edge_outlives_a_process(
    system: System, asking: ControlSocket, pool: HttpPool
) -> None:
    """The next process of a caller begins with it, and is released with the others."""
    by = {"target": "notes", "who": "ann", "why": "to try"}
    await asking.ask("POST", "/breakers", by)
    before = await isolations_of_the_process(system, pool)
    (child,) = processes_of(system).values()
    port = child.control_port
    os.kill(await asking.pid("notes"), signal.SIGKILL)
    while child.control_port in (None, port):
        await asyncio.sleep(0.02)
    assert [each["why"] for each in before] == ["to try"]
    assert len(await isolations_of_the_process(system, pool)) == 1
    released = await asking.ask("POST", "/breakers/release", by)
    assert [each["target"] for each in released["released"]] == ["notes"]
    assert await isolations_of_the_process(system, pool) == []
    assert await asking.call("notes.tag", names='["a"]') == 1


async def isolations_of_the_process(system: System, pool: HttpPool) -> Any:
    """Return the isolations as the one process of a system itself has them."""
    (child,) = processes_of(system).values()
    assert child.control_port is not None
    token = [("authorization", f"Bearer {system.info.token}")]
    response = await pool.request(
        "127.0.0.1", child.control_port, "GET", "/status", token, timeout_s=WAIT_S
    )
    return json.loads(response.body)["isolations"]


async def test_a_fault_reaches_a_process_that_starts(
    system: System, asking: ControlSocket, pool: HttpPool
) -> None:
    """Whoever breaks something meanwhile is answered when it is broken there, too."""
    restarting = asyncio.ensure_future(asking.ask("POST", "/services/notes/restart", {}))
    while len(children_of(os.getpid())) < 2:
        await asyncio.sleep(0.01)
    # What the others say counts meanwhile.
    told = await asking.ask("POST", "/actions/saga.list", {})
    assert (told["answers"], told["silent"]) in (({"notes": []}, []), ({}, ["notes"]))
    await asking.ask("POST", "/faults", {"target": "notes", "stall": True})
    assert [rule["target"] for rule in await faults_of_the_process(system, pool)] == ["notes"]
    await restarting


async def test_a_process_that_does_not_answer_is_shown(
    asking: ControlSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status comes all the same, and says which one is stopped."""
    monkeypatch.setattr("synchromesh.system.control.remote.ASK_WITHIN_S", 0.2)
    pid = await asking.pid("notes")
    os.kill(pid, signal.SIGSTOP)
    told = await asking.ask("GET", "/status")
    os.kill(pid, signal.SIGCONT)
    assert not told["services"]["notes"]["health"]["is_healthy"]
    assert any("notes/process is stopped" in finding for finding in told["findings"])


async def test_a_start_that_is_cancelled_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its processes are being started or are loading."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    for awaits in (5, 20, 60):
        system = System(
            load_config(write_config(tmp_path, TWO)), tmp_path, RealRuntime(), is_split=True
        )
        starting = asyncio.ensure_future(system.start())
        for _ in range(awaits):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert children_of(os.getpid()) == []
        with pytest.raises(ConfigError):
            _ = system.info
