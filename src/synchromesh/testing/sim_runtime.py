"""The simulated `Runtime` of one process, and its workers."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from typing import Generic, TypeVar

from synchromesh.network import Network
from synchromesh.runtime import Worker, uuid7
from synchromesh.testing.disk import SimDisk
from synchromesh.testing.process import SimProcess
from synchromesh.testing.wire import Wire

J = TypeVar("J")
T = TypeVar("T")

# 2026-01-01T00:00:00Z. Every universe begins then, whatever the real clock says.
WALL_BASE_US = 1_767_225_600_000_000


class SimRuntime:
    """The simulated environment of a process; a `synchromesh.runtime.Runtime`.

    Args:
        process: whose runtime it is.
        seed: decides the process's own chance, another one in each of its lives.
        wire: whose chance decides how long workers take.
        clock: virtual time. It is also asked from within a worker, where no loop runs.

    Example:
        >>> from synchromesh.testing import run
        >>> async def main(runtime: SimRuntime) -> str:
        ...     return runtime.name
        >>> run(main)
        'main'
    """

    def __init__(
        self,
        process: SimProcess,
        *,
        seed: int | str,
        disk: SimDisk,
        network: Network,
        wire: Wire,
        clock: Callable[[], float],
        skew_us: int = 0,
    ) -> None:
        self.process = process
        self._clock = clock
        self._rng = random.Random(f"{seed}/{process.name}/{process.epoch}")
        self._disk, self._network, self._wire = disk, network, wire
        self._wall_base_us = WALL_BASE_US + skew_us
        self._last_id_us = 0

    @property
    def name(self) -> str:
        """The name of the node."""
        return self.process.name

    @property
    def epoch(self) -> int:
        """The number of the node's life, from 1."""
        return self.process.epoch

    @property
    def rng(self) -> random.Random:
        """Randomness, seeded by the universe, the node and its epoch."""
        return self._rng

    @property
    def secret_rng(self) -> random.Random:
        """The same generator: simulated secrets can be guessed."""
        return self._rng

    @property
    def disk(self) -> SimDisk:
        """The machine's simulated disk."""
        return self._disk

    @property
    def threads(self) -> SimThreads:
        """Virtual time, which stands still in a worker."""
        return SimThreads(self._clock)

    @property
    def network(self) -> Network:
        """The simulated network."""
        return self._network

    def wall_us(self) -> int:
        """Return virtual time as a wall clock, with this node's skew and what clocks jumped by."""
        return self._wall_base_us + self._wire.jumped_us + int(self._clock() * 1e6)

    def new_id(self) -> str:
        """Return a new UUIDv7; ids ascend although virtual time often stands still."""
        self._last_id_us = max(self._last_id_us + 1, self.wall_us())
        return uuid7(self._last_id_us, self._rng)

    def worker(self, name: str, work: Callable[[list[J]], Callable[[], None]]) -> Worker[J]:
        """Start a worker on the loop; see `SimWorker`."""
        return SimWorker(name, work, self._wire)

    async def blocking(
        self,
        work: Callable[[], T],
        *,
        cut: Callable[[], None],  # noqa: ARG002
        still: Callable[[], None],  # noqa: ARG002
    ) -> T:
        """Run work at once."""
        return work()


class SimThreads:
    """The environment of code in simulated workers: each of their turns is one moment."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def time(self) -> float:
        """Return virtual time."""
        return self._clock()

    def sleep(self, seconds: float) -> None:
        """Return at once."""

    def lock(self) -> AbstractContextManager[object]:
        """Return what nobody waits for: no two workers have a turn at once."""
        return nullcontext()


class SimWorker(Generic[J]):
    """A simulated thread: works on the loop, with a seeded delay before and after each batch.

    A power cut before the work finds nothing done; one after it finds the work done and nobody
    told. As with a thread, the next batch may be worked on before the last one is told.

    Example:
        >>> from synchromesh.testing import run
        >>> async def main(runtime: SimRuntime) -> list[int]:
        ...     done: list[int] = []
        ...     def work(jobs: list[int]):
        ...         return lambda: done.extend(jobs)
        ...     worker = runtime.worker("doubler", work)
        ...     worker.put(1)
        ...     await worker.close()
        ...     return done
        >>> run(main)
        [1]
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[J]], Callable[[], None]],
        wire: Wire,
        *,
        batch_max: int = 512,
    ) -> None:
        self._name, self._work, self._wire, self._batch_max = name, work, wire, batch_max
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._queue: deque[J] = deque()
        self._ended = asyncio.Event()
        self._done_at_s = 0.0
        self._is_busy = self._is_closed = False

    def put(self, job: J) -> None:
        """Queue a job."""
        if self._is_closed:
            raise RuntimeError(f"worker {self._name!r} is closed")
        self._queue.append(job)
        self._begin_soon()

    async def close(self) -> None:
        """Run what is queued, then end."""
        if not self._is_closed:
            self._is_closed = True
            self._begin_soon()
        await self._ended.wait()

    def _begin_soon(self) -> None:
        if not self._is_busy:
            self._is_busy = True
            self._loop.call_later(self._delay_s(), self._round, context=self._context)

    def _round(self) -> None:
        queue = self._queue
        batch = [queue.popleft() for _ in range(min(len(queue), self._batch_max))]
        if batch:
            self._tell(self._work(batch))
        self._is_busy = False
        if queue:
            self._begin_soon()
        elif self._is_closed:
            self._tell(self._ended.set)

    def _tell(self, done: Callable[[], object]) -> None:
        # Never before what was told earlier: a thread's answers reach the loop in their order.
        self._done_at_s = max(self._done_at_s, self._loop.time() + self._delay_s())
        self._loop.call_at(self._done_at_s, done, context=self._context)

    def _delay_s(self) -> float:
        return self._wire.faults.io_s * self._wire.rng.random()
