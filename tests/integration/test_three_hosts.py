"""Three hosts, each in a network namespace of its own: what a partition does, and its end.

It needs root, and `ip`, `unshare` and `nsenter`: the links are real ones, and a link that is down
says nothing to anybody, as a cable that was pulled.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nats_server import end_with_parent, nats_program
from nats_world import until
from notes_app import TESTS

pytestmark = pytest.mark.anyio

SWITCH = "10.77.0.254"
URL = f"nats://{SWITCH}:4222"
COMMAND = "sudo .venv/bin/pytest tests/integration/test_three_hosts.py"
FENCED = 3


@dataclass
class Instance:
    """A process on a host, and what it has told last."""

    process: asyncio.subprocess.Process
    told: dict[str, object] = field(default_factory=dict)

    async def follow(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.told |= json.loads(line)

    def sees(self, *names: str, is_stale: bool = False) -> bool:
        return (self.told.get("listed"), self.told.get("is_stale")) == ([*names], is_stale)


class Hosts:
    """Namespaces at one switch; they end with their processes, which end with this one."""

    def __init__(self) -> None:
        self._holders = {"switch": self._namespace()}
        self._tasks: list[asyncio.Task[None]] = []
        self._started: list[Instance] = []
        self._run("switch", "ip", "link", "add", "switch0", "type", "bridge")
        self._run("switch", "ip", "addr", "add", f"{SWITCH}/24", "dev", "switch0")
        self._run("switch", "ip", "link", "set", "switch0", "up")

    def add(self, name: str, number: int) -> None:
        """Add a host, with a link to the switch."""
        holder = self._holders[name] = self._namespace()
        ends = f"to_{name}", "uplink"
        self._run("switch", "ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        self._run("switch", "ip", "link", "set", ends[1], "netns", str(holder.pid))
        self._run("switch", "ip", "link", "set", ends[0], "master", "switch0", "up")
        self._run(name, "ip", "addr", "add", f"10.77.0.{number}/24", "dev", ends[1])
        self._run(name, "ip", "link", "set", ends[1], "up")

    def link(self, name: str, state: str) -> None:
        """Take the link of a host down, or up."""
        self._run("switch", "ip", "link", "set", f"to_{name}", state)

    async def serve(self, folder: Path) -> None:
        """Start NATS at the switch, and wait until it takes connections."""
        store = f'jetstream {{ store_dir: "{folder}", sync_interval: always }}'
        configuration, log = folder / "nats.conf", folder / "log"
        configuration.write_text(f"listen: {SWITCH}:4222\nlog_file: '{log}'\n{store}\n")
        self._holders["nats"] = subprocess.Popen(
            [*self._within("switch"), nats_program(), "--config", configuration],
            stderr=subprocess.DEVNULL, preexec_fn=end_with_parent,
        )  # fmt: skip
        await until(lambda: log.exists() and "Server is ready" in log.read_text())

    async def start(self, host: str, instance: str) -> Instance:
        """Start an instance on a host."""
        process = await asyncio.create_subprocess_exec(
            *self._within(host), sys.executable, str(TESTS / "host_process.py"), URL, instance,
            stdout=subprocess.PIPE, preexec_fn=end_with_parent,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )  # fmt: skip
        started = Instance(process)
        self._started.append(started)
        self._tasks.append(asyncio.create_task(started.follow()))
        return started

    async def close(self) -> None:
        for instance in self._started:
            if instance.process.returncode is None:
                instance.process.kill()
            await instance.process.wait()
        await asyncio.gather(*self._tasks)
        for holder in self._holders.values():
            holder.kill()
            holder.wait()

    def _namespace(self) -> subprocess.Popen[bytes]:
        holder = subprocess.Popen(
            ["unshare", "--net", "sleep", "infinity"], preexec_fn=end_with_parent
        )
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
            assert holder.poll() is None, "no namespace was made"
        return holder

    def _within(self, name: str) -> list[str]:
        return ["nsenter", "--net", "--target", str(self._holders[name].pid)]

    def _run(self, name: str, *command: str) -> None:
        subprocess.run([*self._within(name), *command], check=True)


@asynccontextmanager
async def hosts(folder: Path) -> AsyncIterator[Hosts]:
    missing = [each for each in ("ip", "unshare", "nsenter") if shutil.which(each) is None]
    if os.geteuid() != 0 or missing:
        lack = f"{', '.join(missing)} of iproute2 and util-linux" if missing else "root"
        pytest.fail(f"three hosts need {lack}: {COMMAND}", pytrace=False)
    made = Hosts()
    try:
        for number, name in enumerate("abc", 1):
            made.add(name, number)
        await made.serve(folder)
        yield made
    finally:
        await made.close()


async def test_a_host_that_is_cut_off_and_comes_back(tmp_path: Path) -> None:
    """The others go on without it, and it goes on by what it knew; back, all is as it was.

    One whose name another process took meanwhile is told so, and ends: nobody is sent to it.
    """
    async with hosts(tmp_path) as net:
        a, b, c = [await net.start(host, host) for host in "abc"]
        await until(lambda: all(each.sees("a", "b", "c") for each in (a, b, c)))
        first = a.told["incarnation"]
        net.link("a", "down")
        await until(lambda: b.sees("b", "c") and c.sees("b", "c"))
        await until(lambda: a.sees("a", "b", "c", is_stale=True))
        assert (b.process.returncode, a.process.returncode) == (None, None)
        net.link("a", "up")
        await until(lambda: all(each.sees("a", "b", "c") for each in (a, b, c)))
        assert "fenced" not in a.told
        # Its lease had run out: it has another one, and each list has that.
        await until(lambda: a.told["incarnation"] != first)

        net.link("a", "down")
        await until(lambda: b.sees("b", "c"))
        successor = await net.start("b", "a")
        await until(lambda: c.sees("a", "b", "c") and successor.sees("a", "b", "c"))
        net.link("a", "up")
        assert await asyncio.wait_for(a.process.wait(), 120.0) == FENCED
        assert "has replaced it; stop" in str(a.told["fenced"])
        assert c.sees("a", "b", "c")
        assert successor.process.returncode is None
