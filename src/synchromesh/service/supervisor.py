"""Supervises background loops: restarts what fails, and escalates what keeps failing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from synchromesh.resilience import is_being_cancelled
from synchromesh.service.restarts import RestartOptions, Restarts
from synchromesh.telemetry.span import status_of

_log = logging.getLogger("synchromesh.service")


@dataclass(frozen=True, slots=True)
class Child:
    """A child spec: a background loop, and the function that makes its coroutine at each start."""

    name: str
    run: Callable[[], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class ChildState:
    """The state of a child as the control API shows it: "running", "restarting" or "failed"."""

    state: str = "running"
    restarts: int = 0
    last_error: str = ""


class RestartsExhausted(Exception):
    """Raised by a child that has used up restarts of its own: another would not help."""


class Supervisor:
    """Runs children until it is closed; one that fails too often escalates.

    Args:
        name: whose children they are.
        escalate: told the child's name and error once its restarts are used up; the child stays
            down and is shown as failed.
        options: the restart intensity.
    """

    def __init__(
        self,
        name: str,
        *,
        escalate: Callable[[str, BaseException], None],
        options: RestartOptions | None = None,
    ) -> None:
        self._name = name
        self._escalate = escalate
        self._options = options or RestartOptions()
        self._tasks: list[asyncio.Task[None]] = []
        self.states: dict[str, ChildState] = {}

    def start(self, child: Child) -> None:
        """Start a child and keep it running."""
        self.states[child.name] = ChildState()
        self._tasks.append(
            asyncio.get_running_loop().create_task(
                self._keep(child), name=f"{self._name}/{child.name}"
            )
        )

    @property
    def is_healthy(self) -> bool:
        """False once a child has escalated."""
        return all(state.state != "failed" for state in self.states.values())

    async def close(self) -> None:
        """Cancel all children and wait until they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _keep(self, child: Child) -> None:
        restarts = Restarts(self._options)
        state = self.states[child.name]
        while True:
            # No local keeps the error: on CPython 3.12.1 and 3.13.0 its traceback leads by `f_back`
            # to this frame, so that only the collector would free both.
            pause_s = self._failed(child, await _end_of(child), restarts)
            if pause_s is None:
                return
            await asyncio.sleep(pause_s)
            state.state = "running"

    def _failed(self, child: Child, error: Exception, restarts: Restarts) -> float | None:
        """Record what ended a child; return the pause before its next run, None for no more."""
        state = self.states[child.name]
        _log.error("%s: child %s failed", self._name, child.name, exc_info=error)
        state.last_error = status_of(error)
        pause_s = restarts.failed(now=asyncio.get_running_loop().time())
        if pause_s is None or isinstance(error, RestartsExhausted):
            state.state = "failed"
            self._escalate(child.name, error)
            return None
        state.state = "restarting"
        state.restarts += 1
        return pause_s

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {state.state}" for name, state in self.states.items())
        return f"<Supervisor {self._name}: {shown or 'no children'}>"


async def _end_of(child: Child) -> Exception:
    """Run a child and return the error that ended it; only a cancellation of the task is raised."""
    try:
        await child.run()
    except asyncio.CancelledError:
        if is_being_cancelled():
            raise
        return RuntimeError("something that it awaited was cancelled")
    except Exception as raised:  # noqa: BLE001  whatever ended it is the state that is shown
        return raised
    return RuntimeError("it returned; a background loop never does")
