"""A service as a child process, as its supervisor sees it: started, watched, replaced, stopped."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from synchromesh.errors import BadRequest, ConfigError
from synchromesh.system.children import ChildEnded, die_with_parent, how_it_ended, signal_group
from synchromesh.system.process import Loaded, Orders, Ready, Unready

# By -m the module would be loaded twice, for its package imports it too.
MAIN = "from synchromesh.system.process import main; main()"

T = TypeVar("T", Loaded, Ready)

# The process before may take its 10 s to let go of the database.
READY_WITHIN_S = 20.0
# One process alone may take the 10 s of a stop; a system that stops has more to do in them.
REPLACED_WITHIN_S = 9.0
STOP_WITHIN_S = 5.0
LINE_BYTES_MAX = 65_536

_log = logging.getLogger("synchromesh.system")


class ServiceChild:
    """One service as a child process; `run` is a supervised loop.

    Args:
        name: the service.
        orders: makes what the process is told; given the port of the one before, or 0.
        folder: of the system.
        log: the file that takes what the process writes to standard output and error.
        gone: told the id of each process that has ended, at once.
        moved: told that the service listens at another port.
    """

    def __init__(
        self,
        name: str,
        *,
        orders: Callable[[int], Orders],
        folder: Path,
        log: Path,
        gone: Callable[[int], None],
        moved: Callable[[int], None],
    ) -> None:
        self._name = name
        self._orders = orders
        self._folder = folder
        self._log_path = log
        self._gone = gone
        self._moved = moved
        self._process: asyncio.subprocess.Process | None = None
        # One that is being replaced; it is stopped too.
        self._before: asyncio.subprocess.Process | None = None
        self._ready: Ready | None = None
        self._port = 0
        self._is_stopping = False

    @property
    def pid(self) -> int | None:
        """The id of the process that runs, or ran last."""
        return None if self._process is None else self._process.pid

    @property
    def admin_port(self) -> int | None:
        """Where the process answers its supervisor; None while it is not ready."""
        process = self._process
        if self._ready is None or process is None or process.returncode is not None:
            return None
        return self._ready.admin

    async def start(self) -> None:
        """Start the process and wait until the service is registered.

        Raises:
            ConfigError: it could not be started; the message says why, or names its log.
        """
        self._ready = None
        self._process = await self._spawn()
        await self._become(self._process, Loaded)
        self._note_ready(await self._become(self._process, Ready))

    async def run(self) -> None:
        """Watch the process until it ends, then raise; the next run starts it anew."""
        if self._process is None or self._process.returncode is not None:
            await self.start()
        while True:
            process = self._process
            assert process is not None
            code = await process.wait()
            self._gone(process.pid)
            if process is self._process:
                raise ChildEnded(
                    f"service {self._name!r} ended {how_it_ended(code)}; see {self._log_path}"
                )

    async def restart(self) -> None:
        """Replace the process by a new one, losing no call.

        The new one is loaded while the old one still answers, and takes over its database when that
        has drained; callers hold their calls in between. Where it cannot be loaded, the old stays.

        Raises:
            BadRequest: it is not running, or is being restarted.
            ConfigError: the new one could not be started.
        """
        before, ready = self._process, self._ready
        if before is None or self.admin_port is None or self._before is not None:
            raise BadRequest(f"service {self._name!r} is not running; wait until it is")
        self._before = before
        try:
            self._process = await self._spawn()
            self._ready = None
            await self._become(self._process, Loaded)
        except BaseException:
            # What was to be replaced still answers.
            self._process, self._ready, self._before = before, ready, None
            raise
        try:
            await _end(before, self._name, REPLACED_WITHIN_S)
            self._gone(before.pid)
        finally:
            self._before = None
        self._note_ready(await self._become(self._process, Ready))

    async def stop(self) -> None:
        """End the process: by SIGTERM, and by SIGKILL where it does not follow. May be repeated."""
        self._is_stopping = True
        for process in (self._before, self._process):
            if process is not None and process.returncode is None:
                await _end(process, self._name, STOP_WITHIN_S)

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        for process in (self._before, self._process):
            if process is not None and process.returncode is None:
                signal_group(process, signal.SIGKILL)

    async def _spawn(self) -> asyncio.subprocess.Process:
        if self._is_stopping:
            raise ChildEnded(f"service {self._name!r} is being stopped")
        orders = self._orders(self._port)
        try:
            with self._log_path.open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-c", MAIN),
                    cwd=self._folder,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    limit=LINE_BYTES_MAX,
                    preexec_fn=die_with_parent(),
                    start_new_session=True,
                )
        except OSError as error:
            raise ConfigError(
                f"service {self._name!r} cannot be started: {error}; its log is {self._log_path}"
            ) from error
        assert process.stdin is not None
        # It is not closed: its end tells the process that nobody looks after it any more.
        process.stdin.write(msgspec.json.encode(orders) + b"\n")
        return process

    def _note_ready(self, ready: Ready) -> None:
        self._ready = ready
        if self._port != ready.port:
            self._port = ready.port
            self._moved(ready.port)

    async def _become(self, process: asyncio.subprocess.Process, kind: type[T]) -> T:
        """Wait until the process says that it is so far; end it where it does not get there."""
        try:
            said = await self._said(process)
            if not isinstance(said, kind):
                raise self._unready(f"said {said} where {kind.__name__} was expected")
        except BaseException:
            await _end(process, self._name, STOP_WITHIN_S)
            self._gone(process.pid)
            raise
        return said

    async def _said(self, process: asyncio.subprocess.Process) -> Loaded | Ready:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                line = await process.stdout.readline()
                code = None if line else await process.wait()
        except TimeoutError:
            raise self._unready(f"was not ready within {READY_WITHIN_S:g} s") from None
        except ValueError:
            raise self._unready(f"said more than {LINE_BYTES_MAX} bytes") from None
        if code is not None:
            raise self._unready(f"ended {how_it_ended(code)} before it was ready")
        said = msgspec.json.decode(line, type=Loaded | Ready | Unready)
        if isinstance(said, Unready):
            raise ConfigError(f"service {self._name!r}: {said.message}")
        return said

    def _unready(self, why: str) -> ConfigError:
        return ConfigError(f"service {self._name!r} {why}; see {self._log_path}")

    def __repr__(self) -> str:
        return f"<ServiceChild {self._name} pid {self.pid}>"


async def _end(process: asyncio.subprocess.Process, name: str, within_s: float) -> None:
    signal_group(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(within_s):
            await process.wait()
    except TimeoutError:
        _log.warning("service %s did not stop on SIGTERM and is killed", name)
        signal_group(process, signal.SIGKILL)
        await process.wait()
