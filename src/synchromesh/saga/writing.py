"""Writes what many runs add in one unit: which of them may start, and who has lost its shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from synchromesh.errors import SagaError, SagaLocked
from synchromesh.saga import tables, tables_at_once
from synchromesh.saga.records import SagaStatus
from synchromesh.saga.shards import RunFence, fenced
from synchromesh.saga.tables import Part, SagaRow
from synchromesh.store import ArrayUnit, Unit

# How long whoever meets a lock is asked to wait.
LOCKED_S, LOCKED_LONG_S = 1.0, 60.0
# One that is stuck holds its lock, until a person has repaired or ended it.
_HOLDS = "status in ('queued', 'running', 'compensating', 'waiting', 'sleeping', 'stuck')"


async def write_all(unit: Unit, parts: Sequence[Part], fence: RunFence) -> list[bool | Exception]:
    """Write what many runs add, of each run at most one part, and return what became of each.

    True says that it is written, False that the same run was started before (S1). An error is a
    part that was not written, while the others are: `Fenced` where another engine has taken over,
    `SagaConflict` and `SagaLocked` as `Engine.start` says. Anybody may put a run into the queue of
    whoever owns its shard.

    Raises:
        ConstraintFailed: records have the numbers of others (another engine wrote them), or two
            starts clash. Nothing may be kept then; each part by itself tells whose fault it was.
        Exception: a `begin` raised, or its start is refused after it wrote; the same holds.
    """
    # What a `begin` does, and who holds a lock, is not foretold.
    is_asked = any(part.is_start and (part.begin or part.row.lock_key) for part in parts)
    if not is_asked and await tables.foretell(unit, parts, fence):
        return [True] * len(parts)
    outcomes: list[bool | Exception] = []
    lost = await fence.lost(unit)
    there = await _there(unit, parts)
    for part in parts:
        if lost and part.row.shard in lost:
            if part.row.status is not SagaStatus.QUEUED:
                outcomes.append(fenced(part.row.id))
                continue
            unit.notify(tables.HANDED_OVER)
        outcomes.append(await _judge_start(unit, part, there) if part.is_start else True)
    await tables.put(unit, [p for p, o in zip(parts, outcomes, strict=True) if o is True])
    return outcomes


async def _there(unit: Unit, parts: Sequence[Part]) -> Mapping[str, tuple[str, str]] | None:
    """Return which runs are started that are there already; None where each asks for itself."""
    ids = [part.row.id for part in parts if part.is_start]
    # What a `begin` does may be of any run.
    if not isinstance(unit, ArrayUnit) or any(part.begin is not None for part in parts):
        return None
    return await tables_at_once.found(unit, ids) if ids else {}


async def _judge_start(
    unit: Unit, part: Part, known: Mapping[str, tuple[str, str]] | None
) -> bool | Exception:
    if part.begin is None:
        return await _outcome_of_start(unit, part.row, known)
    await part.begin(unit)
    outcome = await _outcome_of_start(unit, part.row, None)
    if isinstance(outcome, Exception):
        # What it wrote must go with the start.
        try:
            raise outcome
        finally:
            del outcome  # the frame would be kept by its own error
    return outcome


async def _outcome_of_start(
    unit: Unit, row: SagaRow, known: Mapping[str, tuple[str, str]] | None
) -> bool | SagaError:
    if known is None:
        there = await unit.execute("select name, digest from sm_saga where id = ?", row.id)
    else:
        there = [known[row.id]] if row.id in known else []
    if there:
        is_same = there[0] == (row.name, row.digest)
        return False if is_same else tables.conflict(row.id, str(there[0][0]), row.name)
    if row.lock_key is None:
        return True
    holder = await unit.execute(
        f"select id, status from sm_saga where name = ? and lock_key = ? and {_HOLDS}",
        row.name,
        row.lock_key,
    )
    if not holder:
        return True
    ((holder_id, status),) = holder
    needs_person = status in (SagaStatus.STUCK._value_, SagaStatus.WAITING._value_)
    told = f"saga {row.name!r} has an unfinished run {str(holder_id)!r}"
    words = (
        f"it is {status!s} and keeps the lock until a person has seen to it"
        if needs_person
        else "wait for its end, or ask for that one"
    )
    return SagaLocked(
        f"{told} for the key {row.lock_key!r}; {words}",
        retry_after_s=LOCKED_LONG_S if needs_person else LOCKED_S,
    )
