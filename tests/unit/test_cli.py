"""The command line against a running system: answers, exit codes, and messages for people."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_runs import Run, runner
from notes_app import SECRET, TOML, Running, write_config
from synchromesh.cli import main
from synchromesh.system import RunDir, RunInfo
from synchromesh.system.config.rundir import user


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a system that runs."""
    place = write_config(tmp_path_factory.mktemp("notebook"), TOML)
    with Running(place):
        yield place


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in a folder, in this process."""
    return runner(capsys)


def test_a_call_prints_its_answer_and_its_waterfall(run: Run, folder: Path) -> None:
    """The answer is JSON; below it are the trace's id and its spans; the exit code is 0."""
    ran = run(folder, "call", "notes.write", "id=c1", "text=hello world", "stars=2")
    assert (ran.code, ran.err) == (0, "")
    head, _, tail = ran.out.partition("\ntrace ")
    assert json.loads(head) >= 1
    assert "handle notes.write" in tail


def test_a_call_in_json_is_one_object(run: Run, folder: Path) -> None:
    """`--json` prints nothing else: answer, key, trace and spans."""
    ran = run(folder, "call", "notes.count", "--json")
    answer = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert sorted(answer) == ["key", "problem", "result", "spans", "trace_id"]
    assert {span["trace_id"] for span in answer["spans"]} == {answer["trace_id"]}


@pytest.mark.parametrize("principal", ["alice", "a b|c.d\n", "Zoë 🦄"])
def test_a_call_is_made_on_behalf_of_anybody(run: Run, folder: Path, principal: str) -> None:
    """Any text names a principal; it arrives as it was given."""
    ran = run(folder, "call", "notes.who", "--principal", principal, "--json")
    assert (ran.code, json.loads(ran.out)["result"]) == (0, principal)


def test_a_call_is_made_with_scopes(run: Run, folder: Path) -> None:
    """They are those of a principal; without one, or too many of them, nothing is called."""
    scopes = ("--scope", "notes:write", "--scope", "notes:read")
    ran = run(folder, "call", "notes.who", "--principal", "ada", *scopes, "--json")
    assert (ran.code, json.loads(ran.out)["result"]) == (0, "ada may notes:read notes:write")
    ran = run(folder, "call", "notes.who", *scopes)
    assert (ran.code, "scopes are those of a principal; name one" in ran.err) == (2, True)
    ran = run(folder, "call", "notes.who", "--principal", "ada", "--scope", "x" * 5000)
    assert (ran.code, "longer than 4096 bytes" in ran.err) == (2, True)


def test_a_refused_call_is_a_finding(run: Run, folder: Path) -> None:
    """Exit 1, the code and the reason; with --json the problem, and the same exit code."""
    run(folder, "call", "notes.write", "id=c2", "text=a", "--key", "k1")
    again = run(folder, "call", "notes.write", "id=c2", "text=a")
    assert again.code == 1
    assert again.out.startswith("taken (409): there is a note c2")
    told = run(folder, "call", "notes.write", "id=c2", "text=a", "--json")
    assert (told.code, json.loads(told.out)["problem"]["code"]) == (1, "taken")
    other = run(folder, "call", "notes.write", "id=c3", "text=a", "--key", "k1")
    assert (other.code, other.out.split()[0]) == (1, "key_reused")


def test_a_call_that_takes_too_long_is_a_finding(run: Run, folder: Path) -> None:
    """The callee is cancelled at the deadline, and the outcome is said to be unknown."""
    ran = run(folder, "call", "notes.slow", "seconds=30", "--timeout", "0.05")
    assert ran.code == 1
    assert ran.out.startswith("timed_out (504)")


