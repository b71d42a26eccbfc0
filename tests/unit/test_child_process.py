"""A part of a system as a child process: replaced and stopped at the worst moments."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from processes import is_alive
from synchromesh.errors import BadRequest, ConfigError
from synchromesh.system.config.schema import SystemConfig, SystemSection
from synchromesh.system.host.processes import start_in_turn
from synchromesh.system.supervise.child_process import ChildProcess
from synchromesh.system.supervise.children import ChildEnded
from synchromesh.system.supervise.launcher import Launcher
from synchromesh.system.supervise.messages import Loaded, Migrates, ProcessSpec, Ready
from synchromesh.testing import SimRuntime, run

pytestmark = pytest.mark.anyio

# Says what a service says, each word once there is a file that lets it; it leaves on SIGTERM, once
# it may.
PART = """
import os, pathlib, signal, sys, threading
def when(word):
    while not pathlib.Path(word).exists():
        threading.Event().wait(0.005)
def leave(*_):
    pathlib.Path("asked").touch()
    when("leave")
    os._exit(0)
signal.signal(signal.SIGTERM, leave)
link = open(os.dup(0), "w")
sys.stdin.readline()
when("load")
print('{"type": "loaded"}', file=link, flush=True)
when("open")
print('{"type": "ready", "control": 1, "url": "http://127.0.0.1:2", "admin": ""}', file=link)
link.flush()
signal.pause()
"""

# Says all at once, and is gone before the one before it.
HASTY = """
import os, pathlib, sys, threading
link = open(os.dup(0), "w")
sys.stdin.readline()
print('{"type": "loaded"}', file=link)
print('{"type": "ready", "control": 3, "url": "http://127.0.0.1:4", "admin": ""}', file=link)
link.flush()
while not pathlib.Path("asked").exists():
    threading.Event().wait(0.005)
