"""The logs of all processes as one: read, followed over turned files, shown to people."""

from __future__ import annotations

import io
import itertools
import json
import logging
from pathlib import Path
from typing import Any, cast

import pytest
from rich.text import Text

from cli_runs import Run, runner
from synchromesh.cli.log_lines import is_for_terminal, shown, traceback_of
from synchromesh.cli.show import PipeConsole, plain_table
from synchromesh.cli.terminal import Terminal
from synchromesh.errors import ConfigError
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.control.log_files import (
    PRINTED,
    READ_BYTES,
    LogFilter,
    LogFollower,
    LogLine,
    read_logs,
    since_of,
)
from synchromesh.system.host.logs import PrivateFile
from synchromesh.telemetry import JsonFormatter

LATER_US = 1_767_225_700_000_000  # 2026-01-01T00:01:40
TRACE = "019a4c5e9d1c7a3b8f003c1d2e4f5a6b"


def write(path: Path, second: int, message: str, level: str = "INFO", **more: Any) -> None:
    """Append a record to a file, as a process does."""
    at = f"2026-01-01T00:00:{second:02}+00:00"
    record = {"at": at, "level": level, "logger": "users.own", "message": message, **more}
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


@pytest.fixture
def telemetry(tmp_path: Path) -> Path:
    """The logs of a split system that was stopped."""
    folder = tmp_path / ".synchromesh/telemetry"
    folder.mkdir(parents=True)
    write(folder / "log-orders.jsonl.1", 1, "first")
    write(folder / "log-orders.jsonl", 4, "orders.place failed", "ERROR", trace_id=TRACE)
    write(folder / "log-quoting#2.jsonl", 2, "second", "WARNING", edge="quoting:inventory")
    write(folder / "log.jsonl", 3, "child service/orders failed", "ERROR")
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"at": "2026-')  # a power cut
    (folder / "orders.log").write_text("printed by orders\n")
    (folder / "provider.log").write_text("printed by the provider\n")
    return folder


@pytest.mark.parametrize(
    ("wanted", "messages"),
    [
        (LogFilter(level="INFO"), ["first", "second", "child service/orders failed", "orders."]),
        (LogFilter(level="ERROR"), ["child service/orders failed", "orders."]),
        (LogFilter(service="quoting"), ["second"]),
        (LogFilter(service="quoting#1"), []),
        (LogFilter(service="orders", level="INFO"), ["first", "child service/orders", "orders."]),
        (LogFilter(trace=TRACE[:8]), ["orders."]),
        (LogFilter(since="2026-01-01T00:00:03", level="INFO"), ["child service", "orders."]),
        (LogFilter(service="provider"), ["printed by the provider"]),
        (LogFilter(service="provider", since="2026-01-01T00:00:03"), []),
        (LogFilter(service="orders", since="2026-01-01T00:00:03"), ["child service", "orders."]),
    ],
)
def test_the_files_of_all_processes_are_read_as_one(
    telemetry: Path, wanted: LogFilter, messages: list[str]
) -> None:
    """By time over all of them, turned ones too; of what was printed there is no time."""
    found = [line.message for line in read_logs(telemetry, wanted)]
    assert [a.startswith(b) for a, b in zip(found, messages, strict=True)] == [True] * len(found)


def test_what_does_not_hold_a_text_is_not_decoded(telemetry: Path) -> None:
    """As advice looks through logs of many megabytes for one message."""
    wanted = LogFilter(level="ERROR")
    found = read_logs(telemetry, wanted, holding=b"place failed")
    assert [line.message for line in found] == ["orders.place failed"]
    assert read_logs(telemetry, wanted, holding=b"nowhere") == []


def test_a_follower_reads_on_over_files_that_are_turned(tmp_path: Path) -> None:
    """Each record once and in order, also where a file was turned several times in between."""
    handler = PrivateFile(
        tmp_path / "log-a.jsonl", maxBytes=400, backupCount=4, encoding="utf-8", delay=True
    )
    handler.setFormatter(JsonFormatter())
    follower, came = LogFollower(tmp_path, wall_us=lambda: LATER_US), []
    for number in range(60):
        handler.emit(logging.makeLogRecord({"msg": f"record {number}", "levelname": "INFO"}))
        if number % 7 == 0:
            came += [line.message for line in follower.poll()]
    came += [line.message for line in follower.poll()]
    handler.close()
    assert came == [f"record {number}" for number in range(60)]
    assert len(list(tmp_path.iterdir())) == 5
    assert follower.poll() == []
    follower.close()


