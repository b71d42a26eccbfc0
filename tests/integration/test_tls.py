"""TLS at the gateway and to external services, over real sockets and on both event loops."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from certificates import Issued, issue
from notes_app import TESTS, TOML
from split_world import WAIT_S, ControlSocket, port_of, running
from synchromesh.errors import ConfigError
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.system import System
from synchromesh.tls import ClientContexts, ClientFiles

pytestmark = pytest.mark.anyio

APP = """
from notes_app import Notes
from synchromesh import Forward, Gateway, Route

way_in = Gateway(
    routes=[
        Route("GET /count", Notes.count, public=True),
        Forward("POST /far/{name}", to="far", path="/near/{name}", public=True),
    ],
)
"""
SPLIT = pytest.mark.parametrize("is_split", [False, True], ids=["one process", "split"])


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a gateway of one route and one forward into the folder."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    (tmp_path / "doors.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)


def toml(more: str) -> str:
    far = "" if "[external.far]" in more else '\n[external.far]\nurl = "http://127.0.0.1:9"\n'
    return f"{TOML}{far}\n{more}"


GATE = '[gateway]\napp = "doors:way_in"\ntls = { certificate = "gate.pem", key = "gate.key" }\n'


@asynccontextmanager
async def client(ca: Issued, own: Issued | None = None) -> AsyncIterator[HttpPool]:
    """Connect by TLS, believing one authority."""
    files = ClientFiles(ca.pem, own.pem, own.key) if own else ClientFiles(ca.pem)

    class Always(ClientContexts):
        def __call__(self, host: str, port: int) -> ssl.SSLContext:
            return super().__call__("any", 0)

    contexts = Always({("any", 0): files})
    async with HttpPool(network=RealRuntime().network.secured(client=contexts)) as pool:
        yield pool


async def count(pool: HttpPool, system: System) -> int:
    answer = await pool.request(
        "127.0.0.1", port_of(system.info.gateway), "GET", "/count",
        timeout_s=WAIT_S, is_idempotent=True,
    )  # fmt: skip
    return answer.status


def shown(system: System) -> bytes:
    """Return the certificate that a new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    address = ("127.0.0.1", port_of(system.info.gateway))
    with (
        socket.create_connection(address, timeout=WAIT_S) as plain,
        context.wrap_socket(plain) as secured,
    ):
        der = secured.getpeercert(binary_form=True)
    assert der is not None
    return der


@SPLIT
@pytest.mark.usefixtures("app")
async def test_a_gateway_speaks_tls_and_takes_up_a_new_certificate(
    tmp_path: Path, pool: HttpPool, is_split: bool
) -> None:
    """Within a second, and connections that are open go on; one that ends soon is a finding."""
    ca = issue(tmp_path, "ca")
    issue(tmp_path, "gate", by=ca, days=3.0)
    async with running(tmp_path, toml(GATE), is_split=is_split) as system, client(ca) as ours:
        assert system.info.gateway.startswith("https://127.0.0.1:")
        assert await count(ours, system) == 200
        (finding,) = (await ControlSocket(system, pool).ask("GET", "/status"))["findings"]
        assert finding.startswith("gateway: the certificate ")
        assert "ends in 3.0 days; replace the file" in finding
        first = await asyncio.to_thread(shown, system)
        issue(tmp_path, "gate", by=ca)
        async with asyncio.timeout(WAIT_S):
            while await asyncio.to_thread(shown, system) == first:
                await asyncio.sleep(0.05)
        assert await count(ours, system) == 200
        assert (await ControlSocket(system, pool).ask("GET", "/status"))["findings"] == []
        if is_split:
            await ControlSocket(system, pool).ask("POST", "/services/gateway/restart", {})
            assert await count(ours, system) == 200