"""


@pytest.fixture
async def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ChildProcess]:
    """One that runs, and whose next one waits at each of its words."""
    monkeypatch.setattr("synchromesh.system.supervise.launcher.MAIN", PART)
    config = SystemConfig(SystemSection(name="notebook"), {})
    child = ChildProcess(
        "service 'notes'",
        spec=lambda port: ProcessSpec("notes", config, "", "", "", port),
        launcher=Launcher(tmp_path),
        log=tmp_path / "log",
        on_exit=lambda _: None,
        on_moved=lambda _: None,
        stop_within_s=5.0,
    )
    let(tmp_path, "load", "open")
    await child.start()
    hold(tmp_path, "load", "open")
    yield child
    let(tmp_path, "load", "open", "leave")
    await child.stop()


def let(folder: Path, *words: str) -> None:
    for word in words:
        (folder / word).touch()


def hold(folder: Path, *words: str) -> None:
    for word in words:
        (folder / word).unlink()


async def there(path: Path) -> None:
    """Wait until a process has made a file."""
    async with asyncio.timeout(10.0):
        while not path.exists():
            await asyncio.sleep(0.005)


async def another(child: ChildProcess, pid: int | None) -> int:
    """Wait until the next process has been started, and return its id."""
    async with asyncio.timeout(10.0):
        while child.pid == pid or child.pid is None:
            await asyncio.sleep(0.005)
    return child.pid


async def ended(child: ChildProcess) -> None:
    """Wait until the process made last has ended."""
    async with asyncio.timeout(10.0):
        while child.is_running:
            await asyncio.sleep(0.005)


async def test_who_asked_for_a_restart_may_go_away(child: ChildProcess, tmp_path: Path) -> None:
    """Both processes are in the middle of it: it is ended all the same, and can be repeated."""
    before = child.pid
    asked = asyncio.ensure_future(child.restart())
    let(tmp_path, "load")
    await there(tmp_path / "asked")
    asked.cancel()
    await asyncio.wait([asked])
    let(tmp_path, "leave", "open")
    await child.settle(10.0)
    after = child.pid
    assert after != before
    assert child.control_port == 1
    await child.restart()
    assert child.pid != after


async def test_the_old_process_can_be_asked_while_the_new_one_is_loaded(
    child: ChildProcess, tmp_path: Path
) -> None:
    """It still answers; a second restart is refused meanwhile."""
    asked = asyncio.ensure_future(child.restart())
    await another(child, child.pid)
    assert child.control_port == 1
    with pytest.raises(BadRequest, match="is being restarted"):
        await child.restart()
    let(tmp_path, "load", "open", "leave")
    await asked


async def test_a_stop_while_the_new_process_is_loaded_ends_both(
    child: ChildProcess, tmp_path: Path
) -> None:
    """Whoever asked for the restart is told that it came to nothing."""
    before = child.pid
    asked = asyncio.ensure_future(child.restart())
    after = await another(child, before)
    let(tmp_path, "leave")
    await child.stop()
    with pytest.raises(Exception, match="service 'notes'"):
        await asked
    assert before is not None
    assert [is_alive(pid) for pid in (before, after)] == [False, False]


async def test_a_stop_while_the_old_process_leaves_ends_both(
    child: ChildProcess, tmp_path: Path
) -> None:
    """Neither is waited for one after the other."""
    before = child.pid
    asked = asyncio.ensure_future(child.restart())
    after = await another(child, before)
    let(tmp_path, "load")
    await there(tmp_path / "asked")
    stopping = asyncio.ensure_future(child.stop())
    await asyncio.sleep(0)
    let(tmp_path, "leave")
    await stopping
    with pytest.raises(Exception, match="service 'notes'"):
        await asked
    assert before is not None
    assert [is_alive(pid) for pid in (before, after)] == [False, False]


async def test_a_stop_while_the_new_process_is_made_ends_both(child: ChildProcess) -> None:
    """One that comes to be after the stop has begun does not stay."""
    before = child.pid
    asked = asyncio.ensure_future(child.restart())
    await asyncio.sleep(0)
    child.kill()
    await child.stop()
    with pytest.raises(Exception, match="service 'notes'"):
        await asked
    assert before is not None
    assert child.pid is not None
    assert [is_alive(pid) for pid in (before, child.pid)] == [False, False]


async def test_one_that_ends_while_it_is_replaced_has_one_successor(
    child: ChildProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who watches it starts none beside the one that is being made; that one is watched then."""
    begun, go_on, made = asyncio.Event(), asyncio.Event(), []
    spawn = asyncio.create_subprocess_exec

    async def slowly(*words: Any, **more: Any) -> asyncio.subprocess.Process:
        begun.set()
        await go_on.wait()
        made.append(await spawn(*words, **more))
        return made[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slowly)
    watching = asyncio.ensure_future(child.run())
    await asyncio.sleep(0)
    asked = asyncio.ensure_future(child.restart())
    await begun.wait()
    child.kill()
    with pytest.raises(ChildEnded, match="SIGKILL"):
        await watching
    watching = asyncio.ensure_future(child.run())
    await asyncio.sleep(0)
    let(tmp_path, "load", "open", "leave")
    go_on.set()
    await asked
    assert [process.pid for process in made] == [child.pid]
    child.kill()
    with pytest.raises(ChildEnded, match="SIGKILL"):
        await watching


async def test_one_that_ends_while_nobody_watches_is_started_anew(
    child: ChildProcess, tmp_path: Path
) -> None:
    """There is nothing to replace; who watches it next starts another."""
    before = child.pid
    child.kill()
    await ended(child)
    assert (child.control_port, child.pid) == (None, before)
    with pytest.raises(BadRequest, match="is not running"):
        await child.restart()
    let(tmp_path, "load", "open")
    watching = asyncio.ensure_future(child.run())
    await another(child, before)
    await child.settle(10.0)
    assert child.control_port == 1
    child.kill()
    with pytest.raises(ChildEnded, match="SIGKILL"):
        await watching


