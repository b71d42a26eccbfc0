"""A gateway is reloaded while it runs: whole or not at all, and no request is lost."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from certificates import issue
from notes_app import TESTS, TOML
from split_world import WAIT_S, ControlSocket, port_of, running
from synchromesh.calls.description import ContractsOfPart
from synchromesh.errors import BadRequest
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.system import System, load_config
from synchromesh.system.control.gateway_changes import ReloadReport, ReloadRequest

pytestmark = pytest.mark.anyio

NUMBERS = itertools.count(1)
WHY = {"who": "ann", "why": "a new price list"}
HEAD = """
from notes_app import Notes
from synchromesh import JWT, ApiKeys, Forward, Gateway, Rate, Route
"""
COUNT = 'Route("GET /count", Notes.count, public=True)'
PAGE = 'Route("GET /page", Notes.page, public=True)'
SLOW = 'Route("POST /slow", Notes.slow, public=True)'
RATED = 'Route("GET /who", Notes.who, public=True, rate=Rate("1/h", burst=1))'


class Site:
    """The folder of a system whose gateway is a module there; each has a name of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = f"gate_{next(NUMBERS)}"
        self.routes(COUNT, SLOW)
        self.text = ""
        self.section("")

    def routes(self, *routes: str, auth: str = "") -> None:
        """Write the code of the gateway."""
        self.code(f"{HEAD}\nway_in = Gateway(auth=[{auth}], routes=[{', '.join(routes)}])\n")

    def code(self, text: str) -> None:
        (self.folder / f"{self.module}.py").write_text(text)

    def section(self, lines: str, more: str = "") -> None:
        """Write the configuration: what its section has more, and what follows."""
        self.text = f'{TOML}\n[gateway]\napp = "{self.module}:way_in"\n{lines}\n{more}'
        (self.folder / "synchromesh.toml").write_text(self.text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A folder with a gateway; the modules of a test go with it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    return Site(tmp_path)


class Served:
    """That system at work."""

    def __init__(self, system: System, pool: HttpPool) -> None:
        self.system = system
        self.pool = pool
        self.asking = ControlSocket(system, pool)

    async def reload(self, *, is_dry_run: bool = False) -> Any:
        asked = {**WHY, "is_dry_run": is_dry_run}
        return await self.asking.ask("POST", "/gateway/reload", asked)

    async def refused(self, *words: str) -> None:
        """Reload what has a mistake: it is named, for a dry run too, and the old one serves on."""
        for is_dry_run in (True, False):
            report = await self.reload(is_dry_run=is_dry_run)
            assert not report["is_taken"]
            said = "\n".join(report["mistakes"])
            assert all(word in said for word in words), said
        assert await self.get("/count") == 200

    async def get(self, path: str) -> int:
        port = port_of(self.system.info.gateway)
        answer = await self.pool.request("127.0.0.1", port, "GET", path, timeout_s=WAIT_S)
        return answer.status


@asynccontextmanager
async def serving(site: Site, *, is_split: bool = False) -> AsyncIterator[Served]:
    network = RealRuntime().network
    async with (
        running(site.folder, site.text, is_split=is_split) as system,
        # Closed first: a stop waits for connections that may bring one request more.
        HttpPool(network=network) as pool,
    ):
        system.reread = lambda: load_config(site.folder)
        served = Served(system, pool)
        assert await served.get("/count") == 200
        yield served


def told(report: Any) -> list[tuple[str, str, str]]:
    return [(each["what"], each["before"], each["after"]) for each in report["changes"]]


async def test_what_has_changed_is_shown_and_then_taken(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Routes, rates and settings together; who has asked how often, and the counts, go on."""
    site.routes(COUNT, SLOW, RATED)
    async with serving(site) as served:
        assert [await served.get("/who"), await served.get("/who")] == [200, 429]
        site.routes(COUNT, PAGE, RATED)
        site.section('access_log = "on"', '[policies."gateway:notes"]\ntimeout = "3s"\n')
        wanted = [
            ("code", "", f"{site.module}.py"),
            ("[gateway] access_log", "off", "on"),
            ('[policies."gateway:notes"] timeout', "2s", "3s"),
            ("POST /slow", "Route(operation=notes.slow, public=True)", ""),
            ("GET /page", "", "Route(operation=notes.page, public=True)"),
        ]
        report = await served.reload(is_dry_run=True)
        assert set(wanted) <= set(told(report))
        assert (report["is_taken"], report["mistakes"]) == (False, [])
        assert await served.get("/page?size=3") == 404
        assert [await served.get("/who")] == [429]
        report = await served.reload()
        assert report["is_taken"]
        assert set(wanted) <= set(told(report))
        assert [await served.get("/page?size=3"), await served.get("/slow")] == [200, 404]
        assert await served.get("/who") == 429
        status = await served.asking.ask("GET", "/status")
        reloaded = status["gateway"]["reloaded"]
        assert (reloaded["who"], reloaded["why"]) == ("ann", "a new price list")
        assert reloaded["changes"] == len(report["changes"])
        assert status["code_changed"] == {}
        assert status["children"]["gateway/access log"]["state"] == "running"
        (record,) = [each for each in caplog.records if "was reloaded" in each.getMessage()]
        assert (record.__dict__["who"], record.__dict__["reason"]) == ("ann", "a new price list")
        part = served.system._host.gateway
        assert part is not None
        counts = part.snapshot()
        assert counts is not None
        assert counts.routes["GET /who"].rate_limited == 3
        assert "POST /slow" not in counts.routes
        assert (await served.reload())["changes"] == []
    log = site.folder / ".synchromesh" / "telemetry" / "access.jsonl"
    assert [json.loads(line)["route"] for line in log.read_text().splitlines()] == [
        "GET /page",
        "",
        "GET /who",
    ]


FAR = "Forward('GET /x', to='far', public=True, host='a.example')"
LATER = (
    "GET a.example/x: leads to 'far', and [external.far] is in the configuration, and not in the "
    "system that runs: a new synchromesh dev takes it"
)
MISTAKES = [
    (f"{HEAD}\nway_in = Gateway(routes=[", "", ["SyntaxError", "never closed"]),
    (f"{HEAD}\nraise OSError('no prices')", "", ["importing it failed: OSError: no prices"]),
    (
        f"{HEAD}\nraise SystemExit('set PRICES')",
        "",
        ["importing it failed: SystemExit: set PRICES"],
    ),
    (f"{HEAD}\nraise KeyboardInterrupt", "", ["importing it failed: KeyboardInterrupt"]),
    (
        f"{HEAD}\nimport asyncio\nraise asyncio.CancelledError",
        "",
        ["importing it failed: CancelledError"],
    ),
    (
        (
            f"{HEAD}\nclass Own:\n    def open(self, folders, runtime):\n"
            "        raise SystemExit('no store')\n"
            f"way_in = Gateway(auth=[Own()], routes=[{COUNT}])"
        ),
        "",
        ["Own could not be opened: SystemExit: no store"],
    ),
    (f"{HEAD}\nway_in = 5", "", ["is not a Gateway"]),
    (f"{HEAD}\nway_in = Gateway(routes=[{COUNT}, {COUNT}])", "", ["have the same path"]),
    (
        f"{HEAD}\nway_in = Gateway(routes={COUNT}, auth=print)",
        "",
        ["a bare Route", "AuthFunction(print)"],
    ),
    (
        f"{HEAD}\nway_in = Gateway(routes=[{COUNT}, Forward('GET /x', to='far', public=True)])",
        "",
        ["leads to 'far'"],
    ),
    (
        (
            f"{HEAD}\nway_in = Gateway(auth=[JWT(issuer='http://127.0.0.1:1', audience='api', "
            f"jwks='http://127.0.0.1:1/keys')], routes=[{COUNT}])"
        ),
        "",
        ["no keys of http://127.0.0.1:1 could be fetched"],
    ),
    ("", 'access_log = "sometimes"', ['make it "off", "on", or a share']),
    ("", "x = 5", ["unknown", "x"]),
    ("", "port = 1", ["[gateway] port is 0, and would be 1", "new start"]),
    ("", 'tls = { certificate = "a.pem", key = "a.key" }', ["between plain HTTP and TLS"]),
    ("", 'clients.quiet = "7s"', ["quiet is of connections to upstreams"]),
    ("", 'health = "/count"', ["is a path of GET /count"]),
    ("", "clients.connections = 0", ["connections = 0"]),
]


async def test_a_mistake_changes_nothing_and_is_named(site: Site) -> None:
    """In code, routes, tokens or settings: what runs stays, with all that it had loaded."""
    async with serving(site) as served:
        loaded = sys.modules[site.module]
        for code, lines, words in MISTAKES:
            if code:
                site.code(code)
            else:
                site.routes(COUNT, SLOW)
            site.section(lines)
            await served.refused(*words)
            assert sys.modules[site.module] is loaded, words
        site.section("", "[nonsense")
        await served.refused("is not valid TOML")
        site.section("")
        site.routes(COUNT)
        assert (await served.reload())["is_taken"]
        assert sys.modules[site.module] is not loaded


class Issuer:
    """Is asked for its keys, and never answers."""

    def __init__(self) -> None:
        self.is_asked = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.is_asked.set()
        await reader.read()
        writer.close()

    def auth(self) -> str:
        """Return what trusts it, as code."""
        url = f"http://127.0.0.1:{self.port}"
        return f'JWT(issuer="{url}", audience="api", jwks="{url}/keys")'


@asynccontextmanager
async def silent_issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    async with await asyncio.start_server(issuer.serve, "127.0.0.1", 0) as server:
        issuer.port = server.sockets[0].getsockname()[1]
        yield issuer


def begun(served: Served, site: Site, *, is_dry_run: bool = False) -> asyncio.Future[ReloadReport]:
    """Begin a reload, whose end the test waits for itself."""
    host = served.system._host
    assert host.local.reload is not None
    asked = ReloadRequest(WHY["who"], WHY["why"], is_dry_run=is_dry_run)
    return asyncio.ensure_future(host.local.reload(asked, load_config(site.folder)))


def opened(site: Site) -> list[str]:
    """Return what is open for a gateway: fetches of keys, and its access log."""
    fetches = [each.get_name() for each in asyncio.all_tasks() if "keys of" in each.get_name()]
    found = [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]
    return fetches + [each for each in found if each.startswith(str(site.folder))
                      and "access" in each]  # fmt: skip


async def test_what_runs_sees_nothing_of_a_reload_that_is_prepared(site: Site) -> None:
    """What it imports while an issuer is waited for is what it has been started with."""
    own = f"{site.module}_own"
    (site.folder / f"{own}.py").write_text("VERSION = 'old'\n")
    site.code(f"{HEAD}import {own}\nway_in = Gateway(routes=[{COUNT}])\n")
    async with serving(site) as served, silent_issuer() as issuer:
        (site.folder / f"{own}.py").write_text("VERSION = 'new'\n")
        site.code(
            f"{HEAD}import {own}\nimport sys\n"
            "class Own:\n"
            "    def open(self, folders, runtime):\n"
            "        # As annotations are looked up: what it is made of is in place.\n"
            "        assert sys.modules[__name__].Own is Own\n"
            "        return JWT(issuer='http://127.0.0.1:1', audience='api',\n"
            "                   jwks='http://127.0.0.1:1/keys').open(folders, runtime)\n"
            f"way_in = Gateway(auth=[{issuer.auth()}, Own()], routes=[{COUNT}])\n"
        )
        before = sys.modules[site.module], sys.modules[own]
        for is_dry_run in (True, False):
            issuer.is_asked.clear()
            reload = begun(served, site, is_dry_run=is_dry_run)
            await asyncio.wait_for(issuer.is_asked.wait(), WAIT_S)
            assert (sys.modules[site.module], sys.modules[own]) == before
            reload.cancel()
            await asyncio.wait([reload])
            assert reload.cancelled()
        site.code(f"{HEAD}import {own}\nway_in = Gateway(routes=[{COUNT}, {PAGE}])\n")
        assert (await served.reload())["is_taken"]
        assert sys.modules[own].VERSION == "new"
        assert sys.modules[site.module] is not before[0]


async def test_a_reload_whose_caller_goes_away_leaves_nothing_open(site: Site) -> None:
    """Nor does one that the stop of the gateway overtakes: it is refused, and takes nothing."""
    async with silent_issuer() as issuer:
        async with serving(site) as served:
            site.routes(COUNT, PAGE, auth=issuer.auth())
            site.section('access_log = "on"')
            reload = begun(served, site)
            await asyncio.wait_for(issuer.is_asked.wait(), WAIT_S)
            assert len(opened(site)) == 2
            reload.cancel()
            await asyncio.wait([reload])
            assert opened(site) == []
            part = served.system._host.gateway
            assert part is not None
            definition = part.definition
            # As the services' contracts are compared: the last that is waited for.
            site.routes(COUNT, PAGE)
            is_compared, is_stopped = asyncio.Event(), asyncio.Event()

            async def fits(_: ContractsOfPart) -> None:
                is_compared.set()
                await is_stopped.wait()

            own = served.system._host.local.reload.__self__  # type: ignore[union-attr]
            own._fits = fits
            reload = begun(served, site)
            await asyncio.wait_for(is_compared.wait(), WAIT_S)
            assert len(opened(site)) == 1
        is_stopped.set()
        report = await reload
        assert (report.is_taken, report.mistakes) == (
            False,
            ["the gateway is being stopped, and takes up nothing any more"],
        )
        assert part.definition is definition
        assert opened(site) == []


async def test_what_is_no_matter_of_the_gateway_is_left_and_said(site: Site) -> None:
    """Sections of others do not hinder it; code that services run too does."""
    (site.folder / f"{site.module}_words.py").write_text(
        "from typing import Protocol\n"
        "from synchromesh import Context, Contract, Service, query\n"
        "class Words(Contract, Protocol, service='words', version='1.0'):\n"
        "    @query('GET /word')\n"
        "    async def word(self) -> str: ...\n"
        "words = Service('words', implements=Words)\n"
        "@words.handles(Words.word)\n"
        "async def word(ctx: Context) -> str:\n"
        "    return 'bolt'\n"
    )
    (site.folder / f"{site.module}_own.py").write_text("PATH = '/word'\n")
    code = (
        f"{HEAD}from {site.module}_words import Words\nfrom {site.module}_own import PATH\n"
        f"way_in = Gateway(routes=[{COUNT}, Route(f'GET {{PATH}}', Words.word, public=True)])\n"
    )
    site.code(code)
    words = f'[services.words]\napp = "{site.module}_words:words"\n'
    site.section("", words)
    async with serving(site) as served:
        assert await served.get("/word") == 200
        # A module that only the gateway imports is its own.
        (site.folder / f"{site.module}_own.py").write_text("PATH = '/term'\n")
        site.section("", f'{words}in_flight = 7\n[policies."words:notes"]\ntimeout = "1s"\n')
        report = await served.reload()
        assert report["is_taken"]
        assert report["left"] == ['[services."words"]', '[policies."words:notes"]']
        assert [await served.get("/word"), await served.get("/term")] == [404, 200]
        text = (site.folder / f"{site.module}_words.py").read_text()
        (site.folder / f"{site.module}_words.py").write_text(f"{text}\n# mended\n")
        await served.refused(f"{site.module}_words.py has changed, which services run too")


async def test_nothing_is_lost_over_reloads(site: Site) -> None:
    """Connections stay open, each request is answered, also one that a removed route has begun."""
    async with serving(site) as served:
        port, is_over = port_of(served.system.info.gateway), asyncio.Event()
        answered = 0

        async def stay() -> None:
            nonlocal answered
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while not is_over.is_set():
                head = b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                body = b'{"seconds": 0.001}'
                writer.write(head + b"content-length: %d\r\n\r\n%b" % (len(body), body))
                writer.write(b"GET /count HTTP/1.1\r\nhost: x\r\n\r\n")
                for _ in range(2):
                    answer = await reader.readuntil(b"\r\n\r\n")
                    assert answer.startswith(b"HTTP/1.1 200 "), answer
                    assert b"connection: close" not in answer
                    length = int(answer.lower().partition(b"content-length: ")[2].split()[0])
                    await reader.readexactly(length)
                    answered += 1
            writer.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(stay())
            for number in range(10):
                before = answered
                site.routes(COUNT, SLOW, *([PAGE] if number % 2 else []))
                site.section(f"clients.connections = {1000 + number}")
                assert (await served.reload())["is_taken"]
                while answered < before + 20:
                    await asyncio.sleep(0.001)
            is_over.set()
        assert answered >= 200
        # The route goes while its request is under way.
        site.routes(COUNT)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = b'{"seconds": 0.3}'
        writer.write(
            b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        (instance,) = served.system.instances.values()
        while not instance.dispatcher.in_flight:
            await asyncio.sleep(0.001)
        assert (await served.reload())["is_taken"]
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_certificates_are_taken_with_the_rest(site: Site, pool: HttpPool) -> None:
    """Other files are in force at once; those that have expired change nothing."""
    for name, days in (("a", 1.0), ("b", 1.0), ("old", -1.0)):
        issue(site.folder, name, days=days)
    site.section('tls = { certificate = "a.pem", key = "a.key" }')
    async with running(site.folder, site.text, is_split=False) as system:
        system.reread = lambda: load_config(site.folder)
        served = Served(system, pool)
        part = system._host.gateway
        assert part is not None
        assert part._tls is not None
        before = part._tls.context()
        site.section('tls = { certificate = "old.pem", key = "old.key" }')
        report = await served.reload()
        assert "has expired" in report["mistakes"][0]
        site.section('tls = { certificate = "none.pem", key = "a.key" }')
        assert "cannot be read" in (await served.reload())["mistakes"][0]
        assert part._tls.context() is before
        site.section('tls = { certificate = "b.pem", key = "b.key" }')
        report = await served.reload()
        assert told(report) == [
            ("[gateway] tls.certificate", "a.pem", "b.pem"),
            ("[gateway] tls.key", "a.key", "b.key"),
        ]
        assert part._tls.context() is not before


async def test_it_needs_who_and_why_and_a_gateway(site: Site, pool: HttpPool) -> None:
    """Nobody changes what clients meet without a name; a dry run asks for none."""
    async with serving(site) as served:
        status, answer = await served.asking.said("POST", "/gateway/reload", {})
        assert status == BadRequest.status
        assert "records who asks for it and why" in answer["detail"]
        assert (await served.asking.said("POST", "/gateway/reload", {"is_dry_run": True}))[0] == 200
    async with running(site.folder, TOML, is_split=False) as system:
        status, answer = await ControlSocket(system, pool).said("POST", "/gateway/reload", WHY)
        assert "serves no gateway" in answer["detail"]


async def test_a_gateway_in_a_process_of_its_own_is_reloaded_there(site: Site) -> None:
    """The process stays, and what it has taken is what the next one starts with."""
    async with serving(site, is_split=True) as served:
        pid = await served.asking.pid("gateway")
        site.routes(COUNT, FAR)
        site.section("", '[external.far]\nurl = "http://127.0.0.1:1"\n')
        await served.refused(LATER)
        _, answer = await served.asking.said("POST", "/services/gateway/restart", {})
        assert LATER in answer["detail"]
        site.section("")
        site.routes(COUNT, PAGE, SLOW)
        site.section('health = "/healthz"')
        assert await served.get("/healthz") == 404
        assert (await served.reload())["is_taken"]
        assert [await served.get("/healthz"), await served.get("/page?size=1")] == [200, 200]
        status = await served.asking.ask("GET", "/status")
        assert (status["gateway"]["pid"], status["code_changed"]) == (pid, {})
        assert status["gateway"]["reloaded"]["who"] == "ann"
        site.code("way_in = None")
        await served.refused("is not a Gateway")
        site.section("port = 9")
        await served.refused("[gateway] port is 0, and would be 9")
