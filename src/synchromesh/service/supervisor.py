"""Supervises background loops: restarts what fails, gives up for a while what keeps failing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from synchromesh.chance import Chance
from synchromesh.clock import loop_now
from synchromesh.errors import ConfigError, StoreUnavailable, SynchromeshError
from synchromesh.resilience import is_being_cancelled
from synchromesh.service.restarts import TRIAL_S, RestartDecision, RestartOptions, Restarts
from synchromesh.telemetry.span import status_of

_log = logging.getLogger("synchromesh.service")

TEXT_CHARS_MAX = 500
# A child has that long to put in order what it was cancelled at.
CANCEL_AGAIN_S = 3.0


@dataclass(frozen=True, slots=True)
class Child:
    """A child spec: a background loop, and the function that makes its coroutine at each start."""

    name: str
    run: Callable[[], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class ChildState:
    """The state of a child as the control API shows it: "running", "restarting" or "failed".

    Attributes:
        last_error: what ended it last, in words that may be shown; "" before anything did.
        next_s: when it is started again, on the loop's clock; 0 while it runs.
    """

    state: str = "running"
    restarts: int = 0
    last_error: str = ""
    next_s: float = 0.0


class PartEnded(Exception):
    """Raised by a child for an end of which its text tells all; it has no secrets."""


class RestartsExhausted(PartEnded):
    """Raised by a child that has used up restarts of its own: another at once would not help."""


async def _at_once() -> None:
    """Wait for nothing."""


class Supervisor:
    """Runs children until it is closed; one that fails too often is given up for a while.

    Args:
        name: whose children they are.
        rng: jitter of the pauses of what was given up.
        gave_up: told the child's name and error each time it is given up; it is shown as failed,
            the others go on, and it is tried again by itself.
        options: the restart intensity.
        gate: awaited before each restart: returns once there is what no child can do without.
    """

    def __init__(
        self,
        name: str,
        *,
        rng: Chance,
        gave_up: Callable[[str, BaseException], None],
        options: RestartOptions | None = None,
        gate: Callable[[], Awaitable[None]] = _at_once,
    ) -> None:
        self._name = name
        self._rng = rng
        self._gave_up = gave_up
        self._options = options or RestartOptions()
        self._gate = gate
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._children: dict[str, Child] = {}
        self.states: dict[str, ChildState] = {}

    def start(self, child: Child) -> None:
        """Start a child and keep it running."""
        self.states[child.name] = ChildState()
        self._children[child.name] = child
        self._begin(child)

    @property
    def is_healthy(self) -> bool:
        """False while a child is given up."""
        return all(state.state != "failed" for state in self.states.values())

    async def restart(self, name: str, between: Callable[[], Awaitable[None]] = _at_once) -> None:
        """Start a child anew now, whether it runs, pauses or was given up; its failures are over.

        Args:
            between: awaited once the child has ended, such as to end what it watches.

        Raises:
            KeyError: there is no such child.
        """
        child, state = self._children[name], self.states[name]
        await self._end(name)
        try:
            await between()
        finally:
            state.state, state.next_s = "running", 0.0
            state.restarts += 1
            self._begin(child)

    async def stop(self, name: str) -> None:
        """End a child, and forget it. May be repeated."""
        if name in self._tasks:
            await self._end(name)
            del self._tasks[name], self._children[name], self.states[name]

    async def close(self) -> None:
        """Cancel all children and wait until they have ended."""
        await self._end(*self._tasks)
        self._tasks.clear()

    async def _end(self, *names: str) -> None:
        """Cancel children and wait until they have ended; again where one goes on all the same.

        What it awaits may have swallowed the cancellation, as `asyncio.wait_for` does until Python
        3.12, and whoever waits for its end would wait for ever.
        """
        left = {self._tasks[name]: name for name in names}
        while left:
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
            left = {task: name for task, name in left.items() if not task.done()}
            for name in left.values():
                _log.warning(
                    "%s: child %s goes on %g s after it was cancelled, and is cancelled again",
                    self._name, name, CANCEL_AGAIN_S,
                )  # fmt: skip

    def _begin(self, child: Child) -> None:
        self._tasks[child.name] = asyncio.get_running_loop().create_task(
            self._keep(child), name=f"{self._name}/{child.name}"
        )

    async def _keep(self, child: Child) -> None:
        restarts = Restarts(self._options, self._rng)
        state, loop = self.states[child.name], asyncio.get_running_loop()
        proven: asyncio.TimerHandle | None = None
        try:
            while True:
                # No local keeps the error: on CPython 3.12.1 and 3.13.0 its traceback leads by
                # `f_back` to this frame, so that only the collector would free both.
                decided = self._failed(child, await _end_of(child), restarts)
                if proven is not None:
                    proven.cancel()
                state.next_s = loop_now() + decided.pause_s
                await asyncio.sleep(decided.pause_s)
                state.next_s = 0.0
                await self._gate()
                state.restarts += 1
                _log.warning("%s: child %s is started again", self._name, child.name)
                if not decided.is_given_up:
                    state.state = "running"
                    continue
                # It is on trial: whether it is mended is not known yet.
                state.state = "restarting"
                proven = loop.call_later(TRIAL_S, _prove, state)
        finally:
            if proven is not None:
                proven.cancel()

    def _failed(self, child: Child, error: Exception, restarts: Restarts) -> RestartDecision:
        """Record what ended a child, and decide on its next run."""
        state, now = self.states[child.name], loop_now()
        state.last_error = _shown(error)
        if isinstance(error, StoreUnavailable):
            # It is no failure of the child's: the gate opens once the database is back.
            state.state = "restarting"
            return RestartDecision(self._options.pause_base_s)
        decided = restarts.failed(now=now, is_hopeless=isinstance(error, RestartsExhausted))
        if not decided.is_given_up:
            state.state = "restarting"
            if isinstance(error, ConfigError):  # the user's, and where it was raised says nothing
                _log.error("%s: child %s failed: %s", self._name, child.name, error.message)
            else:
                _log.error("%s: child %s failed", self._name, child.name, exc_info=error)
            return decided
        state.state = "failed"
        _log.error(
            "%s: child %s failed too often and is given up; the others go on, and it is tried "
            "again in %.1f s",
            self._name, child.name, decided.pause_s,
            exc_info=error,
        )  # fmt: skip
        self._gave_up(child.name, error)
        return decided

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {state.state}" for name, state in self.states.items())
        return f"<Supervisor {self._name}: {shown or 'no children'}>"


def _prove(state: ChildState) -> None:
    """Take a child that was given up for running again."""
    state.state = "running"


def _shown(error: Exception) -> str:
    """Return what may be shown of an error: the texts of users' own stay in the log (T3)."""
    if isinstance(error, PartEnded):
        return str(error)[:TEXT_CHARS_MAX]
    if isinstance(error, SynchromeshError):
        return f"{error.code}: {error.message}"[:TEXT_CHARS_MAX]
    return status_of(error)


async def _end_of(child: Child) -> Exception:
    """Run a child and return the error that ended it; only a cancellation of the task is raised.

    It is raised also where the child has made another end of it.
    """
    try:
        await child.run()
    except asyncio.CancelledError:
        if is_being_cancelled():
            raise
        return RuntimeError("something that it awaited was cancelled")
    except Exception as raised:  # noqa: BLE001  whatever ended it is the state that is shown
        if not is_being_cancelled():
            return raised
    if is_being_cancelled():
        raise asyncio.CancelledError
    return RuntimeError("it returned; a background loop never does")
