"""The benchmarks' harness: turns, ratios, goals, the table and what is written."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.gateway_load import loaded_of
from benchmarks.harness import (
    Measures,
    Passed,
    Report,
    Results,
    WrongAnswer,
    at_least,
    at_most,
    check,
    cpu_s,
    descendants,
    in_turn,
    in_turn_async,
    percentile,
    pss_mb,
    table,
)

from synchromesh.codec import encode


def results_of(**rounds: list[float]) -> Results:
    """Return results with one measure, "us"."""
    results = Results()
    for name, values in rounds.items():
        for value in values:
            results.add(name, {"us": value})
    return results


def test_contestants_take_turns_and_warm_up_rounds_are_not_counted() -> None:
    """A B A B ..., whatever a contestant's first round was like."""
    turns: list[str] = []

    def contestant(name: str) -> Callable[[], Measures]:
        def run() -> Measures:
            turns.append(name)
            return {"us": float(len(turns))}

        return run

    results = in_turn({"a": contestant("a"), "b": contestant("b")}, rounds=2, warm_up=1)
    assert turns == ["a", "b"] * 3
    assert results.values("a", "us") == [3.0, 5.0]
    assert results.values("b", "us") == [4.0, 6.0]


def test_contestants_on_a_loop_take_the_same_turns() -> None:
    """The asynchronous form counts the same rounds."""
    turns: list[str] = []

    async def run(name: str) -> Measures:
        turns.append(name)
        return {"us": float(len(turns))}

    results = asyncio.run(
        in_turn_async({"a": lambda: run("a"), "b": lambda: run("b")}, rounds=1, warm_up=1)
    )
    assert turns == ["a", "b", "a", "b"]
    assert (results.values("a", "us"), results.values("b", "us")) == ([3.0], [4.0])


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    """A round in which the whole machine was slow changes no ratio; medians alone would."""
    results = results_of(ours=[1.0, 10.0, 3.0], peer=[2.0, 20.0, 4.0])
    assert results.ratio("ours", "peer", "us") == 0.5
    assert results.median("ours", "us") / results.median("peer", "us") == 0.75


def test_a_difference_is_the_median_of_the_differences_of_the_rounds() -> None:
    """Medians alone would say 1."""
    results = results_of(ours=[12.0, 40.0, 25.0], plain=[10.0, 37.0, 24.0])
    assert results.difference("ours", "plain", "us") == 2.0
    assert results.median("ours", "us") - results.median("plain", "us") == 1.0


@pytest.mark.parametrize("compared", ["ratio", "difference"])
def test_unequal_rounds_are_not_compared(compared: str) -> None:
    """What did not take its turn cannot be compared."""
    results = results_of(ours=[1.0], peer=[1.0, 2.0])
    with pytest.raises(ValueError, match="argument 2 is longer"):
        getattr(results, compared)("ours", "peer", "us")


@pytest.mark.parametrize(
    ("goal", "faster_is_more", "ratio", "is_met"),
    [
        (at_most(0.5), False, 0.5, True),
        (at_most(0.49), False, 0.5, False),
        (at_least(2.0), True, 2.0, True),
        (at_least(2.01), True, 2.0, False),
    ],
)
def test_a_goal_judges_the_ratio_of_a_row_with_a_peer(
    goal: object, faster_is_more: bool, ratio: float, is_met: bool
) -> None:
    """The bound itself is kept; `faster_is_more` turns the ratio round."""
    report = Report("x")
    row = report.against(
        "call",
        "us",
        results_of(ours=[2.0], peer=[4.0]),
        "us",
        peer="peer",
        goal=goal,  # type: ignore[arg-type]
        faster_is_more=faster_is_more,
    )
    assert (row.ours, row.peer, row.ratio, row.met) == (2.0, 4.0, ratio, is_met)


def test_a_goal_judges_the_figure_of_a_row_without_a_peer() -> None:
    """And a row without a goal is neither met nor missed."""
    report = Report("x")
    assert report.alone("memory", "MB", 25.1, at_most(25)).met is False
    assert report.alone("memory", "MB", 25.1).met is None


