"""The file of a service's keys: durable before it is used, and gone with its subject."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from store_fakes import Fault, FaultyDisk, sqlite_error
from synchromesh.errors import PersonalUnreadable, StoreBroken, StoreError, StoreFull
from synchromesh.runtime import RealDisk, RealRuntime
from synchromesh.store import Migration, Schema, SqliteStore, SqliteVault, Unit
from synchromesh.store.vault import vault_path
from synchromesh.store.vault_reader import VaultReader
from synchromesh.testing import SimRuntime, run

PLACE = "event/shop.sold\0email"


def vault(folder: Path, service: str = "shop", expected: str = "") -> SqliteVault:
    made = SqliteVault(str(folder / f"{service}.keys"), service=service, runtime=RealRuntime())
    made.expected = expected
    return made


def sealed(of: SqliteVault, subject: str = "c-1", data: bytes = b'"anna"') -> str:
    made = of.seal(subject, PLACE, data)
    assert made is not None
    of.flush()
    return made


def files(folder: Path) -> bytes:
    return b"".join(each.read_bytes() for each in folder.iterdir())


def test_a_value_opens_in_its_place_alone(tmp_path: Path) -> None:
    """Service, subject, kind and field are bound to it; so is each byte."""
    own, other = vault(tmp_path), vault(tmp_path, "other")
    value = sealed(own)
    assert sealed(own) != value  # a nonce of its own
    assert own.open("c-1", PLACE, value) == b'"anna"'
    for subject, place in (("c-2", PLACE), ("c-1", "event/shop.sold\0name"), ("c-1", "x")):
        own.seal(subject, PLACE, b"1")
        with pytest.raises(PersonalUnreadable) as refused:
            own.open(subject, place, value)
        assert "anna" not in refused.value.message
    raw = bytearray(b64decode(value))
    raw[-1] ^= 1
    for broken in (b64encode(raw).decode(), "", "AQ==", "no base64", value[:20]):
        with pytest.raises(PersonalUnreadable):
            own.open("c-1", PLACE, broken)
    other.seal("c-1", PLACE, b"1")
    with pytest.raises(PersonalUnreadable, match="put that file back"):
        other.open("c-1", PLACE, value)
    own.close()
    own.close()
    assert own.open("c-1", PLACE, value) == b'"anna"'  # opened again where it is needed
    own.close()
    other.close()


def test_keys_that_were_not_flushed_are_no_keys(tmp_path: Path) -> None:
    """What was sealed with them is dropped, too; a file that fails is the writer's to know."""
    own = vault(tmp_path)
    value = sealed(own)
    lost = own.seal("c-2", PLACE, b"1")
    assert lost is not None
    assert own.is_pending
    own.drop()
    with pytest.raises(PersonalUnreadable, match="has no key"):
        own.open("c-2", PLACE, lost)
    again = sealed(own, "c-2")
    assert own.open("c-2", PLACE, again) == b'"anna"'
    own.seal("c-3", PLACE, b"1")
    connection = own._connection
    assert connection is not None
    connection.execute("rollback")  # as the engine does on a full disk
    own._is_spoiled = True
    # Whoever comes first does not take the failure for itself alone.
    with pytest.raises(StoreError, match="not written"):
        own.erase("c-1", now_us=1, who="ina", why="x")
    with pytest.raises(sqlite3.OperationalError, match="not written"):
        own.flush()
    own.drop()
    assert own.open("c-1", PLACE, value) == b'"anna"'
    # An erasure in between brings what is pending to the disk.
    pending = own.seal("c-4", PLACE, b"4")
    assert pending is not None
    own.erase("c-2", now_us=1, who="ina", why="x")
    own.drop()
    assert own.open("c-4", PLACE, pending) == b"4"
    own.close()


