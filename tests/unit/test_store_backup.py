"""Backups see one state however busy the file is, and are there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from store_fakes import ITEMS, FaultyDisk
from synchromesh.errors import StoreBroken, StoreError, StoreFull, StoreReadOnly
from synchromesh.runtime import Disk, RealDisk, RealThreads
from synchromesh.store import Manifest, Schema
from synchromesh.store.migrations import migrate
from synchromesh.store.sqlite import STORE_SCHEMA
from synchromesh.store.sqlite_backup import Restored, back_up, restore

SCHEMAS = (STORE_SCHEMA, ITEMS)
NOW_US = 1_764_489_600_000_000


class Between(RealThreads):
    """Does something between two steps of a backup, in place of the pause."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self.pauses = 0

    def sleep(self, seconds: float) -> None:
        self.pauses += 1
        assert self.pauses < 500, "the backup begins anew for ever"
        self._act()


def made(folder: Path, rows: int = 10) -> tuple[str, sqlite3.Connection]:
    """Make a file with rows, and return it with the connection that has it open."""
    path = str(folder / "shop.db")
    connection = RealDisk().connect(path)
    connection.execute("pragma journal_mode = wal")
    migrate(connection, SCHEMAS, path=path)
    connection.execute("insert into sm_meta values ('log_id', 'log-1')")
    connection.execute("begin")
    connection.executemany("insert into item(n) values (?)", [(n,) for n in range(rows)])
    connection.execute("commit")
    return path, connection


def backed_up(
    path: str, folder: Path, *, disk: Disk | None = None, act: Callable[[], object] = lambda: None,
    pages: int = 2,
) -> tuple[Path, Manifest]:  # fmt: skip
    return back_up(
        path, folder, system="corner", service="shop", now_us=NOW_US,
        disk=disk or RealDisk(), pages=pages, threads=Between(act),
    )  # fmt: skip


def put_back(path: str, backup: Path, *schemas: Schema) -> Restored:
    return restore(
        path, backup, schemas=schemas or SCHEMAS, adopt=(), log_id="log-2",
        change=(NOW_US, "ann", "to try"), disk=RealDisk(),
    )  # fmt: skip


def count(path: Path | str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("select count(*) from item").fetchone()[0])


def test_a_backup_ends_beside_a_writer_and_has_one_state(tmp_path: Path) -> None:
    """A write between each two steps would begin a copy anew; here it is of the state before."""
    path, writer = made(tmp_path, rows=2000)
    folder, manifest = backed_up(
        path, tmp_path / "kept", act=lambda: writer.execute("insert into item(n) values (0)")
    )
    assert count(folder / "shop.db") == 2000 < count(path)
    writer.close()
    assert sorted(each.name for each in folder.iterdir()) == ["manifest.json", "shop.db"]
    assert folder.name == "shop-20251130T080000.000000Z"
    assert json.loads((folder / "manifest.json").read_text()) == {
        "format": 1, "system": "corner", "service": "shop", "log_id": "log-1",
        "taken_at": "2025-11-30T08:00:00+00:00",
        "versions": {"items": 1, "synchromesh.store": 1},
        "bytes": (folder / "shop.db").stat().st_size, "sha256": manifest.sha256,
    }  # fmt: skip


class SmallDisk(RealDisk):
    """A disk on which no new file may have more than a few pages."""

    def connect(
        self, path: str, *, read_only: bool = False, is_private: bool = False
    ) -> sqlite3.Connection:
        connection = super().connect(path, read_only=read_only, is_private=is_private)
        if not read_only:
            connection.execute("pragma max_page_count = 4")
        return connection


