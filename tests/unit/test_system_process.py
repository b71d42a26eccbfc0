"""A process of its own, once it has started."""

from __future__ import annotations

import asyncio
import base64
import gc
import itertools
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from synchromesh.system.config.gateway_section import GatewaySection
from synchromesh.system.config.schema import ServiceSection, SystemConfig, SystemSection
from synchromesh.system.host import process
from synchromesh.system.host.process import COLLECT_EVERY, spare_collector
from synchromesh.system.supervise.messages import ProcessSpec, StartFailed

# What was imported once is not imported again.
_modules = itertools.count()


@pytest.fixture
def collector() -> Iterator[None]:
    """Leave the collector as it was."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.mark.usefixtures("collector")
def test_the_collector_is_spared_what_was_made_for_the_start() -> None:
    """What is there by then is never looked at again; what comes later is, if less often."""
    spare_collector()
    assert gc.get_freeze_count() > 10_000
    assert gc.get_threshold()[0] == COLLECT_EVERY
    assert gc.isenabled()

    class Knot:
        """Holds itself."""

    knot = Knot()
    knot.itself = knot  # type: ignore[attr-defined]
    del knot
    assert gc.collect() > 0


GATEWAY = """
from synchromesh import ApiKeys, Forward, Gateway
gateway = Gateway(routes=[Forward("GET /x", to="nowhere", public=True)], auth=[ApiKeys()])
"""
NO_GATEWAY = "gateway = 1"
PAIRED = """
from typing import Protocol
from synchromesh import Contract, Service, query
class A(Contract, Protocol, service="a", version="1.0"):
    @query("GET /x")
    async def x(self) -> int: ...
a = Service("a", implements=A)
@a.writes(A.x)
async def x(tx): ...
"""
UNDECLARED = """
from synchromesh import Service, query
query("GET /x", raises=ValueError)(print)
a = Service("a")
"""


@pytest.mark.parametrize(
    ("name", "module", "said"),
    [
        ("gateway", GATEWAY, "the gateway cannot be served, mistakes: 1"),
        (
            "gateway",
            NO_GATEWAY,
            "synchromesh.toml: [gateway] app = 'own_{n}:gateway' is not a Gateway",
        ),
        ("a", PAIRED, "a.x is a query, and @a.writes handles commands"),
        ("a", UNDECLARED, "raises= of 'print' is a class; write a tuple: (ValueError,) ("),
    ],
)
def test_a_mistake_of_the_users_is_told_once_and_without_a_traceback(
    name: str, module: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor is told it, the log has no traceback, and a signal at the end is no news."""
    number = next(_modules)
    services = {} if name == "gateway" else {"a": ServiceSection(app=f"own_{number}:a")}
    app = f"own_{number}:gateway" if name == "gateway" else ""
    (tmp_path / f"own_{number}.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    config = SystemConfig(SystemSection(name="s"), services, gateway=GatewaySection(app=app))
    key = base64.b64encode(b"k" * 32).decode()
    spec = ProcessSpec(name, config, key, "http://127.0.0.1:1", "token")
    before = {each: signal.getsignal(each) for each in process.SIGNALS}
    ours, theirs = socket.socketpair()
    ignored: list[bool] = []

    async def started() -> int:
        try:
            return await process._run(spec, theirs)
        finally:
            ignored.extend(signal.getsignal(each) is signal.SIG_IGN for each in process.SIGNALS)

    monkeypatch.chdir(tmp_path)
    (tmp_path / ".synchromesh/telemetry").mkdir(parents=True)
    with ours, theirs:
        try:
            code = asyncio.run(started())
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
        report = msgspec.json.decode(ours.recv(65536), type=StartFailed)
    assert code == process.MISTAKE
    assert report.message.startswith(said.format(n=number))
    (log,) = (tmp_path / ".synchromesh/telemetry").glob("log-*.jsonl")
    assert "Traceback" not in log.read_text()
    assert ignored == [True] * 3
