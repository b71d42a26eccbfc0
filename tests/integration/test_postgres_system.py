"""A system whose `[engine]` names a PostgreSQL server: it runs there, or is refused."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest import mock

import asyncpg
import pytest

from cli_runs import runner
from postgres_server import shared_server
from synchromesh.errors import (
    ConfigError,
    MissingExtra,
    StoreBroken,
    StoreReadOnly,
    StoreUnavailable,
    SynchromeshError,
)
from synchromesh.identity import Signer
from synchromesh.runtime import RealRuntime
from synchromesh.store.postgres_connection import connect
from synchromesh.store.postgres_databases import PostgresDatabases, check_mark
from synchromesh.store.unit_store import UnitStore
from synchromesh.system import System, load_config
from synchromesh.system.control.metrics import Collector

pytestmark = pytest.mark.anyio

KEY = "00" * 32
TOML = """\
[system]
name = "{name}"
key = "env:MESH_KEY"

[services.shop]
app = "shop_app:shop"

[engine]
postgres = "env:DATABASE_URL"
"""


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The server and the key are in the environment; what was imported goes."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("MESH_KEY", KEY)
    monkeypatch.setenv("DATABASE_URL", shared_server().url("postgres"))
    return monkeypatch


@asynccontextmanager
async def running(folder: Path, name: str, replicas: int = 1) -> AsyncIterator[System]:
    folder.mkdir(exist_ok=True)
    text = TOML.format(name=name).replace(':shop"', f':shop"\nreplicas = {replicas}')
    (folder / "synchromesh.toml").write_text(text)
    system = System(load_config(folder), folder, RealRuntime())
    await system.start()
    try:
        yield system
    finally:
        await system.stop()


async def refused(folder: Path, name: str, kind: type[SynchromeshError]) -> str:
    """Return the one message of a start that is refused."""
    with pytest.raises(kind) as caught:
        async with running(folder, name):
            pass
    return caught.value.message


def databases(*, system: str, user: str = "postgres", key: bytes = b"0" * 32) -> PostgresDatabases:
    url = shared_server().url("postgres", user=user)
    return PostgresDatabases(url, system=system, passwords=Signer(key).database_passwords)


async def test_a_key_takes_a_system_to_postgresql(tmp_path: Path) -> None:
    """Databases and roles are made; all is there at the next start."""
    for total in (3, 6):
        async with running(tmp_path / "a", "by-key") as system:
            store = system.instances["shop"].store
            assert "/by_key_shop" in store.place
            assert store.place.startswith("postgresql://by_key_shop@")
            await sell(system)
            assert await sold(system) == total
    assert list((tmp_path / "a/.synchromesh/data").iterdir()) == []


async def test_a_service_that_writes_has_replicas(tmp_path: Path) -> None:
    """What SQLite refuses: two instances of a shop, which share its sagas between them."""
    async with running(tmp_path / "a", "two-shops", replicas=2) as system:
        stores = [system.instances[f"shop#{number}"].store for number in (1, 2)]
        counted = "select count(*) from sm_duty where name like 'sagas/%' group by owner"
        async with asyncio.timeout(120.0):
            while await stores[0].read(counted) != [(30,), (30,)]:
                await asyncio.sleep(0.05)
        await sell(system)
        assert await sold(system) == 3


async def test_its_metrics_tell_of_groups_sizes_and_places(tmp_path: Path) -> None:
    """What is told of a SQLite file, and the connections that are taken, with reads that wait."""
    async with running(tmp_path / "a", "measured") as system:
        await asyncio.gather(*(sell(system) for _ in range(8)))
        store, host = system.instances["shop"].store, system._host
        collector = Collector(host.local, host.name, remotes={}, lag=host.lag)
        told = {
            (family.metric.name.removeprefix("synchromesh.store."), *sample.labels[2:]): sample
            for family in await collector.own()
            for sample in family.samples
            if family.metric.name.startswith("synchromesh.store.")
        }
        groups = told["group",]
        assert sum(groups.counts) == told["commits",].value
        assert groups.value >= 8
        (size,) = await store.read("select pg_database_size(current_database())")
        assert told["file", "database"].value == pytest.approx(size[0], rel=0.5)
        for use, places in (("units", 4), ("reads", 2)):
            shown = [told["places", use, state].value for state in ("busy", "free")]
            assert sum(shown) == places
        assert told["reads.waiting",].value == 0
        reading = [asyncio.ensure_future(store.read("select pg_sleep(1)")) for _ in range(3)]
        await asyncio.sleep(0)
        assert isinstance(store, UnitStore)
        reads = store.load().places["reads"]
        assert (reads.busy, reads.places) == (2, 2)
        assert reads.waiting >= 1
        await asyncio.gather(*reading)


async def sell(system: System) -> None:
    from shop_app import Shop

    caller = system._host.control.caller
    await caller.call(Shop.sell("a", 3), context=caller.root(key=RealRuntime().new_id()))


async def sold(system: System) -> int:
    rows = await next(iter(system.instances.values())).store.read(
        "select count(*) * 3 from sm_event"
    )
    return int(rows[0][0] or 0)


async def test_a_role_reaches_no_other_database(tmp_path: Path) -> None:
    """CONNECT is nobody's but the owner's (P1); what is made is made once, and said."""
    of = databases(system="alone")
    assert await of.create(["a", "b"]) == [
        "a: made the role alone_a",
        "a: made the database alone_a",
        "a: revoked CONNECT on alone_a from PUBLIC",
        "b: made the role alone_b",
        "b: made the database alone_b",
        "b: revoked CONNECT on alone_b from PUBLIC",
    ]
    assert await of.create(["a"]) == ["a: the role and the database alone_a are there"]
    connection = await connect(of.url("a"), service="a")
    await connection.execute("create table mine(n int)")
    await connection.close()
    with pytest.raises(StoreBroken, match="may not connect"):
        await connect(of.url("b"), service="a", database="alone_a")


async def test_who_makes_databases_needs_no_superuser(tmp_path: Path) -> None:
    """CREATEDB and CREATEROLE are enough; without them nothing is made, and it is said."""
    admin = await asyncpg.connect(shared_server().url("postgres"))
    for role in ("maker", "guest"):
        await admin.execute(f"drop role if exists {role}")
    await admin.execute("create role maker login createdb createrole; create role guest login")
    await admin.close()
    of = databases(system="made", user="maker")
    assert len(await of.create(["a"])) == 3
    await (await connect(of.url("a"), service="a")).close()
    with pytest.raises(StoreReadOnly, match="permission denied to create role"):
        await databases(system="unmade", user="guest").create(["a"])


async def test_what_is_somebody_elses_is_left_alone(
    tmp_path: Path, named: pytest.MonkeyPatch
) -> None:
    """Another system whose names are the same, one with another key, and what no system made."""
    async with running(tmp_path / "a", "twice"):
        pass
    told = await refused(tmp_path / "b", "Twice", StoreBroken)
    assert "twice_shop is of another system or service, 'twice shop'" in told
    named.setenv("MESH_KEY", "11" * 32)
    told = await refused(tmp_path / "a", "twice", StoreBroken)
    assert "another key" in told
    assert "db create --new-key" in told
    named.setenv("DATABASE_URL", shared_server().url("postgres").replace("postgres@", ""))
    assert "another key" in await refused(tmp_path / "a", "twice", StoreBroken)
    admin = await asyncpg.connect(shared_server().url("postgres"))
    await admin.execute("create role odd_shop")
    await admin.close()
    named.setenv("DATABASE_URL", shared_server().url("postgres"))
    assert "no system has made it" in await refused(tmp_path / "c", "odd", StoreBroken)


async def test_a_new_key_takes_over_what_the_old_one_made(tmp_path: Path) -> None:
    """Where somebody says that it is one."""
    await databases(system="rekeyed").create(["a"])
    of = databases(system="rekeyed", key=b"1" * 32)
    assert await of.create(["a"], is_new_key=True) == [
        "a: gave the role rekeyed_a the password of the new key"
    ]
    assert await of.create(["a"]) == ["a: the role and the database rekeyed_a are there"]


async def test_a_key_is_changed_while_replicas_connect(tmp_path: Path) -> None:
    """Its role has the one password or the other: who accepts both keys connects by either."""
    server, (old, new) = shared_server().url("postgres"), (b"o" * 32, b"n" * 32)

    def of(*keys: bytes) -> PostgresDatabases:
        return PostgresDatabases(
            server, system="changed", passwords=Signer(*keys).database_passwords
        )

    async def reach(*keys: bytes) -> None:
        url, mark = of(*keys).url("a"), of(*keys).mark("a")
        connection = await connect(url, service="a")
        try:
            await check_mark(connection, mark, "a")
        finally:
            connection.terminate()

    await of(old).create(["a"])
    for keys in ((old,), (old, new), (new, old)):
        await reach(*keys)
    told = "a: gave the role changed_a the password of the new key"
    assert await of(new, old).create(["a"]) == [told]
    for keys in ((old, new), (new, old), (new,)):
        await reach(*keys)
    with pytest.raises(StoreBroken) as refused:
        await reach(old)
    assert Signer(old).database_passwords("changed_a")[0] not in str(refused.value)


async def test_a_server_that_cannot_be_used_is_told_before_anything_is_served(
    tmp_path: Path, named: pytest.MonkeyPatch
) -> None:
    """No extra, no server, no URL, and what bounds a file: one message, with no password in it."""
    named.setenv("DATABASE_URL", "postgresql://u:secret@127.0.0.1:1")
    told = await refused(tmp_path, "wrong", StoreUnavailable)
    assert "cannot be reached" in told
    assert "secret" not in told
    named.setenv("DATABASE_URL", "mysql://u:secret@db")
    told = await refused(tmp_path, "wrong", ConfigError)
    assert told == (
        "engine.postgres: env:DATABASE_URL is no URL of a server; write postgresql://HOST:PORT, "
        "or postgresql://HOST:PORT,HOST:PORT for a cluster, and percent-encode what is odd in a "
        "password, a comma as %2C"
    )
    named.setenv("DATABASE_URL", "postgresql://u:secret@127.0.0.1:1")
    named.delenv("DATABASE_URL")
    assert "DATABASE_URL is not set" in await refused(tmp_path, "wrong", ConfigError)
    named.setenv("DATABASE_URL", "postgresql://u:secret@127.0.0.1:1")
    with mock.patch.dict(sys.modules, {"synchromesh.store.postgres": None}):
        assert "needs the extra 'postgres'" in await refused(tmp_path, "wrong", MissingExtra)
    assert list((tmp_path / ".synchromesh").glob("run.json")) == []


def test_verbs_of_databases_on_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are made, migrated, looked into and checked while nothing runs; copies are not made."""
    run = runner(capsys)
    (tmp_path / "synchromesh.toml").write_text(TOML.format(name="verbs"))
    ran = run(tmp_path, "db", "migrate", "--dry-run")
    assert ran.code == 2
    assert "synchromesh db create" in ran.err
    assert run(tmp_path, "db", "create").out.splitlines() == [
        "shop: made the role verbs_shop",
        "shop: made the database verbs_shop",
        "shop: revoked CONNECT on verbs_shop from PUBLIC",
    ]
    assert run(tmp_path, "db", "create", "--json").out.count("are there") == 1
    assert run(tmp_path, "db", "migrate", "--dry-run").code == 1
    assert "create table sm_event" in run(tmp_path, "db", "migrate", "--why", "new").out
    assert "ran 0 migrations" in run(tmp_path, "db", "migrate", "--why", "again").out
    asyncio.run(sold_once(tmp_path, "verbs"))
    told = json.loads(run(tmp_path, "db", "status", "--json").out)[0]
    assert told["path"].startswith("postgresql://verbs_shop@")
    assert told["bytes"] > 1_000_000
    rows = {each["name"]: each["rows"] for each in told["tables"]}
    assert (rows["sm_event"], rows["sm_change"]) == (1, 1)
    assert "migrated: " in told["changes"][0]["what"]
    assert len(json.loads(run(tmp_path, "events", "list", "--json").out)) == 1
    verified = run(tmp_path, "db", "verify")
    assert (verified.code, verified.out) == (0, "shop: in order\n")
    for words, mend in (
        (["backup"], "pg_dump"),
        (["restore", "shop", "x", "--why", "y"], "pg_res"),
    ):
        ran = run(tmp_path, "db", *words)
        assert ran.code == 2
        assert mend in ran.err


