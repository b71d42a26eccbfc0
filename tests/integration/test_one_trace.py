"""Applications with the real OpenTelemetry SDK in front of a system, behind it and beside it."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from fastapi import FastAPI, Request

from otlp_collector import MemoryCollector
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.system import System, load_config

pytestmark = pytest.mark.anyio

APP = """
from typing import Protocol

from synchromesh import Context, Contract, Forward, Gateway, Route, Service, query


class Credit(Contract, Protocol, service="credit", version="1.0", external=True):
    @query("GET /credit/{who}")
    async def limit(self, who: str) -> int: ...


class Shop(Contract, Protocol, service="shop", version="1.0"):
    @query("GET /offers/{who}")
    async def offer(self, who: str) -> str: ...


shop = Service("shop", implements=Shop)
seen = []


@shop.handles(Shop.offer)
async def offer(ctx: Context, who: str) -> str:
    seen.append(dict(ctx.baggage))
    return f"up to {await ctx.call(Credit.limit(who))}"


gateway = Gateway(routes=[
    Route("GET /offers/{who}", Shop.offer, public=True),
    Forward("GET /legacy", to="legacy", public=True),
])
"""
TOML = """
[system]
name = "town"

[services.shop]
app = "town_app:shop"

[external.credit]
url = "http://127.0.0.1:{credit}"

[external.legacy]
url = "http://127.0.0.1:{legacy}"

[gateway]
app = "town_app:gateway"

[telemetry]
otlp = "{collector}"
sample = {sample}
baggage = ["tenant"]
headers = {{ authorization = "env:TOWN_OTLP" }}
resource = {{ "deployment.environment.name" = "test" }}
"""


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[int]:
    """Serve an application on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def get(url: str, headers: dict[str, str]) -> str:
    parts = urlsplit(url)
    async with HttpPool(network=RealRuntime().network) as pool:
        answer = await pool.request(
            "127.0.0.1", parts.port or 80, "GET", parts.path, headers.items(), timeout_s=60.0
        )
    assert answer.status == 200, answer.body
    return answer.body.decode()


