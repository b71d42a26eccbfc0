"""What benchmarks rely on when they say that two contestants commit alike."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import durability
from benchmarks.harness import WrongAnswer


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Watch the connections of one test."""
    # Set to what they are, so that they are set back.
    monkeypatch.setattr(sqlite3, "connect", sqlite3.connect)
    monkeypatch.setattr(sqlite3.dbapi2, "connect", sqlite3.dbapi2.connect)
    durability.watch()
    yield
    durability.forget()


def opened(path: Path, *, synchronous: str = "full", mode: str = "wal") -> sqlite3.Connection:
    """Open a database as a contestant does."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"pragma journal_mode = {mode}")
    connection.execute(f"pragma synchronous = {synchronous}")
    connection.execute("create table if not exists t(n)")
    return connection


def test_commits_are_counted_by_file_whoever_begins_them(tmp_path: Path) -> None:
    """A commit by statement and one by method count; a rollback and another file's do not."""
    ours, other = opened(tmp_path / "ours.db"), opened(tmp_path / "other.db")
    by_method = sqlite3.connect(tmp_path / "ours.db")
    with durability.commits(tmp_path / "ours.db", tmp_path / "quiet.db") as seen:
        ours.execute("begin")
        ours.execute("insert into t values (1)")
        ours.execute("COMMIT")
        ours.execute("begin")
        ours.execute("rollback")
        by_method.execute("insert into t values (2)")
        by_method.commit()
        other.execute("begin")
        other.execute("commit")
    assert seen.by_file == {"ours.db": 2, "quiet.db": 0}
    ours.execute("begin")
    ours.execute("commit")
    assert seen.total == 2
    for connection in (ours, other, by_method):
        connection.close()


@pytest.mark.parametrize("less", [{"synchronous": "normal"}, {"mode": "delete"}])
def test_a_connection_that_syncs_otherwise_ends_the_benchmark(
    tmp_path: Path, less: dict[str, str]
) -> None:
    """One connection that promises less than the others is enough, as is a database unwritten."""
    path = tmp_path / "ours.db"
    with pytest.raises(WrongAnswer):
        durability.prove_synced(path, who="ours")
    first = opened(path, mode=less.get("mode", "wal"))
    if not less.get("mode"):
        durability.prove_synced(path, who="ours")
    second = opened(path, synchronous=less.get("synchronous", "full"), mode=less.get("mode", "wal"))
    with pytest.raises(WrongAnswer):
        durability.prove_synced(path, who="ours")
    first.close()
    second.close()
