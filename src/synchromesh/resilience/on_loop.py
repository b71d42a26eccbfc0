"""What is guarded, on the loop that it is called on: an edge, a clock and timers of its own.

An edge counts on being alone with its loop: breakers have no lock, and clocks of loops differ. So
what is called on several loops, one after the other or in several threads, has an edge on each.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from synchromesh.chance import Chance
from synchromesh.clock import loop_clock
from synchromesh.resilience.attempts import Attempt
from synchromesh.resilience.edge import Edge
from synchromesh.resilience.policy_layers import PolicyLayers
from synchromesh.timers import Timers
from synchromesh.wheel import Deadline


class _Owner(Protocol):
    """What asyncio's loops say of themselves: the thread that they run in, None while they do not.

    No other loop can run in that thread at that time, so that the number tells the loop. To ask
    which loop is running costs a system call before CPython 3.12.
    """

    _thread_id: int | None


class _Nobody:
    _thread_id: int | None = None


class OnLoop:
    """Holds the edge, the clock and the timers of what is guarded, on one loop."""

    __slots__ = (
        "breaker",
        "budget",
        "clock",
        "edge",
        "is_due",
        "limiter",
        "loop",
        "owner",
        "timers",
        "tracker",
    )

    def __init__(self, edge: Edge, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # A loop that does not say which thread it runs in is asked for with each call.
        self.owner: _Owner = cast("_Owner", loop) if hasattr(loop, "_thread_id") else _Nobody()
        self.clock = loop_clock(loop)
        self.edge = edge
        self.breaker, self.budget, self.limiter = edge.breaker, edge.budget, edge.limiter
        self.tracker = edge.tracker
        # Whether the limiter waits for a call that says how long it took.
        self.is_due = True
        self.timers = Timers()

    def ended(
        self, error: BaseException | None, attempt: Attempt, cut: Cut | None
    ) -> BaseException | None:
        """Return what an attempt came to that ended with `error`, once its cut was dropped."""
        if cut is None or not cut.is_late:
            return error
        # The task's count is put right in any case.
        is_alone = cut.is_alone()
        is_late = is_alone and isinstance(error, asyncio.CancelledError)
        return self.edge.late(attempt) if is_late else error

    @classmethod
    def nowhere(cls) -> OnLoop:
        """Return one that is on no loop, to begin with."""
        here = cls.__new__(cls)
        here.owner = _Nobody()
        return here


class OnLoops:
    """Holds an `OnLoop` for each loop that something is called on."""

    def __init__(self, policy: PolicyLayers, *, name: str, rng: Chance) -> None:
        self._policy = policy
        self._name = name
        self._rng = rng
        self._by_owner: dict[object, OnLoop] = {}

    def here(self) -> OnLoop:
        """Return that of the running loop."""
        loop = asyncio.get_running_loop()
        found = self._by_owner.get(loop)  # at once, for uvloop does not say which thread it has
        return found if found is not None else self._of(loop)

    def _of(self, loop: asyncio.AbstractEventLoop) -> OnLoop:
        # A simulated loop runs several processes, and in the world each has its own of everything.
        owner = loop.owner() if hasattr(loop, "owner") else loop
        found = self._by_owner.get(owner)
        if found is None:
            for each, its in tuple(self._by_owner.items()):
                if its.loop.is_closed():
                    self._by_owner.pop(each, None)
            edge = Edge(self._policy, name=self._name, now=loop_clock(loop)(), rng=self._rng)
            found = self._by_owner[owner] = OnLoop(edge, loop)
        return found

    def __repr__(self) -> str:
        edges = [here.edge for here in self._by_owner.values()]
        states = [each.breaker.state.value for each in edges if each.breaker is not None]
        return " ".join((self._name, *states))


class Cut(Deadline):
    """The timeout of an attempt: it cancels the task that the attempt runs in.

    Its bookkeeping is that of `asyncio.timeout`: a cancellation from outside is never taken for it,
    also where both come at once.

    Attributes:
        is_late: whether it has expired; then `is_alone` is to be asked once, however it ended.
    """

    __slots__ = ("cancelling", "is_late", "task")

    def __init__(self, due_s: float, task: asyncio.Task[object]) -> None:
        # As the base does, without its frame.
        self.due_s = due_s
        self.slot = None
        self.task = task
        self.cancelling = task.cancelling()
        self.is_late = False

    def expire(self) -> None:
        """Cancel the task."""
        self.is_late = True
        self.task.cancel()

    def is_alone(self) -> bool:
        """Undo the cancellation; return whether nothing else has cancelled the task."""
        return self.task.uncancel() <= self.cancelling


def no_task() -> RuntimeError:
    """Return what is raised where a timeout has no task that it could cancel."""
    return RuntimeError("what has a timeout has to be awaited within a task; none is running")
