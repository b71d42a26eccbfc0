"""External services as child processes: ready, moved, ended, stopped."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from real_loops import ON_BOTH_LOOPS
from synchromesh.errors import ConfigError
from synchromesh.system.supervise.children import ChildEnded
from synchromesh.system.supervise.external import ExternalProcess

pytestmark = [pytest.mark.anyio, ON_BOTH_LOOPS]

READY = """echo '{"port": 8080}'; """


class Child:
    """A shell script as an external service, and the URLs it was moved to."""

    def __init__(
        self,
        folder: Path,
        script: str,
        *,
        ready_within_s: float = 60.0,
        stop_within_s: float = 60.0,
    ) -> None:
        self.urls: list[str] = []
        self.log = folder / "child.log"
        self.process = ExternalProcess(
            "provider",
            command=["/bin/sh", "-c", script],
            env={"WORD": "given"},
            folder=folder,
            log=self.log,
            moved=self.urls.append,
            ready_within_s=ready_within_s,
            stop_within_s=stop_within_s,
        )


async def test_a_child_says_its_port_and_ends_when_told(tmp_path: Path) -> None:
    """`start` returns once it can be called; `stop` ends it, and may be repeated."""
    child = Child(tmp_path, "echo $WORD $PWD >&2; " + READY + "exec sleep 60")
    assert child.process.pid is None
    await child.process.start()
    pid = child.process.pid
    assert child.urls == ["http://127.0.0.1:8080"]
    assert repr(child.process) == f"<ExternalProcess provider pid {pid}>"
    watching = asyncio.ensure_future(child.process.run())
    await child.process.stop()
    await child.process.stop()
    with pytest.raises(ChildEnded, match="'provider' ended by SIGTERM; see "):
        await watching
    assert child.log.read_text().startswith("given ")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 7", "ended with exit code 7 before it printed its port"),
        ("kill -9 $$", "ended by SIGKILL before it printed its port"),
        ("echo hello; exec sleep 60", 'printed no line such as {"port": 8080} first'),
        ("""echo '{"port": 0}'; exec sleep 60""", "printed no line such as"),
        ("head -c 9000 /dev/zero; exec sleep 60", "printed a first line above 4096 bytes"),
    ],
)
async def test_a_child_that_is_not_ready_is_refused(tmp_path: Path, script: str, said: str) -> None:
    """The message says why, and names the log; the child does not stay."""
    child = Child(tmp_path, script)
    with pytest.raises(ConfigError) as caught:
        await child.process.start()
    assert f"external service 'provider' {said}" in caught.value.message
    assert str(child.log) in caught.value.message
    assert_gone(child)


async def test_a_child_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    """It has a bounded time to become ready."""
    child = Child(tmp_path, "exec sleep 60", ready_within_s=0.01)
    with pytest.raises(ConfigError, match=r"printed no port within 0\.01 s; see "):
        await child.process.start()
    assert_gone(child)


def assert_gone(child: Child) -> None:
    """Assert that no process is left."""
    assert child.process.pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(child.process.pid, 0)


async def test_a_child_begins_with_the_signals_of_a_shell(tmp_path: Path) -> None:
    """What its parent ignores or blocks ends it all the same: SIGTERM, and whatever else."""
    stops = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
    before = {each: signal.signal(each, signal.SIG_IGN) for each in stops}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        # By itself: for as long as a shell starts another program, it blocks all signals.
        tell = "while read -r line; do echo $line >&2; done < /proc/$$/status; "
        child = Child(tmp_path, tell + READY + "exec sleep 60")
        await child.process.start()
        await child.process.stop()
        with pytest.raises(ChildEnded, match="'provider' ended by SIGTERM; see "):
            await child.process.run()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for each, handler in before.items():
            signal.signal(each, handler)
    told = dict(re.findall(r"^(Sig\w+): (\w+)$", child.log.read_text(), re.MULTILINE))
    # 32 and 33 are the C library's own, which nobody can set.
    ours = ~(0b11 << 31)
    assert {int(told[what], 16) & ours for what in ("SigBlk", "SigIgn")} == {0}


async def test_a_child_that_was_stopped_before_it_was_watched_is_not_started_again(
    tmp_path: Path,
) -> None:
    """Its end is told first, whenever it was; only the next run starts another."""
    child = Child(tmp_path, READY + "exec sleep 60")
    await child.process.start()
    pid = child.process.pid
    await child.process.stop()
    with pytest.raises(ChildEnded, match="'provider' ended by SIGTERM; see "):
        await child.process.run()
    assert child.process.pid == pid
    watching = asyncio.ensure_future(child.process.run())
    while len(child.urls) < 2:
        await asyncio.sleep(0)
    assert child.process.pid != pid
    await child.process.stop()
    with pytest.raises(ChildEnded, match="by SIGTERM"):
        await watching


async def test_an_unknown_command_is_refused(tmp_path: Path) -> None:
    """What cannot be run at all is named."""
    process = ExternalProcess(
        "provider",
        command=["/no/such/program"],
        env={},
        folder=tmp_path,
        log=tmp_path / "log",
        moved=lambda url: None,
        stop_within_s=1.0,
    )
    with pytest.raises(ConfigError, match="'/no/such/program': No such file or directory; mend"):
        await process.start()
    await process.stop()


async def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """It is not the command that is wrong."""
    child = Child(tmp_path, "exit 0")
    child.log.mkdir()
    with pytest.raises(ConfigError, match=r"the log of .*child\.log: Is a directory"):
        await child.process.start()


async def test_a_child_that_ends_is_started_anew_by_the_next_run(tmp_path: Path) -> None:
    """`run` raises with how it ended; run again, it starts the child and tells its place."""
    child = Child(tmp_path, READY + "echo $$ > pid; sleep 0; exit 3")
    for _ in range(2):
        with pytest.raises(ChildEnded, match="'provider' ended with exit code 3; see"):
            await child.process.run()
    assert child.urls == ["http://127.0.0.1:8080"] * 2


async def test_what_a_child_prints_does_not_stop_it(tmp_path: Path) -> None:
    """A child that fills its pipe goes on, for what it prints is read and dropped."""
    child = Child(tmp_path, READY + "head -c 1000000 /dev/zero; exit 0")
    with pytest.raises(ChildEnded, match="exit code 0"):
        await child.process.run()


async def test_a_stubborn_child_is_killed_with_what_it_started(tmp_path: Path) -> None:
    """One that ignores SIGTERM is killed, and so is its own child."""
    script = "trap '' TERM; sleep 60 & echo $! > pid; " + READY + "while :; do sleep 60; done"
    child = Child(tmp_path, script, stop_within_s=0.01)
    await child.process.start()
    await child.process.stop()
    assert_gone(child)
    grandchild = int((tmp_path / "pid").read_text())
    await ended(grandchild)


async def ended(pid: int) -> None:
    """Wait until a process is gone, or is a zombie that nobody has asked after."""
    async with asyncio.timeout(5.0):
        while True:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except FileNotFoundError:
                return
            if state == "Z":
                return
            await asyncio.sleep(0)