def test_a_follower_reads_of_much_so_much_at_a_time(tmp_path: Path) -> None:
    """Each record once and in order, also where a file is turned before it was read to its end."""
    path = tmp_path / "log-a.jsonl"

    def write_some(numbers: range) -> None:
        with path.open("w") as file:
            for number in numbers:
                file.write(json.dumps({"message": f"{number:03d}" + "." * 20_000}) + "\n")

    write_some(range(100))
    follower = LogFollower(tmp_path, wall_us=lambda: LATER_US, is_whole=True, bytes_max=READ_BYTES)
    looks = [follower.poll()]
    path.rename(tmp_path / "log-a.jsonl.1")
    write_some(range(100, 200))
    while came := follower.poll():
        looks.append(came)
    shown = [[int(line.message[:3]) for line in look] for look in looks]
    assert list(itertools.chain(*shown)) == list(range(200))
    # What is left of one file, and the first of the next.
    assert max(map(len, shown)) <= 100
    assert len(shown[0]) < 60
    follower.close()


def test_a_follower_waits_for_the_end_of_a_line_and_for_files_that_come(tmp_path: Path) -> None:
    """Half a record is none; a process that starts later is read from its first record on."""
    follower = LogFollower(tmp_path, wall_us=lambda: LATER_US)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"at":"2026-01-01T00:00:00+00:00","mess')
        file.flush()
        assert follower.poll() == []
        file.write('age":"whole"}\n')
    (tmp_path / "provider.log").write_text("says something\n")
    found = follower.poll(LogFilter())
    assert [(line.part, line.message) for line in found] == [
        ("", "whole"),
        ("provider", "says something"),
    ]
    (tmp_path / "provider.log").write_text("anew\n")  # emptied, and written again
    assert [line.message for line in follower.poll()] == ["anew"]
    (tmp_path / "log.jsonl").unlink()
    write(tmp_path / "log.jsonl", 1, "after it was removed")
    assert [line.message for line in follower.poll()] == ["after it was removed"]
    follower.close()


def test_what_is_printed_has_the_time_when_it_came(tmp_path: Path) -> None:
    """So that a follower who asks for what is new is shown it."""
    follower = LogFollower(tmp_path, wall_us=lambda: LATER_US)
    (tmp_path / "provider.log").write_text("says something\n")
    (line,) = follower.poll(LogFilter(since="2026-01-01T00:01:00"))
    assert (line.message, line.at) == ("says something", "2026-01-01T00:01:40+00:00")
    (tmp_path / "provider.log").write_text("says something\nand more\n")
    assert follower.poll(LogFilter(since="2026-01-01T00:02:00")) == []
    follower.close()


def test_moments_are_durations_before_now_or_times() -> None:
    """What is neither is refused with what would be right."""
    assert since_of("1h", 7_200_000_000) == "1970-01-01T01:00:00+00:00"
    assert since_of("2026-01-31T12:00:00+02:00", 0) == "2026-01-31T10:00:00+00:00"
    assert since_of("2026-01-31T12:00", 0) == "2026-01-31T12:00:00+00:00"
    with pytest.raises(ConfigError, match="'yesterday' is neither a duration, such as 10m"):
        since_of("yesterday", 0)


EXCEPTION = """Traceback (most recent call last):
  File "/shop/.venv/lib/python3.11/site-packages/synchromesh/calls/dispatcher.py", line 236, in x
    answer = await answerer.handler(incoming)
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/shop/services/orders.py", line 12, in place
    price = prices[request.sku]
            ~~~~~~^^^^^^^^^^^^^
  File "/usr/lib/python3.11/collections/__init__.py", line 1, in __missing__
    raise KeyError(key)
KeyError: 'SX90'"""


def test_of_a_traceback_the_users_own_frames_are_shown() -> None:
    """Not those of the toolkit, of libraries or of the interpreter; and the error itself."""
    assert [click_less(line) for line in traceback_of(EXCEPTION, Path("/shop"))] == [
        '  File "/shop/services/orders.py", line 12, in place',
        "    price = prices[request.sku]",
        "  KeyError: 'SX90'",
    ]
    assert traceback_of("", Path("/shop")) == []


def test_a_record_is_shown_with_its_part_its_trace_and_where_it_raised() -> None:
    """One line, and the frames below it."""
    line = LogLine(
        "orders", "2026-01-01T09:18:02.123456+00:00", "ERROR", "x", "place failed", TRACE, EXCEPTION
    )
    head, *rest = click_less(shown(line, Path("/shop"))).splitlines()
    assert head == f"09:18:02.123 ERROR   orders place failed [trace {TRACE}]"
    assert len(rest) == 3
    printed = LogLine("provider", "", "", PRINTED, "listening")
    assert click_less(shown(printed, Path("/shop"))) == "provider | listening"


