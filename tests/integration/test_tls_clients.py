"""Clients that prove who they are by certificates, over real sockets."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from certificates import Issued, issue
from notes_app import TESTS, TOML
from pages import ROOT, blocks_of
from split_world import WAIT_S, port_of, running
from synchromesh.errors import ConfigError, SynchromeshError
from synchromesh.gateway import make_key
from synchromesh.http import HttpPool, HttpResponse
from synchromesh.runtime import RealRuntime
from synchromesh.system import System
from synchromesh.system.config.gateway_keys import ApiKeysFile
from synchromesh.system.config.rundir import RunDir
from synchromesh.tls import ClientContexts, ClientFiles

pytestmark = pytest.mark.anyio

ACME = "spiffe://partners/acme"
APP = f"""
from notes_app import Notes
from synchromesh import ApiKeys, Gateway, Route
from synchromesh.gateway import Certificates, Principal

partners = Certificates(names="uri", principals={{"{ACME}": Principal("acme")}})
way_in = Gateway(
    auth=[ApiKeys(), partners],
    routes=[
        Route("GET /who", Notes.who),
        Route("GET /count", Notes.count, by={{"certificate"}}),
    ],
)
"""
GATE = """
[gateway]
app = "client_doors:way_in"
tls = { certificate = "gate.pem", key = "gate.key", client_ca = "clients.pem", client = "optional" }
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a gateway that knows certificates into the folder."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    (tmp_path / "client_doors.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)


class Client:
    """One client, which keeps its connection."""

    def __init__(self, pool: HttpPool, system: System) -> None:
        self.pool, self.port = pool, port_of(system.info.gateway)

    async def ask(self, path: str = "/who", key: str = "") -> HttpResponse:
        return await self.pool.request(
            "127.0.0.1", self.port, "GET", path, [("x-api-key", key)] if key else [],
            timeout_s=WAIT_S, is_idempotent=True,
        )  # fmt: skip

    async def asks_on(self) -> None:
        async with asyncio.timeout(WAIT_S):
            while True:
                await self.ask()
                await asyncio.sleep(0.02)


@asynccontextmanager
async def client(system: System, ca: Issued, own: Issued | None = None) -> AsyncIterator[Client]:
    """Connect by TLS, with a certificate of its own or without."""
    files = ClientFiles(ca.pem, own.pem, own.key) if own else ClientFiles(ca.pem)

    class Always(ClientContexts):
        def __call__(self, host: str, port: int) -> ssl.SSLContext:
            return super().__call__("any", 0)

    contexts = Always({("any", 0): files})
    async with HttpPool(network=RealRuntime().network.secured(client=contexts)) as pool:
        yield Client(pool, system)


