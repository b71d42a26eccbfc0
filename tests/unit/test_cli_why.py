"""`why` on one screen: of a running and of a stopped system, by trace and by saga."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_runs import Run, runner
from notes_app import TOML, Running, write_config
from synchromesh.cli.show import console
from synchromesh.cli.why import first_failure, print_why
from synchromesh.telemetry.explanation import explain
from traces import ORDER, PAGE


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


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines of what was printed."""
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_the_screen_of_a_page_in_part(capsys: pytest.CaptureFixture[str]) -> None:
    """Golden: its figures are those that `test_explanation` has checked by hand."""
    print_why(console(), explain(PAGE), [])
    assert shown(capsys) == [
        "GET /page  gateway  300.0 ms  ok",
        "trace t, 6 spans",
        "where the time went",
        "on the way there and back  193.0 ms  64%  gateway -> orders",
        "waiting for a place         40.0 ms  13%  gateway -> orders",
        "waiting between attempts    30.0 ms  10%  gateway -> orders",
        "own work                    13.0 ms   4%  fleet",
        "own work                     8.0 ms   3%  gateway",
        "its database                 5.0 ms   2%  fleet",
        "own work                     5.0 ms   2%  orders",
        "on the way there and back    4.0 ms   1%  gateway -> fleet",
        "waiting for a place          2.0 ms   1%  fleet",
        "critical path",
        "gateway GET /page     gateway  ok               8.0 ms",
        "call fleet.machine    gateway  ok               4.0 ms",
        "handle fleet.machine  fleet    ok              15.0 ms",
        "unit machine          fleet    ok               5.0 ms",
        "call orders.one       gateway  timed_out      263.0 ms",
        "handle orders.one     orders   remote_failed    5.0 ms",
        "what failed first",
        "  after 80.0 ms  orders, handle orders.one  remote_failed: orders.one failed",
        "what followed",
        "  after 298.0 ms  gateway, call orders.one  timed_out: orders did not answer",
        "what stood in",
        "  GET /page was answered in part, without a fresh order",
    ]


def test_the_screen_of_an_order_that_was_undone(capsys: pytest.CaptureFixture[str]) -> None:
    """What it did after the answer, what was undone, and because of what."""
    story = {
        "id": "A-1", "service": "orders", "name": "place_order", "status": "undone",
        "reason": "bank.charge#1: refused: credit_declined", "not_undone": [],
        "lines": [
            {"kind": "begun", "step": "bank.charge#1", "why": ""},
            {"kind": "rejected", "step": "bank.charge#1", "why": "credit_declined: no credit"},
            {"kind": "undone", "step": "inventory.reserve#1", "why": ""},
        ],
    }  # fmt: skip
    print_why(console(), explain(ORDER), [story])
    lines = shown(capsys)
    assert lines[2] == "what it began went on for 60.0 ms after its answer"
    assert lines[-5:] == [
        "saga A-1  orders.place_order: undone",
        "  failed first: bank.charge#1 credit_declined: no credit",
        "  because bank.charge#1: refused: credit_declined",
        "  rejected bank.charge#1 credit_declined: no credit",
        "  undone inventory.reserve#1",
    ]


@pytest.mark.parametrize(
    ("lines", "failed"),
    [
        ("begun a#1|done a#1", None),
        ("begun a#1|begun a#1 2|done a#1", ("a#1", "attempt 1 had no outcome, and another was")),
        ("begun a#1|begun a#1 2 after timed_out: late|done a#1", ("a#1", "timed_out: late")),
        ("begun a#1|done a#1|begun b#1|turned b#1: unknown: no answer", ("b#1", "unknown: no an")),
        ("begun a#1|begun b#1|turned b#1: lost", ("b#1", "lost")),
        ("begun a#1|turned", ("a#1", "no outcome of it was recorded, and no reason")),
        ("begun a#1|turned the deadline has passed", ("a#1", "the deadline has passed")),
        ("begun a#1|done a#1|turned cancelled: by hand", ("", "cancelled: by hand")),
        ("begun a#1|rejected a#1|turned a#1: no", ("a#1", "it was refused, and no reason was re")),
        ("stuck a#1: the undo was refused", ("", "a#1: the undo was refused")),
    ],
)
def test_what_failed_first_is_told_by_what_was_recorded(
    lines: str, failed: tuple[str, str] | None
) -> None:
    """Also where no message of the step was: by what was begun and never done."""
    records = []
    for line in lines.split("|"):
        kind, _, rest = line.partition(" ")
        step, _, attempt = rest.partition(" ")
        attempt, _, after = attempt.partition(" ")
        is_end = kind in ("turned", "stuck")
        records.append(
            {
                "kind": kind,
                "step": "" if is_end else step,
                "attempt": int(attempt or 1) if not is_end else 0,
                "why": rest if is_end else after,
            }
        )
    found = first_failure(records)
    if failed is None or found is None:
        assert found is failed
    else:
        assert (found[0], found[1][: len(failed[1])]) == failed


def test_a_call_is_explained_while_the_system_runs(run: Run, folder: Path) -> None:
    """The last one by `last`, any by its trace; the parts add up to the whole in JSON too."""
    trace_id = json.loads(run(folder, "call", "notes.count", "--json").out)["trace_id"]
    for wanted in ("last", trace_id):
        told = json.loads(run(folder, "why", wanted, "--json").out)["trace"]
        assert (told["trace_id"], told["name"], told["status"]) == (trace_id, "notes.count", "ok")
        assert sum(part["took_us"] for part in told["parts"]) == told["took_us"] > 0
    screen = run(folder, "why", "last")
    assert screen.code == 0
    assert "own work" in screen.out


def test_a_saga_is_explained_by_its_id_also_when_all_is_stopped(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    """Why it was undone is the same on a copy of its files; without spans its records tell it."""
    run(folder, "call", "notes.plan", "name=w1")
    told = run(folder, "why", "plan-w1")
    assert told.code == 0
    assert "saga plan-w1  notes.planned: completed" in told.out
    run(folder, "call", "notes.write", "id=w2", "text=there", "stars=1")
    run(folder, "call", "notes.plan", "name=w2")
    undone = run(folder, "why", "plan-w2")
    assert "because " in undone.out
    assert "taken" in undone.out
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("run.json", "*.sock"))
    assert "saga plan-w2  notes.planned: undone" in run(copy, "why", "plan-w2").out
    for spans in (copy / ".synchromesh" / "telemetry").glob("spans*"):
        spans.unlink()
    bare = run(copy, "why", "plan-w2")
    assert "no spans of it are kept" in bare.out
    assert "saga plan-w2  notes.planned: undone" in bare.out


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("f" * 32, "no spans of trace 'ffffffffffffffffffffffffffffffff' are kept"),
        ("nope", "no saga has the id 'nope'"),
        ("n" * 5_000, f"no saga has the id '{'n' * 80}'; "),
    ],
    ids=["trace", "saga", "long"],
)
def test_what_is_not_there_is_a_mistake_of_the_user(
    run: Run, folder: Path, wanted: str, told: str
) -> None:
    """A trace that is not kept, and a saga that never was: exit code 2, and what to look at."""
    ran = run(folder, "why", wanted)
    assert ran.code == 2
    assert told in ran.err
    assert len(ran.err) < 300


def test_a_folder_in_which_nothing_ran_says_so(run: Run, tmp_path: Path) -> None:
    """It names the command that starts a system."""
    ran = run(write_config(tmp_path, TOML), "why", "last")
    assert (ran.code, "synchromesh dev" in ran.err) == (2, True)
