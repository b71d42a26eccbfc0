"""The gateway of a split system: a process of its own, on a socket that outlives it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

import notes_app
from notes_app import TESTS, TOML, WITH_GATEWAY, write_config
from processes import announced, children_of, dev, ends, family_of, is_alive
from split_world import WAIT_S, ControlSocket, port_of, processes_of, running, what_failed
from synchromesh.cli.screen import screen
from synchromesh.errors import ConfigError
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.service.restarts import RestartOptions
from synchromesh.system import System, load_config
from synchromesh.system.control.status import Status

pytestmark = pytest.mark.anyio

way_in = notes_app.way_in


@pytest.fixture
async def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[System]:
    """A system of one service and a gateway, both processes; none is left at the end."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    async with running(tmp_path, WITH_GATEWAY) as system:
        yield system


@pytest.fixture
def asking(system: System, pool: HttpPool) -> ControlSocket:
    """Asks that system."""
    return ControlSocket(system, pool)


async def get(system: System, path: str) -> int:
    """Ask the gateway as a client does that comes once; return the status, 0 for no answer."""
    return await sent(system, f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())


async def sent(system: System, request: bytes) -> int:
    return await sent_to(system.info.gateway, request)


async def get_at(url: str, path: str) -> int:
    """Ask one gateway of several."""
    return await sent_to(url, f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())


async def sent_to(url: str, request: bytes) -> int:
    async with asyncio.timeout(WAIT_S):
        port = port_of(url)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        head = await reader.readline()
        writer.close()
    return int(head.split()[1]) if head else 0


def slow(seconds: float) -> bytes:
    """Return a request that is answered so much later."""
    body = json.dumps({"seconds": seconds})
    return (
        "POST /slow HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}"
    ).encode()


async def test_the_gateway_is_a_process(system: System, asking: ControlSocket) -> None:
    """It is in the status as any other part: pid, URL, breakers, holds, and what keeps its keys."""
    assert await get(system, "/count") == 200
    status = await asking.ask("GET", "/status")
    gateway, notes = status["gateway"], status["services"]["notes"]
    assert {gateway["pid"], notes["pid"]} == set(children_of(os.getpid()))
    assert gateway["url"] == system.info.gateway
    assert sorted(status["clients"]) == ["control", "gateway"]
    assert status["clients"]["gateway"]["breakers"]["notes"]["state"] == "closed"
    assert status["clients"]["gateway"]["holds"]["held"] == 0
    assert status["children"]["gateway"]["state"] == "running"
    assert status["children"]["gateway/keys"]["state"] == "running"
    assert status["findings"] == []


async def test_its_edges_are_broken(system: System, asking: ControlSocket) -> None:
    """Faults reach it, in which they are counted, and healing ends them."""
    await asking.ask("POST", "/faults", {"target": "gateway:notes", "errors": "100%"})
    assert await get(system, "/count") >= 500
    (fault,) = (await asking.ask("GET", "/faults"))["in_force"]
    assert fault["struck"] >= 1
    await asking.ask("POST", "/faults/heal", {})
    assert await get(system, "/count") == 200


async def test_a_killed_gateway_refuses_nobody(system: System, asking: ControlSocket) -> None:
    """Who comes while there is none waits, and is answered by the next at the same URL."""
    url, before = system.info.gateway, await asking.pid("gateway")
    os.kill(before, signal.SIGKILL)
    assert ends(before)
    assert await get(system, "/count") == 200
    assert await asking.pid("gateway") != before
    assert system.info.gateway == url
    status = await asking.ask("GET", "/status")
    assert status["children"]["gateway"]["restarts"] == 1


async def test_a_restart_under_load_loses_no_request(system: System, asking: ControlSocket) -> None:
    """G7: what the old process has accepted it answers; the rest is the new one's."""
    is_over = asyncio.Event()
    statuses: list[int] = []

    async def come() -> None:
        while not is_over.is_set():
            statuses.append(await get(system, "/count"))

    async def stay(pool: HttpPool) -> None:
        while not is_over.is_set():
            port = port_of(system.info.gateway)
            answer = await pool.request(
                "127.0.0.1", port, "GET", "/count", timeout_s=WAIT_S, is_idempotent=True
            )
            statuses.append(answer.status)

    pids = {await asking.pid("gateway")}
    async with asyncio.TaskGroup() as group, HttpPool(network=RealRuntime().network) as own:
        clients = [group.create_task(come()) for _ in range(6)]
        clients += [group.create_task(stay(own)) for _ in range(2)]
        long = group.create_task(sent(system, slow(1.0)))
        for _ in range(3):
            told = await asking.ask("POST", "/services/gateway/restart", {})
            pids.add(told["pids"]["gateway"])
        is_over.set()
        await asyncio.gather(*clients)
    assert len(pids) == 4
    assert (len(statuses) > 20, set(statuses)) == (True, {200})
    assert await long == 200
    assert (await asking.ask("GET", "/status"))["children"]["gateway"]["restarts"] == 0


