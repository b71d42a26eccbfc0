"""An event loop for simulation: virtual time, and an order of steps that is drawn from a seed.

Nothing outside takes part. Time jumps to the next timer whenever nothing is ready; among what is
ready, any *task step* may go first, while plain callbacks keep their order among themselves,
because asyncio documents that order and transports rely on it. One seed is one schedule: two runs
have the same `trace`. Code that reaches for a thread, a socket or a child process gets an `Escape`.

Everything that is scheduled belongs to the `SimProcess` in whose context it was scheduled. Killing
a process is a power cut: its callbacks are dropped, its tasks are kept but never continued, and so
no `except` or `finally` block of it runs while the simulation lasts.

Source: the technique is FoundationDB's (Zhou et al., SIGMOD 2021, section 4).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import heapq
import random
import sys
from array import array
from collections import deque
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Sequence,
)
from contextvars import Context, copy_context
from typing import Any, TypeVar, TypeVarTuple

from synchromesh.testing.escapes import Closed, Deadlock, Livelock, Overdue, SimulationError
from synchromesh.testing.process import (
    PROCESS,
    Job,
    ProcessState,
    SimProcess,
    SimTask,
    TaskList,
    describe_tasks,
    discard,
)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# How often garbage is collected, in steps. Collecting by allocation, as Python does by itself,
# would run finalizers at other steps in a second run of the same seed. Most times only what came
# since then is looked through, not all that the process had before.
_HOUSEKEEPING_STEPS, _WHOLE_EVERY_STEPS = 20_000, 200_000
_RUNNING = ProcessState.RUNNING


class SimLoop(Closed):
    """Runs coroutines in virtual time, in an order that the seed decides.

    Args:
        seed: decides the order of ready task steps.
        until_s: the bound of virtual time; past it, `Overdue`.
        steps_max: the bound of steps; past it, `Livelock`.

    Attributes:
        steps: how many callbacks and task steps were run.
        errors: what the exception handler was told, in order.
        on_step: called before each step of a process, which it may kill exactly there.

    Example:
        >>> loop = SimLoop(seed=1)
        >>> loop.run_until_complete(asyncio.sleep(3600.0, "an hour later"))
        'an hour later'
        >>> loop.time(), loop.steps
        (3600.0, 3)
        >>> loop.close()
    """

    def __init__(
        self, seed: int | str = 0, *, until_s: float = 3600.0, steps_max: int = 1_000_000
    ) -> None:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("a simulation cannot run inside a running event loop")
        self.until_s, self.steps_max = until_s, steps_max
        self.steps = 0
        self.errors: list[dict[str, Any]] = []
        self.on_step: Callable[[SimProcess], object] | None = None
        self.tasks = TaskList()
        self._keep_house_at = min(_HOUSEKEEPING_STEPS, steps_max)
        self._rng = random.Random(f"{seed}/order")
        self._now = 0.0
        self._plain: deque[Job] = deque()
        self._task_steps: list[Job] = []
        self._timers: list[tuple[float, int, Job]] = []
        self._timers_made = self._tasks_made = 0
        self._prune_timers_at = 1024
        self._after_step: list[Callable[[], object]] = []
        self._trail = array("d")
        self._processes: list[SimProcess] = []
        self._handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None
        self._is_stopping = self._is_running = self._is_closed = False

    # -- time and order --------------------------------------------------------------------------

    def time(self) -> float:
        """Return virtual time, seconds since the loop was made."""
        return self._now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> Job:
        """Run a callback after those that were given before; a task's step goes in any order."""
        job = Job(self._now, callback, args, copy_context() if context is None else context)
        if not self._is_closed:
            self._enqueue(job)
        return job

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> Job:
        """Run a callback once `delay` seconds of virtual time have passed."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> Job:
        """Run a callback at a virtual time; those of one instant run in the order given."""
        job = Job(when, callback, args, copy_context() if context is None else context)
        if not self._is_closed:
            self._timers_made += 1
            heapq.heappush(self._timers, (when, self._timers_made, job))
            if len(self._timers) >= self._prune_timers_at:
                # Cancelled deadlines would pile up until their time comes.
                self._timers[:] = [t for t in self._timers if not t[2].is_cancelled]
                heapq.heapify(self._timers)
                self._prune_timers_at = max(1024, 2 * len(self._timers))
        return job

    def after_step(self, callback: Callable[[], object]) -> None:
        """Run a callback, in no process, as soon as the step that now runs is over."""
        self._after_step.append(callback)

    def _enqueue(self, job: Job) -> None:
        if isinstance(getattr(job.callback, "__self__", None), asyncio.Task):
            self._task_steps.append(job)
        else:
            self._plain.append(job)

    def _ripen(self) -> None:
        timers, now = self._timers, self._now
        while timers and timers[0][0] <= now:
            self._plain.append(heapq.heappop(timers)[2])

    def _jump(self) -> None:
        timers = self._timers
        while timers and timers[0][2].is_cancelled:
            heapq.heappop(timers)
        if not timers:
            raise Deadlock(
                f"at t={self._now:.6f} nothing will ever happen again; waiting: {self._waiting()}"
            )
        if timers[0][0] > self.until_s:
            raise Overdue(
                f"the bound of {self.until_s:g} s of virtual time was reached; "
                f"waiting: {self._waiting()}"
            )
        self._now = max(self._now, timers[0][0])

    def _pick(self) -> Job:
        """Take the next ready job; time jumps ahead when none is."""
        timers, plain, task_steps = self._timers, self._plain, self._task_steps
        if timers and timers[0][0] <= self._now:
            self._ripen()
        while not task_steps:
            if plain:
                return plain.popleft()
            self._jump()
            self._ripen()
        ready = len(task_steps)
        choice = int(self._rng.random() * (ready + 1 if plain else ready))
        if choice == ready:
            return plain.popleft()
        job, task_steps[choice] = task_steps[choice], task_steps[-1]
        task_steps.pop()
        return job

    def _run(self, is_over: Callable[[], bool]) -> None:
        """Run step after step; this is the hot path of every simulation."""
        pick, note, after_step = self._pick, self._trail.append, self._after_step
        while not is_over():
            job = pick()
            if job.is_cancelled:
                continue
            number = 0
            process = job.context.get(PROCESS)
            if process is not None:
                if process.state is not _RUNNING or self.on_step is not None:
                    if not self._admits(process, job):
                        continue
                else:
                    process.steps += 1
                number = process.number
            self.steps += 1
            note(self._now)
            note(number)
            try:
                job.context.run(job.callback, *job.args)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001 - as every event loop does
                self.call_exception_handler(
                    {"message": f"{job.callback!r} failed", "exception": error, "handle": job}
                )
            while after_step:
                after_step.pop(0)()
            if self.steps >= self._keep_house_at:
                self._keep_house()

    def _admits(self, process: SimProcess, job: Job) -> bool:
        """Count a process's step; False if it is dead, paused, or killed right before it."""
        if process.state is _RUNNING:
            process.steps += 1
            if self.on_step is not None:
                self.on_step(process)
        if process.state is ProcessState.PAUSED:
            process.held.append(job)
        return process.state is _RUNNING

    def _keep_house(self) -> None:
        gc.collect(1 if self.steps % _WHOLE_EVERY_STEPS else 2)
        self._keep_house_at = min(self.steps + _HOUSEKEEPING_STEPS, self.steps_max)
        if self.steps >= self.steps_max:
            raise Livelock(
                f"the bound of {self.steps_max} steps was reached at t={self._now:.6f}; "
                f"waiting: {self._waiting()}"
            )

    # -- processes -------------------------------------------------------------------------------

    def new_process(self, name: str, *, epoch: int = 1, steps: int = 0) -> SimProcess:
        """Return a new process, an owner of callbacks; `steps` is where its count begins."""
        process = SimProcess(name, number=len(self._processes) + 1, epoch=epoch, steps=steps)
        self._processes.append(process)
        return process

    def owner(self) -> object:
        """Return the process whose step runs, or the loop outside of all."""
        return PROCESS.get() or self

    @property
    def processes(self) -> Sequence[SimProcess]:
        """All processes so far, dead ones included."""
        return self._processes

    def spawn(self, process: SimProcess, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task in a process, from outside it."""
        return self.create_task(coro, context=process.context.copy())

    def kill(self, process: SimProcess) -> None:
        """Kill a process as a power cut would: not even its `finally` blocks run."""
        process.state = ProcessState.DEAD
        process.held.clear()

    def pause(self, process: SimProcess) -> None:
        """Hold back all steps of a process, as SIGSTOP or a long garbage collection would."""
        if process.state is ProcessState.RUNNING:
            process.state = ProcessState.PAUSED

    def resume(self, process: SimProcess) -> None:
        """Resume a paused process."""
        if process.state is ProcessState.PAUSED:
            process.state = ProcessState.RUNNING
            for job in process.held:
                self._enqueue(job)
            process.held.clear()

    # -- tasks and futures -----------------------------------------------------------------------

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        """Start a task; it belongs to the process of its context."""
        if self._is_closed:
            coro.close()
            raise SimulationError("the simulation is over: no task can be started")
        process = PROCESS.get() if context is None else context.get(PROCESS)
        self._tasks_made += 1
        task: SimTask[T] = SimTask(
            coro, number=self._tasks_made, loop=self, name=name, context=context, **options
        )
        (self.tasks if process is None else process.tasks).add(task)
        return task

    def make_task(
        self, coro: Coroutine[Any, Any, T], *, loop: asyncio.AbstractEventLoop, **options: Any
    ) -> asyncio.Task[T]:
        """Make a task with options of `asyncio.Task`, such as an eager one."""
        assert loop is self, "a task runs on the loop that makes it"
        return self.create_task(coro, **options)

    # -- running ---------------------------------------------------------------------------------

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        """Run until a coroutine or future has ended, and return its result.

        Raises `Deadlock`, `Overdue` or `Livelock` where it cannot end.
        """
        if self._is_closed:
            raise RuntimeError("Event loop is closed")
        with self._as_running_loop():
            task: asyncio.Future[T] = asyncio.ensure_future(future, loop=self)  # type: ignore[arg-type]
            self._run(task.done)
        return task.result()

    def run_ready(self) -> None:
        """Run what is ready now, without advancing time."""
        with self._as_running_loop():
            self._run(self._is_idle)

    def run_forever(self) -> None:
        """Run until `stop` is called."""
        self._is_stopping = False
        with self._as_running_loop():
            self._run(lambda: self._is_stopping)

    def stop(self) -> None:
        """Let `run_forever` return after the step that now runs."""
        self._is_stopping = True

    def is_running(self) -> bool:
        """Return whether the loop runs at this moment."""
        return self._is_running

    def is_closed(self) -> bool:
        """Return whether the loop was closed."""
        return self._is_closed

    def close(self) -> None:
        """End the simulation: pending tasks are discarded. May be repeated.

        Coroutines that never ended have to be closed for Python's sake, and their `finally` blocks
        run in that moment. They find a world that is over: nothing can be scheduled, and whatever
        they raise is dropped.
        """
        if self._is_closed:
            return
        self._is_closed = True
        left = list(self.tasks.pending())
        for process in self._processes:
            process.state = ProcessState.DEAD
            left.extend(process.tasks.pending())
        self._timers.clear()
        self._plain.clear()
        self._task_steps.clear()
        self._processes.clear()
        with self._as_running_loop():
            for task in left:
                discard(task)

    def _is_idle(self) -> bool:
        if self._timers and self._timers[0][0] <= self._now:
            return False
        return not self._plain and not self._task_steps

    @contextlib.contextmanager
    def _as_running_loop(self) -> Iterator[None]:
        hooks = sys.get_asyncgen_hooks()
        was_collecting = gc.isenabled()
        gc.disable()
        sys.set_asyncgen_hooks(firstiter=None, finalizer=self._close_asyncgen)
        asyncio._set_running_loop(self)
        self._is_running = True
        try:
            yield
        finally:
            self._is_running = False
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)
            if was_collecting:
                gc.enable()

    def _close_asyncgen(self, agen: AsyncGenerator[Any, Any]) -> None:
        process = PROCESS.get()
        if not self._is_closed and (process is None or process.state is not ProcessState.DEAD):
            self.create_task(_aclose(agen))

    async def shutdown_asyncgens(self) -> None:
        """Do nothing: generators are closed where they are dropped."""

    async def shutdown_default_executor(self) -> None:
        """Do nothing: there is no executor."""

    # -- what is observed ------------------------------------------------------------------------

    @property
    def trace(self) -> str:
        """A hash over time and process of every step so far; the same for every run of a seed."""
        return hashlib.blake2b(self._trail.tobytes(), digest_size=8).hexdigest()

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Append the context to `errors`."""
        self.errors.append(context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Call the handler that was set, or append to `errors`."""
        if not self._is_closed:
            if self._handler is None:
                self.default_exception_handler(context)
            else:
                self._handler(self, context)

    def get_exception_handler(
        self,
    ) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None:
        """Return the handler that was set."""
        return self._handler

    def set_exception_handler(
        self, handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None
    ) -> None:
        """Set the handler of errors that no task retrieves."""
        self._handler = handler

    def get_debug(self) -> bool:
        """Return False: asyncio's debug mode measures real time."""
        return False

    def set_debug(self, enabled: bool) -> None:
        """Do nothing: asyncio's debug mode measures real time."""

    def escaped(self, error: SimulationError) -> None:
        """Record an escape, so that it fails the run even where the code under test swallows it."""
        self.errors.append({"message": str(error), "exception": error})

    def _waiting(self) -> str:
        tasks = list(self.tasks.pending())
        for process in self._processes:
            if process.state is not ProcessState.DEAD:
                tasks.extend(process.tasks.pending())
        return describe_tasks(tasks) or "no task at all"


async def _aclose(agen: AsyncGenerator[Any, Any]) -> None:
    await agen.aclose()
