"""Starts the processes of parts: by the fork server where there is one, or as new interpreters.

Wherever a fork would not be what a new interpreter is, one is started instead.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from pathlib import Path

from synchromesh.system.supervise.children import RunningProcess, open_log, spawn
from synchromesh.system.supervise.forks import ForkServer
from synchromesh.system.supervise.linked_process import Link, LinkedProcess
from synchromesh.system.supervise.messages import NotForked

# -P: the system's folder comes on the import path when its services are loaded, and not before. By
# -m the module would be loaded twice, for its package imports it too.
MAIN = "from synchromesh.system.host.process import main; raise SystemExit(main())"

_log = logging.getLogger("synchromesh.system")


class Launcher:
    """Starts processes of parts in a folder.

    Args:
        forks: forks them; None where each is a new interpreter.
    """

    def __init__(self, folder: Path, forks: ForkServer | None = None) -> None:
        self._folder = folder
        self._forks = forks

    async def launch(self, title: str, *, log: Path, handle: int = -1) -> LinkedProcess:
        """Start a process, which waits for its spec.

        Args:
            title: what it is called in words.
            log: takes what it writes to standard output and error.
            handle: a socket that it inherits, by the same number; -1 for none.

        Raises:
            ConfigError: it cannot be run, or its log cannot be written.
        """
        ours, theirs = socket.socketpair()
        with theirs, open_log(log, title) as errors:
            # Before there is a process: from then on nothing is waited for.
            loop = asyncio.get_running_loop()
            _, link = await loop.create_unix_connection(Link, sock=ours)
            handles = [theirs.fileno(), errors.fileno(), *([handle] if handle >= 0 else ())]
            try:
                process: RunningProcess | None = await self._fork(handles, handle, title)
                if process is None:
                    process = await spawn(
                        (sys.executable, "-P", "-c", MAIN),
                        title=title,
                        folder=self._folder,
                        log=errors,
                        link=theirs.fileno(),
                        handle=handle,
                    )
            except BaseException:
                link.transport.close()
                raise
        return LinkedProcess(process, link)

    async def _fork(self, handles: list[int], handle: int, title: str) -> RunningProcess | None:
        """Fork a process; None where there has to be a new interpreter."""
        if self._forks is None:
            return None
        forked = await self._forks.fork(handles, handle)
        if isinstance(forked, NotForked):
            _log.warning("%s is started as a new interpreter: %s", title, forked.reason)
            return None
        return forked

    def __repr__(self) -> str:
        return f"<Launcher in {self._folder}>"