def test_a_handler_that_raises_tells_only_its_trace(run: Run, folder: Path) -> None:
    """What it raised is in the log of the system, under that trace, and nowhere else."""
    ran = run(folder, "call", "notes.crash", "name=c4", "--json")
    answer = json.loads(ran.out)
    assert (ran.code, answer["problem"]["code"]) == (1, "remote_failed")
    assert answer["trace_id"] in answer["problem"]["detail"]
    assert SECRET not in ran.out
    log = (folder / ".synchromesh/telemetry/log.jsonl").read_text()
    lines = [line for line in log.splitlines() if answer["trace_id"] in line]
    assert any(SECRET in line and "RuntimeError" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope.count"], "there is no service 'nope'; there are notes"),
        (["notes"], "notes has no operation ''; it has write, tag"),
        (["notes.wrte"], "notes has no operation 'wrte'; it has write"),
        (["notes.write"], "notes.write: argument `id` is missing"),
        (["notes.write", "id=1"], "notes.write: argument `text` is missing"),
        (["notes.write", "idd=1"], "notes.write has no argument 'idd'; it takes id, text, stars"),
        (
            ["notes.write", "id=1", "text=a", "stars=x"],
            "notes.write.stars: expected `int`, got `str`",
        ),
        (["notes.count", "sku=1"], "has no argument 'sku'; it takes none"),
        (["notes.write", "id"], "'id' is not an argument; write name=value"),
        (["notes.write", "=1"], "'=1' is not an argument; write name=value"),
        (["notes.write", "id=1", "id=2"], "argument 'id' is given twice"),
        (["notes.count", "--timeout", "0"], "0.0 is not in the range 0.0<x<=300.0"),
        (["notes.count", "--timeout", "soon"], "'soon' is not a valid float"),
        (["notes.count", "--timeout", "nan"], "--timeout is not a number of seconds"),
        (["notes.write", "id=1", "text=\udcff"], "'text=\\udcff' is not UTF-8 text"),
        (["notes.write", "id=1", "text=a", "--key", "a\nb"], "at most 512 printable ones"),
        (["notes.write", "id=1", "text=a", "--key", "k" * 513], "513 characters long"),
        ([], "Missing argument 'OPERATION'"),
    ],
)
def test_a_mistake_in_a_call_is_explained(
    run: Run, folder: Path, words: list[str], said: str
) -> None:
    """Exit 2, one message with the mend on standard error, and nothing on standard output."""
    ran = run(folder, "call", *words)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trace", "nope"], "no spans of trace 'nope' are kept"),
        (["trace"], "Missing argument 'ID|last'"),
        (["saga", "show", "nope"], "no saga has the id 'nope'; synchromesh saga list shows them"),
        (["saga", "list", "--status", "lost"], "no saga status is 'lost'; known: queued, running"),
        (["saga", "list", "--limit", "0"], "0 is not in the range 1<=x<=1000"),
        (["statsu"], "No such command 'statsu'"),
        (["status", "--watch", "--json"], "--watch draws a screen; take --json without it"),
        (["break"], "Missing argument '[CALLER:]SERVICE[#N]'"),
        (["break", "notes"], "say how to break it: --errors 100%, --latency 300ms or --stall"),
        (["break", "notes", "--for", "3s"], "say how to break it"),
        (["break", "nots", "--stall"], "there is no service 'nots'; did you mean 'notes'?"),
        (["break", "notes", "--errors", "1"], "'1' is not an error rate; write \"100%\""),
        (
            ["break", "notes", "--latency", "1"],
            "'1' is not a duration; write a number above 0 with",
        ),
        (["break", "notes", "--stall", "--for", "x"], "'x' is not a duration"),
        (["heal", "nots"], "there is no service 'nots'; did you mean 'notes'?"),
        (["call", "notes.count", "--jsn"], "No such option"),
        (["saga", "stop"], "No such command 'stop'"),
        (["dev"], "is already run by this process; stop it first, or use it"),
    ],
)
def test_a_mistake_in_any_command_is_explained(
    run: Run, folder: Path, words: list[str], said: str
) -> None:
    """Exit 2, and nothing on standard output, also with --json."""
    ran = run(folder, *words)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


