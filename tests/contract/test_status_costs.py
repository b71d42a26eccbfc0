"""What `status` and `saga list` ask of a database costs the same however much has ended in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from saga_fakes import CONTEXT, PLACE, THREE, Declined, Order, Participants, at_work
from synchromesh.events import count_after_checkpoint
from synchromesh.saga import Engine, SagaDefinition, SagaRun
from synchromesh.saga.inspection import oldest_runs
from synchromesh.saga.records import SagaStatus
from synchromesh.store import SqliteStore, Unit
from synchromesh.testing import SimRuntime, run

NUMBERS = "with recursive n(i) as (select 1 union all select i + 1 from n where i < ?) insert into "
STEPS_EACH = 100


async def seed(store: SqliteStore, count: int) -> None:
    """Write sagas that have ended, a tenth of them undone, and what they told the log."""

    async def fill(unit: Unit) -> None:
        await unit.execute(
            f"{NUMBERS} sm_saga(id, name, version, digest, input, status, reason, owner, trace_id, "
            "span_id, caller, principal, deadline_us, shard, started_us, ended_us) select "
            "'old-' || i, 'three_calls', 1, '', x'', case when i % 10 then 'completed' else "
            "'undone' end, '', 'orders', '', '', '', '', 0, 1, i, i + 1 from n",
            count,
        )
        await unit.execute(
            f"{NUMBERS} sm_event(id, stream, version, name, type_version, body, is_public, "
            "ordering_key, trace_id, recorded_us) "
            "select 'e' || i, 'saga/' || i, 1, 'orders.saga_ended', 1, x'7b7d', 0, '', '', i "
            "from n",
            count,
        )

    await store.write(fill, name="seed")


async def start(
    engine: Engine,
    id: str,  # noqa: A002
    definition: SagaDefinition[Any, Any] = THREE,
) -> SagaRun[Any]:
    return await engine.start(definition, Order(id), id=id, context=CONTEXT)


async def steps_of(store: SqliteStore, ask: Callable[[], Awaitable[object]]) -> int:
    """Return the steps of the engine, by hundreds, that a question takes."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    store._reader.set_progress_handler(count, STEPS_EACH)
    await ask()
    store._reader.set_progress_handler(None, 0)
    return steps


def questions(engine: Engine, store: SqliteStore) -> dict[str, Callable[[], Awaitable[object]]]:
    asked: dict[str, Callable[[], Awaitable[object]]] = {
        f"runs {status}": lambda status=status: engine.runs(status, 5)  # type: ignore[misc]
        for status in ("", *(each.value for each in SagaStatus))
    }
    return asked | {
        "statuses": engine.statuses,
        "oldest": lambda: oldest_runs(store),
        "relay": lambda: count_after_checkpoint(store, "relay/nobody", is_public=True),
        "projection": lambda: count_after_checkpoint(store, "projection/none", is_public=False),
    }


def test_what_is_listed_and_counted_costs_the_same_with_a_hundred_times_as_many() -> None:
    """Neither lists of runs, nor their counts, nor lags take longer by what has ended."""

    async def costs(runtime: SimRuntime, count: int) -> dict[str, int]:
        async with at_work(runtime, Participants()) as engine:
            store = engine._store
            assert isinstance(store, SqliteStore)
            await seed(store, count)
            return {
                name: await steps_of(store, ask) for name, ask in questions(engine, store).items()
            }

    few = run(lambda runtime: costs(runtime, 300))
    many = run(lambda runtime: costs(runtime, 30_000))
    assert {name: steps for name, steps in many.items() if steps > 2 * few[name] + 2} == {}


@pytest.mark.parametrize("is_again", [False, True])
def test_runs_are_counted_as_they_end_whatever_process_ends_them(is_again: bool) -> None:
    """Counts hold what has ended, are kept over a restart, and have nothing of what goes on."""

    async def main(runtime: SimRuntime) -> dict[str, int]:
        others = Participants()
        async with at_work(runtime, others) as engine:
            for n in range(3):
                await (await start(engine, f"A-{n}")).result(60.0)
            others.refuses.add("bank.charge")
            with pytest.raises(Declined):
                await (await start(engine, "B-1")).result(60.0)
            if not is_again:
                return await engine.statuses()
        async with at_work(runtime, others) as engine:
            others.refuses.clear()
            await (await start(engine, "C-1", PLACE)).result(60.0)
            return await engine.statuses()

    assert run(main) == {"completed": 3 + is_again, "undone": 1}
