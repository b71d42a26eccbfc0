"""The console of a system: it asks the control API of this process, as the command line does."""

from __future__ import annotations

import asyncio
import secrets
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from synchromesh.clock import loop_now
from synchromesh.console import Console, Sessions
from synchromesh.console.source import Told
from synchromesh.errors import ConfigError, TimedOut
from synchromesh.http import Headers, HttpRequest
from synchromesh.system.config.explaining import explain_branches, explain_edges
from synchromesh.system.config.rundir import user
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.control.api import Control
from synchromesh.system.control.rates import branch_rates, edge_rates, rates
from synchromesh.system.host.host import Host
from synchromesh.system.supervise.children import let_go
from synchromesh.telemetry import Family

if TYPE_CHECKING:
    from synchromesh.gateway import Gateway

# Rates are over the time since the reading before; while somebody looks, one is kept so often.
RATES_OVER_S = 5.0
ADVICE_WITHIN_S = 30.0


class ControlSource:
    """Answers the console by the control API, and by what was configured."""

    def __init__(
        self, control: Control, config: SystemConfig, folder: Path, gateway: Gateway | None
    ) -> None:
        self._control = control
        self._config = config
        self._gateway = gateway
        self._folder = folder
        self._advising = asyncio.Lock()
        # It takes a tenth of a second, once.
        self._policies: Told = {}
        # Two readings: rates are over the time since the older one.
        self._readings: list[tuple[float, list[Family]]] = []

    async def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Told:
        """Ask the control API; the answer is what another process would get of it."""
        data = b"" if body is None else msgspec.json.encode(body)
        bare, _, query = path.partition("?")
        request = HttpRequest(method, path, bare, query, Headers(), data)
        answer = await self._control.answer(request)
        told: Told = msgspec.json.decode(msgspec.json.encode(answer))
        return told

    async def work(self) -> Told:
        """Return what was done since the reading before, which is told beside it."""
        now_s, after = loop_now(), await self._control.metrics()
        if not self._readings or now_s - self._readings[-1][0] >= RATES_OVER_S:
            self._readings = [*self._readings[-1:], (now_s, after)]
        began_s, before = self._readings[0]
        took_s = max(now_s - began_s, 0.001)
        work = msgspec.to_builtins(rates(before, after, took_s))
        await asyncio.sleep(0)  # of a large system each takes 10 ms
        edges = msgspec.to_builtins(edge_rates(before, after, took_s))
        await asyncio.sleep(0)
        stood_in = msgspec.to_builtins(branch_rates(before, after, took_s))
        return {"over_s": round(took_s, 1), "work": work, "edges": edges, "stood_in": stood_in}

    async def policies(self) -> Told:
        """Return what `config explain` says of edges and branches, as they were at the start."""
        if not self._policies:
            edges = []
            for each in explain_edges(self._config, self._gateway):
                edges.append(msgspec.to_builtins(each))
                await asyncio.sleep(0)
            self._policies = {
                "edges": edges,
                "branches": msgspec.to_builtins(explain_branches(self._gateway)),
            }
        return self._policies

    async def advice(self) -> Told:
        """Return what `synchromesh advise` says: by a process of its own, for it reads much."""
        async with self._advising:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "synchromesh.cli",
                "--folder", str(self._folder), "advise", "--json",
                stdin=DEVNULL, stdout=PIPE, stderr=PIPE,
            )  # fmt: skip
            try:
                async with asyncio.timeout(ADVICE_WITHIN_S):
                    out, said = await process.communicate()
            except TimeoutError as error:
                raise TimedOut(
                    f"no advice within {ADVICE_WITHIN_S:g} s; ask for it by: synchromesh advise"
                ) from error
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                    let_go(process)
        if process.returncode not in (0, 1):
            raise ConfigError(f"synchromesh advise failed: {said.decode(errors='replace')[:500]}")
        told: Told = msgspec.json.decode(out)
        return told


async def serve_console(host: Host, key: bytes, gateway: Gateway | None) -> None:
    """Serve the console of a whole system, on the port that it had last where that is free.

    Raises:
        ConfigError: it cannot listen.
    """
    runtime, control = host.runtime, host.control
    source = ControlSource(control, host.config, host.folder, gateway)
    # The first page has rates since then.
    await source.work()
    console = Console(
        source,
        runtime.network,
        system=host.config.system.name,
        who=user(),
        sessions=Sessions(key),
        new_token=lambda: secrets.token_urlsafe(24),
        wall_us=runtime.wall_us,
    )
    host.exit.push_async_callback(console.close)
    await console.start(host.rundir.console_port())
    host.rundir.note_console(console.port)
    control.console = console.entry