@pytest.mark.parametrize("command", [(), ("call",), ("gateway", "key", "add")], ids=" ".join)
def test_help_is_a_word_too(capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    """`synchromesh help COMMAND` says what `synchromesh COMMAND --help` says."""
    for words in (["help", *command], [*command, "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(words)
    out, err = capsys.readouterr()
    first, second = out[: len(out) // 2], out[len(out) // 2 :]
    assert (first, err) == (second, "")
    assert first.startswith("Usage: synchromesh ")


def test_a_trace_and_a_saga_are_shown(run: Run, folder: Path) -> None:
    """`last` is the last call and the last saga; as a table, and as JSON."""
    run(folder, "call", "notes.plan", "name=c5")
    trace = json.loads(run(folder, "trace", "last", "--json").out)
    story = json.loads(run(folder, "saga", "show", "last", "--json").out)
    listed = json.loads(run(folder, "saga", "list", "--json").out)
    assert story["id"] == listed[0]["id"] == "plan-c5"
    assert story["trace_id"] == trace["trace_id"]
    shown = run(folder, "trace", trace["trace_id"])
    assert (shown.code, "saga planned" in shown.out) == (0, True)
    told = run(folder, "saga", "show", "plan-c5")
    assert told.out.startswith("saga plan-c5  notes.planned v1  completed")
    assert "keep#1" in told.out
    table = run(folder, "saga", "list", "--status", "completed", "--limit", "1")
    assert [line.split()[0] for line in table.out.splitlines()] == ["saga", "plan-c5"]


def test_where_no_saga_is_to_be_listed_it_says_so(run: Run, folder: Path) -> None:
    """In words for people; a program gets an empty list."""
    told = run(folder, "saga", "list", "--status", "running")
    assert (told.code, told.out, told.err) == (0, "no saga is running\n", "")
    assert json.loads(run(folder, "saga", "list", "--status", "running", "--json").out) == []


def test_what_looks_like_markup_is_shown_as_it_is(run: Run, folder: Path) -> None:
    """The id of a saga, and why it was undone, are customers' words."""
    run(folder, "call", "notes.write", "id=[/c9]", "text=a")
    assert run(folder, "call", "notes.plan", "name=[/c9]").code == 1
    listed = run(folder, "saga", "list", "--limit", "1")
    assert (listed.code, listed.err) == (0, "")
    assert listed.out.splitlines()[1].startswith("plan-[/c9]  notes.planned  undone")
    assert listed.out.rstrip().endswith("rejected: taken: there is a note [/c9]")


def test_an_undone_saga_says_why(run: Run, folder: Path) -> None:
    """The call is a finding; the story has the reason."""
    run(folder, "call", "notes.write", "id=c6", "text=a")
    assert run(folder, "call", "notes.plan", "name=c6").code == 1
    told = run(folder, "saga", "show", "plan-c6")
    assert (told.code, told.out.splitlines()[0].split()[-1]) == (0, "undone")
    assert "why: rejected: taken: there is a note c6" in told.out


def test_a_stuck_saga_is_a_finding(run: Run, folder: Path) -> None:
    """`saga list` and `saga show` exit 1 while a saga needs a person."""
    run(folder, "call", "notes.plan", "name=c7")
    database = sqlite3.connect(folder / ".synchromesh/data/notes.db")
    for status, wanted in (("stuck", 1), ("completed", 0)):
        database.execute("update sm_saga set status = ? where id = 'plan-c7'", (status,))
        database.commit()
        for words in (["list"], ["list", "--json"], ["show", "plan-c7"]):
            assert run(folder, "saga", *words).code == wanted
        assert run(folder, "saga", "show", "plan-c7", "--json").code == wanted
    database.close()


def stick(folder: Path, saga_id: str) -> None:
    """Make a run that has ended one that became stuck at its end."""
    database = sqlite3.connect(folder / ".synchromesh/data/notes.db")
    cause = b'{"reason":"the saga function raised"}'
    database.execute(
        "update sm_saga set status = 'stuck', ended_us = null where id = ?", (saga_id,)
    )
    database.execute(
        "update sm_saga_record set kind = 'stuck', body = ? where saga = ? and kind = 'ended'",
        (cause, saga_id),
    )
    database.commit()
    database.close()


def test_a_stuck_saga_is_repaired_by_a_verb(run: Run, folder: Path) -> None:
    """What each verb would do is told; retry goes on, and who and why are in its story."""
    run(folder, "call", "notes.plan", "name=c8")
    stick(folder, "plan-c8")
    told = run(folder, "saga", "impact", "plan-c8")
    assert (told.code, told.out.splitlines()) == (0, [
        "retry: runs the saga function again from its records",
        "skip: refused: it is stuck at no step; mend the code, then retry",
        "undo: goes no further; undoes, where the code names an undo: keep#1",
        "cancel: refused: it is stuck; undo turns a stuck run",
    ])  # fmt: skip
    verbs = json.loads(run(folder, "saga", "impact", "plan-c8", "--json").out)
    assert [each["is_allowed"] for each in verbs] == [True, False, True, False]
    done = run(folder, "saga", "retry", "plan-c8", "--why", "mended")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[1] == "follow it with: synchromesh saga show plan-c8"
    story = json.loads(run(folder, "saga", "show", "plan-c8", "--json").out)
    assert f"retry by {user()}: mended" in [line["why"] for line in story["lines"]]
    again = run(folder, "saga", "retry", "plan-c8", "--why", "again", "--json")
    assert again.code == 2
    assert "saga 'plan-c8'" in again.err
    run(folder, "call", "notes.plan", "name=c10")
    stick(folder, "plan-c10")
    undone = run(folder, "saga", "undo", "plan-c10", "--why", "not wanted", "--json")
    assert (undone.code, json.loads(undone.out)["service"]) == (0, "notes")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["retry", "nope", "--why", "x"], "no saga has the id 'nope'; synchromesh saga list"),
        (["retry", "plan-c11"], "say why, it is recorded with your name: --why TEXT"),
        (["undo", "plan-c11", "--why", "x"], "undo is refused: it has ended, completed"),
        (["skip", "plan-c11", "--why", "x"], "skip is refused: it has ended, completed"),
        (["cancel", "plan-c11", "--why", "x"], "cancel is refused: it has ended, completed"),
        (["skip", "plan-c11", "--why", "x", "--result", "A-1"], "a text needs quotes"),
        (["skip", "plan-c11", "--why", "x", "--result", "1"], "skip takes no result"),
        (["impact", "nope"], "no saga has the id 'nope'"),
    ],
)
def test_a_verb_that_has_no_place_is_refused_with_its_reason(
    run: Run, folder: Path, words: list[str], said: str
) -> None:
    """One clear line, exit 2, and nothing is recorded."""
    run(folder, "call", "notes.plan", "name=c11")
    ran = run(folder, "saga", *words)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    lines = json.loads(run(folder, "saga", "show", "plan-c11", "--json").out)["lines"]
    assert [line["kind"] for line in lines] == ["done", "ended"]


def test_a_stopped_system_is_read_from_its_databases(run: Run, tmp_path: Path) -> None:
    """A list, a story and a mistake are told as they were while it ran, also after a kill."""
    write_config(tmp_path, TOML)

    def told() -> list[object]:
        listed = run(tmp_path, "saga", "list", "--json")
        words = (["saga", "show", "last"], ["saga", "show", "nope"])
        return [json.loads(listed.out), *(run(tmp_path, *each) for each in words)]

    with Running(tmp_path):
        for name in ("s1", "s2"):
            assert run(tmp_path, "call", "notes.plan", f"name={name}").code == 0
        before = told()
    assert "plan-s2" in str(before)
    assert told() == before
    claim(tmp_path, "http://127.0.0.1:1", ended_pid())
    assert told() == before


def test_a_trace_and_the_logs_of_a_stopped_system_are_as_while_it_ran(
    run: Run, tmp_path: Path
) -> None:
    """The last one, and one by its id; what is not kept is said so; a damaged file harms none."""
    write_config(tmp_path, TOML)

    def told(trace_id: str = "last") -> tuple[int, list[str], list[str]]:
        trace = run(tmp_path, "trace", trace_id, "--json")
        spans = json.loads(trace.out)["spans"]
        shown = run(tmp_path, "trace", trace_id).out
        return trace.code, [span["name"] for span in spans], shown.splitlines()[:2]

    with Running(tmp_path):
        assert run(tmp_path, "call", "notes.plan", "name=s1").code == 0
        before = told()
        trace_id = before[2][0].removeprefix("trace ")
    assert (before[0], before[1][0]) == (0, "notes.plan")
    assert told() == told(trace_id) == before
    assert run(tmp_path, "logs").code in (0, 1)
    lost = run(tmp_path, "trace", "0af7651916cd43dd8448eb211c80319c")
    assert (lost.code, lost.out, "are kept; the ring may have" in lost.err) == (2, "", True)
    (tmp_path / ".synchromesh/telemetry/spans-gone.db").write_text("it is none")
    assert told() == before
    (tmp_path / ".synchromesh/telemetry/spans.db").unlink()
    none = run(tmp_path, "trace", "last")
    assert (none.code, "nobody has asked for anything yet" in none.err) == (2, True)


def ended_pid() -> int:
    """Return the id of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_where_nothing_runs_the_start_is_named(run: Run, tmp_path: Path) -> None:
    """Every command that needs a running system says how to start one."""
    commands = ("call notes.count", "trace last", "status", "status --watch", "heal")
    for words in (command.split() for command in (*commands, "break notes --stall")):
        ran = run(tmp_path, *words)
        assert (ran.code, ran.out) == (2, "")
        assert "start one there with: synchromesh dev" in ran.err


def test_folders_are_named_in_full(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that says "." would not say where."""
    monkeypatch.chdir(tmp_path)
    assert f"no system runs in {tmp_path};" in run(Path(), "status").err
    assert f"no system has run in {tmp_path} yet;" in run(Path(), "saga", "list").err
    # It is told before what else is missing, such as a reason.
    for words in (["dev"], ["db", "migrate"], ["db", "restore", "orders", "kept"]):
        assert f"there is no synchromesh.toml in {tmp_path};" in run(Path(), *words).err


def claim(folder: Path, control: str, pid: int) -> None:
    """Leave a `run.json` of a process."""
    rundir = RunDir(folder)
    rundir.create()
    rundir.publish(RunInfo(pid, "gone", control, "token", {}))


def test_a_dead_system_is_named_with_its_process(run: Run, tmp_path: Path) -> None:
    """A `run.json` that was left behind leads to a message, not to a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    claim(tmp_path, f"http://127.0.0.1:{port}", 4711)
    ran = run(tmp_path, "status")
    assert ran.code == 2
    assert "process 4711 may have died: start it again with: synchromesh dev" in ran.err


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (b"hello\r\n", 2, "does not answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 2, "is not this system"),
        (b"HTTP/1.1 404 NF\r\nContent-Length: 2\r\n\r\n[]", 2, "the system answered 404"),
        (
            b'HTTP/1.1 500 E\r\nContent-Length: 19\r\n\r\n{"detail": "it ate"}'[:-1],
            2,
            "is not this system",
        ),
        (
            b'HTTP/1.1 500 E\r\nContent-Length: 20\r\n\r\n{"detail": "it ate"}',
            3,
            "synchromesh: it ate",
        ),
    ],
)
def test_whatever_else_answers_there_is_named(
    run: Run, tmp_path: Path, answer: bytes, code: int, said: str
) -> None:
    """Another program at that port is exit 2; a system that fails is exit 3."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        claim(tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}", os.getpid())

        def reply() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        answering = threading.Thread(target=reply)
        answering.start()
        ran = run(tmp_path, "saga", "list")
        answering.join()
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err