async def test_a_restart_loses_no_post_of_a_kept_connection(
    system: System, asking: ControlSocket
) -> None:
    """G7: whoever may not ask again gets an answer to each request, over and over (POST)."""
    is_over = asyncio.Event()
    port, counts = port_of(system.info.gateway), {"raw": 0, "pool": 0, "said": 0}

    async def raw() -> None:
        reader = writer = None
        while not is_over.is_set():
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert reader is not None
            writer.write(slow(0))
            async with asyncio.timeout(WAIT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                await reader.readexactly(length)
            assert head.startswith(b"HTTP/1.1 200")
            counts["raw"] += 1
            if b"connection: close" in head:
                counts["said"] += 1
                writer.close()
                writer = None
        if writer is not None:
            writer.close()

    async def pooled(pool: HttpPool) -> None:
        while not is_over.is_set():
            answer = await pool.request(
                "127.0.0.1", port, "POST", "/slow", [("content-type", "application/json")],
                b'{"seconds":0}', timeout_s=WAIT_S,
            )  # fmt: skip
            assert answer.status == 200
            counts["pool"] += 1

    async with asyncio.TaskGroup() as group, HttpPool(network=RealRuntime().network) as own:
        clients = [group.create_task(raw()) for _ in range(4)]
        clients += [group.create_task(pooled(own)) for _ in range(4)]
        for _ in range(3):
            await asking.ask("POST", "/services/gateway/restart", {})
        is_over.set()
        await asyncio.gather(*clients)
    assert min(counts["raw"], counts["pool"]) > 20
    # They were told that their connections close, and none met a closed one.
    assert counts["said"] >= 4


async def test_there_may_be_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: HttpPool
) -> None:
    """Each has a process, a URL and a name of its own; one that is killed costs the others nothing.

    A reload is of all of them, and so is a restart, one after the other.
    """
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    both = ["gateway#1", "gateway#2"]
    async with running(tmp_path, f"{WITH_GATEWAY}replicas = 2\n") as system:
        system.reread = lambda: load_config(tmp_path)
        asking, info = ControlSocket(system, pool), system.info
        assert list(info.gateways) == both
        assert info.gateway == info.gateways["gateway#1"]
        told = await asking.ask("GET", "/status")
        status = msgspec.convert(told, Status)
        assert {name: each.url for name, each in status.gateways.items()} == info.gateways
        assert {*both, "gateway#1/keys", "gateway#2/keys"} < status.children.keys()
        assert {*both, "control"} == status.clients.keys()
        assert status.gateway == status.gateways["gateway#1"]
        assert status.findings == []
        for each in both:
            log = tmp_path / ".synchromesh" / "telemetry" / f"log-{each}.jsonl"
            assert "rates are shared by 2 gateways" in log.read_text()
        shown = Console(width=160, file=io.StringIO())
        shown.print(screen(status))
        said = shown.file.getvalue()  # type: ignore[attr-defined]
        assert all(each in said and info.gateways[each] in said for each in both)

        first, second = (status.gateways[each].pid for each in both)
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        assert await get_at(info.gateways["gateway#2"], "/count") == 200
        os.kill(first, signal.SIGKILL)
        assert await get_at(info.gateways["gateway#1"], "/count") == 200
        pids = (await asking.ask("POST", "/services/gateway/restart", {}))["pids"]
        assert list(pids) == both
        assert not {first, second} & set(pids.values())
        again = (await asking.ask("POST", "/services/gateway%232/restart", {}))["pids"]
        assert (list(again), again["gateway#2"] != pids["gateway#2"]) == (["gateway#2"], True)

        write_config(tmp_path, f'{WITH_GATEWAY}replicas = 2\nhealth = "/healthz"\n')
        asked = {"who": "ann", "why": "probes"}
        report = await asking.ask("POST", "/gateway/reload", asked)
        assert (report["is_taken"], report["mistakes"]) == (True, [])
        # What all of them changed has no name.
        assert [each["what"] for each in report["changes"]] == ["[gateway] health"]
        assert [await get_at(url, "/healthz") for url in info.gateways.values()] == [200, 200]
        write_config(tmp_path, f"{WITH_GATEWAY}replicas = 3\n")
        refused = await asking.ask("POST", "/gateway/reload", asked)
        assert "[gateway] replicas is 2, and would be 3" in refused["mistakes"][0]


