"""Memory: of an idle system of one service, and of servo-works with a process for each service.

    make bench-memory

The figure is the proportional share (PSS): what processes share is divided among them, also pages
of the interpreter and of libraries that others on the machine run. So measure on a quiet one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Measures, Report, at_most, in_turn, pss_mb, size
from benchmarks.processes import running, synchromesh

SETTLE_S = size(5, 2)
ROUNDS = size(3, 1)
FLOOR = "import asyncio, sys; print(flush=True); sys.stdin.read()"


def main() -> None:
    """Measure, print and write `results/memory.json`."""
    turns: dict[str, Callable[[], Measures]] = {
        "service": lambda: _measure("one", split=True, service="greeter"),
        "one": lambda: _measure("one"),
        "works": lambda: _measure("works", "--example", split=True),
        "asyncio": _bare,
    }
    results = in_turn(turns, rounds=ROUNDS, warm_up=0)
    report = Report("memory")
    for figure, ours, goal in (
        ("idle service process of dev --split", "service", at_most(25)),
        ("idle system of one service in one process", "one", at_most(25)),
        ("split servo-works, all processes", "works", at_most(150)),
    ):
        report.alone(figure, "MB", results.median(ours, "mb"), goal)
    report.against(
        "idle service process, against a bare asyncio",
        "MB",
        results,
        "mb",
        ours="service",
        peer="asyncio",
    )
    report.finish()


def _measure(name: str, *words: str, split: bool = False, service: str = "") -> Measures:
    """Make a system, run it until it is idle, and weigh it: one service of it, or all."""
    with tempfile.TemporaryDirectory(prefix="synchromesh-bench-") as made:
        synchromesh(Path(made), "new", name, *words)
        with running(Path(made) / name, split=split) as system:
            time.sleep(SETTLE_S)
            return {"mb": pss_mb(system.pids()[service] if service else system.server.pid)}


def _bare() -> Measures:
    """Weigh a process that has imported asyncio and waits."""
    with subprocess.Popen(
        [sys.executable, "-c", FLOOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as bare:
        assert bare.stdout is not None
        bare.stdout.readline()
        found = {"mb": pss_mb(bare.pid)}
        bare.communicate()
    return found


if __name__ == "__main__":
    main()
