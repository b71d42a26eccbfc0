"""External services that the system runs as child processes.

A child dies with its parent, however that dies, and is started again when it ends.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from synchromesh.errors import ConfigError
from synchromesh.system.supervise.children import (
    ChildEnded,
    end,
    how_it_ended,
    let_go,
    open_log,
    spawn,
)

READY_WITHIN_S = 10.0
LINE_BYTES_MAX = 4096


class ReadyLine(msgspec.Struct, frozen=True):
    """The line of JSON that a child prints when it is ready."""

    port: int


class ExternalProcess:
    """One external service as a child process; `run` is a supervised loop.

    Args:
        command, env: what is run; `env` is added to this process's environment.
        log: the file that takes what the child writes to standard error.
        moved: called with the URL after each start: a child may come back at another port.
        ready_within_s: how long a child may take until it says its port.
        stop_within_s: how long it may take to end after SIGTERM.

    Attributes:
        name: the external service.
    """

    def __init__(
        self,
        name: str,
        *,
        command: list[str],
        env: dict[str, str],
        folder: Path,
        log: Path,
        moved: Callable[[str], None],
        stop_within_s: float,
        ready_within_s: float = READY_WITHIN_S,
    ) -> None:
        self.name = name
        self._title = f"external service {name!r}"
        self._command = command
        self._env = {**os.environ, **env}
        self._folder = folder
        self._log_path = log
        self._moved = moved
        self._ready_within_s = ready_within_s
        self._stop_within_s = stop_within_s
        self._process: asyncio.subprocess.Process | None = None
        # Whether there is nothing of the last child that `run` has yet to tell.
        self._is_told = True

    @property
    def pid(self) -> int | None:
        """The child's process id; None while it does not run."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the child and wait until it is ready.

        Raises:
            ConfigError: it cannot be run, or was not ready in time; the message names its log.
        """
        self._is_told = True
        with open_log(self._log_path, self._title) as log:
            self._process = await spawn(
                self._command,
                title=self._title,
                folder=self._folder,
                log=log,
                env=self._env,
                line_bytes_max=LINE_BYTES_MAX,
            )
        try:
            port = await self._port()
        except BaseException:
            await self.stop()
            raise
        self._is_told = False
        self._moved(f"http://127.0.0.1:{port}")

    async def _port(self) -> int:
        """Read the port from the child's first line."""
        assert self._process is not None
        try:
            async with asyncio.timeout(self._ready_within_s):
                line = await self._stdout().readline()
                code = None if line else await self._process.wait()
        except TimeoutError:
            raise self._unready(f"printed no port within {self._ready_within_s:g} s") from None
        except ValueError:
            raise self._unready(f"printed a first line above {LINE_BYTES_MAX} bytes") from None
        if code is not None:
            raise self._unready(f"ended {how_it_ended(code)} before it printed its port")
        try:
            port = msgspec.json.decode(line, type=ReadyLine).port
        except msgspec.MsgspecError:
            port = 0
        if not 0 < port <= 65_535:
            raise self._unready('printed no line such as {"port": 8080} first')
        return port

    def _unready(self, why: str) -> ConfigError:
        return ConfigError(f"{self._title} {why}; see {self._log_path}")

    async def run(self) -> None:
        """Watch the child until it ends, then raise; the next run restarts it.

        An end that came before is raised, too: whoever stopped the child meanwhile finds no other.
        """
        if self._is_told:
            await self.start()
        process = self._process
        assert process is not None
        # What it prints is read for ever, or a full pipe would stop it.
        while await self._stdout().read(LINE_BYTES_MAX):
            pass
        code = await process.wait()
        let_go(process)
        self._is_told = True
        raise ChildEnded(f"{self._title} ended {how_it_ended(code)}; see {self._log_path}")

    async def restart(self) -> None:
        """Stop the child, and start another. Raises as `start` does."""
        await self.stop()
        await self.start()

    async def stop(self) -> None:
        """Stop the child: by SIGTERM, then by SIGKILL at the deadline. May be repeated."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        await end(process, self._title, self._stop_within_s)
        let_go(process)

    def _stdout(self) -> asyncio.StreamReader:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout

    def __repr__(self) -> str:
        return f"<ExternalProcess {self.name} pid {self.pid}>"