def test_the_key_is_on_the_disk_before_the_value(tmp_path: Path) -> None:
    """Whoever opens the file while the first one is still used finds the key; nobody else may."""
    first = vault(tmp_path)
    value = sealed(first)
    second = vault(tmp_path)
    assert second.open("c-1", PLACE, value) == b'"anna"'
    assert {each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == {0o600}
    first.close()
    second.close()


def test_an_erasure_leaves_no_byte_of_the_key_or_the_name(tmp_path: Path) -> None:
    """In the file and in its log, while it is open and afterwards; what is left is who and why."""
    own = vault(tmp_path)
    name = "a-rather-long-name"
    value = sealed(own, name)
    for n in range(50):
        sealed(own, f"c-{n}")
    with closing(sqlite3.connect(own.path)) as connection:
        ((key,),) = connection.execute("select key from subject where name = ?", (name,))
    assert key in files(tmp_path)
    before = own.erase(name, now_us=5, who="ina", why="asked to")
    assert before is not None
    assert (before.name, before.erased_us) == (name, None)
    for _ in range(2):
        assert key not in files(tmp_path)
        assert name.encode() not in files(tmp_path)
        assert own.open(name, PLACE, value) is None
        assert own.seal(name, PLACE, b"1") is None
        assert own.is_erased(name)
        own.close()
    again = own.erase(name, now_us=9, who="udo", why="again")
    assert again is not None
    assert (again.erased_us, again.who, again.why, again.name) == (5, "ina", "asked to", "")
    assert own.find(name) == again
    assert not own.is_erased("c-1")
    own.close()
    reader = VaultReader(str(tmp_path / "shop.db"), RealDisk())
    assert reader.find(name) == again
    assert [each.who for each in reader.subjects(is_erased=True, limit=9)] == ["ina"]
    assert len(reader.subjects(is_erased=False, limit=99)) == 50


def test_an_erasure_waits_for_nobody_who_reads_the_file(tmp_path: Path) -> None:
    """A backup keeps the bytes of the key until it ends; that is told, and mended afterwards."""
    own = vault(tmp_path)
    sealed(own)
    value, told = sealed(own, "c-2"), list[str]()
    own.on_left_over = lambda: told.append(own.left_over)
    with closing(sqlite3.connect(own.path)) as reader:
        ((key,),) = reader.execute("select key from subject where name = 'c-2'")
        reader.execute("begin")
        reader.execute("select count(*) from subject").fetchall()
        assert own._connection is not None
        own._connection.execute("pragma busy_timeout = 60000").fetchall()
        began_s = time.monotonic()
        own.erase("c-2", now_us=1, who="ina", why="asked to")
        assert own.open("c-2", PLACE, value) is None
        assert told == ["another connection reads it"]
        assert not own.overwrite()
        assert key in files(tmp_path)
        assert own._connection.execute("pragma busy_timeout").fetchall() == [(60_000,)]
        # The process that comes next knows of it, too.
        own.close()
        own.prepare()
        assert own.left_over
        assert time.monotonic() - began_s < 30
        sealed(own, "c-3")
    assert own.seal("c-4", PLACE, b"1")
    assert not own.overwrite()  # not within the writer's transaction
    own.flush()
    assert own.overwrite()
    assert own.left_over == ""
    assert key not in files(tmp_path)
    own.close()


def test_where_nobody_was_erased_nothing_is_left_over(tmp_path: Path) -> None:
    """A reader at the start is none of anybody's business; a fault of the disk is told in words."""
    runtime, disk = RealRuntime(), FaultyDisk()
    runtime._disk = disk
    own = SqliteVault(str(tmp_path / "shop.keys"), service="shop", runtime=runtime)
    sealed(own)
    with closing(sqlite3.connect(own.path)) as reader:
        reader.execute("begin")
        reader.execute("select count(*) from subject").fetchall()
        sealed(own, "c-2")
        own.close()
        own.prepare()
        assert own.left_over == ""
    disk.faults.append(Fault("pragma wal_checkpoint", sqlite_error(10, "disk I/O error")))
    assert own.erase("c-1", now_us=1, who="ina", why="asked to") is not None
    assert own.left_over == "disk I/O error"
    assert own.overwrite()
    own.close()


def test_nothing_is_made_where_nobody_asks_for_it(tmp_path: Path) -> None:
    """Looking for a subject makes no file."""
    own = vault(tmp_path)
    assert own.find("c-1") is None
    assert not own.is_erased("c-1")
    assert not own.is_there
    reader = VaultReader(str(tmp_path / "shop.db"), RealDisk())
    assert (reader.find("c-1"), reader.subjects(is_erased=True, limit=1)) == (None, [])
    assert reader.faults("") == []
    assert list(tmp_path.iterdir()) == []
    assert vault_path("/x/y.db") == "/x/y.keys"


def test_lost_keys_are_not_replaced_by_others(tmp_path: Path) -> None:
    """Until a person gives them up nothing is sealed: the file could not be put back, else."""
    own = vault(tmp_path)
    value, keys_id = sealed(own), own.prepare()
    own.close()
    kept = Path(own.path).rename(tmp_path / "kept")
    lost = vault(tmp_path, expected=keys_id)
    assert lost.lost == keys_id
    for use in (
        lambda: lost.seal("c-1", PLACE, b"1"),
        lambda: lost.open("c-1", PLACE, value),
        lambda: lost.erase("c-1", now_us=1, who="ina", why="x"),
        lambda: lost.find("c-1"),
    ):
        with pytest.raises(PersonalUnreadable, match="personal give-up shop"):
            use()
    assert not lost.is_there
    reader = VaultReader(str(tmp_path / "shop.db"), RealDisk())
    assert "put that file back" in reader.faults(keys_id)[0]
    # That of another service is not this one.
    foreign = vault(tmp_path, "foreign")
    foreign.prepare()
    foreign.close()
    Path(foreign.path).rename(own.path)
    with pytest.raises(PersonalUnreadable):
        lost.prepare()
    Path(own.path).unlink()
    kept.rename(own.path)
    assert lost.open("c-1", PLACE, value) == b'"anna"'
    lost.close()
    Path(own.path).unlink()
    given_up = vault(tmp_path, expected=keys_id)
    new_id = given_up.give_up(now_us=1, who="ina", why="the disk died")
    assert new_id != keys_id
    assert given_up.open("c-1", PLACE, value) is None
    assert given_up.open("c-1", PLACE, sealed(given_up)) == b'"anna"'
    assert given_up.open("c-1", PLACE, value) is None
    given_up.close()
    # An older backup of the database names the old file.
    older = vault(tmp_path, expected=keys_id)
    assert older.prepare() == new_id
    assert older.open("c-1", PLACE, value) is None
    older.close()
    assert reader.faults(keys_id) == []


def test_a_file_that_is_taken_away_gets_no_further_key(tmp_path: Path) -> None:
    """What is open still opens; a new key would be in a file that nobody finds again."""
    own = vault(tmp_path)
    value = sealed(own)
    own.expected = own.prepare()
    assert own.lost == ""
    Path(own.path).rename(tmp_path / "elsewhere")
    assert own.lost == own.expected
    with pytest.raises(PersonalUnreadable, match="put that file back"):
        own.seal("c-2", PLACE, b"1")
    assert own.open("c-1", PLACE, value) == b'"anna"'
    (tmp_path / "elsewhere").rename(own.path)
    assert own.lost == ""
    sealed(own, "c-2")
    own.close()


def test_a_subject_without_a_key_is_no_erased_one(tmp_path: Path) -> None:
    """An older copy of the file lacks keys: that is told, and nothing taken for erased."""
    own = vault(tmp_path)
    sealed(own)
    own.close()
    older = Path(own.path).read_bytes()
    value = sealed(own, "c-2")
    own.close()
    Path(own.path).write_bytes(older)
    with pytest.raises(PersonalUnreadable, match="an older copy"):
        own.open("c-2", PLACE, value)
    assert own.erase("c-2", now_us=1, who="ina", why="lost") is None
    assert own.open("c-2", PLACE, value) is None
    own.close()


def test_a_file_that_fails_is_told_as_the_store_is(tmp_path: Path) -> None:
    """A full disk, a file that is none: an error of the store, and no value is sealed."""
    runtime = RealRuntime()
    runtime._disk = FaultyDisk()
    own = SqliteVault(str(tmp_path / "shop.keys"), service="shop", runtime=runtime)
    own.prepare()
    connection = own._connection
    assert connection is not None
    connection.execute("pragma max_page_count = 1")  # no more than it has

    def fill() -> None:
        for n in range(200):
            sealed(own, f"{n}" * 20)

    with pytest.raises(StoreFull):
        fill()
    own.close()
    Path(own.path).write_bytes(b"this is no database, and long enough to be read as one" * 99)
    with pytest.raises(StoreBroken):
        own.prepare()
    with pytest.raises(StoreBroken):
        own.seal("c-1", PLACE, b"1")
    reader = VaultReader(str(tmp_path / "shop.db"), RealDisk())
    with pytest.raises(StoreError):
        reader.find("c-1")
    assert "cannot be read" in reader.faults("x")[0]


def test_threads_share_one_key_for_a_subject(tmp_path: Path) -> None:
    """The writer seals while the loop opens: a subject gets one key, whoever asks first."""
    own = vault(tmp_path)
    values: list[tuple[str, str]] = []

    def seal() -> None:
        values.extend([(f"c-{n % 3}", sealed(own, f"c-{n % 3}")) for n in range(30)])

    threads = [threading.Thread(target=seal) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert len(values) == 120
    own.close()
    assert {own.open(subject, PLACE, value) for subject, value in values} == {b'"anna"'}
    own.close()


def test_a_seed_decides_on_keys_and_nonces() -> None:
    """In simulation the same seed gives the same bytes, and another one others."""

    async def main(runtime: SimRuntime) -> list[str]:
        own = SqliteVault("/shop.keys", service="shop", runtime=runtime)
        values = [sealed(own), sealed(own), sealed(own, "c-2")]
        assert own.open("c-1", PLACE, values[1]) == b'"anna"'
        own.close()
        return values

    first, again, other = run(main, seed=1), run(main, seed=1), run(main, seed=2)
    assert first == again
    assert len({*first, *other}) == 6


@pytest.mark.parametrize("seed", range(8))
def test_no_value_is_kept_without_its_key(seed: int) -> None:
    """Where the file of the keys fails, units that need a new one fail, and others do not."""
    table = Migration(1, ("create table value(subject text, sealed text)",), 1)

    async def main(runtime: SimRuntime) -> tuple[int, int]:
        schemas = [Schema("shop", (table,))]
        store = await SqliteStore.open("/shop.db", service="shop", schemas=schemas, runtime=runtime)

        def keep(subject: str) -> Callable[[Unit], Awaitable[None]]:
            async def body(unit: Unit) -> None:
                sealed = unit.vault.seal(subject, PLACE, b"1") if subject else "plain"
                await unit.execute("insert into value values (?, ?)", subject, sealed)

            return body

        async def many(names: list[str]) -> list[BaseException | None]:
            units = [store.write(keep(name), name="keep") for name in names]
            return await asyncio.gather(*units, return_exceptions=True)

        known = [f"old-{n}" for n in range(5)]
        assert await many([*known, "", ""]) == [None] * 7
        commits = store.commits
        runtime.disk.fail("/shop.keys")
        failed = await many([*known, "", *(f"new-{n}" for n in range(5)), ""])
        assert failed[:6] == [None] * 6
        assert failed[-1] is None
        assert all(each is None or isinstance(each, StoreError) for each in failed)
        assert store.broken is None
        runtime.disk.mend("/shop.keys")
        assert await many([f"new-{n}" for n in range(10)]) == [None] * 10
        rows = await store.read("select subject, sealed from value where subject <> ''")
        for subject, value in rows:
            assert store.vault.open(str(subject), PLACE, str(value)) == b"1"
        await store.close()
        return commits, sum(each is not None for each in failed)

    commits, refused = run(main, seed=seed)
    assert commits <= 3  # 5 new keys in one commit with their units
    assert refused <= 5
