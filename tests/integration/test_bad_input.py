"""Bad input from end to end: one clear message with the mend, and nothing half done.

Mistakes in calls and in the configuration are in the tests of the command line and of the
configuration; here is what databases, definitions and handlers do wrong.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from notes_app import SECRET, TESTS, TOML, Running, write_config
from synchromesh.cli import main
from synchromesh.errors import SynchromeshError
from synchromesh.store import StoreOptions

HOLD_THE_LOCK = """
import sys
from synchromesh.runtime import RealDisk
lock = RealDisk().try_lock(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a system that has run once, so that its database is there."""
    with Running(write_config(tmp_path)):
        pass
    return tmp_path


def refused(folder: Path, store: StoreOptions | None = None) -> str:
    """Return what a start says that is refused."""
    with pytest.raises(SynchromeshError) as caught, Running(folder, store or StoreOptions()):
        pass
    assert not (folder / ".synchromesh/run.json").exists()
    return f"{type(caught.value).__name__}: {caught.value.message}"


def call(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> Ran:
    """Make a call by the command line."""
    with pytest.raises(SystemExit) as ended:
        main(["--folder", str(folder), "call", *words, "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    code = ended.value.code
    assert isinstance(code, int)
    return Ran(code, out, err)


def failed(ran: Ran) -> dict[str, Any]:
    """Return the problem of a call that was answered by one."""
    assert (ran.code, ran.err) == (1, "")
    problem: dict[str, Any] = json.loads(ran.out)["problem"]
    return problem


def count(capsys: pytest.CaptureFixture[str], folder: Path) -> int:
    """Return how many notes there are."""
    return int(json.loads(call(capsys, folder, "notes.count").out)["result"])


def database(folder: Path) -> sqlite3.Connection:
    """Open the database of the notes, as a stranger would."""
    return sqlite3.connect(folder / ".synchromesh/data/notes.db", isolation_level=None)


# -- databases -------------------------------------------------------------------------------------


def test_a_database_of_another_process_is_refused(folder: Path) -> None:
    """The message names the process that owns it; once that ended, the system starts."""
    path = folder / ".synchromesh/data/notes.db"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        said = refused(folder, StoreOptions(owner_wait_s=0.0))
        owner.kill()
    assert said.startswith("StoreLocked: ")
    assert f"is owned by process {owner.pid}" in said
    assert "end that process" in said
    with Running(folder):
        pass


def test_a_database_that_a_stranger_writes_is_refused(tmp_path: Path) -> None:
    """Another program's open transaction is named as such; without it the system starts."""
    folder = write_config(tmp_path)
    (folder / ".synchromesh/data").mkdir(parents=True)
    stranger = database(folder)
    stranger.execute("begin immediate")
    said = refused(folder, StoreOptions(busy_wait_s=0.01))
    stranger.execute("rollback")
    stranger.close()
    assert said.startswith("StoreLocked: ")
    assert "another connection writes to the file; end it" in said
    with Running(folder):
        pass


def test_a_call_meets_a_locked_database(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The call fails without an effect; the next one, when the stranger has gone, is answered."""
    with Running(folder, StoreOptions(busy_wait_s=0.01)):
        stranger = database(folder)
        stranger.execute("begin immediate")
        problem = failed(call(capsys, folder, "notes.write", "id=1", "text=a"))
        stranger.execute("rollback")
        stranger.close()
        assert problem["code"] == "store_locked"
        assert "the log of 'notes' says why" in problem["detail"]
        assert count(capsys, folder) == 0
        assert call(capsys, folder, "notes.write", "id=1", "text=a").code == 0


def test_a_newer_database_is_refused_and_left_as_it_is(folder: Path) -> None:
    """An old release does not touch what a newer one has made."""
    newer = database(folder)
    newer.execute("insert into sm_migration values ('service.notes', 9, 8, '[]')")
    newer.close()
    before = (folder / ".synchromesh/data/notes.db").read_bytes()
    said = refused(folder)
    assert said.startswith("StoreTooNew: ")
    assert "notes.db" in said
    assert (folder / ".synchromesh/data/notes.db").read_bytes() == before


def test_a_file_that_is_no_database_is_refused(folder: Path) -> None:
    """It is not overwritten."""
    path = folder / ".synchromesh/data/notes.db"
    path.write_bytes(b"dear diary, " * 1000)
    said = refused(folder)
    assert said.startswith("StoreBroken: ")
    assert "move the file away and restore a backup" in said
    assert path.read_bytes() == b"dear diary, " * 1000


def test_a_read_only_database_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be written is found before anything runs."""
    from synchromesh.runtime import RealDisk

    connect = RealDisk.connect

    # The rights of a file do not bind root: SQLite is told what it would find.
    def read_only(self: RealDisk, path: str, *, read_only: bool = False) -> sqlite3.Connection:
        return connect(self, path, read_only=True)

    monkeypatch.setattr(RealDisk, "connect", read_only)
    changed = database(folder)
    changed.execute("delete from sm_migration where owner = 'service.notes'")
    changed.execute("drop table note")
    changed.execute("drop table star")
    changed.close()
    said = refused(folder)
    assert said.startswith("StoreReadOnly: ")
    assert "the right to write" in said


def test_a_full_disk_loses_nothing_that_was_acknowledged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A unit that does not fit is refused whole; what was there stays, and small ones still fit."""
    folder = write_config(tmp_path, TOML + "pages_max = 80\n")
    with Running(folder) as running:
        assert call(capsys, folder, "notes.fill", "name=small", "size=10").code == 0
        problem = failed(call(capsys, folder, "notes.fill", "name=large", "size=1000000"))
        assert (problem["code"], problem["status"]) == ("store_full", 507)
        assert count(capsys, folder) == 1
        assert call(capsys, folder, "notes.fill", "name=other", "size=10").code == 0
        assert any("raise the page limit" in line.get("exception", "") for line in running.log)
    stored = database(folder)
    assert stored.execute("select id from note order by 1").fetchall() == [("other",), ("small",)]
    assert stored.execute("pragma integrity_check").fetchall() == [("ok",)]
    stored.close()


def test_a_disk_that_is_too_small_for_the_tables_is_refused(tmp_path: Path) -> None:
    """The start says so, and what to do."""
    said = refused(write_config(tmp_path, TOML + "pages_max = 4\n"))
    assert said.startswith("StoreFull: ")
    assert "make room on the disk or raise the page limit" in said


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """What stands in the way of the run directory is named; rights do not bind root."""
    folder = write_config(tmp_path)
    (folder / ".synchromesh").mkdir()
    (folder / ".synchromesh/data").write_text("not a folder")
    assert "data is a file, and the run directory needs a folder there" in refused(folder)


# -- handlers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["notes.dawdle", "notes.nested"])
def test_a_unit_that_leaves_its_transaction_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], operation: str
) -> None:
    """It awaits something else, or calls: the unit is rolled back, and the log names the mend."""
    with Running(folder) as running:
        problem = failed(call(capsys, folder, operation, "name=n1"))
        assert problem["code"] == "foreign_await"
        assert count(capsys, folder) == 0
        (logged,) = [line for line in running.log if "ForeignAwait" in line.get("exception", "")]
        assert problem["detail"].split()[-1] in logged["message"]
        assert call(capsys, folder, "notes.write", "id=n1", "text=a").code == 0


def test_a_handler_that_raises_tells_nothing_but_its_trace(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the answer, nor the spans, nor the terminal have what it raised; the log has."""
    with Running(folder) as running:
        ran = call(capsys, folder, "notes.crash", "name=n1")
        problem = failed(ran)
        trace_id = json.loads(ran.out)["trace_id"]
        assert (problem["code"], problem["status"]) == ("remote_failed", 500)
        assert problem["detail"].endswith(f"trace {trace_id}")
        assert SECRET not in ran.out + ran.err
        logged = [line for line in running.log if SECRET in line.get("exception", "")]
        assert logged
        assert all(trace_id in line["message"] for line in logged)


# -- the process -----------------------------------------------------------------------------------


def dev(folder: Path) -> Ran:
    """Run `synchromesh dev` where it cannot start, as a process."""
    command = [sys.executable, "-c", "from synchromesh.cli import main; main()"]
    ran = subprocess.run(
        [*command, "--folder", str(folder), "dev"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[system", "is not valid TOML"),
        (TOML + "prot = 1", "unknown key 'services.notes.prot'; did you mean 'port'?"),
        (TOML + "port = 'x'", "services.notes.port: expected `int`, got `str`"),
        (TOML.replace("notes_app:notes", "notes_app:nots"), "has no 'nots'"),
        (TOML + "pages_max = 4", "raise the page limit"),
        (TOML + '[dev]\nopening = "notes_app:fails_to_open"', "the price list is missing"),
    ],
)
def test_a_system_that_cannot_start_says_one_line(tmp_path: Path, text: str, said: str) -> None:
    """Exit 2, nothing on standard output, and no traceback."""
    ran = dev(write_config(tmp_path, text))
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert ran.err.startswith("synchromesh: ")
    assert ran.err.count("\n") == 1
    assert not (tmp_path / ".synchromesh/run.json").exists()


def test_no_signal_is_left_changed(folder: Path) -> None:
    """A system in a thread leaves the signals of the process as they were."""
    before = signal.getsignal(signal.SIGINT)
    with Running(folder):
        assert signal.getsignal(signal.SIGINT) is before
