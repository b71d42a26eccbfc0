"""ASGI applications that the system runs: under uvicorn and granian, in processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from certificates import issue
from notes_app import TESTS, write_config
from processes import announced, dev
from split_world import WAIT_S, ControlSocket, port_of, running
from synchromesh.errors import SynchromeshError
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.system import System
from synchromesh.tls import ClientContexts, ClientFiles

pytestmark = pytest.mark.anyio

TOML = """
[system]
name = "works"

[services.orders]
app = "asgi_apps_app:orders"

[services.shop]
app = "asgi_apps_app:shop"

[services.till]
app = "asgi_apps_app:till"
server = "granian"
"""


APPS = ("shop", "till")


async def ask(system: System, pool: HttpPool, service: str, path: str = "/") -> dict[str, str]:
    """Ask an application as an ordinary client does."""
    port = port_of(system.info.services[service])
    answer = await pool.request("127.0.0.1", port, "GET", path, [], b"", timeout_s=WAIT_S)
    assert answer.status == 200, answer
    told: dict[str, str] = json.loads(answer.body)
    return told


async def quoted(asking: ControlSocket) -> Any:
    return await asking.call("orders.quote", sku="axle")


async def test_it_is_run_watched_restarted_and_drained_as_any_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are called and call; one that is restarted has a successor; no request is lost."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    async with HttpPool(network=RealRuntime().network) as pool:
        async with running(tmp_path, TOML, is_split=False) as system:
            asking = ControlSocket(system, pool)
            first = await quoted(asking)
            assert first == {
                "pid": first["pid"], "caller": "orders", "left": "7", "pool": "open"
            }  # fmt: skip
            assert first["pid"] != str(os.getpid())
            till = await ask(system, pool, "till")
            assert (till["left"], till["caller"]) == ("7", "")
            status = await asking.ask("GET", "/status")
            assert status["findings"] == []
            shop = status["services"]["shop"]
            assert (shop["pid"], shop["health"]["is_healthy"]) == (int(first["pid"]), True)
            assert [each["url"] for each in shop["instances"]] == [system.info.services["shop"]]
            _, refused = await asking.said("POST", "/call", {"operation": "shop.price"})
            assert "'shop' is an ASGI application" in refused["detail"]

            url = system.info.services["shop"]
            answer = await asking.ask("POST", "/services/shop/restart", {})
            second = await quoted(asking)
            assert str(answer["pids"]["shop"]) == second["pid"] != first["pid"]
            assert system.info.services["shop"] == url
            # What was taken is answered by either server, while they stop.
            slow = [asyncio.ensure_future(ask(system, pool, name, "/slow")) for name in APPS]
            log = tmp_path / ".synchromesh/telemetry"
            async with asyncio.timeout(WAIT_S):
                while not all("slow" in (log / f"{name}.log").read_text() for name in APPS):
                    await asyncio.sleep(0.02)
        assert [(await each)["pool"] for each in slow] == ["open", "open"]
    assert all("the pool is closed" in (log / f"{name}.log").read_text() for name in APPS)


async def test_by_tls_both_sides_show_a_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under either server: a service calls it, and who shows none gets no answer."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    ca = issue(tmp_path, "ca")
    own = issue(tmp_path, "own", by=ca)
    names = 'certificate = "own.pem", key = "own.key", ca = "ca.pem"'
    toml = TOML.replace('"works"', f'"works"\ntls = {{ {names} }}')
    network = RealRuntime().network

    def by(files: ClientFiles) -> HttpPool:
        return HttpPool(network=network.secured(client=ClientContexts(files=files)))

    async with (
        HttpPool(network=network) as plain,
        by(ClientFiles(ca.pem, own.pem, own.key)) as known,
        by(ClientFiles(ca.pem)) as unknown,
        running(tmp_path, toml, is_split=False) as system,
    ):
        assert (await quoted(ControlSocket(system, plain)))["caller"] == "orders"
        for service in APPS:
            assert system.info.services[service].startswith("https://")
            assert (await ask(system, known, service))["left"] == "7"
            for pool in (plain, unknown):
                with pytest.raises(SynchromeshError):
                    await ask(system, pool, service)


def test_what_it_prints_as_it_starts_and_stops_is_on_the_terminal(tmp_path: Path) -> None:
    """An application's own lines are shown from the first to the last."""
    with dev(write_config(tmp_path, TOML.partition("[services.till]")[0])) as process:
        announced(process)
        process.terminate()
        assert process.stderr is not None
        shown = process.stderr.read()
        assert process.wait(WAIT_S) == 0
    assert shown.index("shop | the pool is open") < shown.index("shop | the pool is closed")
