"""A server of somebody else's that the system runs as a child process, such as a database's.

It dies with its parent, however that dies, and is started again when it ends.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from synchromesh.errors import ConfigError
from synchromesh.system.supervise.children import (
    ChildEnded,
    begin_child,
    end,
    how_it_ended,
    open_log,
)
from synchromesh.system.supervise.stop_budget import StopBudget, budget_beside

READY_WITHIN_S = 60.0
# Where no system says how long all of it may take.
BY_ITSELF = budget_beside(engines=True, applications=False)
_LOOK_EVERY_S = 0.02
_log = logging.getLogger("synchromesh.system")


class ServerProcess:
    """One server as a child process; `run` is a supervised loop.

    Args:
        title: what messages call it.
        command: what is run, in `folder`.
        log: the file that takes what it prints.
        is_ready: whether the process of that number serves.
        stops_by: the signal that ends it in order.
        dies_by: the one that the kernel sends where the parent died; it ends at once, and loses
            nothing that it has acknowledged.
    """

    def __init__(
        self,
        title: str,
        command: Sequence[str],
        *,
        folder: Path,
        log: Path,
        is_ready: Callable[[int], bool],
        stops_by: signal.Signals = signal.SIGTERM,
        dies_by: signal.Signals = signal.SIGKILL,
    ) -> None:
        self._title = title
        self._command = command
        self._folder = folder
        self._log = log
        self._is_ready = is_ready
        self._stops_by = stops_by
        self._dies_by = dies_by
        self._process: asyncio.subprocess.Process | None = None
        # Whether there is nothing of the last one that `run` has yet to tell.
        self._is_told = True

    @property
    def pid(self) -> int | None:
        """Its process id; None before it was started."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start it, and wait until it serves.

        Raises:
            ConfigError: it cannot be run, or does not serve in time; the message names its log.
        """
        self._is_told = True
        with open_log(self._log, self._title) as log:
            try:
                # No pipe of its output: what it has started would hold that open.
                self._process = process = await asyncio.create_subprocess_exec(
                    *self._command, cwd=self._folder, stdin=asyncio.subprocess.DEVNULL,
                    stdout=log, stderr=log, start_new_session=True,
                    preexec_fn=begin_child(self._dies_by),
                )  # fmt: skip
            except OSError as error:
                raise self._unready(f"cannot be started: {error.strerror}") from error
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                while not self._is_ready(process.pid):
                    if process.returncode is not None:
                        raise self._unready(f"ended {how_it_ended(process.returncode)}")
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            await self.stop()
            raise self._unready(f"does not serve after {READY_WITHIN_S:g} s") from None
        except BaseException:
            await self.stop()
            raise
        self._is_told = False

    async def run(self) -> None:
        """Watch it until it ends, then raise; the next run starts it again.

        An end that came before is raised, too.
        """
        if self._is_told:
            await self.start()
        process = self._process
        assert process is not None
        code = await process.wait()
        self._is_told = True
        raise ChildEnded(f"{self._title} ended {how_it_ended(code)}; see {self._log}")

    async def stop(self, budget: StopBudget = BY_ITSELF) -> None:
        """Stop it: in order, then as where the parent died, then by SIGKILL. May be repeated."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        for number, within_s in (
            (self._stops_by, budget.engine_s), (self._dies_by, budget.engine_dies_s),
        ):  # fmt: skip
            # To itself alone: what it has started it ends itself.
            process.send_signal(number)
            try:
                async with asyncio.timeout(within_s):
                    await process.wait()
                    return
            except TimeoutError:
                _log.info("%s has not ended %g s after %s", self._title, within_s, number.name)
        await end(process, self._title)

    def _unready(self, why: str) -> ConfigError:
        return ConfigError(f"{self._title} {why}; see {self._log}")

    def __repr__(self) -> str:
        return f"<ServerProcess {self._title} pid {self.pid}>"
