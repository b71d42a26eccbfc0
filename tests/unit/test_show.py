"""How things are shown: waterfalls, moments, colours, and pipes."""

from __future__ import annotations

import io

import pytest
from msgspec import structs
from rich.console import Console

from synchromesh.cli.main import main
from synchromesh.cli.main import synchromesh as verbs
from synchromesh.cli.output import OutputClosed, print_json, print_line
from synchromesh.cli.show import (
    BAR_COLUMNS_MIN,
    PLAIN_COLUMNS,
    PipeConsole,
    console,
    plain_table,
    styled,
    time_of_day,
    waterfall,
    why,
)
from synchromesh.errors import ConfigError
from synchromesh.telemetry import SpanRecord


def span(name: str, parent: str, started_us: int, took_us: int, status: str = "ok") -> SpanRecord:
    """Return a span whose id is its name."""
    return SpanRecord("t", name, parent, "shop", "call", name, started_us, took_us, status, {})


def drawn(*spans: SpanRecord, width: int = PLAIN_COLUMNS) -> list[str]:
    """Return the lines of a waterfall without their heading."""
    out = io.StringIO()
    Console(file=out, width=width).print(waterfall(list(spans), width))
    return [line.rstrip() for line in out.getvalue().splitlines()[1:]]


def test_spans_stand_below_their_parents_on_one_scale() -> None:
    """Children are indented, in the order of their start, and bars show when they ran."""
    root = span("root", "", 0, 32_000)
    lines = drawn(span("late", "root", 16_000, 16_000), span("soon", "root", 0, 1000), root)
    assert [line.split("shop")[0].rstrip() for line in lines] == [
        "call root",
        "  call soon",
        "  call late",
    ]
    assert [line.count("█") for line in lines] == [32, 1, 16]
    assert lines[2].endswith(" " * 16 + "█" * 16)
    assert "32.0 ms" in lines[0]


def test_what_a_call_took_stands_behind_its_bar() -> None:
    """Attempts, a hedge and the instance of several; a call that went straight through is plain."""

    def told(status: str = "ok", **attributes: str) -> str:
        made = structs.replace(span("x", "", 0, 10, status), attributes=attributes)
        return drawn(made)[0].rpartition("█")[2]

    assert told(attempts="1", instance="quoting") == ""
    assert told(attempts="1", instance="quoting#2") == "  answered by quoting#2"
    hedged = told(attempts="2", hedge="quoting#3", instance="quoting#3")
    assert hedged == "  2 attempts, hedged to quoting#3, answered by quoting#3"
    assert told("timed_out", attempts="3", instance="stock") == "  3 attempts, last stock"


def test_a_span_without_its_parent_stands_at_the_root() -> None:
    """What was lost, or is another process's, hides nothing."""
    lines = drawn(span("orphan", "lost", 5, 0), span("child", "orphan", 5, 0))
    assert [line.split("shop")[0].rstrip() for line in lines] == ["call orphan", "  call child"]


def test_why_spans_failed_is_told_once_each() -> None:
    """In the words of the span that failed first; those above it repeat them."""

    def failed(name: str, parent: str, status: str, error: str) -> SpanRecord:
        made = span(name, parent, 0, 10, status)
        return structs.replace(made, attributes={"error": error} if error else {})

    lines = why(
        [
            failed("edge", "", "forbidden", "remote: this needs 'books:read'"),
            failed("asked", "edge", "forbidden", "this needs 'books:read'"),
            failed("other", "edge", "timed_out", "no answer within 2 s"),
            failed("own", "edge", "ValueError", ""),
            failed("well", "edge", "ok", ""),
        ]
    )
    assert [line.plain for line in lines] == [
        "shop, call asked: this needs 'books:read'",
        "shop, call other: no answer within 2 s",
    ]
    assert why([]) == []


def test_a_bar_never_leaves_its_column() -> None:
    """A span that begins at the very end, or took no time, still has one mark."""
    lines = drawn(span("root", "", 0, 10), span("last", "root", 10, 0), span("all", "root", 0, 10))
    assert [line.count("█") for line in lines] == [32, 32, 1]


def test_a_narrow_screen_draws_smaller_bars_and_cuts_names_of_spans_alone() -> None:
    """Service and status are whole, and every bar is there, on a scale that fits."""
    name = "a_service_of_ours.an_operation_with_a_name"
    root = span(name, "", 0, 1000, "downstream_failed")
    late = span(f"then_{name}", name, 900, 100, "circuit_open")
    lines = drawn(root, late, width=60)
    assert all(len(line) <= 60 for line in lines)
    assert [line.count("█") for line in lines] == [BAR_COLUMNS_MIN, 1]
    assert lines[1].endswith(" " * (BAR_COLUMNS_MIN - 1) + "█")
    assert [line.split()[-5] for line in lines] == ["shop", "shop"]
    assert [line.split()[-4] for line in lines] == ["downstream_failed", "circuit_open"]
    assert all("…" in line for line in lines)


def test_a_table_on_a_narrow_screen_cuts_nothing() -> None:
    """Long words go on in the next line."""
    table = plain_table("setting", "value")
    table.add_row("policies.billing:credit_provider.breaker.minimum_calls", "5")
    out = io.StringIO()
    Console(file=out, width=40).print(table)
    said = "".join(line[:33].strip() for line in out.getvalue().splitlines()[1:])
    assert said == "policies.billing:credit_provider.breaker.minimum_calls"


def test_no_spans_are_an_empty_table() -> None:
    """Nothing is drawn where nothing was recorded."""
    assert drawn() == []


def test_moments_are_times_of_day() -> None:
    """Milliseconds, UTC; nothing for what has not happened."""
    assert time_of_day("2026-01-02T03:04:05.678901+00:00") == "03:04:05.678"
    assert time_of_day(None) == time_of_day("") == ""


@pytest.mark.parametrize(
    ("status", "colour"),
    [("ok", "green"), ("undone", "yellow"), ("running", "cyan"), ("out_of_stock", "red")],
)
def test_a_status_has_a_colour(status: str, colour: str) -> None:
    """What is neither well nor under way is red."""
    assert (styled(status).plain, styled(status).style) == (status, colour)


def test_where_nobody_looks_it_is_wide_and_plain() -> None:
    """A pipe gets whole lines: a table that were cut there would lose what programs look for."""
    assert console().width == PLAIN_COLUMNS
    assert not console().is_terminal


class Gone(io.StringIO):
    """A pipe that nobody reads."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


def test_a_broken_pipe_has_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and JSON say alike that the reader has gone; the entry point decides what it means."""
    with pytest.raises(OutputClosed):
        PipeConsole(file=Gone()).print("hello")
    monkeypatch.setattr("sys.stdout", Gone())
    with pytest.raises(OutputClosed):
        print_json({"hello": 1})


def test_lines_and_errors_command_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reasons and values are texts of others; tabs and lines stay, and JSON is for programs."""
    evil, said = "\x1b[2J\x9b31m\u202e\ta\nb", r"\x1b[2J\x9b31m\u202e" + "\ta\nb"
    print_line(f"saga 1 is stuck: {evil}")
    print_json({"why": evil})
    assert capsys.readouterr().out == (
        f"saga 1 is stuck: {said}\n" + '{\n  "why": "\\u001b[2J\x9b31m\u202e\\ta\\nb"\n}\n'
    )
    for error in (ConfigError(evil), RuntimeError(evil)):

        def fail(error: Exception = error, **_: object) -> None:
            raise error

        monkeypatch.setattr(verbs, "main", fail)
        with pytest.raises(SystemExit):
            main(["status"])
        assert said in capsys.readouterr().err
