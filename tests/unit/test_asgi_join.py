"""An application that joins: its requests, its lifespan, and what it is told when it cannot."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from otlp_collector import MemoryCollector
from synchromesh.asgi import Joined, current, join
from synchromesh.errors import ConfigError, ContractError, DiscoveryError
from synchromesh.http import Message, Receive, Scope, Send
from synchromesh.identity import Principal, Signer
from synchromesh.runtime import RealRuntime
from synchromesh.system import RunDir, RunInfo, load_config
from synchromesh.system.config.definitions import (
    load_applications,
    load_services,
    without_applications,
)
from synchromesh.system.host.asgi_servers import find_server
from synchromesh.system.host.joined_app import _heard

TOML = '[system]\nname = "works"\njoined = ["shop"]\n[services.a]\napp = "a:a"\n'
RUNTIME = RealRuntime()
Pairs = list[tuple[bytes, bytes]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a system whose registry does not answer."""
    (tmp_path / "synchromesh.toml").write_text(TOML)
    rundir = RunDir(tmp_path)
    rundir.create()
    rundir.key()
    rundir.publish(RunInfo(1, "works", "http://127.0.0.1:1", "token", {}))
    return tmp_path


class Shop:
    """An application; it answers with what it is told of its request."""

    def __init__(self, lifespan: str = "", stalls: bool = False) -> None:
        self.lifespan = lifespan
        self.stalls = stalls
        self.seen: list[str] = []
        self.headers: Pairs = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        self.seen.append(scope["type"])
        self.headers = scope["headers"]
        if self.stalls:
            await asyncio.Event().wait()
        request = current()
        told = {
            "principal": request.principal.name,
            "caller": request.caller,
            "trace": request.trace_id,
            "is_bounded": request.remaining_s() is not None,
            "key": request.key,
        }
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(told).encode()})

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.lifespan:
            raise RuntimeError("no lifespan")
        await receive()
        if self.lifespan == "fails":
            await send({"type": "lifespan.startup.failed", "message": "no database"})
            return
        scope["state"]["pool"] = "open"
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.seen.append("closed")
        await send({"type": "lifespan.shutdown.complete"})


class Server:
    """What an ASGI server does: the lifespan around requests."""

    def __init__(self, joined: Joined) -> None:
        self.joined = joined
        self.said: list[Message] = []
        self.state: dict[str, Any] = {}
        self._events: asyncio.Queue[Message] = asyncio.Queue()

    async def run(self, requests: Callable[[], Awaitable[None]]) -> None:
        """Start, have requests made, and end."""
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state}
        began = asyncio.Event()

        async def send(message: Message) -> None:
            self.said.append(message)
            began.set()

        task = asyncio.ensure_future(self.joined(scope, self._events.get, send))
        self._events.put_nowait({"type": "lifespan.startup"})
        await began.wait()
        await requests()
        self._events.put_nowait({"type": "lifespan.shutdown"})
        await task

    async def ask(self, headers: Pairs, kind: str = "http") -> tuple[int, dict[str, Any]]:
        """Make a request; return the status, and the JSON of the answer."""
        sent: list[Message] = []
        scope = {"type": kind, "method": "GET", "path": "/", "headers": headers}

        async def receive() -> Message:
            return {"type": "http.request", "body": b""}

        async def send(message: Message) -> None:
            sent.append(message)

        await self.joined(scope, receive, send)
        if kind == "websocket":
            return int(sent[0]["code"]), {}
        return int(sent[0]["status"]), json.loads(sent[1]["body"])


def credential(folder: Path, audience: str = "shop", *, ago_s: float = 0.0) -> tuple[bytes, bytes]:
    signer = Signer(RunDir(folder).key())
    now_us = RUNTIME.wall_us() - int(ago_s * 1e6)
    token = signer.token("orders", Principal("alice"), audience=audience, now_us=now_us)
    return (b"synchromesh-credential", token.encode())


def asked(
    folder: Path, headers: Pairs, shop: Shop | None = None, kind: str = "http"
) -> tuple[int, dict[str, Any]]:
    """Return what one request is answered."""
    found: list[tuple[int, dict[str, Any]]] = []
    server = Server(join(shop or Shop(), service="shop", url="http://127.0.0.1:1", system=folder))

    async def requests() -> None:
        found.append(await server.ask(headers, kind))

    asyncio.run(server.run(requests))
    return found[0]