class Instrumented:
    """Applications that trace as their makers tell them to, and send it to the same collector."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.providers: list[Any] = []
        self._fastapi = importlib.import_module("opentelemetry.instrumentation.fastapi")
        self._propagate = importlib.import_module("opentelemetry.propagate")
        self._trace = importlib.import_module("opentelemetry.sdk.trace")
        self._export = importlib.import_module("opentelemetry.sdk.trace.export")
        self._otlp = importlib.import_module(
            "opentelemetry.exporter.otlp.proto.http.trace_exporter"
        )
        self._kind = importlib.import_module("opentelemetry.trace").SpanKind.CLIENT
        self._resources = importlib.import_module("opentelemetry.sdk.resources")

    def app(self, name: str) -> tuple[FastAPI, Any]:
        """Return an application, instrumented, and its tracer."""
        resource = self._resources.Resource.create({"service.name": name})
        provider = self._trace.TracerProvider(resource=resource)
        exporter = self._otlp.OTLPSpanExporter(endpoint=f"{self.url}/v1/traces")
        provider.add_span_processor(self._export.BatchSpanProcessor(exporter))
        self.providers.append(provider)
        app = FastAPI()
        self._fastapi.FastAPIInstrumentor.instrument_app(
            app, tracer_provider=provider, exclude_spans=["receive", "send"]
        )
        return app, provider.get_tracer(name)

    async def get(self, tracer: Any, url: str, headers: dict[str, str]) -> Any:
        """Ask by HTTP as an instrumented client does: within a span, and with its context."""
        with tracer.start_as_current_span("GET", kind=self._kind):
            self._propagate.inject(headers)
            return json.loads(await get(url, headers))

    async def flush(self) -> None:
        for provider in self.providers:
            await asyncio.to_thread(provider.force_flush)

    async def close(self) -> None:
        for provider in self.providers:
            await asyncio.to_thread(provider.shutdown)


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TOWN_OTLP", "Bearer of-ours")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "town_app", raising=False)
    (tmp_path / "town_app.py").write_text(APP)
    yield
    sys.modules.pop("town_app", None)


class Town:
    """What runs, and who asks it."""

    def __init__(self, collector: MemoryCollector, front: int) -> None:
        self.collector = collector
        self.front = front
        self.seen: list[dict[str, str]] = []

    async def ask(self, path: str, headers: dict[str, str] | None = None) -> str:
        return await get(f"http://127.0.0.1:{self.front}{path}", headers or {})


@asynccontextmanager
async def town(folder: Path, sample: float = 1.0) -> AsyncIterator[Town]:
    """Run all of it; when it has ended, the collector has whatever was sent to it."""
    runtime = RealRuntime()
    collector = MemoryCollector(runtime.network)
    await collector.server.start()
    apps = Instrumented(collector.server.url)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(collector.server.close)
        stack.push_async_callback(apps.close)
        credit, _ = apps.app("credit")
        legacy, _ = apps.app("legacy")
        front, tracer = apps.app("front")

        @credit.get("/credit/{who}")
        async def limit(who: str) -> int:
            return 7

        @legacy.get("/legacy")
        async def old(request: Request) -> dict[str, str]:
            return dict(request.headers)

        ports = {
            "credit": await stack.enter_async_context(served(credit)),
            "legacy": await stack.enter_async_context(served(legacy)),
        }
        text = TOML.format(collector=collector.server.url, sample=sample, **ports)
        (folder / "synchromesh.toml").write_text(text)
        system = System(load_config(folder), folder, runtime)
        await system.start()
        stack.push_async_callback(system.stop)

        @front.get("/")
        async def page(request: Request) -> list[Any]:
            gateway = system.info.gateway
            return [
                await apps.get(tracer, f"{gateway}/offers/ada", {}),
                await apps.get(tracer, f"{gateway}/legacy", {}),
            ]

        made = Town(collector, await stack.enter_async_context(served(front)))
        made.seen = importlib.import_module("town_app").seen
        yield made
        await apps.flush()


async def test_applications_in_front_behind_and_beside_are_one_trace(
    no_proxy: None, tmp_path: Path
) -> None:
    """Each span is below the one that it came of, whoever made them, and baggage as is allowed."""
    async with town(tmp_path) as running:
        await running.ask("/", {"baggage": "tenant=acme,user=eve"})
        assert running.seen == [{"tenant": "acme"}]
    spans = running.collector.spans
    assert len({span.trace_id for span in spans}) == 1
    assert running.collector.tree() == {
        ("front", "GET /", ""),
        ("front", "GET", "GET /"),
        ("gateway", "GET /offers/{who}", "GET"),
        ("gateway", "shop.offer", "GET /offers/{who}"),
        ("shop", "shop.offer", "shop.offer"),
        ("shop", "credit.limit", "shop.offer"),
        ("credit", "GET /credit/{who}", "credit.limit"),
        ("gateway", "GET /legacy", "GET"),
        ("legacy", "GET /legacy", "GET /legacy"),
    } | {("gateway", "GET /legacy", "GET /legacy")}
    by_name = {(span.service, span.name, span.kind): span for span in spans}
    gateway = by_name["gateway", "GET /offers/{who}", 2]
    assert gateway.attributes["http.route"] == "/offers/{who}"
    assert gateway.attributes["http.response.status_code"] == 200
    assert gateway.resource["deployment.environment.name"] == "test"
    assert gateway.resource["telemetry.sdk.language"] == "python"
    ours = [each for each in running.collector.asked if each.headers.get("authorization")]
    assert {each.headers.get("authorization") for each in ours} == {"Bearer of-ours"}
    assert {resource["service.name"] for resource, _, _ in running.collector.logs} <= {"town"}


async def test_what_begins_with_us_is_sampled_by_the_ratio_and_the_flag_goes_on(
    no_proxy: None, tmp_path: Path
) -> None:
    """A client's flag binds all of us, and our ratio what begins here."""
    flagged = f"00-{'a' * 32}-{'b' * 16}-0"
    async with town(tmp_path, sample=0.0) as running:
        headers = {"traceparent": f"{flagged}0", "tracestate": "vendor=1"}
        told = await running.ask("/", headers)
        assert '"tracestate":"vendor=1"' in told
        assert f"00-{'a' * 32}-" in told
    assert running.collector.spans == []
    async with town(tmp_path, sample=0.0) as running:
        await running.ask("/", {"traceparent": f"{flagged}1"})
    assert {span.trace_id for span in running.collector.spans} == {"a" * 32}
    assert {span.service for span in running.collector.spans} == {
        "front", "gateway", "shop", "credit", "legacy",
    }  # fmt: skip
