"""What all child processes of a system share: they die with their parent, and end as groups."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1
_log = logging.getLogger("synchromesh.system")


class ChildEnded(Exception):
    """Tells that a child process has ended by itself."""


def die_with_parent() -> Callable[[], Any] | None:
    """Return what makes the kernel kill a child when this process dies (PR_SET_PDEATHSIG).

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


def how_it_ended(code: int) -> str:
    """Say how a process has ended, by its code."""
    return f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"


def signal_group(process: asyncio.subprocess.Process, number: int) -> None:
    """Send a signal to a child and all that it has started; nothing where it has ended."""
    try:
        # The child leads a group of its own: what it has started is stopped with it.
        os.killpg(process.pid, number)
    except ProcessLookupError:
        _log.debug("process %s has already ended", process.pid)
