"""The fork server of `dev --split`: what it forks, and what it refuses to fork."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from notes_app import TESTS, TOML, write_config
from processes import COMMAND, announced, children_of, dev, ends, is_alive, until

# A service that tells what its process has imported of us since its own import.
LOOKS = """
import os, sys
from typing import Protocol
from synchromesh import Contract, Service, query

def ours():
    return {name for name in sys.modules if name.partition(".")[0] == "synchromesh"}

AT_FIRST = ours()
VERSION = 1

class Looks(Contract, Protocol, service="looks", version="1.0"):
    @query("GET /seen")
    async def seen(self) -> dict[str, list[str]]: ...

looks = Service("looks", implements=Looks)

@looks.handles(Looks.seen)
async def seen(ctx):
    late = sorted(ours() - AT_FIRST)
    return {"late": late, "version": [str(VERSION)], "parent": [str(os.getppid())],
            "folder": [os.getcwd()], "input": [os.readlink("/proc/self/fd/0")]}
"""
SYSTEM = TOML.partition("[services")[0] + '[services.looks]\napp = "looks:looks"\n'

# Forks sleepers by a fork server, in an interpreter that has imported `extra`.
PROGRAM = """
import asyncio, atexit, os, pathlib, sys
sys.path.insert(0, os.getcwd())
import extra
from synchromesh.system.host import fork_server, process
from synchromesh.system.config.schema import SystemConfig, SystemSection
from synchromesh.system.supervise.launcher import Launcher
from synchromesh.system.supervise.messages import NotForked

CONFIG = SystemConfig(SystemSection("x", loop="asyncio"), {})

def part():
    assert sys.stdin.readline() == "end\\n"
    atexit.register(print, "at its exit")
    return 7

process.main = part
forks = fork_server.start_fork_server(pathlib.Path.cwd(), CONFIG)
launcher = Launcher(pathlib.Path.cwd(), forks)
log = pathlib.Path("log")

async def main():
    forks.start()
    try:
        await run()
    finally:
        await forks.stop()
        await forks.stop()
"""


def told_by(folder: Path, run: str) -> str:
    """Run a program with a fork server in a new interpreter; return what it printed."""
    (folder / "extra.py").write_text("")
    program = f"{PROGRAM}\nasync def run():\n{run}\nasyncio.run(main(), debug=False)\n"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def asked(folder: Path, *words: str) -> Any:
    """Run a verb that prints JSON."""
    done = subprocess.run(
        [*COMMAND, "--folder", str(folder), *words, "--json"], stdout=-1, check=True
    )
    return json.loads(done.stdout)


def test_a_service_shares_what_the_fork_server_has_imported(tmp_path: Path) -> None:
    """Nothing of ours is imported after the fork; the user's code is, as it is on disk then."""
    (tmp_path / "looks.py").write_text(LOOKS)
    folder = write_config(tmp_path, SYSTEM)
    with dev(folder, "--split") as process:
        announced(process)
        (server,) = children_of(process.pid)
        seen = asked(folder, "call", "looks.seen")["result"]
        assert seen == {
            "late": [],
            "version": ["1"],
            "parent": [str(server)],
            "folder": [str(folder)],
            "input": ["/dev/null"],
        }
        (tmp_path / "looks.py").write_text(LOOKS.replace("VERSION = 1", "VERSION = 22"))
        asked(folder, "restart", "looks")
        seen = asked(folder, "call", "looks.seen")["result"]
        assert (seen["late"], seen["version"], seen["parent"]) == ([], ["22"], [str(server)])


def test_services_outlive_their_fork_server(tmp_path: Path) -> None:
    """Killed, it takes its processes along; they come back as new interpreters."""
    (tmp_path / "looks.py").write_text(LOOKS)
    folder = write_config(tmp_path, SYSTEM)
    with dev(folder, "--split") as process:
        announced(process)
        (server,) = children_of(process.pid)
        (service,) = children_of(server)
        os.kill(server, signal.SIGKILL)
        assert ends(service)
        seen = asked(folder, "call", "looks.seen")["result"]
        assert seen["parent"] == [str(process.pid)]
        process.send_signal(signal.SIGINT)
        assert process.wait(30.0) == 0


