"""The page "From any language", run: its Node program, in its system, and the registry by HTTP."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import anyio
import pytest
from jsonschema import Draft202012Validator
from msgspec import Struct

from cli_runs import runner
from pages import ROOT, blocks_of
from processes import announced, dev
from synchromesh import Client, Contract, Rejection, query
from synchromesh.clients import ClientSigner, credential_text
from synchromesh.errors import CallError, Forbidden
from synchromesh.gateway.openapi_service import service_openapi
from synchromesh.http import HttpPool
from synchromesh.identity import REGISTRY, Signer
from synchromesh.runtime import RealRuntime
from synchromesh.system import RunDir
from synchromesh.system.config.client_grants import ClientsFile

pytestmark = pytest.mark.anyio

PAGE = (ROOT / "docs/from-any-language.md").read_text()
NODE = shutil.which("node")


class Price(Struct, frozen=True):
    sku: str
    cents: int


class NoPrice(Rejection, code="no_price", status=404):
    """Tells that nobody sells this."""


class Shop(Contract, Protocol, service="shop", version="1.0"):
    """That of the page."""

    @query("GET /stock/{sku}")
    async def left(self, sku: str) -> int: ...
    @query("GET /offers/{sku}", raises=(NoPrice,))
    async def offer(self, sku: str) -> Price: ...


class Rates(Contract, Protocol, service="rates", version="1.0"):
    """That of the page, and an operation that its program does not have."""

    @query("GET /prices/{sku}", raises=(NoPrice,))
    async def price(self, sku: str) -> Price: ...
    @query("GET /discounts")
    async def discounts(self) -> int: ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the page, in which its system runs."""
    folder = tmp_path_factory.mktemp("works")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    for block in blocks_of(PAGE):
        if block.title:
            (folder / block.title).write_text(block.body.replace("9100", port))
    with dev(folder) as system:
        announced(system)
        yield folder
        system.terminate()
        assert system.wait(30.0) == 0


def added(folder: Path, name: str, *scopes: str, serves: str = "") -> str:
    """Return a credential, as `client add` makes one."""
    rundir, runtime = RunDir(folder), RealRuntime()
    made = ClientsFile(rundir.clients, runtime.disk, runtime.wall_us()).add(
        name, scopes, serves=serves, days=1, made=("ada", "tries"), rng=runtime.secret_rng
    )
    return credential_text(made.id, Signer(rundir.key()).client_key(made.id))


