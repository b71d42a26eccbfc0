"""One contestant of the saga benchmark, in a process of its own; `benchmarks.saga` starts them.

    python -m benchmarks.saga_runs CONTESTANT FOLDER

It prints one line of JSON. `*-pending` leaves 50 sagas waiting in their second step, says so and
waits to be killed; `*-recovery` opens the same folder and measures until all of them are done.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

from dbos import DBOS, SetWorkflowID

from benchmarks import durability, product
from benchmarks.harness import WrongAnswer, check, size
from benchmarks.saga_services import (
    HOLD,
    PARTICIPANTS,
    STOCK,
    TABLES,
    TAKE,
    Booked,
    Hold,
    Production,
    place,
    placed,
)
from synchromesh.codec import encode

IN_FLIGHT = 50
PENDING = 50
WITHIN_S = 60.0

Once = Callable[[str], Awaitable[None]]
"""Runs the saga of an order to its end, and checks its answer."""

entered: Counter[str] = Counter()
"""How often a stubbed step was entered, by participant."""
undone: Counter[str] = Counter()
"""How often one was undone."""


def is_refused(order: str) -> bool:
    """Return whether the last step of an order is refused, where a third are."""
    return int(order.rpartition("-")[2]) % 3 == 2


# -- ours ----------------------------------------------------------------------------------------


async def answered(operation: str, _: str) -> bytes:
    """Answer a step of ours at once."""
    participant, _, name = operation.partition(".")
    (undone if name == "undo" else entered)[participant] += 1
    return encode(Hold(HELD))


async def _refuse_a_third(operation: str, key: str) -> bytes:
    answer = await answered(operation, key)
    if operation == Production.take.full_name and is_refused(key.partition("/")[0]):
        raise Booked("no slot is free")
    return answer


HELD = "hold"


async def ours_once(sagas: product.Sagas, order: str, hold: str) -> None:
    """Run a saga to its end, and check its answer."""
    run = await sagas.start(place, order, id=order)
    check(await run.result(within_s=WITHIN_S), placed(hold), "a saga of ours")


@asynccontextmanager
async def ours_stubbed(folder: Path) -> AsyncIterator[Once]:
    """Run our saga engine; its steps are answered at once."""
    async with product.saga_engine(folder, place, answered) as sagas:
        yield lambda order: ours_once(sagas, order, HELD)


@asynccontextmanager
async def ours_third(folder: Path) -> AsyncIterator[Once]:
    """Run our saga engine; every third saga is refused by its last step, and undone."""
    async with product.saga_engine(folder, place, _refuse_a_third) as sagas:

        async def once(order: str) -> None:
            try:
                await ours_once(sagas, order, HELD)
            except Booked:
                check(is_refused(order), True, "a saga of ours that was refused")
            else:
                check(is_refused(order), False, "a saga of ours that was done")

        yield once


@asynccontextmanager
async def ours_real(folder: Path) -> AsyncIterator[Once]:
    """Run four services as `synchromesh dev` does."""
    services = ("orders", *PARTICIPANTS)
    async with product.running(folder, "benchmarks.saga_services", services) as sagas:
        yield lambda order: ours_once(sagas, order, order)


# -- DBOS ----------------------------------------------------------------------------------------

_step = DBOS.step()
_workflow = DBOS.workflow()
_taking: dict[str, Callable[[str, str], str]] = {}
_held = asyncio.Event()
_is_holding = False
_is_refusing = False


class _NoSlot(ValueError):
    """The last participant says no."""


async def _dbos_take(participant: str, order: str) -> dict[str, str]:
    entered[participant] += 1
    if _is_holding and participant == "billing":
        await _held.wait()
    if participant in _taking:
        return {"id": _taking[participant](order, participant)}
    return {"id": order}


async def _dbos_inventory(order: str) -> dict[str, str]:
    return await _dbos_take("inventory", order)


async def _dbos_billing(order: str) -> dict[str, str]:
    return await _dbos_take("billing", order)


async def _dbos_production(order: str) -> dict[str, str]:
    taken = await _dbos_take("production", order)
    if _is_refusing and is_refused(order):
        raise _NoSlot("no slot is free")
    return taken


async def _dbos_undo(participant: str, hold: dict[str, str]) -> None:
    if not _is_refusing:
        raise WrongAnswer(f"a saga of DBOS was undone: {hold}")
    undone[participant] += 1


_inventory, _billing = _step(_dbos_inventory), _step(_dbos_billing)
_production, _undo = _step(_dbos_production), _step(_dbos_undo)


async def _dbos_place(order: str) -> str:
    undos: list[tuple[str, dict[str, str]]] = []
    try:
        hold = await _inventory(order)
        undos.append(("inventory", hold))
        paid = await _billing(order)
        undos.append(("billing", paid))
        slot = await _production(order)
    except ValueError:
        for participant, taken in reversed(undos):
            await _undo(participant, taken)
        raise
    return f"{hold['id']} {paid['id']} {slot['id']}"


_place = _workflow(_dbos_place)


@contextmanager
def _dbos(folder: Path) -> Iterator[None]:
    path = folder / "dbos.db"
    # In the mode that ours has, which is the faster one for it too; it stays with the file.
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode = wal")
    connection.close()
    with dbos_at(f"sqlite:///{path}"):
        yield


@contextmanager
def dbos_at(url: str) -> Iterator[None]:
    """Run DBOS on a database until the block ends."""
    DBOS(
        config={
            "name": "bench",
            "system_database_url": url,
            "log_level": "ERROR",
            "application_version": "1",
            "executor_id": "bench",
        }
    )
    DBOS.launch()
    try:
        yield
    finally:
        DBOS.destroy()


async def dbos_once(order: str) -> None:
    """Run a workflow to its end, and check its answer."""
    with SetWorkflowID(order):
        answer = await _place(order)
    check(answer, placed(order), "a workflow of DBOS")


@asynccontextmanager
async def dbos_stubbed(folder: Path) -> AsyncIterator[Once]:
    """Run workflows of three steps that return at once."""
    with _dbos(folder):
        yield dbos_once


@asynccontextmanager
async def dbos_third(folder: Path) -> AsyncIterator[Once]:
    """Run the same workflows; every third is refused by its last step, and undoes the others."""
    global _is_refusing
    _is_refusing = True

    async def once(order: str) -> None:
        try:
            await dbos_once(order)
        except _NoSlot:
            check(is_refused(order), True, "a workflow of DBOS that was refused")
        else:
            check(is_refused(order), False, "a workflow of DBOS that was done")

    with _dbos(folder):
        yield once


@asynccontextmanager
async def dbos_real(folder: Path) -> AsyncIterator[Once]:
    """Run workflows whose steps each commit to a database of their own, once for each order."""
    connections = [_participant(folder, name) for name in PARTICIPANTS]
    with _dbos(folder):
        yield dbos_once
    for connection in connections:
        connection.close()


def _participant(folder: Path, name: str) -> sqlite3.Connection:
    # Inline, by hand and without a thread: the least that a durable command can cost.
    connection = sqlite3.connect(folder / f"{name}.db", isolation_level=None)
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    for table in TABLES:
        connection.execute(table)
    connection.execute("create table inbox(key text primary key, answer text) without rowid")

    def take(order: str, participant: str) -> str:
        key = f"{order}/{participant}"
        connection.execute("begin immediate")
        known = connection.execute("select answer from inbox where key = ?", (key,)).fetchall()
        if known:
            connection.execute("rollback")
            return str(known[0][0])
        assert connection.execute(TAKE).fetchall()
        connection.execute(HOLD, (order,))
        connection.execute("insert into inbox values (?, ?)", (key, order))
        connection.execute("commit")
        return order

    _taking[name] = take
    return connection


# -- what is measured ----------------------------------------------------------------------------

Contestant = Callable[[Path], AbstractAsyncContextManager[Once]]

STUBBED: dict[str, Contestant] = {
    "ours-stubbed": ours_stubbed,
    "dbos-stubbed": dbos_stubbed,
    "ours-third": ours_third,
    "dbos-third": dbos_third,
}
REAL: dict[str, Contestant] = {"ours-real": ours_real, "dbos-real": dbos_real}


def _databases(contestant: str, folder: Path) -> list[Path]:
    """Return the databases that a contestant commits sagas to, its own first."""
    if contestant == "ours-real":
        return [product.database(folder, name) for name in ("orders", *PARTICIPANTS)]
    own = folder / ("orders.db" if contestant.startswith("ours") else "dbos.db")
    participants = [folder / f"{name}.db" for name in PARTICIPANTS]
    return [own, *participants] if contestant in REAL else [own]


class Load(NamedTuple):
    """What a load took: seconds, CPU seconds of the process, and the median saga's seconds."""

    wall_s: float
    cpu_s: float
    p50_s: float


