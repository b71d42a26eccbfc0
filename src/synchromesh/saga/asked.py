"""Does what code or a person asks of a run: to be cancelled, or repaired.

It is done where the run is: in memory, in the database, or by the process that has it.
"""

from __future__ import annotations

from collections.abc import Mapping

from synchromesh.errors import ActionRefused, SagaError, SagaGone
from synchromesh.saga import elsewhere
from synchromesh.saga.deps import SagaDeps
from synchromesh.saga.execution import Execution
from synchromesh.saga.inspection import StoredRuns
from synchromesh.saga.records import RepairVerb, SagaStatus
from synchromesh.saga.repair import RepairWish, judge
from synchromesh.saga.repairing import repair
from synchromesh.saga.revival import Revival
from synchromesh.saga.versions import SagaVersions

_FALLS_ASLEEP_S = 5.0


class AskedRuns:
    """Cancels and repairs the runs of one engine.

    Args:
        executions: the runs in memory, by id.
    """

    def __init__(
        self,
        deps: SagaDeps,
        versions: SagaVersions,
        revival: Revival,
        executions: Mapping[str, Execution],
    ) -> None:
        self._deps = deps
        self._versions = versions
        self._back = revival
        self._executions = executions
        self._runs = StoredRuns(deps.store, deps.store.service)

    async def repair(self, id: str, verb: RepairVerb, wish: RepairWish) -> None:  # noqa: A002
        """Do with a run what a person wishes, as `Engine.repair` says."""
        if await self._is_elsewhere(id):
            return await elsewhere.ask(self._deps.store, id, verb.value, wish)
        execution = await self._at_work(id)
        if execution is not None and verb is RepairVerb.CANCEL:
            judge(execution.machine, id, verb, wish)
            if await execution.cancel(wish.why, wish.who):
                return None
            execution = await self._at_work(id)
        row = await self._runs.find(id)
        if execution is not None or self._back.is_loading(id):
            raise ActionRefused(f"saga {id!r} is at work; only a stuck run is repaired")
        if row.status is SagaStatus.WAITING and verb is not RepairVerb.CANCEL:
            raise ActionRefused(
                f"saga {id!r} waits for {row.reason}; it goes on by itself once that is there"
            )
        await self._back.revive(await repair(self._deps, self._versions, row, verb, wish))
        return None

    async def cancel(self, id: str, reason: str) -> None:  # noqa: A002
        """Turn a run to compensating, as `Engine.cancel` says."""
        if await self._is_elsewhere(id):
            return await elsewhere.ask(self._deps.store, id, "", RepairWish("", reason))
        execution = await self._at_work(id)
        if execution is not None and await execution.cancel(reason):
            return None
        await self._at_work(id)
        row = await self._runs.find(id)
        if row.status in (SagaStatus.COMPLETED, SagaStatus.STUCK):
            raise SagaError(f"saga {id!r} cannot be cancelled: it is {row.status.value}")
        if row.status is SagaStatus.UNDONE:
            return None
        if row.status not in (SagaStatus.SLEEPING, SagaStatus.QUEUED):
            raise gone(id)
        return await self.repair(id, RepairVerb.CANCEL, RepairWish("", reason))

    async def keep_answering(self) -> None:
        """Do what other processes are asked of runs that are here; only cancellation ends it."""

        async def do(id: str, verb: str, wish: RepairWish) -> None:  # noqa: A002
            if verb:
                await self.repair(id, RepairVerb(verb), wish)
            else:
                await self.cancel(id, wish.why)

        await elsewhere.keep_answering(self._deps.store, self._deps.shards, do)

    async def _is_elsewhere(self, id: str) -> bool:  # noqa: A002
        """Return whether another process has a run."""
        shards = self._deps.shards
        if shards.is_sole or id in self._executions:
            return False
        return not shards.owns((await self._runs.find(id)).shard)

    async def _at_work(self, id: str) -> Execution | None:  # noqa: A002
        """Return a run in memory; one that is about to leave it to sleep is waited for.

        One that is ahead comes into memory now; one of the queue need not.
        """
        if id in self._back.backlog.queued:
            self._back.backlog.drop(id)
        elif self._back.is_ahead(id):
            await self._back.hasten(id, _FALLS_ASLEEP_S)
        while (execution := self._executions.get(id)) and not execution.durable.is_set():
            await execution.durable.wait()  # a start of what there may be already
        if execution is not None and execution.asleep is not None:
            await execution.wait(_FALLS_ASLEEP_S)
            execution = self._executions.get(id)
        return execution

    def __repr__(self) -> str:
        return f"<AskedRuns of {self._deps.store.service}>"


def gone(id: str) -> SagaGone:  # noqa: A002
    """Return the error that no process has a run now."""
    return SagaGone(f"saga {id!r} has left this process; it continues after the next start")
