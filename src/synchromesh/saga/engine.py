"""The engine: starts the sagas of one service, continues them after a crash, and shows them."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from synchromesh.calls import Sender
from synchromesh.codec import NO_FIT
from synchromesh.context import CallContext, span_ids
from synchromesh.eager import TaskStarter, starter
from synchromesh.errors import (
    ActionRefused,
    BadRequest,
    SagaError,
    SagaGone,
    Shed,
    UnknownSaga,
)
from synchromesh.runtime import Runtime
from synchromesh.saga import tables
from synchromesh.saga.batches import BatchWriter
from synchromesh.saga.definition import SagaDefinition
from synchromesh.saga.deps import Clock, SagaDeps, UnitRunner
from synchromesh.saga.execution import Execution
from synchromesh.saga.handle import Conclusion, SagaRun
from synchromesh.saga.history import SagaHistory, SagaSummary, cause_of
from synchromesh.saga.inspection import list_runs, show_run
from synchromesh.saga.records import UNFINISHED, RepairVerb, SagaStatus
from synchromesh.saga.repair import RepairWish, judge
from synchromesh.saga.repairing import repair
from synchromesh.saga.revival import Revival
from synchromesh.saga.seals import result_place
from synchromesh.saga.starting import StartQueue, new_row
from synchromesh.saga.tables import SagaRow
from synchromesh.saga.versions import SagaVersions
from synchromesh.sealing import open_sealed
from synchromesh.store import Store, Unit, refuse_in_unit
from synchromesh.store.guard import in_unit
from synchromesh.telemetry import Tracer

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")

_FALLS_ASLEEP_S = 5.0


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Bounds an engine.

    Attributes:
        in_flight_max: runs that are in memory at once; what is started beyond that is durable, and
            queued.
        queue_max: runs in the queue before a start is shed.
        keep_s: how long those who are asked under a key remember it.
    """

    in_flight_max: int = 1024
    queue_max: int = 10_000
    keep_s: float = math.inf


DEFAULTS = EngineOptions()


