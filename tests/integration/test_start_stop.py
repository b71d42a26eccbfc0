"""`synchromesh dev` and `dev --split` alike: started wrongly, stopped at any moment, killed.

Each mistake is one clear message with the right exit code, and leaves neither a process nor what
leads to one; the same folder starts once it is mended.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cli_runs import Run, runner
from notes_app import PROVIDER, READY, STAYS, STOPS, TESTS, TOML, WITH_GATEWAY, write_config
from processes import COMMAND, announced, children_of, dev, ends, family_of, is_alive, until
from synchromesh.service.restarts import RestartOptions
from synchromesh.system import RunDir
from synchromesh.system.supervise import child_process

WAIT_S = 90.0
HERE = "import pathlib; pathlib.Path(__file__).with_name('here').write_text('!')\n"
HANGS = PROVIDER % "import signal; open('here', 'w').write('!'); signal.pause()"


@pytest.fixture(params=[(), ("--split",)], ids=["one process", "split"])
def flags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """How it is run; a service's process may import what tests do."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr(sys, "path", list(sys.path))
    found: tuple[str, ...] = request.param
    return found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""
    return runner(capsys)


def leaves_nothing(folder: Path) -> bool:
    """Return True where no child of this process runs, and nothing says that the system does."""
    rundir = RunDir(folder).path
    return not children_of(os.getpid()) and not [*rundir.glob("run.json"), *rundir.glob("*.new")]


def starts(folder: Path, flags: tuple[str, ...]) -> bool:
    """Start the system of a folder and stop it; True where both went well."""
    with dev(folder, *flags) as process:
        announced(process)
        process.terminate()
        return process.wait(WAIT_S) == 0


# -- what cannot start -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TOML.replace("notes_app:notes", "nowhere:notes"), "there is no module 'nowhere' in"),
        (TOML.replace("notes_app:notes", "notes_app:nots"), "has no 'nots'"),
        (TOML.replace("notes_app:notes", "raises:notes"), "LookupError: not at home"),
        (TOML.replace("notes_app:notes", "migrates:notes"), "no such table: nowhere"),
        (TOML + "port = {port}\n", "service 'notes' cannot listen on 127.0.0.1:{port}"),
        (TOML.replace('"notebook"', '"x"\ncontrol_port = {port}'), "[system] control_port: cannot"),
        (TOML.replace('"notebook"', '"x"\nhost = "not.an.address.invalid"'), "cannot listen on"),
        (WITH_GATEWAY + "port = {port}\n", "cannot listen on 127.0.0.1:{port}"),
        (TOML + "pages_max = 4", "raise the page limit"),
        (TOML + '[dev]\nopening = "notes_app:fails_to_open"', "LookupError: the price list is"),
        (TOML + '[external.late]\ncommand = ["/bin/sh", "-c", "exit 4"]', "ended with exit code 4"),
        (TOML + '[external.none]\ncommand = ["/no/such"]', "No such file or directory"),
    ],
    ids=[
        "module", "attribute", "import", "migration", "port", "control port", "host",
        "gateway port", "small disk", "opening", "external ends", "external is none",
    ],
)  # fmt: skip
def test_a_start_that_fails_leaves_nothing(
    tmp_path: Path, run: Run, flags: tuple[str, ...], text: str, said: str
) -> None:
    """Exit 2 with one line that says why; nothing on standard output, and no process."""
    (tmp_path / "raises.py").write_text("raise LookupError('not at home')\n")
    (tmp_path / "migrates.py").write_text(
        "from notes_app import Migration, Notes, Service\n"
        "wrong = Migration(1, ('insert into nowhere values (1)',), 1)\n"
        "notes = Service('notes', migrations=[wrong])\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        folder = write_config(tmp_path, (text + STAYS).replace("{port}", port))
        ran = run(folder, "dev", *flags)
    assert (ran.code, ran.out) == (2, ""), ran
    assert said.replace("{port}", port) in ran.err
    assert ran.err.startswith("synchromesh: ")
    assert ran.err.count("\n") == 1
    assert leaves_nothing(folder)


@pytest.mark.parametrize(
    ("hangs", "said"),
    [
        ("signal.pause()", "service 'notes' was not ready within 1 s; see "),
        ("os._exit(7)", "service 'notes' ended with exit code 7 before it was ready; see "),
        ("raise LookupError('not here')", "service 'notes': synchromesh.toml: [services.notes]"),
    ],
    ids=["hangs", "ends", "raises"],
)
def test_a_process_that_does_not_come_up_is_named(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, hangs: str, said: str
) -> None:
    """Exit 2 with the service and its log, where only its own process fails."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    if hangs == "signal.pause()":
        monkeypatch.setattr(child_process, "READY_WITHIN_S", 1.0)
    name = f"unready_{hangs[:3].strip('.')}"
    (tmp_path / f"{name}.py").write_text(
        "import os, signal\nfrom notes_app import notes\n"
        f"if os.getpid() != {os.getpid()}: {hangs}\n"
    )
    folder = write_config(tmp_path, TOML.replace("notes_app:notes", f"{name}:notes") + STAYS)
    ran = run(folder, "dev", "--split")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err
    assert leaves_nothing(folder)


@pytest.mark.parametrize("what", ["full", "read-only"])
def test_a_folder_that_takes_no_file_is_refused(
    tmp_path: Path, run: Run, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A full disk at the last file, `run.json`, and rights at the first: exit 2, nothing left."""
    folder = write_config(tmp_path, TOML + STAYS)
    replace, code = os.replace, errno.ENOSPC if what == "full" else errno.EROFS

    def refuses(source: Path, target: Path) -> None:
        if what == "read-only" or target.name == "run.json":
            raise OSError(code, os.strerror(code))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuses)
        ran = run(folder, "dev", *flags)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "cannot be written" in ran.err
    assert os.strerror(code) in ran.err
    assert leaves_nothing(folder)
    assert starts(folder, flags)


