"""The page "Put an existing app behind it", run: its two applications behind its gateway."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from cli_runs import runner
from pages import ROOT, blocks_of
from synchromesh.http import HttpPool, HttpResponse
from synchromesh.runtime import RealRuntime
from synchromesh.system import System, load_config

pytestmark = pytest.mark.anyio

PAGE = (ROOT / "docs/existing-app.md").read_text()
PROGRAMS = ["python", *(["node"] if shutil.which("node") else [])]


@pytest.fixture(params=PROGRAMS)
async def shop(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> AsyncIterator[tuple[System, str, str]]:
    """The system of the page with one of its applications, an API key, and which it is."""
    for block in blocks_of(PAGE):
        if block.title:
            text = block.body
            if request.param == "node":
                text = text.replace('["{python}", "shop.py"]', '["node", "shop.mjs"]')
            (tmp_path / block.title).write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("gateway", "inventory"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    run = runner(capsys)
    words = ("gateway", "upstream-key", "shop"), ("gateway", "key", "add", "alice")
    upstream_key, api_key = [(await asyncio.to_thread(run, tmp_path, *each)).out for each in words]
    monkeypatch.setenv("GATEWAY_KEY", upstream_key.strip())
    config = load_config(tmp_path, flags=("gateway.port=0",))
    system = System(config, tmp_path, RealRuntime())
    await system.start()
    try:
        yield system, api_key.strip(), request.param
    finally:
        await system.stop()
        for name in ("gateway", "inventory"):
            sys.modules.pop(name, None)


async def test_an_application_stands_behind_the_gateway(shop: tuple[System, str, str]) -> None:
    """It logs in, is redirected within the gateway, keeps its cookie, and is told who asks."""
    system, api_key, program = shop
    port = int(system.info.gateway.rpartition(":")[2])
    asks = [("authorization", f"Bearer {api_key}")]

    async with HttpPool(network=RealRuntime().network) as pool:

        async def ask(method: str, path: str, *fields: tuple[str, str]) -> HttpResponse:
            return await pool.request("127.0.0.1", port, method, path, fields, timeout_s=30.0)

        login = await ask("POST", "/shop/login", *asks)
        assert (login.status, login.headers.get("location")) == (303, "/shop/me")
        cookie = login.headers.get("set-cookie", "")
        assert "; path=/shop;" in f"{cookie};".lower()
        me = await ask("GET", "/shop/me", *asks, ("cookie", cookie.partition(";")[0]))
        assert json.loads(me.body) == {"who": "alice", "seen": "yes"}
        forged = await ask("GET", "/shop/me", *asks, ("synchromesh-principal", "a.b.c"))
        assert json.loads(forged.body) == {"who": "alice", "seen": "no"}
        assert f"/shop/me\n{forged.body.decode()}\n```" in PAGE
        assert (await ask("GET", "/shop/me")).status == 401
        assert (await ask("GET", "/shop/stock/7")).body == b"7"
        assert (await ask("PUT", "/shop/stock/7", *asks)).status in (401, 404)
        assert (await ask("GET", "/shop/%2e%2e/me", *asks)).status == 400
    if program == "python":
        url = f"ws://127.0.0.1:{port}/shop/live"
        async with (
            asyncio.timeout(30.0),
            connect(url, additional_headers=dict(asks), proxy=None) as client,
        ):
            await client.send("hello")
            assert await client.recv() == "hello"
