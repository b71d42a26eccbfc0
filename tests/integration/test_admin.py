"""Each process tells of its health on a listener of its own, also while it drains."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from notes_app import TESTS, WITH_GATEWAY
from split_world import WAIT_S, ControlSocket, port_of, running
from synchromesh.errors import ConfigError
from synchromesh.http import HttpPool
from synchromesh.service.readiness import Readiness
from synchromesh.system import System

pytestmark = pytest.mark.anyio

HEALTH = WITH_GATEWAY + 'health = "/healthz"\n'


async def get(pool: HttpPool, url: str, path: str) -> tuple[int, Any]:
    """Ask by GET; return the status and what was said."""
    answer = await pool.request("127.0.0.1", port_of(url), "GET", path, timeout_s=WAIT_S)
    return answer.status, json.loads(answer.body)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


async def test_one_process_tells_of_its_parts_until_it_has_ended(
    tmp_path: Path, pool: HttpPool
) -> None:
    """It is alive and ready; while it drains it is alive and takes nothing, inside and outside."""
    async with running(tmp_path, HEALTH, is_split=False) as system:
        admin, gateway = system.info.admin, system.info.gateway
        assert system.info.admin_of == {}
        told = {"status": "ready", "parts": {"gateway": "ready", "notes": "ready"}}
        assert await get(pool, admin, "/readyz") == (200, told)
        assert await get(pool, admin, "/readyz/notes") == (
            200,
            {"status": "ready", "parts": {"notes": "ready"}},
        )
        assert (await get(pool, admin, "/readyz/none"))[0] == 404
        assert (await get(pool, admin, "/status"))[0] == 404
        assert await get(pool, gateway, "/healthz") == (200, {"status": "ready"})
        assert (await get(pool, gateway, "/readyz"))[0] == 404
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(gateway))
        body = b'{"seconds": 0.7}'
        head = f"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        (instance,) = system.instances.values()
        while not instance.dispatcher.in_flight:
            await asyncio.sleep(0.005)
        stopping = asyncio.ensure_future(system.stop())
        while (await get(pool, admin, "/readyz"))[0] == 200:
            await asyncio.sleep(0)
        status, told = await get(pool, admin, "/readyz")
        assert (status, told["status"]) == (503, "draining")
        assert await get(pool, admin, "/healthz") == (200, {"status": "ok"})
        # A client that has its connection is told so, too.
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        answers = await reader.read()
        assert answers.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 503 " in answers
        writer.close()
        await stopping
        assert not await _is_open(port_of(admin))


async def test_a_service_without_its_database_is_not_ready(tmp_path: Path, pool: HttpPool) -> None:
    """The process says which part it is, and why."""
    async with running(tmp_path, WITH_GATEWAY, is_split=False) as system:
        with mock.patch.object(Readiness, "why_not", "the disk is full"):
            status, told = await get(pool, system.info.admin, "/readyz")
            assert (status, told["status"]) == (503, "not ready")
            assert told["parts"] == {"gateway": "ready", "notes": "the disk is full"}
            assert (await get(pool, system.info.admin, "/readyz/notes"))[0] == 503
            assert (await get(pool, system.info.admin, "/readyz/gateway"))[0] == 200
        assert (await get(pool, system.info.admin, "/readyz"))[0] == 200


async def test_each_process_of_a_split_system_has_one(
    tmp_path: Path, pool: HttpPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the port that was chosen, also after its process was replaced, or at any free one."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    chosen, own = free_port(), free_port()
    ports = f"\n[admin]\nport = {own}\nports = {{ gateway = {chosen} }}\n"
    mistake = r"\[admin\] ports of 'gateway': cannot listen on"
    with socket.create_server(("127.0.0.1", chosen)), pytest.raises(ConfigError, match=mistake):
        await running(tmp_path, WITH_GATEWAY + ports).__aenter__()
    async with running(tmp_path, WITH_GATEWAY + ports) as system:
        info, asking = system.info, ControlSocket(system, pool)
        assert info.admin == f"http://127.0.0.1:{own}"
        assert info.admin_of["gateway"] == f"http://127.0.0.1:{chosen}"
        assert sorted(info.admin_of) == ["gateway", "notes"]
        assert (await get(pool, info.admin, "/readyz"))[1]["parts"] == {
            "notes": "ready",
            "gateway": "ready",
        }
        for name, url in info.admin_of.items():
            told = {"status": "ready", "parts": {name: "ready"}}
            assert await get(pool, url, "/readyz") == (200, told)
        status = await asking.ask("GET", "/status")
        assert status["admin"] == info.admin
        assert status["gateway"]["admin"] == info.admin_of["gateway"]
        assert status["services"]["notes"]["admin"] == info.admin_of["notes"]
        for name in ("gateway", "notes"):
            await asking.ask("POST", f"/services/{name}/restart", {})
        # Announced anew: that of the service is another free one.
        assert system.info.admin_of["gateway"] == info.admin_of["gateway"]
        await _ready(pool, system, "gateway")
        await _ready(pool, system, "notes")


async def _ready(pool: HttpPool, system: System, name: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while (await get(pool, system.info.admin_of[name], "/readyz"))[0] != 200:
            await asyncio.sleep(0.02)


async def _is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
