"""Repairs runs that nobody drives: reads one, has the wish judged, and commits its record."""

from __future__ import annotations

from msgspec.structs import replace

from synchromesh.codec import encode
from synchromesh.errors import ActionRefused, BadRequest, Fenced, SagaError
from synchromesh.saga import tables
from synchromesh.saga.deps import SagaDeps
from synchromesh.saga.fitting import fit
from synchromesh.saga.records import RepairVerb, SagaRecord
from synchromesh.saga.repair import RepairWish, judge
from synchromesh.saga.seals import RunSeal
from synchromesh.saga.state import RunState
from synchromesh.saga.steps import Step
from synchromesh.saga.tables import Part, SagaRow
from synchromesh.saga.versions import SagaVersions
from synchromesh.store import Unit


async def repair(
    deps: SagaDeps, versions: SagaVersions, row: SagaRow, verb: RepairVerb, wish: RepairWish
) -> SagaRow:
    """Commit what a person wishes of a run, and return its row as it is then.

    Raises:
        ActionRefused: it is unsafe, has no place, or the run has changed meanwhile.
        Fenced: another engine has taken over.
    """
    state, records = await _load(deps, row)
    digest, seal = "", None
    if verb is RepairVerb.SKIP and state.cause.step and not state.is_turned:
        step = _step_of(deps, versions, row, records, state.cause.step)
        digest, wish = step.ask.digest, replace(wish, result=_fitting(step, row.id, wish))
        if step.personal is not None:
            seal = RunSeal(None, None)
            seal.steps[state.cause.step] = step.personal
    elif wish.result is not None:
        raise ActionRefused(
            f"saga {row.id!r}: {verb.value} takes no result; only a step that is skipped has one"
        )
    record = judge(state, row.id, verb, wish, digest=digest).at(deps.clock.now_us())
    state.apply(record)  # what cannot follow is not written
    fence = deps.shards.fence((row.shard,))

    async def body(unit: Unit) -> None:
        await tables.check_owner(unit, row, fence)
        part = Part(row, len(records), (record,))
        part.seal = seal
        try:
            await tables.extend(unit, part)
        except Fenced as error:
            raise ActionRefused(
                f"saga {row.id!r} has changed meanwhile; look at it again"
            ) from error

    await deps.store.write(body, name=f"saga {row.name} {verb.value}")
    written = await tables.find(deps.store, row.id)
    return written or row


async def _load(deps: SagaDeps, row: SagaRow) -> tuple[RunState, list[SagaRecord]]:
    state = RunState()
    try:
        records = [each.record for each in await tables.records(deps.store, row.id)]
        for record in records:
            state.apply(record)
    except SagaError as error:
        raise ActionRefused(f"{error.message}; what it has done is not known") from error
    return state, records


def _step_of(
    deps: SagaDeps, versions: SagaVersions, row: SagaRow, records: list[SagaRecord], key: str
) -> Step[object]:
    found = fit(deps, versions, row, records)
    if isinstance(found, str):
        raise ActionRefused(
            f"saga {row.id!r}: only the code of the run knows what {key} returns, and it waits for "
            f"{found}; start that code, or undo"
        )
    found.drop()
    step = found.steps.get(key)
    if step is None:
        raise ActionRefused(f"saga {row.id!r}: its code does not ask for {key} any more; retry")
    return step


def _fitting(step: Step[object], id: str, wish: RepairWish) -> bytes:  # noqa: A002
    try:
        return encode(step.load(b"null" if wish.result is None else wish.result))
    except BadRequest as error:
        raise ActionRefused(
            f"saga {id!r}: the result is not what {step.ask.name} returns: {error.message}; give "
            "it, as JSON where you type it (--result '...', or result=)"
        ) from error