def test_a_call_of_a_service_has_its_principal_trace_deadline_and_key(folder: Path) -> None:
    """What travels with a call is there in the handler, as its credential and headers say."""
    headers = [
        credential(folder),
        (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"),
        (b"deadline-ms", b"60000"),
        (b"idempotency-key", b"order-1"),
    ]
    assert asked(folder, headers) == (
        200,
        {
            "principal": "alice",
            "caller": "orders",
            "trace": "a" * 32,
            "is_bounded": True,
            "key": "order-1",
        },
    )


@pytest.mark.parametrize(
    ("audience", "ago_s", "key"),
    [
        ("billing", 0.0, b""),
        ("shop", 3600.0, b""),
        ("shop", 0.0, b"another system, of 32 bytes here"),
    ],
)
def test_a_wrong_credential_is_refused(
    audience: str, ago_s: float, key: bytes, folder: Path
) -> None:
    """For another service, expired, or of another system: 401, and no handler runs."""
    shop, shown = Shop(), credential(folder, audience, ago_s=ago_s)
    if key:
        token = Signer(key).token("orders", audience="shop", now_us=RUNTIME.wall_us())
        shown = (shown[0], token.encode())
    status, problem = asked(folder, [shown], shop)
    assert (status, problem["code"], shop.seen) == (401, "unauthenticated", [])
    assert asked(folder, [shown], shop, "websocket") == (1008, {})


def test_a_client_without_a_credential_goes_through_as_it_came(folder: Path) -> None:
    """Its trace goes on; what it says of deadlines and keys is its own, however wrong."""
    headers = [
        (b"traceparent", b"00-" + b"c" * 32 + b"-" + b"d" * 16 + b"-01"),
        (b"deadline-ms", b"soon"),
        (b"idempotency-key", b"mine"),
        (b"idempotency-key", b"twice"),
    ]
    shop = Shop()
    status, told = asked(folder, headers, shop)
    assert (status, shop.headers) == (200, headers)
    assert (told["trace"], told["caller"], told["principal"]) == ("c" * 32, "", "")
    assert not told["is_bounded"]
    assert told["key"] not in ("mine", "twice")


def test_a_deadline_is_held(folder: Path) -> None:
    """Passed: the handler does not run. While it runs: it is cancelled, and 504 is answered."""
    shop = Shop(stalls=True)
    status, problem = asked(folder, [credential(folder), (b"deadline-ms", b"0")], shop)
    assert (status, problem["code"], shop.seen) == (504, "deadline_exceeded", [])
    status, problem = asked(folder, [credential(folder), (b"deadline-ms", b"20")], shop)
    assert (status, problem["code"], shop.seen) == (504, "timed_out", ["http"])


def test_an_undo_by_key_is_refused(folder: Path) -> None:
    """The handler of a command must not run as its own compensation."""
    shop = Shop()
    status, problem = asked(folder, [credential(folder), (b"undoes", b"order-1")], shop)
    assert (status, problem["code"], shop.seen) == (404, "unknown_operation", [])


def test_the_lifespan_of_the_application_is_within(folder: Path) -> None:
    """Its state reaches the server, and it ends after the last request."""
    shop = Shop("lives")
    server = Server(join(shop, service="shop", url="http://127.0.0.1:1", system=folder))

    async def requests() -> None:
        assert server.state == {"pool": "open"}
        assert (await server.ask([]))[0] == 200

    asyncio.run(server.run(requests))
    assert shop.seen == ["http", "closed"]
    assert [each["type"] for each in server.said] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


def test_what_an_application_that_has_joined_counts_is_exported(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its requests, by the end of its process at the latest; and nothing is said to be amiss."""

    async def main() -> list[tuple[dict[str, str], Any]]:
        collector = MemoryCollector(RUNTIME.network)
        await collector.server.start()
        otlp = f'[telemetry]\notlp = "{collector.server.url}"\n'
        (folder / "synchromesh.toml").write_text(TOML + otlp)
        server = Server(join(Shop(), service="shop", url="http://127.0.0.1:1", system=folder))

        async def requests() -> None:
            assert (await server.ask([credential(folder)]))[0] == 200

        await server.run(requests)
        await collector.server.close()
        return collector.metrics

    with caplog.at_level(logging.WARNING, "synchromesh"):
        told = asyncio.run(main())
    counted = {(resource["service.name"], metric.name): metric for resource, metric in told}
    (point,) = counted["shop", "synchromesh.operation.duration"].histogram.data_points
    assert point.count == 1
    assert "metrics" not in caplog.text


def test_an_application_that_cannot_start_says_why(folder: Path) -> None:
    """The server gets the application's own words, and nothing is registered."""
    server = Server(join(Shop("fails"), service="shop", url="http://127.0.0.1:1", system=folder))

    async def no_requests() -> None:
        return

    asyncio.run(server.run(no_requests))
    assert [each["type"] for each in server.said] == ["lifespan.startup.failed"]
    assert "no database" in server.said[0]["message"]


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        (TOML.replace('joined = ["shop"]', ""), 'joined = ["shop"]'),
        ("", "synchromesh.toml"),
        (TOML, "no system runs"),
    ],
)
def test_without_a_system_it_serves_and_says_why_it_has_not_joined(
    toml: str, said: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A client is served; a call with a credential is refused; calls say what is missing."""
    path = folder / "synchromesh.toml"
    path.write_text(toml) if toml else path.unlink()
    RunDir(folder).withdraw()
    server = Server(join(Shop(), service="shop", url="http://127.0.0.1:1", system=folder))

    async def requests() -> None:
        assert (await server.ask([]))[0] == 200
        assert (await server.ask([credential(folder)]))[0] == 401
        with pytest.raises(DiscoveryError, match="has not found its system"):
            server.joined.root()

    with caplog.at_level(logging.WARNING, "synchromesh.asgi"):
        asyncio.run(server.run(requests))
    (warning,) = [each for each in caplog.messages if "has not joined" in each]
    assert said in warning


def test_a_server_without_a_lifespan_is_named_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests are served, and the log says why nobody finds the application."""
    server = Server(join(Shop(), service="shop", url="http://127.0.0.1:1", system=folder))

    async def requests() -> None:
        for _ in range(2):
            assert (await server.ask([]))[0] == 200

    asyncio.run(requests())
    assert len([each for each in caplog.messages if "--lifespan on" in each]) == 1


def test_outside_a_request_there_is_no_context() -> None:
    """The message says what was expected."""
    with pytest.raises(ContractError, match="join"):
        current()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "unix:///run/shop", "http://"])
