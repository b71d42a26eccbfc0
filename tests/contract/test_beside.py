"""What may take long is asked beside who serves: in threads, and as well in simulation."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from messaging_world import open_store, sell, stores
from store_fakes import open_store as open_file
from synchromesh.errors import StatementFailed, StoreBroken
from synchromesh.events import Checkpoint, head, save_checkpoint
from synchromesh.events.removal import remove_each
from synchromesh.runtime import RealRuntime
from synchromesh.store import SqliteStores, Store, Unit
from synchromesh.system.control.action_table import find_action
from synchromesh.system.control.actions import ReadAction
from synchromesh.testing import SimRuntime, World, run

# It counts for many seconds, however fast the machine is.
FOR_LONG = (
    "with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000000000000) "
    "select count(*) from n"
)


async def act(name: str, store: Store, **wanted: Any) -> Any:
    action = find_action(name)
    assert isinstance(action, ReadAction)
    return await action.run(store, SimpleNamespace(service="", **wanted))


def test_databases_are_looked_into_verified_and_backed_up_in_simulation(tmp_path: Path) -> None:
    """By its clock, on its disk; the copy alone is real. What serves goes on meanwhile."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop") as (shop,):
            for n in range(5):
                await sell(shop, "a", n)
            asked = [
                act("db.status", shop),
                act("db.verify", shop),
                act("db.backup", shop, to=str(tmp_path), system="corner"),
            ]
            status, verified, made, _ = await asyncio.gather(*asked, sell(shop, "a", 5))
            assert [
                each["rows"] for each in map(asdict, status["tables"]) if each["name"] == "sale"
            ] in ([5], [6])
            assert verified["faults"] == []
            assert made["taken_at"].startswith("2026-01-01T00:00:0")
            with closing(sqlite3.connect(Path(made["folder"]) / "shop.db")) as copy:
                assert copy.execute("select count(*) from sale").fetchone()[0] in (5, 6)
            manifest = json.loads((Path(made["folder"]) / "manifest.json").read_text())
            assert manifest["log_id"] == shop.log_id

    run(main)


def asdict(table: Any) -> dict[str, Any]:
    return {name: getattr(table, name) for name in table.__struct_fields__}


def test_a_database_is_in_order_while_it_is_written_relayed_and_forgotten() -> None:
    """Whatever happens between two looks at it is no fault."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop") as (shop,):

            async def work(n: int) -> None:
                await sell(shop, "ab"[n % 2], n)
                end = (await head(shop)).position
                at = Checkpoint(shop.log_id, end)
                await shop.write(lambda unit: save_checkpoint(unit, "relay/x", at), name="relay")
                await shop.write(lambda unit: remove_each(unit, [end - 1]), name="forget")

            async def look() -> None:
                while not is_over:
                    found.append((await act("db.verify", shop))["faults"])

            found: list[list[str]] = []
            is_over = False
            await sell(shop, "a", 0)
            looking = asyncio.ensure_future(look())
            for n in range(1, 60):
                await work(n)
            is_over = True
            await looking
            assert len(found) > 10
            assert [each for each in found if each] == []

    for seed in range(3):
        run(main, seed=seed)


def test_a_power_cut_in_the_midst_of_a_look_leaves_the_database_as_it_is() -> None:
    """Also while a backup or a count has the file open; the next owner finds all."""

    async def main(runtime: SimRuntime) -> None:
        store = await open_store(runtime)
        await sell(store, "a", 1)
        await act("db.status", store)
        await sell(store, "a", 2)
        await act("db.verify", store)
        await asyncio.Event().wait()

    async def nemesis(world: World, step: int) -> int:
        node = world.node("a", main)
        world.on_step = lambda node: node.crash() if node.steps == step else None
        node.start()
        await asyncio.sleep(2.0)
        ended = node.steps
        node.crash()
        if not world.disk.paths():
            return ended
        rows = world.disk.rows("/shop.db", "select name from sqlite_master where name = 'sale'")
        if rows:
            (count,) = world.disk.rows("/shop.db", "select count(*) from sale")[0]
            (events,) = world.disk.rows("/shop.db", "select count(*) from sm_event")[0]
            assert count == events
        return ended

    world = World(7)
    steps = world.run(nemesis(world, 0))
    for step in range(1, steps, 4):
        world = World(7)
        world.run(nemesis(world, step))
    assert steps > 30


def in_a_file(folder: Path, main: Callable[[Store], Awaitable[None]]) -> None:
    async def opened() -> None:
        store = await open_file(folder, RealRuntime())
        try:
            await main(store)
        finally:
            await store.close()

    asyncio.run(opened())


def test_the_loop_goes_on_while_a_thread_reads_and_who_gives_up_ends_the_statement(
    tmp_path: Path,
) -> None:
    """What would take hours is ended; the reader can be asked again, and closed twice."""

    async def main(store: Store) -> None:
        own = await store.beside.reader()
        long = asyncio.ensure_future(own.read(FOR_LONG))
        await asyncio.sleep(0.05)
        # It is in the midst of it, and the store is written, which is what it serves by.
        assert await store.read("select 1") == [(1,)]

        async def add(unit: Unit) -> None:
            await unit.execute("insert into item(n) values (7)")

        await store.write(add, name="add")
        assert not long.done()
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        assert await own.read("select n from item") == [(7,)]
        assert (await own.fetch("select n from item")).columns == ("n",)
        with pytest.raises(StatementFailed, match="writes"):
            await own.read("delete from item")
        assert not await own.reaches(str(tmp_path / "other.db"))
        assert (own.service, own.log_id, own.place) == (store.service, store.log_id, store.place)
        await own.close()
        await own.close()

    in_a_file(tmp_path, main)


def test_one_that_is_queued_behind_another_and_given_up_is_not_run(tmp_path: Path) -> None:
    """Nor does it end what others wait for."""

    async def main(store: Store) -> None:
        own = await store.beside.reader()
        first = asyncio.ensure_future(own.read("select count(*) from item"))
        await asyncio.sleep(0)
        gone = asyncio.ensure_future(own.read("select 2"))
        await asyncio.sleep(0)
        gone.cancel()
        assert await first == [(0,)]
        assert await own.read("select 3") == [(3,)]
        await own.close()

    in_a_file(tmp_path, main)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """At once, and nothing is left open."""

    async def main() -> None:
        with pytest.raises(StoreBroken, match="no database yet"):
            await SqliteStores(RealRuntime(), lambda _: str(tmp_path / "no.db")).open_reader("shop")

    asyncio.run(main())
