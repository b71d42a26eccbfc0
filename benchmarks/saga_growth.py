"""How the cost of sagas grows: beside 10², 10⁴ and 10⁵ that have ended, and with as many to go on.

    python -m benchmarks.saga_growth

Sizes take turns, round by round, so that what else the machine does meets all of them alike: what
counts is how columns compare. A recovery is measured once for each size, for it takes long.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks import product
from benchmarks.harness import Measures, Report, at_most, check, in_turn_async, size
from benchmarks.saga_services import PARTICIPANTS, Hold, Inventory, place, placed
from synchromesh.codec import encode

SIZES = (100, 10_000, 100_000)
QUICK_SIZES = (20, 100, 400)
SERVICES = "benchmarks.saga_services"
_WITHIN_S = 120.0
_LOOK_S = 0.02


async def _answer(_: str, __: str) -> bytes:
    return encode(Hold("hold"))


async def _once(sagas: product.Sagas, order: str) -> float:
    began_s = time.perf_counter()
    run = await sagas.start(place, order, id=order)
    check(await run.result(within_s=_WITHIN_S), placed("hold"), "a saga")
    return time.perf_counter() - began_s


class Ended:
    """An engine whose store has so many sagas that have ended."""

    def __init__(self, sagas: product.Sagas, count: int) -> None:
        self._sagas, self._count, self._added = sagas, count, 0

    async def round(self) -> Measures:
        """Measure sagas one after the other, and what people ask for."""
        took_s = []
        for _ in range(size(60, 5)):
            took_s.append(await _once(self._sagas, f"new-{self._added}"))
            self._added += 1
        began_s = time.perf_counter()
        statuses = await self._sagas.statuses()
        status_s = time.perf_counter() - began_s
        check(statuses, {"completed": self._count + self._added}, "the status")
        began_s = time.perf_counter()
        check(await self._sagas.listed(20), 20, "the list")
        list_s = time.perf_counter() - began_s
        return {
            "saga_ms": statistics.median(took_s) * 1e3,
            "status_ms": status_s * 1e3,
            "list_ms": list_s * 1e3,
        }


async def recover(folder: Path, count: int) -> Measures:
    """Leave so many sagas in their second step, and recover them while new ones are run."""
    await product.leave_running(folder, place, count, first=Inventory.take, gives=Hold("hold"))
    began_s = time.perf_counter()
    async with product.saga_engine(folder, place, _answer) as sagas:
        serving_s = time.perf_counter() - began_s
        took_s: list[float] = []
        while (await sagas.statuses()).get("running", 0):
            took_s.append(await _once(sagas, f"new-{len(took_s)}"))
        done_s = time.perf_counter() - began_s
        check(await sagas.statuses(), {"completed": count + len(took_s)}, "a recovery")
    return {
        "serving_ms": serving_s * 1e3,
        "done_s": done_s,
        "new_ms": statistics.median(took_s or [0.0]) * 1e3,
    }


async def recover_commands(folder: Path, count: int) -> Measures:
    """Leave so many in their second step, and continue them with commands of three services."""
    data = product.database(folder, "orders").parent
    data.mkdir(parents=True)
    await product.leave_running(data, place, count, first=Inventory.take, gives=Hold("hold"))
    began_s = time.perf_counter()
    async with product.running(folder, SERVICES, ("orders", *PARTICIPANTS)) as sagas:
        serving_s = time.perf_counter() - began_s
        while (await sagas.statuses()).get("running", 0):  # noqa: ASYNC110 - runs signal nothing
            await asyncio.sleep(_LOOK_S)
        done_s = time.perf_counter() - began_s
        check(await sagas.statuses(), {"completed": count}, "a recovery with commands")
    return {"serving_ms": serving_s * 1e3, "done_s": done_s}


async def rows(report: Report, folder: Path) -> None:
    """Add the rows of all sizes to a report."""
    sizes = SIZES if size(1, 0) else QUICK_SIZES
    async with AsyncExitStack() as opened:
        engines: dict[str, Ended] = {}
        for count in sizes:
            place_of = folder / f"ended-{count}"
            place_of.mkdir()
            await product.leave_ended(place_of, place, count)
            sagas = await opened.enter_async_context(product.saga_engine(place_of, place, _answer))
            engines[f"{count:,}"] = Ended(sagas, count)
        results = await in_turn_async(
            {name: each.round for name, each in engines.items()}, rounds=size(7, 2)
        )
    smallest, *others = engines
    for name in engines:
        for figure, measure in (
            ("a saga of 3 stubbed steps, p50", "saga_ms"),
            ("how many have which status", "status_ms"),
            ("a list of 20", "list_ms"),
        ):
            report.alone(f"{name} ended: {figure}", "ms", results.median(name, measure))
    for name in others:
        figure = f"a saga beside {name} ended, x beside {smallest}"
        report.alone(figure, "x", results.ratio(name, smallest, "saga_ms"), at_most(2))
    for count in sizes:
        place_of = folder / f"running-{count}"
        place_of.mkdir()
        found = await recover(place_of, count)
        goal = at_most(10) if count == 10_000 else None
        report.alone(f"{count:,} running: serves after", "ms", found["serving_ms"])
        report.alone(f"{count:,} running: all done after", "s", found["done_s"], goal)
        report.alone(f"{count:,} running: a new saga meanwhile, p50", "ms", found["new_ms"])
    count = sizes[1]
    place_of = folder / "commands"
    place_of.mkdir()
    found = await recover_commands(place_of, count)
    named = f"{count:,} running, of 3 real commands"
    report.alone(f"{named}: serves after", "ms", found["serving_ms"])
    report.alone(f"{named}: all done after", "s", found["done_s"], at_most(10))


async def main() -> None:
    """Measure all sizes and report."""
    report = Report("saga_growth")
    with tempfile.TemporaryDirectory() as name:
        await rows(report, Path(name))
    report.finish()


if __name__ == "__main__":
    asyncio.run(main())