def test_a_system_that_hangs_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 3: it was reached, and said nothing in time."""
    monkeypatch.setattr("synchromesh.cli.control.TIMEOUT_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as server:
        claim(tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}", os.getpid())
        ran = run(tmp_path, "saga", "list")
    assert ran.code == 3
    assert f"did not answer within 0.01 s; process {os.getpid()} hangs" in ran.err


def test_an_answer_is_shown_though_its_trace_is_gone(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of a call that was made is never lost to what is shown beside it."""

    async def nothing(*_: object) -> list[object]:
        return []

    monkeypatch.setattr("synchromesh.telemetry.SqliteRing.trace", nothing)
    ran = run(folder, "call", "notes.count", "--json")
    assert (ran.code, json.loads(ran.out)["spans"]) == (0, [])
    assert "the trace cannot be shown: no spans of trace" in ran.err


def test_a_bug_is_told_as_one(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 3 and how to see more; with SYNCHROMESH_DEBUG the traceback."""
    monkeypatch.setattr("synchromesh.cli.actions.client_of", lambda _: 1 // 0)
    ran = run(folder, "saga", "list")
    assert (ran.code, ran.out) == (3, "")
    assert "internal error: ZeroDivisionError" in ran.err
    assert "SYNCHROMESH_DEBUG=1" in ran.err
    monkeypatch.setenv("SYNCHROMESH_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["--folder", str(folder), "saga", "list"])


def test_an_interrupt_is_130(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a command ends it without a word."""

    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("synchromesh.cli.actions.client_of", interrupted)
    ran = run(folder, "saga", "list")
    assert ran.code == 130


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Exit codes: 0 done, 1 a finding"),
        (["new"], "Nothing that is there is written over"),
        (["config", "explain"], "whether default, file, environment or flag gave it"),
        (["config", "check"], "Exits 2 with what is wrong"),
        (["dev"], "Run the system of this folder in one process until Ctrl-C"),
        (["call"], "OPERATION (service.name) with ARGUMENTS (name=value)"),
        (["trace"], "`last` is the last call or request from outside"),
        (["status"], "Exits 1 when something needs a person"),
        (["break"], "Inject faults into the calls of a service, of one instance, or of one edge"),
        (["heal"], "Remove injected faults: of a service, an edge, or all"),
        (["saga", "list"], "Exits 1 when one is stuck"),
        (["saga", "show"], "each step, attempt and undo, and why"),
    ],
)
def test_every_command_explains_itself(
    run: Run, tmp_path: Path, words: list[str], said: str
) -> None:
    """--help needs no system, and exits 0."""
    ran = run(tmp_path, *words, "--help")
    assert ran.code == 0
    assert said in " ".join(ran.out.split())


@pytest.mark.parametrize("group", ["", "config", "gateway", "gateway key", "saga"])
def test_no_list_of_commands_is_cut(run: Run, tmp_path: Path, group: str) -> None:
    """On 80 columns each command is told of in whole sentences."""
    ran = run(tmp_path, *group.split(), "--help")
    _, _, commands = ran.out.partition("Commands:\n")
    assert commands
    assert all(line.endswith(".") and not line.endswith("...") for line in commands.splitlines())


def test_without_a_command_the_commands_are_shown(run: Run, tmp_path: Path) -> None:
    """Exit 2: something was to be done."""
    with pytest.raises(SystemExit, match="2"):
        main([])
    ran = run(tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert "Missing command" in ran.err
    assert run(tmp_path, "--version").out.startswith("synchromesh, version ")


@pytest.mark.parametrize(
    "words", [["saga", "list"], ["status"], ["trace", "last"], ["trace", "last", "--json"]]
)
def test_a_reader_that_has_gone_is_no_failure(folder: Path, words: list[str]) -> None:
    """`| head` ends the command quietly, with exit code 0."""
    command = [sys.executable, "-c", "from synchromesh.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "--folder", str(folder), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), err) == (0, b"")
