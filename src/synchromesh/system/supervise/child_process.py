"""A part of a system as a child process, as its supervisor sees it.

It is started, watched, replaced and stopped; which process is the current one, and what may happen
to it, says `succession`. What runs in it is `process`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from synchromesh.errors import BadRequest, ConfigError
from synchromesh.service import RestartsExhausted
from synchromesh.system.supervise.children import (
    ChildEnded,
    ChildHung,
    end,
    how_it_ended,
    signal_group,
)
from synchromesh.system.supervise.launcher import Launcher
from synchromesh.system.supervise.linked_process import LINE_BYTES_MAX, LinkedProcess
from synchromesh.system.supervise.messages import (
    FAILED,
    FAILED_SAYS,
    Loaded,
    Migrates,
    ProcessSpec,
    Ready,
    StartFailed,
)
from synchromesh.system.supervise.stop_budget import StopBudget
from synchromesh.system.supervise.succession import Event, State, Succession

# The process before may take its 10 s to let go of the database.
READY_WITHIN_S = 120.0

_log = logging.getLogger("synchromesh.system")
_migrations = logging.getLogger("synchromesh.migrations")


class ChildProcess:
    """One part of a system as a child process; `run` is a supervised loop.

    Args:
        title: what it is called in words, such as "service 'orders'".
        spec: makes the spec of a new process; given the port of its predecessor, or 0.
        launcher: starts them.
        log: the file that takes what the process writes to standard output and error.
        on_exit: called at once with the id of each process that has ended.
        on_moved: called with its URL when that, or that of its admin listener, is another.
        stop_within_s: how long it may take to end when the system stops.
        budget: how long it may take otherwise.
    """

    def __init__(
        self,
        title: str,
        *,
        spec: Callable[[int], ProcessSpec],
        launcher: Launcher,
        log: Path,
        on_exit: Callable[[int], None],
        on_moved: Callable[[str], None],
        stop_within_s: float,
        budget: StopBudget = StopBudget(),  # noqa: B008  frozen
    ) -> None:
        self._title = title
        self._spec = spec
        self._launcher = launcher
        self._log_path = log
        self._on_exit = on_exit
        self._on_moved = on_moved
        self._stop_within_s = stop_within_s
        self._budget = budget
        self._succession: Succession[LinkedProcess] = Succession()
        self._replacing: asyncio.Task[None] | None = None
        self._hung: LinkedProcess | None = None
        # The report of the last process that became ready.
        self._ready = Ready(0, "", "")
        self._settled = asyncio.Event()
        self._settled.set()

    @property
    def pid(self) -> int | None:
        """The id of the process that runs, or ran last."""
        process = self._succession.current
        return None if process is None else process.pid

    @property
    def is_running(self) -> bool:
        """True while there is a process, ready or not."""
        process = self._succession.current
        return process is not None and process.returncode is None

    @property
    def url(self) -> str:
        """The last known URL; "" before it was first ready."""
        return self._ready.url

    @property
    def admin_url(self) -> str:
        """The last known URL of its admin listener; "" before it was first ready."""
        return self._ready.admin

    @property
    def copied(self) -> dict[str, Any] | None:
        """What the process that serves had copied before; None where it had not."""
        return self._ready.copied

    @property
    def title(self) -> str:
        """What it is called in words."""
        return self._title

    @property
    def answering(self) -> LinkedProcess | None:
        """The process that serves; None while there is none."""
        process = self._succession.answering
        return None if process is None or process.returncode is not None else process

    @property
    def control_port(self) -> int | None:
        """The port of the process's control API; None while it is not ready."""
        return None if self.answering is None else self._ready.control

    async def settle(self, within_s: float) -> None:
        """Wait until no process of this part is starting, at most `within_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._settled.wait()

    async def start(self, *, on_migrates: Callable[[], None] = lambda: None) -> None:
        """Start the process and wait until it is ready.

        Args:
            on_migrates: called when it reports that it migrates, which may take long.

        Raises:
            ConfigError: it could not be started; the message says why, or names its log.
        """
        self._refuse_when_stopping()
        self._apply(Event.ASKED)
        await self._launch(on_migrates)

    async def run(self) -> None:
        """Watch the process until it ends, then raise; the next run restarts it."""
        if self._replacing is not None:
            # It may have ended while its successor was being made: there must not be two.
            await asyncio.wait([self._replacing])
        if not self.is_running:
            await self.start()
        while True:
            process = self._succession.current
            assert process is not None
            code = await process.wait()
            self._note_ended()
            if process is self._succession.current:
                if code == FAILED:
                    raise RestartsExhausted(
                        f"{self._failure_reason() or self._title}; see {self._log_path}"
                    )
                how = f"ended {how_it_ended(code)}; see {self._log_path}"
                if process is self._hung:
                    raise ChildHung(f"{self._title} hung and {how}")
                raise ChildEnded(f"{self._title} {how}")

    def _failure_reason(self) -> str:
        """Return the failure that the process logged last; "" where it cannot be read."""
        try:
            lines = self._log_path.read_text(errors="replace")[-LINE_BYTES_MAX:].splitlines()
        except OSError:
            return ""
        report = [line for line in lines if line.startswith(FAILED_SAYS)]
        return report[-1].removeprefix(FAILED_SAYS) if report else ""

    async def restart(self) -> None:
        """Restart the process without losing a call.

        The new one is loaded while the old one still answers. A service takes over its database
        when the old one has drained, and callers hold their calls in between; a gateway serves
        beside the old one, which then drains. One that cannot be loaded replaces nothing.

        Raises:
            BadRequest: it is not running, or is being restarted.
            ConfigError: the new one could not be started.
        """
        self._note_ended()
        if self._succession.state is not State.UP:
            raise BadRequest(
                f"{self._title} is not running, or is being restarted; wait until it is up"
            )
        self._refuse_when_stopping()
        self._apply(Event.ASKED)
        self._replacing = asyncio.ensure_future(self._launch())
        # Whoever asked may be gone half-way; what is begun is ended all the same.
        self._replacing.add_done_callback(self._note_replaced)
        await asyncio.shield(self._replacing)

    async def _launch(self, on_migrates: Callable[[], None] = lambda: None) -> None:
        """Start the requested process, and end its predecessor as soon as it may end."""
        try:
            process = await self._spawn()
        except BaseException:
            self._apply(Event.NOT_MADE)
            raise
        self._succession.started(process)
        report: Migrates | Loaded | Ready = Loaded()
        migrates = False
        while not isinstance(report, Ready):
            report = await self._next_report(process, migrates=migrates)
            if isinstance(report, Migrates):
                migrates = True
                on_migrates()
                continue
            self._note_report(report)
            if (leaving := self._succession.leaving) is not None:
                await self._end(leaving, self._budget.replaced_s)
                self._note_ended()

    def _note_report(self, report: Loaded | Ready) -> None:
        if isinstance(report, Loaded):
            self._apply(Event.LOADED)
            return
        self._apply(Event.READY)
        before, self._ready = self._ready, report
        if (before.url, before.admin) != (report.url, report.admin):
            self._on_moved(report.url)

    def _note_ended(self) -> None:
        """Record which processes have ended, watched or not."""
        for process in self._succession.running:
            if process.returncode is not None:
                self._succession.exited(process)
                self._on_exit(process.pid)
        self._note_settled()

    def _apply(self, event: Event) -> None:
        # What has ended did so before.
        self._note_ended()
        self._succession.apply(event)
        self._note_settled()

    def _note_settled(self) -> None:
        if self._succession.is_settled:
            self._settled.set()
        else:
            self._settled.clear()

    def _note_replaced(self, replacing: asyncio.Task[None]) -> None:
        if not replacing.cancelled() and replacing.exception() is not None:
            _log.error("%s was not replaced: %s", self._title, replacing.exception())

    async def stop(self) -> None:
        """Stop the process: by SIGTERM, then by SIGKILL at the deadline. May be repeated."""
        self._succession.is_stopping = True
        await asyncio.gather(
            *(
                self._end(process, self._stop_within_s)
                for process in self._succession.running
                if process.returncode is None
            )
        )
        if self._replacing is not None:
            # It ends what it has started, now that this one is being stopped.
            await asyncio.wait([self._replacing])

    def kill(self) -> None:
        """Kill the process."""
        for process in self._succession.running:
            if process.returncode is None:
                signal_group(process, signal.SIGKILL)

    def replace_hung(self) -> None:
        """Kill the process that serves; its successor is started as that of any that has ended."""
        self._hung = self.answering
        if self._hung is not None:
            signal_group(self._hung, signal.SIGKILL)

    def _refuse_when_stopping(self) -> None:
        if self._succession.is_stopping:
            raise ChildEnded(f"{self._title} is being stopped")

    async def _spawn(self) -> LinkedProcess:
        self._refuse_when_stopping()
        spec = self._spec(int(self.url.rpartition(":")[2] or 0))
        process = await self._launcher.launch(self._title, log=self._log_path, handle=spec.handle)
        process.send(msgspec.json.encode(spec))
        return process

    async def _next_report(
        self, process: LinkedProcess, *, migrates: bool
    ) -> Migrates | Loaded | Ready:
        """Wait for the next report of a starting process; end a process that fails to start."""
        try:
            self._refuse_when_stopping()
            return await self._read_report(process, migrates=migrates)
        except BaseException:
            await self._end(process, self._budget.unready_s)
            self._note_ended()
            raise

    async def _read_line(self, process: LinkedProcess, *, migrates: bool) -> bytes:
        """Wait for the next line, in time; whoever migrates has the time that it takes.

        How long that is nobody knows, and to end it makes its rows be moved from the beginning.
        """
        while True:
            try:
                async with asyncio.timeout(READY_WITHIN_S):
                    line = await process.readline()
                    if not line:
                        await process.wait()
                    return line
            except TimeoutError:
                if not migrates:
                    raise self._unready(f"was not ready within {READY_WITHIN_S:g} s") from None
            except ValueError:
                raise self._unready(f"wrote more than {LINE_BYTES_MAX} bytes") from None
            _migrations.warning(
                "%s still runs the migrations of its database, or copies it, and is ready after "
                "that; what it has done so far is lost if it is stopped before",
                self._title,
            )

    async def _read_report(
        self, process: LinkedProcess, *, migrates: bool
    ) -> Migrates | Loaded | Ready:
        line = await self._read_line(process, migrates=migrates)
        report = (
            msgspec.json.decode(line, type=Migrates | Loaded | Ready | StartFailed)
            if line
            else None
        )
        if isinstance(report, StartFailed):
            is_titled = report.message.startswith(f"{self._title} ")
            raise ConfigError(report.message if is_titled else f"{self._title}: {report.message}")
        # A process that has ended is not ready, whatever its last report was.
        if report is None or process.returncode is not None:
            raise self._unready(
                f"ended {how_it_ended(process.returncode or 0)} before it was ready"
            )
        return report

    async def _end(self, process: LinkedProcess, within_s: float) -> None:
        """End a process: SIGTERM to drain, SIGTERM to hurry, then SIGKILL."""
        hurry_s = min(self._budget.hurry_s, within_s / 2)
        await end(process, self._title, within_s - hurry_s, hurry_s)

    def _unready(self, why: str) -> ConfigError:
        return ConfigError(f"{self._title} {why}; see {self._log_path}")

    def __repr__(self) -> str:
        return f"<ChildProcess {self._title} pid {self.pid}>"
