"""A system of processes whose supervisor is the test's own process, and its control socket."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from notes_app import write_config
from processes import children_of
from synchromesh.calls import HoldOptions, Policies
from synchromesh.http import HttpPool
from synchromesh.resilience import Policy
from synchromesh.runtime import RealRuntime
from synchromesh.system import System, SystemConfig, load_config
from synchromesh.system.config.edge_policies import policies_of
from synchromesh.system.supervise.child_process import ChildProcess

WAIT_S = 30.0
# On a busy machine a new process may take longer to come up than callers wait in production.
PATIENT = Policies(
    default=Policy(timeout_s=WAIT_S),
    hold=HoldOptions(hold_max_s=WAIT_S, restart_max_s=2 * WAIT_S),
)


def port_of(url: str) -> int:
    """Return the port of a URL."""
    return int(url.rpartition(":")[2])


@asynccontextmanager
async def running(folder: Path, text: str, *, is_split: bool = True) -> AsyncIterator[System]:
    """Run a system of that configuration in a folder; no process is left at the end."""
    config = load_config(write_config(folder, text))
    system = System(config, folder, RealRuntime(), is_split=is_split)
    with mock.patch("synchromesh.system.host.host.policies_of", patient_policies):
        await system.start()
        try:
            yield system
        finally:
            await system.stop()
    assert children_of(os.getpid()) == []


def patient_policies(config: SystemConfig, caller: str) -> Policies:
    """Return what is configured, with longer waits where nothing is; for the test's own process."""
    configured = policies_of(config, caller)
    return replace(configured, default=PATIENT.default, hold=PATIENT.hold)


def processes_of(system: System) -> dict[str, ChildProcess]:
    """Return the processes of a system as their supervisor sees them, by what each is."""
    assert system._processes is not None
    return {name: remote.child for name, remote in system._processes.remotes.items()}


class ControlSocket:
    """Asks the control socket of a system."""

    def __init__(self, system: System, pool: HttpPool) -> None:
        self._system = system
        self._pool = pool

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """Ask for something that is granted, and return the answer."""
        status, answer = await self.said(method, path, body)
        assert status == 200, answer
        return answer

    async def said(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Ask, and return the status and the answer."""
        info = self._system.info
        response = await self._pool.request(
            "127.0.0.1",
            port_of(info.control),
            method,
            path,
            [("authorization", f"Bearer {info.token}")],
            b"" if body is None else json.dumps(body).encode(),
            timeout_s=2 * WAIT_S,
        )
        return response.status, json.loads(response.body)

    async def call(self, operation: str, **arguments: str) -> Any:
        """Make a call; its result, or the problem's code."""
        wanted = {"operation": operation, "arguments": arguments, "timeout_s": WAIT_S}
        answer = await self.ask("POST", "/call", wanted)
        return answer["result"] if answer["problem"] is None else answer["problem"]["code"]

    async def pid(self, name: str) -> int:
        """Return the process of a service, or of the gateway."""
        status = await self.ask("GET", "/status")
        pid: int = (status["gateway"] if name == "gateway" else status["services"][name])["pid"]
        return pid


async def what_failed(asking: ControlSocket) -> str:
    """Wait until something is given up, and return what the status says of it."""
    async with asyncio.timeout(WAIT_S):
        while True:
            findings: list[str] = (await asking.ask("GET", "/status"))["findings"]
            if failed := [each for each in findings if "is failed" in each]:
                (finding,) = failed
                return finding
            await asyncio.sleep(0.02)