def test_the_table_shows_each_row_with_its_verdict() -> None:
    """Figures have three digits, and a goal that is missed stands out."""
    report = Report("x")
    report.against(
        "call", "us", results_of(ours=[12.345], other=[4.0]), "us", peer="other", goal=at_most(0.5)
    )
    report.alone("commits", "/s", 5951.4, at_least(1000))
    assert table(report.rows).splitlines() == [
        "figure   ours      peer     ratio  goal     met",
        "-------  --------  -------  -----  -------  ---",
        "call     12.3 us   4 other  3.09   ≤ 0.5    NO",
        "commits  5,951 /s                  ≥ 1,000  yes",
    ]


def test_the_file_has_rows_machine_and_versions(tmp_path: Path) -> None:
    """Nobody has to guess where a figure is from."""
    report = Report("area", packages=["msgspec"], tools={"nginx": "1.22.1"})
    report.against("call", "us", results_of(ours=[1.0], other=[3.0]), "us", peer="other")
    path = report.write(tmp_path)
    assert path.name == "area.json"
    content = json.loads(path.read_text())
    assert content["rows"] == [
        {
            "figure": "call",
            "unit": "us",
            "ours": 1.0,
            "peer": 3.0,
            "peer_name": "other",
            "ratio": 0.3333,
            "goal": None,
            "met": None,
        }
    ]
    assert set(content["machine"]) == {"cpu", "cores", "python", "kernel"}
    assert set(content["versions"]) == {"synchromesh", "msgspec", "nginx"}


def test_percentiles_are_values_that_were_measured() -> None:
    """Nearest rank, and no interpolation."""
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.0
    assert percentile(range(1, 101), 99) == 99
    assert percentile([7.0], 99) == 7.0


def test_a_wrong_answer_ends_the_benchmark() -> None:
    """A contestant that does other work is not measured."""
    check([1], [1], "ours")
    with pytest.raises(WrongAnswer, match="ours answered 1, expected 2"):
        check(1, 2, "ours")


BURN = "import os\nwhile sum(os.times()[:2]) < 0.2: pass"


def test_cpu_and_memory_are_those_of_a_process_and_its_descendants() -> None:
    """A server's workers count with it."""
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    grandchild = f"{BURN}\nprint(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", child, grandchild], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = descendants(process.pid)
        assert (found[0], len(found)) == (process.pid, 2)
        assert pss_mb(process.pid) > pss_mb(found[1])
        assert cpu_s(process.pid) >= cpu_s(found[1]) >= 0.19
        process.communicate(b"\n")


def test_a_child_that_ended_still_counts_with_its_parent() -> None:
    """A worker that is replaced during a round takes no time away with it."""
    before_s = cpu_s(os.getpid())
    subprocess.run([sys.executable, "-c", BURN], check=True)
    assert cpu_s(os.getpid()) - before_s >= 0.19


def test_passed_counts_python_calls_and_the_files_of_ours() -> None:
    """Libraries count as calls and not as files of ours; the counting itself counts as neither."""

    def pure() -> int:
        return 1

    with Passed() as passed:
        pure()
        pure()
        encode(1)
    pure()
    assert (passed.calls, passed.files) == (3, ["codec.py"])


WRK = """Running 3s test @ http://127.0.0.1:1/small
  1 threads and 32 connections
  Latency Distribution
     50%    1.32ms
     75%    1.50ms
     99%  812.00us
  6000 requests in 3.00s, 2.45MB read
{problem}Requests/sec:  24309.53
"""


def test_the_load_is_read_in_one_unit() -> None:
    """Latencies are milliseconds, however they were printed."""
    assert loaded_of(WRK.format(problem=""), "ours") == {
        "requests": 6000.0,
        "rps": 2000.0,
        "p50_ms": 1.32,
        "p99_ms": 0.812,
    }


@pytest.mark.parametrize(
    "problem", ["Non-2xx or 3xx responses: 3\n", "Socket errors: connect 0, read 1, write 0\n"]
)
def test_a_load_with_failures_is_no_result(problem: str) -> None:
    """One request that failed makes the round worthless."""
    with pytest.raises(WrongAnswer, match=problem.partition(":")[0]):
        loaded_of(WRK.format(problem=problem), "ours")