def no_room(*_: object) -> Any:
    return shutil._ntuple_diskusage(100, 90, 10)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("disk", "broken", "expected", "said"),
    [
        (SmallDisk(), None, StoreFull, "the backup does not fit"),
        (RealDisk(), ("shutil.disk_usage", no_room), StoreFull, "and the disk of .* has 10 left"),
        (RealDisk(), ("os.fsync", full), StoreFull, "is full: nothing was kept; make room"),
    ],
)
def test_a_full_disk_leaves_no_half_of_a_backup(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    disk: Disk,
    broken: tuple[str, Callable[..., Any]] | None,
    expected: type[StoreError],
    said: str,
) -> None:
    """Found beforehand, in the middle, or as the last byte is flushed: the folder is as before."""
    path, writer = made(tmp_path, rows=2000)
    writer.close()
    if broken is not None:
        monkeypatch.setattr(*broken)
    with pytest.raises(expected, match=said):
        backed_up(path, tmp_path / "kept", disk=disk)
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    """A file where the folder of backups is to be, and a database that is none."""
    path, writer = made(tmp_path)
    writer.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        backed_up(path, tmp_path / "file")
    Path(path).write_bytes(b"dear diary, " * 1000)
    with pytest.raises(StoreBroken, match="not a database"):
        backed_up(path, tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


def test_what_is_replaced_is_kept_with_what_was_only_in_its_log(tmp_path: Path) -> None:
    """Of a process that was killed the last commits are in the write-ahead log alone."""
    path, writer = made(tmp_path)
    backup, _ = backed_up(path, tmp_path / "kept")
    writer.execute("pragma wal_autocheckpoint = 0")
    writer.execute("insert into item(n) values (11)")
    killed = tmp_path / "killed"
    killed.mkdir()
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{path}{suffix}", killed / f"shop.db{suffix}")
    writer.close()
    done = put_back(str(killed / "shop.db"), backup)
    assert count(killed / "shop.db") == 10
    assert count(done.kept_as) == 11
    assert sorted(each.name for each in killed.iterdir()) == ["shop.db", Path(done.kept_as).name]
    with closing(sqlite3.connect(killed / "shop.db")) as restored:
        assert restored.execute("select value from sm_meta").fetchall() == [("log-2",)]
        changes = restored.execute("select at_us, who, why from sm_change").fetchall()
        assert changes == [(NOW_US, "ann", "to try")]


def test_a_damaged_file_is_replaced_and_kept_as_it_is(tmp_path: Path) -> None:
    """It is what backups are for: nothing of it needs to be readable."""
    path, writer = made(tmp_path)
    backup, _ = backed_up(path, tmp_path / "kept")
    writer.close()
    Path(path).write_bytes(b"dear diary, " * 1000)
    Path(f"{path}-wal").write_bytes(b"and more")
    done = put_back(path, backup)
    assert count(path) == 10
    assert Path(done.kept_as).read_bytes() == b"dear diary, " * 1000
    assert not Path(f"{path}-wal").exists() or Path(f"{path}-wal").read_bytes() != b"and more"


def test_a_lost_file_is_put_back(tmp_path: Path) -> None:
    """Where none is there, nothing is kept."""
    path, writer = made(tmp_path)
    backup, _ = backed_up(path, tmp_path / "kept")
    writer.close()
    Path(path).unlink()
    assert put_back(path, backup).kept_as == ""
    assert count(path) == 10


@pytest.mark.parametrize("at", ["shutil.copyfile", "os.fsync", "os.link", "os.replace"])
def test_one_that_stops_half_way_has_changed_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Whichever step fails, a start finds the old file; done again, it is done."""
    path, writer = made(tmp_path)
    backup, _ = backed_up(path, tmp_path / "kept")
    writer.execute("insert into item(n) values (11)")
    writer.close()
    with monkeypatch.context() as patched:
        patched.setattr(at, full)
        with pytest.raises(StoreFull, match="nothing was kept"):
            put_back(path, backup)
    assert count(path) == 11
    assert not Path(f"{path}.restoring").exists()
    put_back(path, backup)
    assert count(path) == 10


def test_a_disk_that_may_not_be_written_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right to write is another person's to give than room."""
    path, writer = made(tmp_path)
    writer.close()

    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "kept")

    monkeypatch.setattr("os.fsync", refused)
    with pytest.raises(StoreReadOnly, match="kept cannot be written"):
        backed_up(path, tmp_path / "kept", disk=FaultyDisk())