async def test_one_that_dies_too_often_is_given_up_until_it_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: HttpPool
) -> None:
    """The services go on; clients wait in the socket, and are answered once it is there again."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr(
        "synchromesh.service.supervisor.RestartOptions", lambda: RestartOptions(restarts_max=0)
    )
    async with running(tmp_path, WITH_GATEWAY) as system:
        asking = ControlSocket(system, pool)
        pid = processes_of(system)["gateway"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        finding = await what_failed(asking)
        assert finding.startswith("gateway is failed: the gateway ended by SIGKILL; see ")
        assert finding.endswith(" s, and at once by: synchromesh restart gateway")
        assert await asking.call("notes.count") == 0
        client = asyncio.ensure_future(get(system, "/count"))
        answer = await asking.ask("POST", "/services/gateway/restart", {})
        assert answer["pids"]["gateway"] != pid
        assert await client == 200


async def test_a_restart_takes_up_changed_routes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: HttpPool
) -> None:
    """G5: the next process serves them; one with a mistake is refused, and the old one stays."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    routes = tmp_path / "changed_way_in.py"
    words = (
        "from notes_app import Broken, Gateway, Notes, Route\n"
        "way_in = Gateway(routes=[Route('GET {}', {}, public=True)])\n"
    )
    routes.write_text(words.format("/first", "Notes.count"))
    text = TOML + '\n[gateway]\napp = "changed_way_in:way_in"\n'
    async with running(tmp_path, text) as system:
        asking = ControlSocket(system, pool)
        before = await asking.pid("gateway")
        assert await get(system, "/first") == 200
        routes.write_text(words.format("/unknown", "Broken.now"))
        status, problem = await asking.said("POST", "/services/gateway/restart", {})
        assert status == 400
        assert "/unknown" in problem["detail"]
        assert (await asking.pid("gateway"), await get(system, "/first")) == (before, 200)
        routes.write_text(words.format("/other-one", "Notes.count"))
        await asking.ask("POST", "/services/gateway/restart", {})
        assert (await get(system, "/first"), await get(system, "/other-one")) == (404, 200)


async def test_a_restart_takes_up_changed_policies_and_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: HttpPool
) -> None:
    """Those of the gateway; what it cannot be started with is refused, and the old one stays."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    quick = '\n[policies."gateway:notes"]\ntimeout = "200ms"\n[gateway.clients]\nheaders = 10\n'
    fields = "x: y\r\n" * 20
    many = f"GET /count HTTP/1.1\r\nhost: x\r\n{fields}\r\n".encode()
    async with running(tmp_path, WITH_GATEWAY) as system:
        system.reread = lambda: load_config(tmp_path)
        asking = ControlSocket(system, pool)
        before = await asking.pid("gateway")
        assert (await sent(system, slow(0.6)), await sent(system, many)) == (200, 200)
        write_config(tmp_path, WITH_GATEWAY + quick.replace("200ms", "soon"))
        status, problem = await asking.said("POST", "/services/gateway/restart", {})
        assert status == 400
        assert "timeout: 'soon' is not a duration" in problem["detail"]
        assert (await asking.pid("gateway"), await sent(system, slow(0.6))) == (before, 200)
        write_config(tmp_path, WITH_GATEWAY + quick)
        await asking.ask("POST", "/services/gateway/restart", {})
        assert await asking.pid("gateway") != before
        assert (await sent(system, slow(0.6)), await sent(system, many)) == (504, 431)
        assert await get(system, "/count") == 200


async def test_a_gateway_that_hangs_is_shown(
    system: System, asking: ControlSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status comes all the same, and says that it is stopped."""
    monkeypatch.setattr("synchromesh.system.control.remote.ASK_WITHIN_S", 0.2)
    pid = await asking.pid("gateway")
    os.kill(pid, signal.SIGSTOP)
    status = await asking.ask("GET", "/status")
    os.kill(pid, signal.SIGCONT)
    assert status["gateway"] == {
        "pid": pid,
        "url": system.info.gateway,
        "warnings": [],
        "admin": system.info.admin_of["gateway"],
        "mirrors": [],
        "reloaded": None,
    }
    assert any(finding.startswith("gateway is stopped: ") for finding in status["findings"])


def test_it_dies_with_its_supervisor(tmp_path: Path) -> None:
    """kill -9 leaves neither its process nor its socket."""
    with dev(write_config(tmp_path, WITH_GATEWAY), "--split") as process:
        port = port_of(announced(process)["gateway"])
        below = family_of(process.pid)
        assert len(below) == 3  # with the fork server
        process.kill()
        process.wait(WAIT_S)
        assert all(map(ends, below))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


async def test_it_is_drained_before_the_services(system: System, asking: ControlSocket) -> None:
    """What it has accepted needs them, and is answered while the system stops."""
    waiting = asyncio.ensure_future(sent(system, slow(0.5)))
    while not (await asking.ask("GET", "/status"))["clients"]["gateway"]["breakers"]:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    below = children_of(os.getpid())
    assert len(below) == 2
    port = port_of(system.info.gateway)
    await system.stop()
    assert await waiting == 200
    assert not any(map(is_alive, below))
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_taken_port_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system does not start, and no process is left."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = load_config(write_config(tmp_path, f"{WITH_GATEWAY}port = {port}\n"))
        system = System(config, tmp_path, RealRuntime(), is_split=True)
        with pytest.raises(ConfigError, match=rf"the gateway cannot listen on 127\.0\.0\.1:{port}"):
            await system.start()
    assert children_of(os.getpid()) == []


async def test_a_gateway_that_cannot_start_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that only its own process cannot load ends the start, with its reason."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    # It is there for the supervisor, which has imported it, and not for its processes.
    text = f'{TOML}\n[gateway]\napp = "{__name__}:way_in"\n'
    system = System(
        load_config(write_config(tmp_path, text)), tmp_path, RealRuntime(), is_split=True
    )
    with pytest.raises(ConfigError, match=r"the gateway: .*there is no module"):
        await system.start()
    assert children_of(os.getpid()) == []