@pytest.mark.usefixtures("app")
async def test_a_certificate_says_who_asks(tmp_path: Path) -> None:
    """Beside keys; and no longer once its authority is gone from the file."""
    ca, partners, others = (issue(tmp_path, name) for name in ("ca", "partners", "others"))
    issue(tmp_path, "gate", by=ca)
    acme = issue(tmp_path, "acme", by=partners, uri=ACME)
    nobody = issue(tmp_path, "nobody", by=partners, uri="spiffe://partners/nobody")
    stranger = issue(tmp_path, "stranger", by=others, uri=ACME)
    clients = tmp_path / "clients.pem"
    clients.write_bytes(partners.pem.read_bytes())
    async with running(tmp_path, f"{TOML}\n{GATE}") as system:
        runtime = RealRuntime()
        texts = {}
        for name in ("other", "acme"):  # whoever knows the last of them knows both
            texts[name], made = make_key(name, [], rng=runtime.secret_rng)
            ApiKeysFile(RunDir(tmp_path).path / "api-keys.json", runtime.disk).add(made)
        async with client(system, ca, acme) as theirs:
            answer = await theirs.ask()
            assert (answer.status, json.loads(answer.body)) == (200, "acme")
            assert (await theirs.ask("/count")).status == 200
            assert (await theirs.ask(key="sm_wrong")).status == 401
            async with asyncio.timeout(WAIT_S):  # the file of keys is read once a second
                while (await theirs.ask(key=texts["acme"])).status != 200:
                    await asyncio.sleep(0.05)
            refused = await theirs.ask(key=texts["other"])
            assert refused.status == 401
            assert b"different principals" in refused.body
            async with client(system, ca) as without:
                assert (await without.ask()).status == 401
                assert json.loads((await without.ask(key=texts["other"])).body) == "other"
                by_key = await without.ask("/count", key=texts["acme"])
                assert by_key.status == 401
                assert b"another kind: certificate" in by_key.body
            async with client(system, ca, nobody) as unnamed:
                assert (await unnamed.ask()).status == 401
            async with client(system, ca, stranger) as forged:
                with pytest.raises(SynchromeshError):
                    await forged.ask()
            # The connection that is open, and used, does not outlive its authority.
            clients.write_bytes(others.pem.read_bytes())
            with pytest.raises(SynchromeshError):
                await theirs.asks_on()
            async with client(system, ca, stranger) as now_known:
                assert json.loads((await now_known.ask()).body) == "acme"


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize(
    ("tls", "told"),
    [
        ('certificate = "gate.pem", key = "gate.key"', "Certificates: no client is asked for one"),
        (
            'certificate = "gate.pem", key = "gate.key", client = "optional"',
            'has client = "optional", and no client_ca',
        ),
        ('certificate = "gate.pem", key = "gate.key", client = "maybe"', "maybe"),
    ],
)
async def test_certificates_that_nobody_is_asked_for_are_a_mistake(
    tmp_path: Path, tls: str, told: str
) -> None:
    """It is named before anything listens."""
    issue(tmp_path, "gate")
    gate = f'[gateway]\napp = "client_doors:way_in"\ntls = {{ {tls} }}\n'
    with pytest.raises(ConfigError, match=told):
        async with running(tmp_path, f"{TOML}\n{gate}"):
            pass


PAGE = (ROOT / "docs/in-front-of-the-internet.md").read_text()


async def test_the_system_of_the_page_is_answered_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its three files with certificates: by a certificate, by a key, and by neither."""
    files = {each.title: each.body for each in blocks_of(PAGE) if each.title}
    assert files.keys() == {"synchromesh.toml", "orders.py", "door.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("orders", "door"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    tls = tmp_path / "tls"
    tls.mkdir()
    ca, partners, others = (issue(tls, name) for name in ("own-ca", "partners", "others"))
    gate = issue(tls, "gate", by=ca)
    gate.pem.rename(tls / "fullchain.pem")
    gate.key.rename(tls / "privkey.pem")
    acme = issue(tls, "acme", by=partners, uri=ACME)
    forged = issue(tls, "forged", by=others, uri=ACME)
    toml = files["synchromesh.toml"].replace("0.0.0.0", "127.0.0.1").replace("port = 8443\n", "")
    runtime, rundir = RealRuntime(), RunDir(tmp_path)
    rundir.create()
    text, made = make_key("shop", ["orders:read"], rng=runtime.secret_rng)
    reader, other = make_key("reader", ["orders:write"], rng=runtime.secret_rng)
    for key in (made, other):
        ApiKeysFile(rundir.path / "api-keys.json", runtime.disk).add(key)
    async with running(tmp_path, toml) as system:
        async with client(system, ca, acme) as theirs:
            answer = await theirs.ask("/mine")
            assert (answer.status, json.loads(answer.body)) == (200, "the orders of acme")
            assert (await theirs.ask("/mine", key=text)).status == 401
        async with client(system, ca) as ours:
            assert json.loads((await ours.ask("/mine", key=text)).body) == "the orders of shop"
            assert (await ours.ask("/mine", key=reader)).status == 403
            assert (await ours.ask("/mine")).status == 401
            document = await ours.ask("/openapi.json")
            assert {"Certificate", "ApiKey"} <= set(
                json.loads(document.body)["components"]["securitySchemes"]
            )
        async with client(system, ca, forged) as nobody:
            with pytest.raises(SynchromeshError):
                await nobody.ask("/mine")