def test_a_url_that_is_none_is_refused(url: str, tmp_path: Path) -> None:
    """At once, with what was expected."""
    with pytest.raises(ConfigError, match="http://host:port"):
        join(Shop(), service="shop", url=url, system=tmp_path)


@pytest.mark.anyio
async def test_the_list_is_left_at_the_signal_that_ends_the_server() -> None:
    """The instance drains, the server gets its signal, and its handler is back afterwards."""
    happened: list[str] = []
    is_told = asyncio.Event()

    async def drain() -> None:
        happened.append("drains")
        is_told.set()

    def server(*_: object) -> None:
        happened.append("server")

    before = signal.signal(signal.SIGTERM, server)
    try:
        async with _heard(drain):
            signal.raise_signal(signal.SIGTERM)
            await is_told.wait()
        assert signal.getsignal(signal.SIGTERM) is server
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sorted(happened) == ["drains", "server"]


@pytest.mark.parametrize("name", ["a", "gateway", "Shop"])
def test_a_name_that_cannot_join_is_refused(name: str, tmp_path: Path) -> None:
    """That of a service, of the gateway, or of nothing; the line is named."""
    (tmp_path / "synchromesh.toml").write_text(TOML.replace("shop", name))
    with pytest.raises(ConfigError, match=f"synchromesh.toml:3.*{name}"):
        load_config(tmp_path)


def application(folder: Path, app: str, more: str = "") -> dict[str, Any]:
    """Load what a section of a service names."""
    (folder / "synchromesh.toml").write_text(
        f'[system]\nname = "works"\n[services.shop]\napp = "{app}"\n{more}'
    )
    config = load_config(folder)
    assert load_services(config, folder) == []
    loaded = load_applications(config, folder)
    assert without_applications(config, []).system.joined == ("shop",)
    return dict(loaded)


def test_an_asgi_application_is_a_service_of_the_system(tmp_path: Path) -> None:
    """It is told from a Service by what it is, and may have replicas and a server."""
    assert list(application(tmp_path, "asgi_apps_app:shop", 'replicas = 2\nserver = "granian"'))


@pytest.mark.parametrize(
    ("app", "more", "says"),
    [
        ("asgi_apps_app:Application", "", "but the class Application; name what the module"),
        (
            "asgi_apps_app:wsgi",
            "",
            "is not a Service, nor an ASGI application, but of the type function",
        ),
        ("asgi_apps_app:handler", "", "is not a Service, nor an ASGI application"),
        ("asgi_apps_app:shops", "", "module 'asgi_apps_app' has no 'shops'"),
        ("asgi_apps_app:shop", "pages_max = 9", "pages_max bounds what only a Service has"),
        ("asgi_apps_app:orders", 'server = "uvicorn"', "needs no server of its own"),
    ],
)
def test_what_is_no_application_is_told_in_one_message(
    app: str, more: str, says: str, tmp_path: Path
) -> None:
    """A wrong attribute, a class, a handler, or a key that says nothing of it is refused."""
    name = "orders" if app.endswith(":orders") else "shop"
    (tmp_path / "synchromesh.toml").write_text(
        f'[system]\nname = "works"\n[services.{name}]\napp = "{app}"\n{more}'
    )
    config = load_config(tmp_path)
    with pytest.raises(ConfigError) as refused:
        load_services(config, tmp_path)
    assert says in refused.value.message
    assert f"synchromesh.toml: [services.{name}] app = '{app}'" in refused.value.message


def test_a_server_that_is_not_installed_is_said_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one that is named, or both where none is; else the first there is runs it."""
    has = {"uvicorn", "granian"}
    monkeypatch.setattr(
        "synchromesh.system.host.asgi_servers.find_spec",
        lambda name: object() if name in has else None,
    )
    assert [find_server(each, "shop") for each in ("auto", "granian")] == ["uvicorn", "granian"]
    has = {"granian"}
    assert find_server("auto", "shop") == "granian"
    with pytest.raises(ConfigError, match="uvicorn is not installed: pip install uvicorn"):
        find_server("uvicorn", "shop")
    has = set()
    with pytest.raises(ConfigError, match="neither uvicorn nor granian is installed: pip install"):
        find_server("auto", "shop")
    with pytest.raises(ConfigError, match=r"\[services.shop\].*granian is not installed"):
        find_server("granian", "shop")