def test_a_forked_service_that_is_stopped_is_replaced_by_another(tmp_path: Path) -> None:
    """The fork server tells its end, as any other, and forks its successor."""
    (tmp_path / "looks.py").write_text(LOOKS)
    folder = write_config(tmp_path, SYSTEM.replace("[system]", '[system]\nhang = "1s"'))
    with dev(folder, "--split") as process:
        announced(process)
        (server,) = children_of(process.pid)
        (service,) = children_of(server)
        os.kill(service, signal.SIGSTOP)
        assert ends(service, 30.0)
        seen = asked(folder, "call", "looks.seen")["result"]
        assert seen["parent"] == [str(server)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_does_not_end_it_first(tmp_path: Path, number: signal.Signals) -> None:
    """Or the processes would die with it in the middle of their calls."""
    with dev(write_config(tmp_path, TOML), "--split") as process:
        announced(process)
        (server,) = children_of(process.pid)
        os.kill(server, number)
        assert until(lambda: not pending(server))
        assert is_alive(server)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30.0) == 0
        assert not is_alive(server)


def pending(pid: int) -> int:
    """Return the set of signals that a process has not taken yet."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [line.split()[1] for line in status if line.startswith(("SigPnd", "ShdPnd"))]
    return sum(int(mask, 16) for mask in masks)


def test_a_fork_is_led_by_its_link_and_its_end_is_told(tmp_path: Path) -> None:
    """Its exit code comes back, though it is another's child; it ends as an interpreter does."""
    said = told_by(
        tmp_path,
        """
    process = await launcher.launch("a part", log=log)
    process.send(b"end")
    print(await process.wait(), process.returncode, process.pid != os.getpid())
""",
    )
    assert said == "7 7 True\n"
    assert (tmp_path / "log").read_text() == "at its exit\n"


def test_what_has_changed_on_disk_is_not_forked(tmp_path: Path) -> None:
    """An upgraded library is loaded by a new process, as it is without a fork server."""
    said = told_by(
        tmp_path,
        """
    pathlib.Path("extra.py").write_text("CHANGED = True")
    answer = await forks.fork([os.open(os.devnull, os.O_RDWR)] * 2, -1)
    print(isinstance(answer, NotForked), answer.reason)
""",
    )
    assert said.startswith("True code that was imported before the fork has changed since")


def test_one_that_nobody_waits_for_any_more_does_not_stay(tmp_path: Path) -> None:
    """Its start was cancelled while it was asked for; the next one is another's."""
    said = told_by(
        tmp_path,
        """
    asking = asyncio.ensure_future(launcher.launch("a part", log=log))
    while not forks._asked:
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    process = await launcher.launch("a part", log=log)
    process.send(b"end")
    print(asking.cancelled(), await process.wait())
    while forks._forked:
        await asyncio.sleep(0.01)
""",
    )
    assert said == "True 7\n"


def test_after_its_end_nothing_is_asked_of_it(tmp_path: Path) -> None:
    """What it had forked is known to be killed; what waits for a fork is told."""
    said = told_by(
        tmp_path,
        """
    process = await launcher.launch("a part", log=log)
    os.kill(forks.pid, 19)
    asking = asyncio.ensure_future(forks.fork([os.open(os.devnull, os.O_RDWR)] * 2, -1))
    await asyncio.sleep(0)
    os.kill(forks.pid, 9)
    print(await process.wait(), (await asking).reason)
    print((await forks.fork([], -1)).reason)
""",
    )
    assert said == "-9 the fork server has ended\nthe fork server has ended\n"


def test_where_there_are_threads_there_is_no_fork_server(tmp_path: Path) -> None:
    """A fork would have none of them."""
    program = (
        "import pathlib, threading\n"
        "from synchromesh.system.config.schema import SystemConfig, SystemSection\n"
        "from synchromesh.system.host.fork_server import start_fork_server\n"
        "end = threading.Event()\n"
        "threading.Thread(target=end.wait).start()\n"
        "print(start_fork_server(pathlib.Path(), SystemConfig(SystemSection('x'), {})))\n"
        "end.set()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=TESTS, stdout=-1, text=True, check=True
    )
    assert done.stdout == "None\n"
