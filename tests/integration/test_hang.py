"""A process that hangs, under a real supervisor: found, replaced, and spared under a debugger."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from notes_app import TESTS, TOML, WITH_GATEWAY, write_config
from processes import COMMAND, announced, children_of, dev, is_alive, until
from split_world import WAIT_S, ControlSocket, processes_of, running
from synchromesh.cli.control import ControlClient
from synchromesh.discovery import Endpoint
from synchromesh.errors import RemoteFailed
from synchromesh.http import HttpPool
from synchromesh.system import System
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.supervise.child_process import ChildProcess
from synchromesh.system.supervise.children import is_traced

pytestmark = pytest.mark.anyio

BLOCKS = """
import threading
from notes_app import Broken, Service
broken = Service("broken", implements=Broken)
@broken.handles(Broken.now)
async def now(ctx):
    threading.Event().wait()
"""
# What may be traced by any process, be the kernel ever so strict (Yama): PR_SET_PTRACER.
TRACEABLE = """
import ctypes
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
from notes_app import notes
"""
# Attaches to a process, and detaches once its standard input ends.
TRACER = """
import ctypes, os, sys
ptrace, pid = ctypes.CDLL(None).ptrace, int(sys.argv[1])
ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
ATTACH, DETACH = 16, 17
assert ptrace(ATTACH, pid, None, None) == 0
os.waitpid(pid, 0)
print("traced", flush=True)
sys.stdin.read()
assert ptrace(DETACH, pid, None, None) == 0
"""
HANGS = 'name = "notebook"\nhang = "1s"'
QUICK = TOML.replace('name = "notebook"', HANGS)


async def another(child: ChildProcess, pid: int) -> int:
    """Wait until another process than `pid` serves, and return its id."""
    async with asyncio.timeout(WAIT_S):
        while child.answering is None or child.answering.pid == pid:
            await asyncio.sleep(0.01)
    return child.answering.pid


async def finding(asking: ControlSocket, words: str) -> str:
    """Wait until the status finds something in these words, and return all of it."""
    async with asyncio.timeout(WAIT_S):
        while True:
            for found in (await asking.ask("GET", "/status"))["findings"]:
                if words in found:
                    return str(found)


@contextmanager
def debugged(pid: int) -> Iterator[None]:
    """Have another process trace one, which stands still meanwhile."""
    command = [sys.executable, "-c", TRACER, str(pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tracer:
        assert tracer.stdin is not None
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == b"traced\n"
        try:
            yield
        finally:
            tracer.stdin.close()
    assert tracer.returncode == 0


async def test_a_stopped_service_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: HttpPool
) -> None:
    """It is killed, and its successor takes over its database and its URL."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    async with running(tmp_path, QUICK) as system:
        asking, child = ControlSocket(system, pool), processes_of(system)["notes"]
        assert await asking.call("notes.write", note='{"id":"a","text":"x"}') == 1
        url, before = system.info.services["notes"], await asking.pid("notes")
        os.kill(before, signal.SIGSTOP)
        after = await another(child, before)
        assert not is_alive(before)
        assert await asking.call("notes.write", note='{"id":"b","text":"x"}') == 2
        status = await asking.ask("GET", "/status")
        assert (status["services"]["notes"]["pid"], status["findings"]) == (after, [])
        assert system.info.services["notes"] == url
        seen = status["children"]["service/notes"]
        assert (seen["restarts"], "hung and ended by SIGKILL" in seen["last_error"]) == (1, True)


