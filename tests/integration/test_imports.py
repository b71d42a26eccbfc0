"""What a running system has imported: what its configuration asks for, and no more (ADR 100)."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from processes import announced, dev

# Writes what a process has imported by its end; the file is named after what it is of.
APP = """
import atexit, json, os, sys
from pathlib import Path
from synchromesh import Context, Contract, Service, query

class Plain(Contract, service="plain", version="1.0"):
    @query("GET /answer")
    def answer(self) -> int: ...

plain = Service("plain", implements=Plain)

@plain.handles(Plain.answer)
async def answer(ctx: Context) -> int:
    return 42

def tell():
    told = Path(__file__).with_name(f"modules-{os.getpid()}.json")
    told.write_text(json.dumps(sorted(sys.modules)))

atexit.register(tell)
"""
TOML = '[system]\nname = "plain"\n\n[services.plain]\napp = "plain_app:plain"\n'

# What a system without a gateway, an engine, an export or a schedule has no use for.
UNUSED = (
    "asyncpg", "cronsim", "difflib", "email", "html", "importlib.metadata", "nats", "rich",
    "synchromesh.discovery.nats_document",
    "synchromesh.gateway.engine", "synchromesh.gateway.routes", "synchromesh.store.postgres",
    "synchromesh.store.sqlite_backup", "synchromesh.system.config.gateway_check",
    "synchromesh.system.config.grants_on_nats", "synchromesh.system.config.keys_on_nats",
    "synchromesh.system.host.gateway_start", "synchromesh.system.host.otlp_exporter",
    "synchromesh.system.supervise.external", "synchromesh.telemetry.otlp", "synchromesh.tls",
    "uvloop", "zipfile", "zoneinfo",
)  # fmt: skip
# Nor for processes of its own, where it is one.
UNUSED_IN_ONE = (
    "ctypes", "synchromesh.system.host.fork_server", "synchromesh.system.host.process",
    "synchromesh.system.host.processes", "synchromesh.system.supervise.child_process",
)  # fmt: skip
# Of the toolkit's modules, which take some 50 KB each. Who needs more says what it is in ADR 100.
MODULES_MAX = 345


@pytest.mark.parametrize("flags", [[], ["--split"]], ids=["one process", "split"])
def test_a_plain_system_imports_what_it_uses(tmp_path: Path, flags: list[str]) -> None:
    """Neither `dev` nor a process of `dev --split` has the gateway, NATS, PostgreSQL or an export.

    A process keeps what it has imported, and a system of many processes keeps it many times.
    """
    (tmp_path / "synchromesh.toml").write_text(TOML)
    (tmp_path / "plain_app.py").write_text(APP)
    with dev(tmp_path, "--set", "system.loop=asyncio", *flags) as process:
        announced(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30.0) == 0
    told = [json.loads(path.read_text()) for path in tmp_path.glob("modules-*.json")]
    assert len(told) == (2 if flags else 1)
    for modules in told:
        unused = UNUSED if flags else (*UNUSED, *UNUSED_IN_ONE)
        assert [name for name in unused if name in modules] == []
        if not flags:
            ours = [name for name in modules if name.partition(".")[0] == "synchromesh"]
            assert len(ours) <= MODULES_MAX, ours