def test_a_second_system_in_the_folder_is_refused(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Exit 2 and who runs it, whichever way either is run; the first goes on."""
    folder = write_config(tmp_path)
    with dev(folder, *flags) as first:
        told = announced(first)
        for other in ((), ("--split",)):
            with dev(folder, *other) as second:
                assert second.wait(WAIT_S) == 2
                assert second.stderr is not None
                said = second.stderr.read()
            assert f"is already run by process {first.pid}; stop it first, or use it" in said
        assert RunDir(folder).read().control == told["control"]


# -- what fails while it runs ----------------------------------------------------------------------


def test_what_fails_too_often_ends_it(
    tmp_path: Path, run: Run, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that is asked for: exit 3, which child ended why, and all else is stopped as ever."""
    monkeypatch.setattr(
        "synchromesh.service.supervisor.RestartOptions", lambda: RestartOptions(restarts_max=0)
    )
    folder = write_config(tmp_path, STOPS + PROVIDER % (READY + "sys.exit(7)"))
    ran = run(folder, "dev", *flags)
    assert ran.code == 3, ran.err
    assert "notebook runs in process" in ran.out
    assert "\n  notes              http://127.0.0.1:" in ran.out
    assert "\n  control            http://127.0.0.1:" in ran.out
    said = "external/provider failed too often: ChildEnded: external service 'provider' ended with"
    assert said in ran.err
    assert leaves_nothing(folder)


def test_what_a_handler_raises_is_shown_where_the_system_runs(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """With its trace and the user's own frames; `logs` finds it by the trace, also afterwards."""
    (tmp_path / "crashing.py").write_text((TESTS / "notes_app.py").read_text())
    folder = write_config(tmp_path, TOML.replace("notes_app:notes", "crashing:notes"))
    with dev(folder, *flags) as process:
        announced(process)
        words = ("--folder", str(folder), "call", "notes.crash", "name=x", "--json")
        asked = subprocess.run([*COMMAND, *words], stdout=-1, check=False)
        trace = json.loads(asked.stdout)["trace_id"]
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(4)]
        assert said[0].endswith(f"notes.crash failed in trace {trace}\n")
        assert f'  File "{folder}/crashing.py", line ' in said[1]
        assert said[2].startswith("    raise RuntimeError(")
        assert said[3] == "  RuntimeError: the password hunter2 was refused\n"
        process.terminate()
        assert process.wait(WAIT_S) == 0
    wanted = ("--folder", str(folder), "logs", "--trace", trace[:12], "--level", "error")
    found = subprocess.run([*COMMAND, *wanted], stdout=-1, text=True, check=True).stdout
    assert found.splitlines()[0].endswith(f"notes.crash failed in trace {trace}")


# -- how it ends -----------------------------------------------------------------------------------


def test_a_hangup_stops_all_of_it(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """SIGHUP too: exit 0; left are databases, logs, keys, and where the console listened."""
    folder = write_config(tmp_path, TOML + STAYS)
    with dev(folder, *flags) as process:
        told = announced(process)
        below = family_of(process.pid)
        assert sorted(told["services"]) == ["notes", "provider"]
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        assert (process.wait(WAIT_S), process.stderr.read()) == (0, "")
    assert below
    assert not any(map(is_alive, below))
    left = {path.name for path in RunDir(folder).path.rglob("*") if path.is_file()}
    assert left - {"log-notes.jsonl", "notes.log"} == {
        ".gitignore",
        "console.port",
        "log.jsonl",
        "notes.db",
        "notes.db.lock",
        "provider.log",
        "system.key",
        "system.lock",
    }
    assert "ERROR" not in (RunDir(folder).telemetry / "log.jsonl").read_text()


def test_a_killed_one_is_told_and_starts_again(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """kill -9 takes all processes along; commands say so, and the next start goes well."""
    folder = write_config(tmp_path, TOML + STAYS)
    with dev(folder, *flags) as process:
        first = announced(process)
        below = family_of(process.pid)
        process.kill()
        process.wait(WAIT_S)
    assert all(map(ends, below))
    assert RunDir(folder).read().control == first["control"]
    asked = subprocess.run(
        [*COMMAND, "--folder", str(folder), "call", "notes.count"],
        stderr=-1,
        text=True,
        check=False,
    )
    assert asked.returncode == 2
    assert f"process {process.pid} may have died: start it again with: synchromesh dev" in (
        asked.stderr
    )
    assert starts(folder, flags)


def test_what_a_power_cut_leaves_is_no_obstacle(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """A run.json of long ago, locks of the dead, half-written files, damaged spans, empty logs."""
    folder = write_config(tmp_path, TOML)
    assert starts(folder, flags)
    rundir = RunDir(folder)
    # This process lives, and runs no system.
    info = {"pid": os.getpid(), "system": "x", "control": "http://127.0.0.1:1", "token": "x"}
    rundir.path.joinpath("run.json").write_text(json.dumps({**info, "services": {}}))
    rundir.path.joinpath("run.json").chmod(0o600)
    rundir.path.joinpath("run.new").write_text("{")
    for lock in (rundir.path / "system.lock", rundir.data / "notes.db.lock"):
        lock.write_text(str(os.getpid()))
    rundir.data.joinpath("notes.db-wal").write_bytes(b"")
    for name in ("spans.db", "spans-notes.db"):
        rundir.telemetry.joinpath(name).write_bytes(b"SQLite format 3" * 300)
    with rundir.telemetry.joinpath("log.jsonl").open("a") as log:
        log.write('{"at": "2026-')
    with dev(folder, *flags) as process:
        announced(process)
        for _ in range(2):
            words = ("--folder", str(folder), "call", "notes.count", "--json")
            asked = subprocess.run([*COMMAND, *words], stdout=-1, check=True)
        answer = json.loads(asked.stdout)
        assert answer["result"] == 0
        assert {span["service"] for span in answer["spans"]} == {"control", "notes"}
        process.terminate()
        assert process.wait(WAIT_S) == 0
    assert leaves_nothing(folder)


def test_an_interrupt_while_it_imports_stops_it(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Code of the system that blocks at import does not keep Ctrl-C from ending it: exit 130."""
    with said_when_there(tmp_path) as there:
        # Not `signal.pause()`: a signal that comes just before it would be waited for in vain.
        blocks = f"{HERE}import select\nwhile True:\n    select.select([], [], [], 0.05)\n"
        (tmp_path / "blocks.py").write_text(blocks)
        folder = write_config(tmp_path, TOML.replace("notes_app:notes", "blocks:notes"))
        with dev(folder, *flags) as process:
            wait_for(there)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            assert (process.wait(WAIT_S), process.stderr.read()) == (130, "\n")
    assert leaves_nothing(folder)


def test_an_interrupt_while_it_starts_stops_it(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """A child that never becomes ready does not keep it from ending."""
    folder = write_config(tmp_path, TOML + HANGS)
    with said_when_there(folder) as there, dev(folder, *flags) as process:
        wait_for(there)
        below = family_of(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.wait(WAIT_S) == 0
        assert process.stderr.read() == "synchromesh: stopped before the system was up\n"
    assert below
    assert not any(map(is_alive, below))
    assert leaves_nothing(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_long_migration(tmp_path: Path, number: signal.Signals) -> None:
    """Which one runs is said; exit 0, and the file is as it was."""
    folder = write_config(tmp_path, TOML.replace("notes_app:notes", "moves:notes"))
    release = (
        "from notes_app import Migration, Service\n"
        "first = Migration(1, ('create table a(n integer)', 'insert into a values (1)'), 1)\n"
        "counts = 'with recursive c(n) as (select 1 union all select n + 1 from c '\\\n"
        "    'where n < 2000000000) insert into a select max(n) from c'\n"
        "second = Migration(2, ('update a set n = 7', counts), 1)\n"
        "notes = Service('notes', migrations=[{}])\n"
    )
    (tmp_path / "moves.py").write_text(release.format("first"))
    assert starts(folder, ())
    (tmp_path / "moves.py").write_text(release.format("first, second"))
    with dev(folder) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("synchromesh: migrating notes to 2 …")
        process.send_signal(number)
        assert process.wait(WAIT_S) == 0
        assert process.stderr.read() == "synchromesh: stopped before the system was up\n"
    assert leaves_nothing(folder)
    at = "select max(version) from sm_migration where owner = 'service.notes'"
    with closing(sqlite3.connect(RunDir(folder).data / "notes.db")) as file:
        assert file.execute("select n from a").fetchall() == [(1,)]
        assert file.execute(at).fetchall() == [(1,)]


def test_interrupts_while_it_starts_cut_it(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Nor do those that do not end when they are told to, where Ctrl-C comes again: exit 130."""
    (tmp_path / "hangs.py").write_text(
        f"import asyncio\nasync def opening(_):\n    {HERE}    await asyncio.Event().wait()\n"
    )
    folder = write_config(tmp_path, TOML + STAYS + '[dev]\nopening = "hangs:opening"\n')
    with said_when_there(folder) as there, dev(folder, *flags) as process:
        wait_for(there)
        below = family_of(process.pid)
        for pid in below:
            os.kill(pid, signal.SIGSTOP)

        def has_ended() -> bool:
            process.send_signal(signal.SIGINT)
            return process.poll() is not None

        assert until(has_ended)
        assert process.stderr is not None
        assert (process.returncode, process.stderr.read()) == (130, "")
    assert all(map(ends, below))
    assert leaves_nothing(folder)


def test_a_second_interrupt_cuts(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Ctrl-C twice waits for nobody: exit 130, and neither a process nor run.json is left."""
    folder = write_config(tmp_path, TOML + STAYS)
    with dev(folder, *flags) as process:
        announced(process)
        below = family_of(process.pid)
        for pid in below:
            os.kill(pid, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        # The first is taken once it no longer says that it runs.
        assert until(lambda: not (folder / ".synchromesh/run.json").exists())
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert (process.wait(WAIT_S), process.stderr.read()) == (130, "")
    assert all(map(ends, below))
    assert starts(folder, flags)


@contextmanager
def said_when_there(folder: Path) -> Iterator[int]:
    """Give the reading end of the fifo `here` in a folder, which code that is reached writes to."""
    os.mkfifo(folder / "here")
    handle = os.open(folder / "here", os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield handle
    finally:
        os.close(handle)


def wait_for(handle: int) -> None:
    """Wait until there is something to read."""
    assert select.select([handle], [], [], WAIT_S)[0]
