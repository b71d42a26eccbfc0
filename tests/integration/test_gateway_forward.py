"""A service that is not Synchromesh's behind the gateway, in one process and in many."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bodies import everything, long_body
from notes_app import TESTS, TOML, write_config
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.system import System, load_config

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("http_way")]

MiB = 1024 * 1024

WAY_IN = """
from synchromesh import Forward, Gateway

way_in = Gateway(
    routes=[
        Forward("PUT /firmware/{name}", to="store", path="/{name}", body_max="64MiB", public=True),
        Forward("GET /firmware/{name}", to="store", path="/{name}", public=True),
        Forward("GET /how-many", to="notes", path="/count", public=True),
        Forward("GET /gone/{name}", to="gone", public=True, deadline="10s"),
    ]
)
"""

# A service of somebody else: the standard library's server, which knows nothing of Synchromesh.
STORE = """
import hashlib, json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

kept, heard = {}, []

class Store(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        left, digest = int(self.headers["content-length"]), hashlib.sha256()
        kept[self.path] = left
        while left:
            part = self.rfile.read(min(left, 65536))
            left -= len(part)
            digest.update(part)
        heard.append(sorted(name.lower() for name in self.headers))
        self.say(201, json.dumps([digest.hexdigest(), heard[-1]]).encode())

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", str(kept[self.path]))
        self.end_headers()
        if self.command == "GET":
            for _ in range(kept[self.path] // 65536):
                self.wfile.write(b"x" * 65536)

    do_HEAD = do_GET

    def say(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
print(json.dumps({"port": server.server_port}), flush=True)
server.serve_forever()
"""
EXTERNALS = """
[external.store]
command = ["{python}", "store.py"]

[external.gone]
url = "http://127.0.0.1:1"
"""


@pytest.fixture(params=[False, True], ids=["dev", "split"])
async def gateway_port(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[int]:
    """The port of the gateway of a system that has the store beside it."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "way_in", raising=False)
    (tmp_path / "store.py").write_text(STORE)
    (tmp_path / "way_in.py").write_text(WAY_IN)
    text = f'{TOML}{EXTERNALS}\n[gateway]\napp = "way_in:way_in"\n'
    config = load_config(write_config(tmp_path, text))
    system = System(config, tmp_path, RealRuntime(), is_split=request.param)
    await system.start()
    try:
        yield int(system.info.gateway.rpartition(":")[2])
    finally:
        await system.stop()


async def test_any_http_service_stands_behind_the_gateway(gateway_port: int) -> None:
    """A long upload and a long download pass a service in its own process, and ours are reached."""
    total = 32 * MiB
    secret = [("authorization", "Bearer x"), ("x-forwarded-for", "1.2.3.4"), ("accept", "*/*")]
    async with HttpPool(network=RealRuntime().network) as pool:
        async with pool.stream(
            "127.0.0.1", gateway_port, "PUT", "/firmware/a", secret, long_body(total), timeout_s=60
        ) as answer:
            told = await everything(answer.stream)
        assert answer.status == 201
        assert hashlib.sha256(b"x" * total).hexdigest().encode() in told
        assert b'["accept", "content-length", "host", "traceparent", "via"]' in told
        size = 0
        async with pool.stream(
            "127.0.0.1", gateway_port, "GET", "/firmware/a", timeout_s=60
        ) as answer:
            while answer.stream and (part := await answer.stream.read()):
                size += len(part)
        assert (answer.status, size) == (200, total)
        for method, target, status in (
            ("HEAD", "/firmware/a", 200),
            ("GET", "/how-many", 200),
            ("GET", "/gone/a", 503),
        ):
            whole = await pool.request("127.0.0.1", gateway_port, method, target, timeout_s=60)
            assert (whole.status, target) == (status, target)
        assert b"127.0.0.1" not in whole.body
