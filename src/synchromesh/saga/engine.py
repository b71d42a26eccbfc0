"""The engine: starts the sagas of one service, continues them after a crash, and shows them."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from synchromesh.calls import Sender
from synchromesh.clock import loop_clock
from synchromesh.context import CallContext, span_ids
from synchromesh.durations import FOR_EVER, FROM_0, FROM_1, refuse_wrong_numbers
from synchromesh.eager import TaskStarter, starter
from synchromesh.errors import Fenced, SagaError, Shed, StoreBroken
from synchromesh.runtime import Runtime
from synchromesh.saga import elsewhere, tables, timetable
from synchromesh.saga.asked import AskedRuns, gone
from synchromesh.saga.batches import BatchWriter
from synchromesh.saga.definition import SagaDefinition
from synchromesh.saga.deps import Clock, SagaDeps, StepWriter, UnitRunner
from synchromesh.saga.execution import Execution
from synchromesh.saga.handle import Conclusion, SagaRun
from synchromesh.saga.history import SagaHistory, cause_of
from synchromesh.saga.inspection import StoredRuns
from synchromesh.saga.records import ENDED, RepairVerb, SagaStatus
from synchromesh.saga.repair import RepairWish
from synchromesh.saga.revival import Revival
from synchromesh.saga.seals import result_place
from synchromesh.saga.shards import shards_of
from synchromesh.saga.starting import StartQueue, new_row, settle
from synchromesh.saga.tables import SagaRow
from synchromesh.saga.versions import SagaVersions
from synchromesh.sealing import open_sealed
from synchromesh.store import Store, Unit, refuse_in_unit
from synchromesh.store.guard import in_unit
from synchromesh.telemetry import Tracer

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")


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

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (FROM_1, "in_flight_max"),
            (FROM_0, "queue_max"),
            (FOR_EVER, "keep_s"),
        )


DEFAULTS = EngineOptions()


class Engine(StoredRuns):
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
        super().__init__(store, service)
        self._caller = caller
        self._tracer = tracer
        self._runtime = runtime
        self._versions = versions
        self._run_unit = run_unit
        self._write_step: StepWriter | None = None
        self._options = options
        self._deps: SagaDeps | None = None
        self._executions: dict[str, Execution] = {}
        self._revival: Revival | None = None
        self._starts: StartQueue | None = None
        self._starting: set[Execution] = set()
        self._start_task: TaskStarter | None = None
        self._is_closed = False
        self.counts: Counter[str] = Counter()

    def write_steps_by(self, writer: StepWriter) -> None:
        """Have the units of steps committed by another than the store; before `recover`."""
        self._write_step = writer

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
        deps = self._open_deps()
        row = new_row(
            definition, input, id, context, now_us=deps.clock.now_us(), shard=deps.shards.pick(id)
        )
        while id in self._executions:
            there = self._executions[id]
            await there.durable.wait()
            if self._executions.get(id) is there:
                return await self._repeat(definition, row, there.row, begin)
        if self._back.is_ahead(id) and (found := await tables.find(self._store, id)) is not None:
            return await self._repeat(definition, row, found, begin)
        has_no_place = len(self._executions) >= self._options.in_flight_max
        if self._queue.is_standing or has_no_place or not deps.shards.owns(row.shard):
            await self._queue.put(definition, row, begin)
            return self._run(definition, id)
        try:
            await self._begin(Execution(deps, definition, row), begin)
        except Fenced:
            if deps.shards.is_sole:
                raise
            # Its shard has gone to another process meanwhile, which begins it.
            await self._queue.put(definition, row, begin)
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
            return definition.load_result(result)

        return SagaRun(id, self, load)

    # -- recovering and closing ------------------------------------------------------------------

    async def recover(self) -> None:
        """Take the store over and begin to continue its unfinished runs; once, before any start.

        The first ones are continued when this returns, the others by `keep_going`. A run whose
        records no code matches that is here waits for code that does, and says so.

        Raises:
            StoreError: the store cannot be written.
        """
        shards = await shards_of(self._store, self)
        # The kernel is asked once: ids of spans are not secret, and its answers take a while.
        chance = random.Random(self._runtime.rng.getrandbits(128))  # noqa: S311
        batches = BatchWriter(self._store, shards=shards, rng=chance)
        self._deps = SagaDeps(
            self._store,
            Clock(self._runtime),
            shards,
            batches,
            chance,
            span_ids(chance),
            self._caller,
            self._tracer,
            self._run_unit,
            self.counts,
            self._options.keep_s,
            self._write_step,
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

    async def keep_looking(self, every_s: float) -> None:
        """Look for runs that were started or told without a wake-up; only cancellation ends it."""
        deps = self._open_deps()
        while True:
            await asyncio.sleep(every_s)
            # What is in the queue is taken first: there is an end of it.
            is_idle = not self._back.backlog.queued
            if is_idle and await timetable.has_news(deps.store, deps.shards.mask):
                self.gained()

    async def keep_answering(self) -> None:
        """Do what other processes are asked of runs that are here; only cancellation ends it."""
        await self._asked.keep_answering()

    # -- changing runs ---------------------------------------------------------------------------

    async def repair(self, id: str, verb: RepairVerb, wish: RepairWish) -> SagaHistory:  # noqa: A002
        """Do with a run what a person wishes, and return its story; it then goes on by itself.

        Who and why are in the commit that does it, as record and as event.

        Raises:
            UnknownSaga: no run has this id.
            ActionRefused: it would be unsafe, or has no place.
        """
        await self._asked.repair(id, verb, wish)
        return await self.show(id)

    async def cancel(self, id: str, reason: str) -> None:  # noqa: A002
        """Turn a run to compensating; returns once that is durable (S9).

        Raises:
            SagaError: there is no way back.
            UnknownSaga, SagaGone: as `conclusion` does.
            Shed: the engine is closing.
        """
        await self._asked.cancel(id, reason)

    @property
    def _back(self) -> Revival:
        if self._revival is None:
            raise Shed(f"the sagas of {self._service} are closing; ask again at another instance")
        return self._revival

    @property
    def _asked(self) -> AskedRuns:
        return AskedRuns(self._open_deps(), self._versions, self._back, self._executions)

    @property
    def _queue(self) -> StartQueue:
        assert self._starts is not None, "it is there as long as the revival is"
        return self._starts

    async def close(self) -> None:
        """Let every run leave memory without a further effect; the next engine continues them."""
        self._is_closed = True
        await settle([each.journal for each in self._starting], self._starts)
        self._starting.clear()
        await self._drop([*self._executions.values()])
        if self._deps is not None:
            await self._deps.batches.close()
            await self._deps.shards.end()
        if self._revival is not None:
            self._revival.let_go()
        self._revival = self._starts = None  # they would keep this

    def gained(self) -> None:
        """Continue the runs of shards that this engine has come to own."""
        if self._revival is not None:
            self._revival.look()

    async def lost(self, shards: Collection[int]) -> None:
        """Let the runs of shards leave memory without a further effect: another has them now."""
        if self._revival is not None:
            self._revival.forget()
        # Whether one that starts has started is known with its commit.
        await self._drop(
            [
                each
                for each in self._executions.values()
                if each.row.shard in shards and each not in self._starting
            ]
        )

    async def _drop(self, executions: list[Execution]) -> None:
        tasks = [each.task for each in executions if each.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A task that was cancelled before its first step has run no `finally`.
        for each in executions:
            if each in self._executions.values():
                self._give_up(each)

    def _give_up(self, execution: Execution) -> None:
        self._forget(execution)
        execution.drop()

    def _launch(self, execution: Execution) -> None:
        if self._is_closed or not self._open_deps().shards.owns(execution.row.shard):
            self._give_up(execution)
            return
        if self._start_task is None:
            self._start_task = starter(asyncio.get_running_loop())
        # Its first step comes within the turn in which its start became durable.
        task = self._start_task(
            self._drive(execution), context=execution.context, name=f"saga {execution.row.id}"
        )
        if not task.done():
            execution.task = task

    def _take_over(self, execution: Execution) -> None:
        """Drive a run that was loaded."""
        self._executions[execution.row.id] = execution
        execution.durable.set()
        self._launch(execution)

    async def _drive(self, execution: Execution) -> None:
        try:
            await execution.run()
        finally:
            execution.task = None  # it would keep this frame
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
            raise Shed(f"the sagas of {self._service} are closing; ask again at another instance")
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
        until_s = loop_clock(asyncio.get_running_loop())() + within_s
        try:
            return await self._concluded(id, until_s)
        except StoreBroken as error:
            if self._is_closed:
                raise gone(id) from error
            raise

    async def _concluded(self, id: str, until_s: float) -> Conclusion | None:  # noqa: A002
        time = loop_clock(asyncio.get_running_loop())
        while True:
            execution = self._executions.get(id)
            if execution is not None:
                is_start = not execution.durable.is_set()
                if not await execution.wait(until_s - time()):
                    return None
                if execution.conclusion is not None:
                    return execution.conclusion
                # The start of a run that there is already ends without one.
                if execution.asleep is None and self._is_alone and not is_start:
                    raise gone(id)
            row = await self.find(id)
            if row.status in ENDED or row.status is SagaStatus.STUCK:
                cause = cause_of(row, await tables.readable(self._store, id))
                return Conclusion(row.status, row.result or b"", cause)
            comes = self._comes_by_itself(row)
            if row.status is SagaStatus.WAITING or (comes and time() >= until_s):
                return None
            if comes:
                await self._back.awake(id, until_s - time())
            elif self._is_alone or self._is_closed:
                raise gone(id)
            elif not await elsewhere.has_changed(self._store, row, until_s):
                return None

    @property
    def _is_alone(self) -> bool:
        """Whether no other process could have a run that this one has not."""
        return self._deps is None or self._deps.shards.is_sole

    def _comes_by_itself(self, row: SagaRow) -> bool:
        """Return whether a run will be in the memory of this process."""
        if self._revival is None or self._deps is None:
            return False
        is_asleep = row.status is SagaStatus.SLEEPING and self._deps.shards.owns(row.shard)
        return is_asleep or self._revival.is_ahead(row.id)

    def __repr__(self) -> str:
        return f"<Engine {self._service} {len(self._executions)} in flight>"