async def load(once: Once, prefix: str, sagas: int, in_flight: int) -> Load:
    """Run sagas, so many at once until all are done."""
    numbers = iter(range(sagas))
    spans_s: list[float] = []

    async def worker() -> None:
        for number in numbers:
            began_s = time.perf_counter()
            await once(f"{prefix}-{number}")
            spans_s.append(time.perf_counter() - began_s)

    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return Load(
        time.perf_counter() - began_s,
        time.process_time() - began_cpu_s,
        statistics.median(spans_s),
    )


async def measure(contestant: str, folder: Path) -> dict[str, float]:
    """Run a contestant alone and at 50 sagas in flight; count its commits afterwards."""
    is_ours = contestant.startswith("ours")
    alone = size(40, 5)
    many = size(1_000, 100) if is_ours else size(150, 30)
    counted = size(100, 50)
    paths = _databases(contestant, folder)
    async with (STUBBED | REAL)[contestant](folder) as once:
        await load(once, "warm-up", 20, 10)
        # As the processes of ours do, for both: each imports what the other needs.
        product.spare_collector()
        one = await load(once, "alone", alone, 1)
        all_of = await load(once, "many", many, IN_FLIGHT)
        with durability.commits(*paths) as seen_alone:
            await load(once, "counted-alone", 10, 1)
        with durability.commits(*paths) as seen_many:
            await load(once, "counted-many", counted, IN_FLIGHT)
        for path in paths:
            durability.prove_synced(path, who=contestant)
    loads = (20, alone, many, 10, counted)
    sagas = sum(loads)
    refused = sum(each // 3 for each in loads) if contestant.endswith("-third") else 0
    check(undone, {"inventory": refused, "billing": refused} if refused else {}, contestant)
    if contestant in REAL:
        for path in paths[1:]:
            _check_participant(path, sagas, contestant)
    else:
        check(entered, dict.fromkeys(PARTICIPANTS, sagas), contestant)
    own = paths[0].name
    return {
        "rate": many / all_of.wall_s,
        "cpu_ms": all_of.cpu_s / many * 1e3,
        "p50_ms": one.p50_s * 1e3,
        "commits_alone": seen_alone.by_file[own] / 10,
        "commits_many": seen_many.by_file[own] / counted,
        "all_commits_alone": seen_alone.total / 10,
        "all_commits_many": seen_many.total / counted,
    }


def _check_participant(path: Path, sagas: int, who: str) -> None:
    """Check that each saga took one and holds one, as an auditor sees it."""
    audit = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    held = audit.execute("select count(*) from hold").fetchone()[0]
    left = audit.execute("select n from stock").fetchone()[0]
    audit.close()
    check((held, STOCK - left), (sagas, sagas), f"{who}, {path.name}")


# -- recovery ------------------------------------------------------------------------------------


async def ours_pending(folder: Path) -> None:
    """Leave sagas of ours in their second step."""

    async def hang(operation: str, key: str) -> bytes:
        answer = await answered(operation, key)
        if operation.startswith("billing."):
            await _held.wait()
        return answer

    async with product.saga_engine(folder, place, hang) as sagas:
        for number in range(PENDING):
            await sagas.start(place, f"p-{number}", id=f"p-{number}")
        # Sent, so that the first steps are durable: they may not be made again.
        await _until(lambda: entered["billing"] == PENDING)
        await _wait_to_be_killed()


async def ours_recovery(folder: Path) -> float:
    """Measure until they are all done."""
    began_s = time.perf_counter()
    async with product.saga_engine(folder, place, answered) as sagas:
        for number in range(PENDING):
            # Started before: the same run.
            await ours_once(sagas, f"p-{number}", HELD)
        took_s = time.perf_counter() - began_s
    check(entered, {"billing": PENDING, "production": PENDING}, "our recovery")
    return took_s


async def dbos_pending(folder: Path) -> None:
    """Leave workflows of DBOS in their second step."""
    global _is_holding
    _is_holding = True
    with _dbos(folder):
        for number in range(PENDING):
            with SetWorkflowID(f"p-{number}"):
                await DBOS.start_workflow_async(_place, f"p-{number}")
        await _until(lambda: entered["billing"] == PENDING)
        await _wait_to_be_killed()


async def dbos_recovery(folder: Path) -> float:
    """Measure until they are all done."""
    began_s = time.perf_counter()
    with _dbos(folder):
        for number in range(PENDING):
            handle = await DBOS.retrieve_workflow_async(f"p-{number}")
            answer = await handle.get_result(polling_interval_sec=0.02)
            check(answer, placed(f"p-{number}"), "a recovered workflow of DBOS")
        took_s = time.perf_counter() - began_s
    check(entered, {"billing": PENDING, "production": PENDING}, "the recovery of DBOS")
    return took_s


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not is_so():  # noqa: ASYNC110  what is counted signals nothing
            await asyncio.sleep(0.01)


async def _wait_to_be_killed() -> None:
    print("pending", flush=True)
    await asyncio.sleep(WITHIN_S)
    raise WrongAnswer("nobody killed this process")


PENDING_RUNS = {"ours-pending": ours_pending, "dbos-pending": dbos_pending}
RECOVERIES = {"ours-recovery": ours_recovery, "dbos-recovery": dbos_recovery}


async def main(contestant: str, folder: Path) -> None:
    """Run one contestant and print what it measured."""
    durability.watch()
    if contestant in PENDING_RUNS:
        await PENDING_RUNS[contestant](folder)
    elif contestant in RECOVERIES:
        print(json.dumps({"recovery_s": await RECOVERIES[contestant](folder)}), flush=True)
    else:
        print(json.dumps(await measure(contestant, folder)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
    os._exit(0)  # threads of DBOS outlive it