async def test_a_service_whose_loop_is_blocked_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: HttpPool
) -> None:
    """Its other threads run, and the kernel takes its connections: only its loop is silent."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    (tmp_path / "blocks.py").write_text(BLOCKS)
    text = QUICK.replace('"1s"', '"4s"') + '[services.broken]\napp = "blocks:broken"\n'
    async with running(tmp_path, text) as system:
        asking, child = ControlSocket(system, pool), processes_of(system)["broken"]
        before = await asking.pid("broken")
        calling = asyncio.ensure_future(asking.call("broken.now"))
        silent = await finding(asking, "blocked by")
        assert silent.startswith("broken/process is silent: its event loop has answered nothing")
        assert "it is replaced after 4 s; it is blocked by blocks.now (" in silent
        await another(child, before)
        assert not is_alive(before)
        assert isinstance(await calling, str)
        assert await asking.call("notes.count") == 0


def test_what_blocks_a_system_of_one_process_is_in_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot answer: the command line is told by a file, and says who the blocker is."""
    monkeypatch.setattr("synchromesh.cli.control.BLOCKED_S", 0.1)
    (tmp_path / "blocks.py").write_text(BLOCKS)
    folder = write_config(tmp_path, TOML + '[services.broken]\napp = "blocks:broken"\n')
    with dev(folder) as process:
        announced(process)
        told = RunDir(folder)
        assert told.blocked_by("", process.pid) == ""
        call = [*COMMAND, "--folder", str(folder), "call", "broken.now"]
        with subprocess.Popen(call, stdout=-1, stderr=-1):
            assert until(lambda: told.blocked_by("", process.pid) != "")
            with pytest.raises(RemoteFailed, match=r"is blocked by blocks\.now"):
                ControlClient(folder).get("/status")
            assert told.blocked_by("", process.pid + 1) == ""
            process.kill()


async def test_a_stopped_gateway_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a service is; its socket is the supervisor's, and stays."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    text = WITH_GATEWAY.replace('name = "notebook"', HANGS)
    async with running(tmp_path, text) as system:
        child, url = processes_of(system)["gateway"], system.info.gateway
        assert child.pid is not None
        before = child.pid
        os.kill(before, signal.SIGSTOP)
        await another(child, before)
        assert not is_alive(before)
        assert system.info.gateway == url


async def test_a_silent_instance_is_not_resolved_while_another_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: HttpPool
) -> None:
    """R6: long before its lease ends; it is again once it answers."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    async with running(tmp_path, TOML) as system:
        pid = await ControlSocket(system, pool).pid("notes")
        registry = system._registry
        (own,) = (await registry.resolve("notes")).endpoints
        other = Endpoint("zz", "notes", own.url)

        async def keep() -> None:
            while True:
                await registry.grant(other)
                await asyncio.sleep(0.5)

        keeping = asyncio.ensure_future(keep())
        await listed(system, own, other)
        os.kill(pid, signal.SIGSTOP)
        await listed(system, other)
        os.kill(pid, signal.SIGCONT)
        await listed(system, own, other)
        keeping.cancel()
        assert children_of(os.getpid()) == [pid]


async def listed(system: System, *endpoints: Endpoint) -> None:
    """Wait until exactly these are resolved."""
    async with asyncio.timeout(WAIT_S):
        while (await system._registry.resolve("notes")).endpoints != endpoints:
            await system._registry.changed("")


async def test_what_a_debugger_traces_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: HttpPool
) -> None:
    """It stands still for three times the bound, and goes on when it is let go."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    (tmp_path / "traceable.py").write_text(TRACEABLE)
    text = QUICK.replace("notes_app:notes", "traceable:notes")
    async with running(tmp_path, text) as system:
        asking = ControlSocket(system, pool)
        pid = await asking.pid("notes")
        assert not is_traced(pid)
        with debugged(pid):
            assert is_traced(pid)
            found = ""
            while not re.search("nothing for ([3-9]|[0-9]{2,})", found):
                found = await finding(asking, "notes/process is silent: ")
            assert "it is not replaced while a debugger traces it" in found
        assert await asking.call("notes.count") == 0
        assert await asking.pid("notes") == pid


def test_a_process_that_is_gone_is_not_traced() -> None:
    """Nor is one whose state nobody can read."""
    assert not is_traced(2**22 + 1)
