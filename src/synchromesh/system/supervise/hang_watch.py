"""The shell around `Liveness`: asks the processes of a system, and replaces those that hang.

The supervisor writes an empty line to the link of a process, whose event loop writes one back. One
that is stopped, or whose loop is blocked, does not (R6).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from synchromesh.clock import loop_now
from synchromesh.system.supervise.children import is_stopped, is_traced
from synchromesh.system.supervise.liveness import EVERY_S, Liveness

_log = logging.getLogger("synchromesh.system")


class Askable(Protocol):
    """A process that can be asked for a sign of life: a `LinkedProcess`."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def has_answered(self) -> bool:
        """Whether its event loop has answered since it was asked."""
        ...

    def ask(self) -> None:
        """Ask for a sign of life."""
        ...


class Watched(Protocol):
    """A part that may hang: a `ChildProcess`."""

    @property
    def title(self) -> str:
        """What it is called in words."""
        ...

    @property
    def answering(self) -> Askable | None:
        """The process that serves; None while there is none."""
        ...

    def replace_hung(self) -> None:
        """Kill the process that serves, for another to be started."""
        ...


class HangWatch:
    """Finds processes that hang; `run` is a supervised loop.

    Args:
        parts: returns the parts to watch, by name.
        hang_s: for how long a process may be silent until it is replaced.
        wall_us: the wall clock.
        on_suspect: called with the name of a part, the id of its process, and whether that is
            suspected of being hung: at each round while it is, and once when it is no longer.
        is_traced: whether a debugger holds the process of that id.
        is_stopped: whether a signal has stopped it.
    """

    def __init__(
        self,
        parts: Callable[[], Mapping[str, Watched]],
        *,
        hang_s: float,
        wall_us: Callable[[], int],
        on_suspect: Callable[[str, int, bool], None],
        is_traced: Callable[[int], bool] = is_traced,
        is_stopped: Callable[[int], bool] = is_stopped,
    ) -> None:
        self._parts = parts
        self._hang_s = hang_s
        self._wall_us = wall_us
        self._on_suspect = on_suspect
        self._is_traced = is_traced
        self.is_stopped = is_stopped
        self._liveness = Liveness[Askable](hang_s)

    async def run(self) -> None:
        """Ask all processes, and judge their silence, until it is cancelled."""
        while True:
            self._round()
            await asyncio.sleep(EVERY_S)

    def silence(self, process: Askable) -> str:
        """Say in words for how long a process has been silent; "" for one that is no suspect."""
        silent_s = self._liveness.silent_s(process, loop_now())
        if not silent_s:
            return ""
        until = f"it is replaced after {self._hang_s:g} s"
        if self._is_traced(process.pid):
            until = "it is not replaced while a debugger traces it"
        elif self.is_stopped(process.pid):
            until = f"a signal has stopped it: kill -CONT {process.pid} lets it go on; {until}"
        return f"its event loop has answered nothing for {silent_s:.1f} s; {until}"

    def _round(self) -> None:
        names: dict[Askable, str] = {}
        parts = self._parts()
        for name, part in parts.items():
            if (process := part.answering) is not None:
                names[process] = name
        found = self._liveness.judge(
            names,
            answered=[each for each in names if each.has_answered],
            traced=[e for e in names if not e.has_answered and self._is_traced(e.pid)],
            now=loop_now(),
            wall_s=self._wall_us() / 1e6,
        )
        for process in found.ask:
            process.ask()
        for process in found.suspected:
            _log.warning(
                "%s, process %d, is silent: its event loop is blocked, or it is stopped; no calls "
                "go there while another instance is ready",
                parts[names[process]].title,
                process.pid,
            )
        for process in found.cleared:
            _log.info("%s, process %d, answers again", parts[names[process]].title, process.pid)
            self._on_suspect(names[process], process.pid, False)
        for process in self._liveness.suspects:
            # Also one that has registered anew since.
            self._on_suspect(names[process], process.pid, True)
        for process in found.hung:
            part = parts[names[process]]
            _log.error(
                "%s, process %d, hung for %g s and is replaced",
                part.title,
                process.pid,
                self._hang_s,
            )
            part.replace_hung()

    def __repr__(self) -> str:
        return f"<HangWatch {self._liveness!r}>"