@pytest.mark.usefixtures("app")
async def test_who_does_not_speak_tls_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Plain HTTP, half a handshake and old versions are cut; others are served meanwhile."""
    ca = issue(tmp_path, "ca")
    issue(tmp_path, "gate", by=ca)
    async with running(tmp_path, toml(GATE), is_split=False) as system, client(ca) as ours:
        port = port_of(system.info.gateway)
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        plain_reader, plain = await asyncio.open_connection("127.0.0.1", port)
        plain.write(b"GET /count HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await count(ours, system) == 200
        async with asyncio.timeout(WAIT_S):
            assert b"HTTP" not in await plain_reader.read()
            for reader, writer in silent:
                assert await reader.read() == b""  # past the time for a handshake
                writer.close()
        plain.close()
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=old)
        assert await count(ours, system) == 200


@pytest.mark.usefixtures("app")
async def test_clients_show_a_certificate_where_that_is_asked_for(tmp_path: Path) -> None:
    """Of an authority that is named, and of no other."""
    ca, others = issue(tmp_path, "ca"), issue(tmp_path, "others")
    issue(tmp_path, "gate", by=ca)
    shop, mallory = issue(tmp_path, "shop", by=ca), issue(tmp_path, "mallory", by=others)
    gate = GATE.replace('"gate.key"', '"gate.key", client_ca = "ca.pem"')
    async with running(tmp_path, toml(gate), is_split=False) as system:
        async with client(ca, shop) as ours:
            assert await count(ours, system) == 200
        for own in (None, mallory):
            async with client(ca, own) as theirs:
                # TLS 1.3 tells a client only once it reads.
                with pytest.raises(Exception, match=r"127\.0\.0\.1"):
                    await count(theirs, system)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ('certificate = "none.pem"', r"none\.pem cannot be read"),
        ('certificate = "old.pem"', "certificate has expired|is not the key"),
        ('certificate = "other.pem"', "is not the key of"),
        ('certificate = ""', r"\[gateway\] tls needs certificate and key"),
    ],
)
@pytest.mark.usefixtures("app")
async def test_a_wrong_certificate_is_refused_before_anything_listens(
    tmp_path: Path, change: str, why: str
) -> None:
    """With its section, whether the gateway is a process or not."""
    ca = issue(tmp_path, "ca")
    for name, days in (("gate", 1.0), ("old", -1.0), ("other", 1.0)):
        issue(tmp_path, name, by=ca, days=days)
    text = toml(GATE.replace('certificate = "gate.pem"', change))
    with pytest.raises(ConfigError, match=why) as told:
        async with running(tmp_path, text, is_split=False):
            pass
    assert "[gateway]" in told.value.message


# -- to external services --------------------------------------------------------------------------


@asynccontextmanager
async def far_away(own: Issued, ca: Issued | None = None) -> AsyncIterator[int]:
    """Serve an echo by TLS, for clients that `ca` has vouched for where it is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.pem, own.key)
    if ca is not None:
        context.load_verify_locations(ca.pem)
        context.verify_mode = ssl.CERT_REQUIRED

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = json.dumps(head.decode().split("\r\n")).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def forwarded(system: System, pool: HttpPool) -> tuple[int, str]:
    answer = await pool.request(
        "127.0.0.1", port_of(system.info.gateway), "POST", "/far/x", timeout_s=WAIT_S
    )
    return answer.status, answer.body.decode()


@SPLIT
@pytest.mark.usefixtures("app")
async def test_an_upstream_is_reached_by_tls(
    tmp_path: Path, pool: HttpPool, is_split: bool
) -> None:
    """Its certificate has to prove who it is, and it is shown ours; else nothing is sent."""
    ca, others = issue(tmp_path, "ca"), issue(tmp_path, "others")
    issue(tmp_path, "own", by=ca)
    gate = '[gateway]\napp = "doors:way_in"\n'
    tls = 'tls = { ca = "ca.pem", certificate = "own.pem", key = "own.key" }\n'
    async with far_away(issue(tmp_path, "far", by=ca), ca) as port:
        urls = f'urls = ["https://127.0.0.1:9", "https://127.0.0.1:{port}"]\nhealth = {{}}'
        far = f"[external.far]\n{urls}\n{tls}"
        async with running(tmp_path, toml(f"{far}\n{gate}"), is_split=is_split) as system:
            status, told = await forwarded(system, pool)
            assert (status, "POST /near/x HTTP/1.1" in told) == (200, True)
            assert f"host: 127.0.0.1:{port}" in told.lower()
    async with far_away(issue(tmp_path, "far", by=others)) as port:
        far = f'[external.far]\nurl = "https://127.0.0.1:{port}"\n{tls}'
        async with running(tmp_path, toml(f"{far}\n{gate}"), is_split=is_split) as system:
            status, told = await forwarded(system, pool)
            assert status in (502, 503)
            assert "certificate" not in told  # that is for the log


@pytest.mark.usefixtures("app")
async def test_a_mistake_about_an_upstream_is_told_by_its_section(tmp_path: Path) -> None:
    """Before anything listens."""
    gate = '[gateway]\napp = "doors:way_in"\n'
    for far, why in (
        ('url = "https://127.0.0.1:9"\ntls = { ca = "none.pem" }', r"none\.pem cannot be read"),
        ('url = "http://127.0.0.1:9"\ntls = { ca = "none.pem" }', "has tls, which is of use at"),
        ('url = "ftp://127.0.0.1:9"', r"use http://\.\.\. or https://"),
    ):
        with pytest.raises(ConfigError, match=why) as told:
            async with running(tmp_path, toml(f"[external.far]\n{far}\n{gate}"), is_split=False):
                pass
        assert "[external.far]" in told.value.message
