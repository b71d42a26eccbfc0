"""Spawning and ending child processes, which die with their parent and end as groups."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from synchromesh.errors import ConfigError
from synchromesh.service import PartEnded
from synchromesh.system.supervise.stop_budget import KILLED_WITHIN_S

_PR_SET_PDEATHSIG = 1
_log = logging.getLogger("synchromesh.system")


class ChildEnded(PartEnded):
    """Raised when a child process has ended by itself."""


class ChildHung(ChildEnded):
    """Raised when a child process was killed because it hung."""


def die_with_parent(number: int = signal.SIGKILL) -> Callable[[], Any] | None:
    """Return a `preexec_fn` by which the kernel ends a child with this process (PR_SET_PDEATHSIG).

    None where there is no such thing: it is Linux's.
    """
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    # Loaded before the fork: between fork and exec no lock may be taken.
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def ask_to_die() -> None:
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it died before it could be watched

    return ask_to_die


def begin_child(number: int = signal.SIGKILL) -> Callable[[], Any]:
    """Return the `preexec_fn` of a child that begins as a shell starts it, and dies with us.

    What this process ignores or blocks goes on being ignored and blocked beyond `exec`, and who
    starts it may have left it so: a child that never hears of SIGTERM would be killed at each stop.
    Python's own `restore_signals` is for three signals, and none of them stops a process.

    Args:
        number: the signal that ends it where this process died; see `die_with_parent`.
    """
    die = die_with_parent(number)
    catchable = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}

    def begin() -> None:
        for each in catchable:
            signal.signal(each, signal.SIG_DFL)
        # Last: what came meanwhile acts now, as it would on any new process.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if die is not None:
            die()

    return begin


class RunningProcess(Protocol):
    """A child process, or a child's, as `asyncio.subprocess.Process` tells of it."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def returncode(self) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None."""
        ...

    async def wait(self) -> int:
        """Wait for its end, and return the code."""
        ...


# A child that has written more begins a new file at its next start, and the one before is kept.
LOG_BYTES_MAX = 10_000_000


def open_log(log: Path, title: str) -> BinaryIO:
    """Open what takes the output of a child.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
            log.replace(log.with_name(f"{log.name}.1"))
        return log.open("ab")
    except OSError as error:
        raise ConfigError(
            f"the log of {title} cannot be written: {log}: {error.strerror}"
        ) from error


async def spawn(
    command: Sequence[str],
    *,
    title: str,
    folder: Path,
    log: BinaryIO,
    env: Mapping[str, str] | None = None,
    link: int = -1,
    handle: int = -1,
    line_bytes_max: int = 0,
) -> asyncio.subprocess.Process:
    """Start a child in a process group of its own, as `begin_child` says, with stderr in a log.

    Args:
        title: what it is called in words.
        env: its environment; None for this process's own.
        link: the descriptor of its standard input, with stdout in the log; -1 for an empty input,
            with stdout as a pipe.
        handle: a descriptor that it inherits.
        line_bytes_max: of the pipe.

    Raises:
        ConfigError: it cannot be run.
    """
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env=env,
            stdin=asyncio.subprocess.DEVNULL if link < 0 else link,
            stdout=asyncio.subprocess.PIPE if link < 0 else log,
            stderr=log,
            limit=line_bytes_max,
            pass_fds=() if handle < 0 else (handle,),
            preexec_fn=begin_child(),
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigError(
            f"{title} cannot be started: {command[0]!r}: {error.strerror}; mend its command"
        ) from error


async def end(process: RunningProcess, title: str, *patience_s: float) -> None:
    """End a child: by one SIGTERM for each bound in turn, and then by SIGKILL."""
    for wait_s in patience_s:
        signal_group(process, signal.SIGTERM)
        try:
            async with asyncio.timeout(wait_s):
                await process.wait()
                return
        except TimeoutError:
            _log.info("%s has not ended within %g s", title, wait_s)
    _log.warning("%s did not stop on SIGTERM and is killed", title)
    signal_group(process, signal.SIGKILL)
    try:
        async with asyncio.timeout(KILLED_WITHIN_S):
            await process.wait()
    except TimeoutError:
        _log.error("%s was killed, but its end has not been seen", title)


def let_go(process: asyncio.subprocess.Process) -> None:
    """Close what is left of a child that has ended: a pipe that nobody has read to its end."""
    # There is no public way to: loops leave that to the collector, and uvloop's to their own end.
    process._transport.close()  # type: ignore[attr-defined]


def how_it_ended(code: int) -> str:
    """Describe how a process has ended, by its exit code."""
    return f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"


def is_traced(pid: int) -> bool:
    """Say whether something traces a process, such as a debugger; False where nobody can tell."""
    return _told_of(pid, "TracerPid") not in ("", "0")


def is_stopped(pid: int) -> bool:
    """Say whether a process was stopped by a signal (SIGSTOP); False where nobody can tell."""
    return _told_of(pid, "State").startswith("T")


def _told_of(pid: int, name: str) -> str:
    """Return what Linux tells of a process under a name; "" where it does not."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return ""
    return status.partition(f"\n{name}:".encode())[2].partition(b"\n")[0].decode().strip()


def signal_group(process: RunningProcess, number: int) -> None:
    """Send a signal to a child's process group; does nothing where it has ended."""
    try:
        # The child leads a group of its own: what it has started is stopped with it.
        os.killpg(process.pid, number)
    except ProcessLookupError:
        _log.debug("process %s has already ended", process.pid)