@pytest.mark.parametrize(
    ("level", "logger", "is_shown"),
    [
        ("ERROR", "synchromesh.calls", True),
        ("WARNING", "synchromesh.calls", False),
        ("WARNING", "synchromesh.system", True),
        ("WARNING", "users.own", True),
        ("INFO", "synchromesh.system", False),
    ],
)
def test_the_terminal_shows_errors_and_what_is_no_single_call(
    level: str, logger: str, is_shown: bool
) -> None:
    """A call that failed is told of once, where it raised."""
    assert is_for_terminal(LogLine("", "", level, logger, "x")) is is_shown


def test_what_is_logged_commands_no_terminal(tmp_path: Path) -> None:
    """Control characters of anybody's texts are escapes, also of tables; colours are our own."""
    evil = "\x1b[2J\x9b31m\r\x07\u202eabc\u2066 \x7f\tstays é"
    said = r"\x1b[2J\x9b31m\r\x07\u202eabc\u2066 \x7f" + "\tstays é"
    own = "2026-01-01T09:18:02+00:00"
    text = shown(LogLine("or\x1bders", own, "ERROR", "x", evil, evil, f"{evil}: {evil}"), tmp_path)
    assert click_less(text).count(said.partition("\t")[0]) == 3
    assert "\x1b" not in click_less(text)
    assert shown(LogLine("p", own, "ERROR", "x", "m"), tmp_path).count("\x1b[") >= 2
    printed = shown(LogLine("orders", "", "", PRINTED, evil), tmp_path)
    assert click_less(printed) == f"orders | {said}"
    table = plain_table("why")
    table.add_row(Text(evil, style="red"))
    console = PipeConsole(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(table, Text(evil))
    written = cast("io.StringIO", console.file).getvalue()
    assert written.count(r"\x1b[2J\x9b31m") == 2
    assert "\x1b[31m" in written
    assert not set("\x07\r\x9b\u202e\u2066\x7f") & set(written)


def test_a_record_of_several_lines_passes_for_no_other(tmp_path: Path) -> None:
    """Its further lines are set in: a line that looks like a record is one."""
    forged = "refused\n09:18:02.123 ERROR   billing all is paid"
    line = LogLine("orders", "2026-01-01T09:18:02+00:00", "ERROR", "x", forged)
    _, further = click_less(shown(line, tmp_path)).splitlines()
    assert further == "  09:18:02.123 ERROR   billing all is paid"


def test_the_last_line_needs_no_end(tmp_path: Path) -> None:
    """What a process printed before it ended is shown by `dev` as it ends, once."""
    terminal = Terminal(tmp_path)
    telemetry = RunDir(tmp_path).telemetry
    telemetry.mkdir(parents=True)
    (telemetry / "provider.log").write_text("whole\nFatal: no port")
    follower = LogFollower(telemetry, wall_us=lambda: LATER_US)
    assert follower.poll() == []
    follower.close()
    assert [click_less(each) for each in terminal.look()] == ["provider | whole"]
    assert [click_less(each) for each in terminal.look(is_last=True)] == [
        "provider | Fatal: no port"
    ]
    assert terminal.look(is_last=True) == []
    terminal.close()


def click_less(text: str) -> str:
    """Return a text without its colours."""
    import click

    return click.unstyle(text)


def test_the_command_reads_a_stopped_system(
    telemetry: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines for people, JSON for programs; exit 1 where nothing fits, 2 for a mistake."""
    run: Run = runner(capsys)
    folder = telemetry.parents[1]
    ran = run(folder, "logs", "--level", "error", "--service", "orders")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "00:00:03 ERROR   child service/orders failed",
        f"00:00:04 ERROR   orders orders.place failed [trace {TRACE}]",
    ]
    ran = run(folder, "logs", "--trace", TRACE, "--json")
    assert ran.err == ""
    assert json.loads(ran.out)["trace_id"] == TRACE
    ran = run(folder, "logs", "--service", "nobody")
    assert (ran.code, ran.out, ran.err) == (1, "", "nothing was logged that fits\n")
    ran = run(folder, "logs", "--since", "yesterday")
    assert (ran.code, "is neither a duration" in ran.err) == (2, True)
    assert run(folder, "logs", "--level", "loud").code == 2