class Engine:
    """Runs the sagas of one service over its store; a new one continues what the last one left.

    Call `recover` first, once; `close` before the store is closed. A run whose process dies is
    continued by the next engine on the same store: nothing is lost, and no effect comes twice
    beyond what its step's key lets the participant see as one.

    Args:
        store: the service's database, with `tables.SCHEMA` and that of the event log.
        caller: sends the calls of steps and undos.
        versions: the sagas of the service.
        run_unit: runs the unit of a step within a unit of the store, whole with what it publishes.

    Attributes:
        counts: how often what happened, for tests and status.
    """

    def __init__(
        self,
        store: Store,
        caller: Sender,
        *,
        service: str,
        tracer: Tracer,
        runtime: Runtime,
        versions: SagaVersions,
        run_unit: UnitRunner,
        options: EngineOptions = DEFAULTS,
    ) -> None:
        self._store = store
        self._caller = caller
        self._service = service
        self._tracer = tracer
        self._runtime = runtime
        self._versions = versions
        self._run_unit = run_unit
        self._options = options
        self._deps: SagaDeps | None = None
        self._executions: dict[str, Execution] = {}
        self._revival: Revival | None = None
        self._starts: StartQueue | None = None
        self._starting: set[Execution] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._start_task: TaskStarter | None = None
        self._is_closed = False
        self.counts: Counter[str] = Counter()

    # -- starting --------------------------------------------------------------------------------

    async def start(
        self,
        definition: SagaDefinition[I, R],
        input: I,  # noqa: A002
        *,
        id: str,  # noqa: A002
        context: CallContext,
        begin: Callable[[Unit], Awaitable[None]] | None = None,
    ) -> SagaRun[R]:
        """Start a run and return once it is durable; the same id and input is the same run (S1).

        Cancelling this does not cancel a start that is under way.

        Args:
            definition: one of the engine's definitions.
            input: given to the saga function, and to its re-runs.
            id: 1 to 200 printable characters; the steps' keys begin with it.
            context: whose trace, caller and principal the run carries; its deadline does not count.
            begin: what else is to be true in the commit of the start; it is awaited for a repeated
                start too, and what it raises refuses the start.

        Raises:
            SagaConflict: the id belongs to a run with another input, or of another saga.
            SagaLocked: another unfinished run holds the semantic lock.
            Shed: too many runs are queued, or the engine is closing.
            BadRequest: the id or the input cannot be stored.
            ContractError: the definition is none of the engine's, or its `lock_key` returned
                neither a text nor None.
        """
        if in_unit.get() is not None:
            refuse_in_unit(f"a start of saga {definition.name!r}")
        if self._versions.newest(definition.name) is not definition:
            raise self._versions.not_newest(definition, self._service)
        row = new_row(definition, input, id, context, now_us=self._open_deps().clock.now_us())
        while id in self._executions:
            there = self._executions[id]
            await there.durable.wait()
            if self._executions.get(id) is there:
                return await self._repeat(definition, row, there.row, begin)
        if self._back.is_ahead(id) and (found := await tables.find(self._store, id)) is not None:
            return await self._repeat(definition, row, found, begin)
        if self._queue.is_standing or len(self._executions) >= self._options.in_flight_max:
            await self._queue.put(definition, row, begin)
        else:
            await self._begin(Execution(self._open_deps(), definition, row), begin)
        return self._run(definition, id)

    async def _repeat(
        self,
        definition: SagaDefinition[Any, R],
        row: SagaRow,
        there: SagaRow,
        begin: Callable[[Unit], Awaitable[None]] | None,
    ) -> SagaRun[R]:
        """Answer the start of a run that was started before."""
        if (there.name, there.digest) != (row.name, row.digest):
            raise tables.conflict(row.id, there.name, row.name)
        if begin is not None:
            await self._store.write(begin, name=f"saga {row.name} begin")
        return self._run(definition, row.id)

    def _begin(
        self, execution: Execution, begin: Callable[[Unit], Awaitable[None]] | None
    ) -> Awaitable[bool]:
        """Hand a run's start over; it goes its way whether or not what is returned is awaited."""
        self._executions[execution.row.id] = execution
        try:
            # The function runs up to its first step now, so that the step begins in the commit of
            # the start; nothing that it asks for happens before that commit.
            execution.advance()
        except BaseException:
            self._give_up(execution)
            raise

        def on_settled(outcome: bool | Exception) -> None:
            self._starting.discard(execution)
            if outcome is not True:
                self._give_up(execution)
                return
            self.counts["started"] += 1
            execution.durable.set()
            self._launch(execution)

        self._starting.add(execution)
        execution.journal.start(begin, on_settled)
        return execution.journal.written()

    def _run(self, definition: SagaDefinition[Any, R], id: str) -> SagaRun[R]:  # noqa: A002
        shape = definition.shape

        def load(result: bytes) -> R:
            if shape.personal_result is not None:
                result = open_sealed(result, result_place(id), self._store.vault)
            try:
                loaded: R = shape.read_result(result)
            except NO_FIT as error:
                raise BadRequest(f"the data does not fit: {error}") from error
            return loaded

        return SagaRun(id, self, load)

    # -- recovering and closing ------------------------------------------------------------------

    async def recover(self) -> None:
        """Take the store over and begin to continue its unfinished runs; once, before any start.

        The first ones are continued when this returns, the others by `keep_going`. A run whose
        records no code matches that is here waits for code that does, and says so.

        Raises:
            StoreError: the store cannot be written.
        """
        epoch = await self._store.write(tables.take_over, name="saga take-over")
        # The kernel is asked once: ids of spans are not secret, and its answers take a while.
        chance = random.Random(self._runtime.rng.getrandbits(128))  # noqa: S311
        batches = BatchWriter(self._store, epoch=epoch, rng=chance)
        self._deps = SagaDeps(
            self._store,
            Clock(self._runtime),
            epoch,
            batches,
            chance,
            span_ids(chance),
            self._caller,
            self._tracer,
            self._run_unit,
            self.counts,
            self._options.keep_s,
        )
        self._revival = Revival(
            self._deps,
            self._versions,
            self._executions,
            self._take_over,
            self._options.in_flight_max,
        )
        self._starts = StartQueue(
            self._deps, self._revival, service=self._service, queue_max=self._options.queue_max
        )
        await self.adopt()

    async def adopt(self) -> int:
        """Find the unfinished runs that are neither in memory nor ahead; return how many.

        After `recover` there are such runs only where one left memory by a fault of this process.
        They are continued as those that are recovered.
        """
        self._open_deps()
        return await self._back.adopt()

    async def try_again(self) -> int:
        """Try the runs that wait for code or keys; return how many were not in memory."""
        self._open_deps()
        return await self._back.try_again()

    async def keep_going(self) -> None:
        """Continue what is recovered or queued as there is room; only cancellation ends it."""
        self._open_deps()
        await self._back.keep_going()

    async def keep_time(self) -> None:
        """Wake the runs that sleep when they are due; only cancellation ends it."""
        self._open_deps()
        await self._back.keep_time()

    # -- repairing -------------------------------------------------------------------------------

    async def repair(self, id: str, verb: RepairVerb, wish: RepairWish) -> SagaHistory:  # noqa: A002
        """Do with a run what a person wishes, and return its story; it then goes on by itself.

        Who and why are in the commit that does it, as record and as event.

        Raises:
            UnknownSaga: no run has this id.
            ActionRefused: it would be unsafe, or has no place.
        """
        deps, execution = self._open_deps(), await self._at_work(id)
        if execution is not None and verb is RepairVerb.CANCEL:
            judge(execution.machine, id, verb, wish)
            if await execution.cancel(wish.why, wish.who):
                return await self.show(id)
            execution = await self._at_work(id)
        row = await self._find(id)
        if execution is not None or self._back.is_loading(id):
            raise ActionRefused(f"saga {id!r} is at work; only a stuck run is repaired")
        if row.status is SagaStatus.WAITING and verb is not RepairVerb.CANCEL:
            raise ActionRefused(
                f"saga {id!r} waits for {row.reason}; it goes on by itself once that is there"
            )
        await self._back.revive(await repair(deps, self._versions, row, verb, wish))
        return await self.show(id)

    async def _at_work(self, id: str) -> Execution | None:  # noqa: A002
        """Return a run in memory; one that is about to leave it to sleep is waited for.

        One that is ahead comes into memory now; one of the queue need not.
        """
        if id in self._back.backlog.queued:
            self._back.backlog.drop(id)
        elif self._back.is_ahead(id):
            await self._back.hasten(id, _FALLS_ASLEEP_S)
        execution = self._executions.get(id)
        if execution is not None and execution.asleep is not None:
            await execution.wait(_FALLS_ASLEEP_S)
            execution = self._executions.get(id)
        return execution

    @property
    def _back(self) -> Revival:
        if self._revival is None:
            raise Shed(f"the sagas of {self._service} are closing; ask again at another instance")
        return self._revival

    @property
    def _queue(self) -> StartQueue:
        assert self._starts is not None, "it is there as long as the revival is"
        return self._starts

    async def close(self) -> None:
        """Let every run leave memory without a further effect; the next engine continues them."""
        self._is_closed = True
        # A start that is under way is answered: its commit cannot be called back.
        under_way = [execution.journal.written() for execution in self._starting]
        await asyncio.gather(*under_way, return_exceptions=True)
        if self._starts is not None:
            await self._starts.settle()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A task that was cancelled before its first step has run no `finally`.
        for execution in list(self._executions.values()):
            self._give_up(execution)
        if self._deps is not None:
            await self._deps.batches.close()
        if self._revival is not None:
            self._revival.let_go()
        self._revival = self._starts = None  # they would keep this

    def _give_up(self, execution: Execution) -> None:
        self._forget(execution)
        execution.drop()

    def _launch(self, execution: Execution) -> None:
        if self._is_closed:
            self._give_up(execution)
            return
        if self._start_task is None:
            self._start_task = starter(asyncio.get_running_loop())
        # Its first step comes within the turn in which its start became durable.
        task = self._start_task(
            self._drive(execution), context=execution.context, name=f"saga {execution.row.id}"
        )
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take_over(self, execution: Execution) -> None:
        """Drive a run that was loaded."""
        self._executions[execution.row.id] = execution
        execution.durable.set()
        self._launch(execution)

    async def _drive(self, execution: Execution) -> None:
        try:
            await execution.run()
        finally:
            self._forget(execution)
            if self._revival is not None:
                self._revival.on_left(execution)
                if execution.asleep is not None:
                    self._revival.on_asleep(execution.asleep)
            # At the end: who waits for it goes on within this.
            execution.end()

    def _forget(self, execution: Execution) -> None:
        if self._executions.get(execution.row.id) is execution:
            del self._executions[execution.row.id]

    def _open_deps(self) -> SagaDeps:
        if self._is_closed:
            raise Shed(f"the sagas of {self._service} are closing; start it at another instance")
        if self._deps is None:
            raise SagaError(f"the sagas of {self._service} are not recovered yet; recover first")
        return self._deps

    # -- asking ----------------------------------------------------------------------------------

    async def conclusion(self, id: str, within_s: float) -> Conclusion | None:  # noqa: A002
        """Wait until a run has ended, at most so long; None where it has not.

        Raises:
            UnknownSaga: no run has this id.
            SagaGone: it has not ended, and this engine does not run it.
        """
        time = asyncio.get_running_loop().time
        until_s = time() + within_s
        while True:
            execution = self._executions.get(id)
            if execution is not None:
                if not await execution.wait(until_s - time()):
                    return None
                if execution.conclusion is not None:
                    return execution.conclusion
                if execution.asleep is None:
                    raise _gone(id)
            row = await self._find(id)
            is_ahead = self._revival is not None and self._revival.is_ahead(id)
            if row.status is not SagaStatus.SLEEPING and not is_ahead:
                break
            if time() >= until_s:
                return None
            await self._back.awake(id, until_s - time())
        if row.status is SagaStatus.WAITING:
            return None
        if row.status in UNFINISHED:
            raise _gone(id)
        cause = cause_of(row, await tables.readable(self._store, id))
        return Conclusion(row.status, row.result or b"", cause)

    async def cancel(self, id: str, reason: str) -> None:  # noqa: A002
        """Turn a run to compensating; returns once that is durable (S9).

        Raises:
            SagaError: there is no way back.
            UnknownSaga, SagaGone: as `conclusion` does.
        """
        execution = await self._at_work(id)
        if execution is not None and await execution.cancel(reason):
            return
        await self._at_work(id)
        row = await self._find(id)
        if row.status in (SagaStatus.COMPLETED, SagaStatus.STUCK):
            raise SagaError(f"saga {id!r} cannot be cancelled: it is {row.status.value}")
        if row.status is SagaStatus.UNDONE:
            return
        if row.status not in (SagaStatus.SLEEPING, SagaStatus.QUEUED):
            raise _gone(id)
        await self.repair(id, RepairVerb.CANCEL, RepairWish("", reason))

    async def runs(self, status: str = "", limit: int = 100) -> list[SagaSummary]:
        """Return the newest runs, as `list_runs` does."""
        return await list_runs(self._store, status, limit)

    async def statuses(self) -> dict[str, int]:
        """Return how many runs there are of each status that one has."""
        return await tables.count_by_status(self._store)

    async def show(self, id: str) -> SagaHistory:  # noqa: A002
        """Return the story of a run; a record that this code cannot read says why in its line.

        Raises:
            UnknownSaga: no run has this id.
            SagaError: this code does not know the status of the run.
        """
        story = await show_run(self._store, id)
        if story is None:
            raise self._unknown(id)
        return story

    async def _find(self, id: str) -> SagaRow:  # noqa: A002
        row = await tables.find(self._store, id)
        if row is None:
            raise self._unknown(id)
        return row

    def _unknown(self, id: str) -> UnknownSaga:  # noqa: A002
        return UnknownSaga(f"no saga of {self._service} has the id {id!r}")

    def __repr__(self) -> str:
        return f"<Engine {self._service} {len(self._executions)} in flight>"


def _gone(id: str) -> SagaGone:  # noqa: A002
    return SagaGone(f"saga {id!r} has left this process; it continues after the next start")