async def sold_once(folder: Path, name: str) -> None:
    async with running(folder, name) as system:
        await sell(system)


def test_verify_finds_what_is_damaged_or_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A database that others may connect to, a hole in the log, an index that is not valid."""
    run = runner(capsys)
    asyncio.run(sold_once(tmp_path, "spoilt"))

    async def spoil() -> None:
        await databases(system="open").create(["x"])
        admin = await asyncpg.connect(shared_server().url("spoilt_shop"))
        await admin.execute("grant connect on database open_x to public")
        await admin.execute("update sm_event set position = position + 7")
        await admin.execute(
            "update pg_index set indisvalid = false where indexrelid = 'sm_meta_pkey'::regclass"
        )
        await admin.close()

    asyncio.run(spoil())
    ran = run(tmp_path, "db", "verify")
    assert ran.code == 1
    assert "not isolated: the connection of shop reaches open_x" in ran.out
    assert "positions up to 8 are missing from the log" in ran.out
    assert "damaged: index sm_meta_pkey is not valid" in ran.out


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('postgres = "postgresql://u:secret@db"', "may have a password, which is never written"),
        ('postgres = "db.example"', "may have a password, which is never written"),
        ('postgress = "env:A"', "did you mean 'postgres'?"),
        ("postgres = 1", "engine.postgres: expected `str`, got `int`"),
    ],
)
def test_an_engine_that_is_written_wrongly(tmp_path: Path, written: str, told: str) -> None:
    """It is named with its line; a password is shown to nobody."""
    text = TOML.replace('postgres = "env:DATABASE_URL"', written).format(name="wrong")
    (tmp_path / "synchromesh.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path)
    assert told in caught.value.message
    assert "secret" not in caught.value.message


def test_an_address_without_a_password_may_stand_there_itself(tmp_path: Path) -> None:
    """Of either engine; without the section databases are files."""
    text = TOML.format(name="plain").replace("env:DATABASE_URL", "postgresql://db:5432")
    (tmp_path / "synchromesh.toml").write_text(f'{text}nats = "env:NATS_URL"\n')
    engine = load_config(tmp_path).engine
    assert engine.url("postgres", tmp_path, {}) == "postgresql://db:5432"
    assert engine.url("nats", tmp_path, {"NATS_URL": "nats://n:4222"}) == "nats://n:4222"
    with pytest.raises(ConfigError, match="is no URL of a server; write nats://HOST:PORT"):
        engine.url("nats", tmp_path, {"NATS_URL": "http://n"})


async def test_bounds_of_a_file_are_refused_beside_a_server(tmp_path: Path) -> None:
    """They would bound nothing."""
    (tmp_path / "synchromesh.toml").write_text(
        TOML.format(name="bound").replace(':shop"', ':shop"\npages_max = 100')
    )
    system = System(load_config(tmp_path), tmp_path, RealRuntime())
    with pytest.raises(ConfigError, match="pages_max bounds a SQLite file"):
        await system.start()


def test_names_are_short_enough_for_the_server_and_differ() -> None:
    """It would cut longer ones in silence, and two might then be one."""
    of = databases(system="s" * 60)
    names = {of.name(f"{'x' * 40}{number}") for number in range(3)}
    assert len(names) == 3
    assert max(map(len, names)) <= 63