@contextmanager
def served(folder: Path, credential: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the program of the page until it is registered; give its process and its URL."""
    assert NODE is not None, "this needs Node on the path: install it (apt-get install nodejs)"
    program = subprocess.Popen(
        [NODE, "rates.mjs"],
        cwd=folder,
        env={**os.environ, "RATES": credential},
        stdout=subprocess.PIPE,
        text=True,
    )
    with program:
        cut = threading.Timer(60.0, program.kill)
        cut.start()
        try:
            assert program.stdout is not None
            told = program.stdout.readline()
            assert told.startswith("rates is registered at http://127.0.0.1:"), told
            yield program, told.split()[-1]
        finally:
            cut.cancel()
            program.kill()


class Asking:
    """Asks the registry as the client of a credential, by plain HTTP."""

    def __init__(self, folder: Path, pool: HttpPool, credential: str) -> None:
        self._pool = pool
        self._port = int(RunDir(folder).read().control.rpartition(":")[2])
        token = ClientSigner(credential).token(
            "", audience=REGISTRY, now_us=RealRuntime().wall_us()
        )
        self._fields = [("synchromesh-credential", token)]

    async def __call__(self, act: str, body: object) -> tuple[int, dict[str, Any]]:
        answer = await self._pool.request(
            "127.0.0.1", self._port, "POST", f"/registry/{act}", self._fields,
            json.dumps(body).encode(), timeout_s=30.0,
        )  # fmt: skip
        return answer.status, json.loads(answer.body)


async def test_a_program_in_node_serves_and_calls(
    folder: Path, pool: HttpPool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Services and clients call it by its contract; it knows who asks, and leaves in order."""
    node = added(folder, "rates_node", "shop.left", serves="rates")
    ada = added(folder, "ada", "shop.offer", "rates.price")
    eve = added(folder, "eve", "rates.discounts")
    async with Client(folder, credential=ada) as client:
        with served(folder, node) as (program, url):
            offered = await client.call(Shop.offer("axle"), timeout_s=30.0, trace_id="a" * 32)
            assert offered == Price("axle", 700)
            assert await client.call(Rates.price("axle"), timeout_s=30.0) == offered
            with pytest.raises(NoPrice, match="nobody sells none"):
                await client.call(Shop.offer("none"), timeout_s=30.0)
            port = int(url.rpartition(":")[2])
            asked = await pool.request("127.0.0.1", port, "GET", "/prices/axle", timeout_s=30.0)
            assert (asked.status, json.loads(asked.body)["code"]) == (401, "unauthenticated")
            async with Client(folder, credential=eve) as other:
                with pytest.raises(Forbidden, match=r"may not call rates\.price: its credential"):
                    await other.call(Rates.price("axle"), timeout_s=30.0)
            program.send_signal(signal.SIGTERM)
            assert program.wait(30.0) == 0
        with pytest.raises(CallError):
            await client.call(Rates.price("axle"), timeout_s=0.5)
    shown = runner(capsys)(folder, "trace", "a" * 32).out
    assert [name in shown for name in ("shop.offer", "rates.price", "shop.left")] == [True] * 3


async def test_a_program_that_is_killed_or_revoked_is_off_the_list(
    folder: Path, pool: HttpPool
) -> None:
    """Its lease runs out: nobody renews it, or nobody may."""
    credential = added(folder, "late", serves="rates")
    ask = Asking(folder, pool, credential)
    endpoint = {"instance": "late-1", "service": "rates", "url": "http://127.0.0.1:1"}
    status, lease = await ask("register", endpoint)
    assert (status, lease["ttl_s"]) == (200, 3.0)
    held = {"endpoint": endpoint, "incarnation": lease["incarnation"]}
    assert await ask("renew", held) == (200, {})
    assert (await ask("renew", {**held, "incarnation": 1}))[1]["code"] == "stale_incarnation"
    ClientsFile(RunDir(folder).clients, RealRuntime().disk, RealRuntime().wall_us()).revoke(
        "late", who="ada", why="tries"
    )
    with anyio.fail_after(30.0):
        while (answer := await ask("renew", held))[0] == 200:
            await anyio.sleep(0.02)
    assert (answer[0], answer[1]["code"]) == (401, "unauthenticated")


async def test_a_program_registers_what_it_serves_and_nothing_else(
    folder: Path, pool: HttpPool
) -> None:
    """Its credential names one service; what is wrong is said, with the mend."""
    ask = Asking(folder, pool, added(folder, "bob", "shop", serves="rates"))
    endpoint = {"instance": "x", "service": "shop", "url": "http://127.0.0.1:1"}
    status, said = await ask("register", endpoint)
    assert (status, said["code"]) == (403, "forbidden")
    assert "asks for a lease of 'shop', and serves rates" in said["detail"]
    inside = {"instance": "x", "service": "rates", "url": "inproc://shop#1"}
    assert (await ask("register", inside))[0] == 400
    # Whoever resolves it would fail with it.
    for wrong in (
        {"metadata": [["http", "foo"]]},
        {"url": "http://127.0.0.1:99999999/"},
        {"url": "http://127.0.0.1:9/\r\nx: y"},
    ):
        odd = {**endpoint, "service": "rates", **wrong}
        assert (await ask("register", odd))[0] == 400, odd
    assert (await ask("renew", {"endpoint": inside}))[0] == 400
    nothing = Asking(folder, pool, added(folder, "carl", "shop"))
    status, said = await nothing("register", {**endpoint, "service": "client.carl"})
    assert (status, "serves nothing" in said["detail"]) == (403, True)


async def test_who_cannot_verify_a_credential_is_told_who_calls(
    folder: Path, pool: HttpPool
) -> None:
    """By its own audience alone; what is told of a client holds for a second."""
    signer, now_us = Signer(RunDir(folder).key()), RealRuntime().wall_us()
    ask = Asking(folder, pool, added(folder, "dora", serves="rates"))
    token = signer.token("shop", audience="rates", now_us=now_us)
    status, told = await ask("verify", {"credential": token})
    assert (status, told["caller"], told["principal"]) == (200, "shop", {})
    assert 200.0 < told["keep_s"] <= 300.0
    client = ClientSigner(added(folder, "fred", "rates.price")).token(
        "", audience="rates", now_us=now_us
    )
    status, told = await ask("verify", {"credential": client, "operation": "price"})
    assert (status, told["caller"], told["keep_s"]) == (200, "client.fred", 1.0)
    for shown, expected in (
        ({"credential": client, "operation": "discounts"}, 403),
        ({"credential": client}, 403),
        ({"credential": signer.token("shop", audience="billing", now_us=now_us)}, 401),
        ({"credential": "forged"}, 401),
        ({"operation": "price"}, 400),
    ):
        assert (await ask("verify", shown))[0] == expected, shown


async def test_what_a_service_answers_fits_its_document(folder: Path, pool: HttpPool) -> None:
    """As `synchromesh openapi shop` prints it: each status, and what comes with it."""
    document = service_openapi("shop", [Shop])
    port = int(RunDir(folder).read().services["shop"].rpartition(":")[2])
    now_us = RealRuntime().wall_us()
    token = ClientSigner(added(folder, "gina", "shop.left")).token(
        "", audience="shop", now_us=now_us
    )
    signed = [("synchromesh-credential", token)]
    left, offer = (document["paths"][path]["get"] for path in ("/stock/{sku}", "/offers/{sku}"))
    for path, fields, status, told in (
        ("/stock/axle", signed, 200, left),
        ("/stock/axle", [], 401, left),
        ("/offers/axle", signed, 403, offer),
        ("/stock/axle", [*signed, ("deadline-ms", "soon")], 400, left),
        ("/stock/axle", [*signed, ("deadline-ms", "0")], 504, left),
    ):
        answer = await pool.request("127.0.0.1", port, "GET", path, fields, timeout_s=30.0)
        assert (answer.status, str(status) in told["responses"]) == (status, True), answer.body
        schema = {"type": "integer"} if status == 200 else {"$ref": "#/components/schemas/Problem"}
        whole = {**schema, "components": document["components"]}
        Draft202012Validator(whole).validate(json.loads(answer.body))