async def test_one_that_ended_is_not_ready_whatever_it_said(
    child: ChildProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its words wait to be read while the old one lets go; nobody is sent where it was."""
    monkeypatch.setattr("synchromesh.system.supervise.launcher.MAIN", HASTY)
    asked = asyncio.ensure_future(child.restart())
    await there(tmp_path / "asked")
    await ended(child)
    let(tmp_path, "leave")
    with pytest.raises(ConfigError, match="ended with exit code 0 before it was ready"):
        await asked
    assert (child.control_port, child.url) == (None, "http://127.0.0.1:2")


@pytest.mark.parametrize(
    ("message", "said"),
    [("service 'notes' has no x", "service 'notes' has no x"), ("x", "service 'notes': x")],
)
async def test_why_it_could_not_be_started_is_told_with_its_name_once(
    child: ChildProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    message: str,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What names the part already is not given its name again."""
    part = f"""
import os, sys
link = open(os.dup(0), "w")
sys.stdin.readline()
print({json.dumps(json.dumps({"type": "unready", "message": message}))}, file=link, flush=True)
"""
    monkeypatch.setattr("synchromesh.system.supervise.launcher.MAIN", part)
    with pytest.raises(ConfigError) as raised:
        await child.restart()
    assert raised.value.message == said
    assert caplog.messages == [f"service 'notes' was not replaced: {said}"]
    let(tmp_path, "load", "open", "leave")


class Scripted:
    """A launcher, and the one process that it starts, which says what it is told to."""

    # No process has this number: 1 would be every process of the machine to `killpg`.
    pid, returncode = 1 << 30, None

    def __init__(self) -> None:
        self.lines: asyncio.Queue[bytes] = asyncio.Queue()

    async def launch(self, *_: object, **__: object) -> Scripted:
        return self

    def send(self, line: bytes) -> None:
        """Take the spec."""

    def say(self, what: Migrates | Loaded | Ready) -> None:
        self.lines.put_nowait(msgspec.json.encode(what) + b"\n")

    async def readline(self) -> bytes:
        return await self.lines.get()


def scripted(process: Any) -> ChildProcess:
    config = SystemConfig(SystemSection(name="notebook"), {})
    return ChildProcess(
        "service 'notes'",
        spec=lambda port: ProcessSpec("notes", config, "", "", "", port),
        launcher=process,
        log=Path("log"),
        on_exit=lambda _: None,
        on_moved=lambda _: None,
        stop_within_s=5.0,
    )


def test_one_that_migrates_has_the_time_that_it_takes(caplog: pytest.LogCaptureFixture) -> None:
    """Ended after 20 s, it would begin with the first row again, and never come up."""

    async def main(runtime: SimRuntime) -> None:
        process = Scripted()
        child = scripted(process)
        starting = asyncio.ensure_future(child.start())
        for report in (Migrates(), Loaded()):
            process.say(report)
            caplog.clear()
            await asyncio.sleep(3600.0)
            assert not starting.done()
            assert "still runs the migrations of its database" in caplog.text
        process.say(Ready(1, "http://127.0.0.1:2", ""))
        await starting
        assert child.control_port == 1

    run(main, until_s=3 * 3600.0)


def test_one_that_migrates_keeps_no_other_from_being_started() -> None:
    """Its place is free once it says so, and once only."""

    async def main(_: SimRuntime) -> None:
        places = asyncio.Semaphore(1)
        processes = [Scripted() for _ in range(3)]
        starting = []
        for each in processes:
            starting.append(asyncio.ensure_future(start_in_turn(scripted(each), places)))
            await asyncio.sleep(1.0)
        processes[2].say(Ready(1, "http://127.0.0.1:4", ""))
        processes[0].say(Migrates())
        processes[0].say(Migrates())
        await asyncio.sleep(1.0)
        assert not any(each.done() for each in starting)
        processes[1].say(Ready(1, "http://127.0.0.1:3", ""))
        await asyncio.gather(*starting[1:])
        assert not starting[0].done()
        processes[0].say(Ready(1, "http://127.0.0.1:2", ""))
        await starting[0]
        await places.acquire()
        assert places.locked()

    run(main)
