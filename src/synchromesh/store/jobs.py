"""Queued units of work, and those that are held while their file fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context
from typing import Any

from synchromesh.eager import EagerFuture
from synchromesh.store.outage import Outage
from synchromesh.store.unit import Once, Unit

_HELD_MAX = 3


class Queued:
    """A queued unit; the worker fills in its outcome."""

    __slots__ = (
        "body", "context", "error", "future", "has_written", "must_rerun", "name", "number", "once",
        "result", "times_held", "topics",
    )  # fmt: skip

    def __init__(
        self,
        body: Callable[[Unit], Awaitable[object]],
        once: Once | None,
        name: str,
        number: int,
        context: Context,
        future: EagerFuture[Any],
    ) -> None:
        self.body = body
        self.once = once
        self.name = name
        self.number = number
        self.context = context
        self.future = future
        self.result: object = None
        self.error: BaseException | None = None
        self.topics: set[str] | None = None
        self.has_written = self.must_rerun = False
        self.times_held = 0

    def reset(self) -> None:
        """Reset for a rerun: what an earlier run saw was never committed."""
        self.result = self.error = self.topics = None
        self.has_written = self.must_rerun = False


def answer(written: Iterable[Queued]) -> None:
    """Give units that are durable their results. Who waits for one goes on within this.

    Where a caller was cancelled its unit stands all the same.
    """
    for job in written:
        if not job.future.done():
            job.future.set_result(job.result)


class HeldUnits:
    """The units that were under way when their file failed; they are answered once it is back."""

    def __init__(self) -> None:
        self._jobs: list[Queued] = []
        self._doubtful: list[Queued] = []
        self._mark = 0

    def add(self, job: Queued) -> bool:
        """Hold a unit; False where that has not helped it several times."""
        job.times_held += 1
        if job.times_held > _HELD_MAX:
            return False
        self._jobs.append(job)
        return True

    def doubt(self, mark: int, jobs: list[Queued]) -> None:
        """Hold the units of a commit that may have taken effect, and then has that mark."""
        self._mark, self._doubtful = mark, list(jobs)
        self._jobs += jobs

    def release(self, mark: int) -> tuple[list[Queued], list[Queued]]:
        """Return all units that are held, and those that are not in the file and have to be run.

        `mark` is that of the last commit in the file.
        """
        is_in = bool(self._doubtful) and mark == self._mark
        held, self._jobs = self._jobs, []
        missing = [job for job in held if not (is_in and job in self._doubtful)]
        self._doubtful = []
        return held, missing

    def without(self, jobs: list[Queued]) -> list[Queued]:
        """Return those of the jobs that are not held."""
        return [job for job in jobs if job not in self._jobs] if self._jobs else jobs

    def __repr__(self) -> str:
        return f"<HeldUnits {len(self._jobs)}, {len(self._doubtful)} of them in doubt>"


def refuse(jobs: list[Queued], outage: Outage) -> list[Queued]:
    """Fail units that come during an outage; return those that are to be run all the same: none."""
    for job in jobs:
        job.error = outage.error(f"unit {job.name!r}")
    return []
