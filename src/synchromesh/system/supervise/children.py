"""Spawning and ending child processes, which die with their parent and end as groups."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synchromesh.errors import ConfigError

_PR_SET_PDEATHSIG = 1
_log = logging.getLogger("synchromesh.system")


class ChildEnded(Exception):
    """Raised when a child process has ended by itself."""


def die_with_parent() -> Callable[[], Any] | None:
    """Return a `preexec_fn` by which the kernel kills a child with this process (PR_SET_PDEATHSIG).

    None where there is no such thing: it is Linux's.
    """
    if not sys.platform.startswith("linux"):
        return None
    # Loaded before the fork: between fork and exec no lock may be taken.
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def ask_to_die() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it died before it could be watched

    return ask_to_die


async def spawn(
    command: Sequence[str],
    *,
    title: str,
    folder: Path,
    log: Path,
    env: Mapping[str, str] | None = None,
    has_stdin: bool = False,
    handle: int = -1,
    line_bytes_max: int,
) -> asyncio.subprocess.Process:
    """Start a child in a process group of its own, with stdout as a pipe and stderr in a log.

    Args:
        title: what it is called in words.
        env: its environment; None for this process's own.
        has_stdin: whether its standard input is a pipe; else it is empty.
        handle: a descriptor that it inherits.

    Raises:
        ConfigError: it cannot be run, or its log cannot be written.
    """
    try:
        errors = log.open("ab")
    except OSError as error:
        raise ConfigError(
            f"the log of {title} cannot be written: {log}: {error.strerror}"
        ) from error
    try:
        with errors:
            return await asyncio.create_subprocess_exec(
                *command,
                cwd=folder,
                env=env,
                stdin=asyncio.subprocess.PIPE if has_stdin else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=line_bytes_max,
                pass_fds=() if handle < 0 else (handle,),
                preexec_fn=die_with_parent(),
                start_new_session=True,
            )
    except OSError as error:
        raise ConfigError(
            f"{title} cannot be started: {command[0]!r}: {error.strerror}; mend its command"
        ) from error


async def end(process: asyncio.subprocess.Process, title: str, *patience_s: float) -> None:
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
    await process.wait()


def how_it_ended(code: int) -> str:
    """Describe how a process has ended, by its exit code."""
    return f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"


def signal_group(process: asyncio.subprocess.Process, number: int) -> None:
    """Send a signal to a child's process group; does nothing where it has ended."""
    try:
        # The child leads a group of its own: what it has started is stopped with it.
        os.killpg(process.pid, number)
    except ProcessLookupError:
        _log.debug("process %s has already ended", process.pid)
