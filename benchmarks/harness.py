"""What every benchmark shares: turns, medians and ratios, CPU by process, the table and its file.

A benchmark is a set of contestants that do equal work. `in_turn` runs them one after the other,
round by round (A B A B ...), so that what else the machine does meets all of them alike. A
contestant's round returns its measures by name; it checks its answers itself, with `check`. Ratios
are taken round by round and their median is reported: they hold from machine to machine, times do
not.

    results = in_turn({"ours": ours, "aiohttp": theirs}, rounds=7)
    report = Report("calls", packages=["aiohttp"])
    report.against(
        "HTTP hop p50", "us", results, "p50_us", peer="aiohttp", goal=at_most(0.5)
    )
    report.finish()
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Self

RESULTS = Path(__file__).parent / "results"
QUICK = bool(os.environ.get("QUICK"))
_TICKS_S = os.sysconf("SC_CLK_TCK")
_SPEC = importlib.util.find_spec("synchromesh")
_OURS = f"{Path(_SPEC.origin).parent}/" if _SPEC and _SPEC.origin else ""

Measures = Mapping[str, float]


class WrongAnswer(Exception):
    """A contestant answered something else than was asked for: nothing it measured counts."""


def check(got: object, wanted: object, who: str) -> None:
    """Compare a contestant's answer; raises WrongAnswer, also where assertions are off."""
    if got != wanted:
        raise WrongAnswer(f"{who} answered {got!r:.200}, expected {wanted!r:.200}")


def size(full: int, quick: int) -> int:
    """Return how many rounds, calls or seconds to take: `quick` when QUICK=1 asks for a smoke."""
    return quick if QUICK else full


class Results:
    """What the rounds of all contestants measured."""

    def __init__(self) -> None:
        self._rounds: dict[str, list[Measures]] = {}

    def add(self, contestant: str, measures: Measures) -> None:
        """Append one round."""
        self._rounds.setdefault(contestant, []).append(dict(measures))

    def contestants(self) -> list[str]:
        """Return the names, in the order of their first round."""
        return list(self._rounds)

    def values(self, contestant: str, measure: str) -> list[float]:
        """Return a measure of a contestant, a value a round."""
        return [measures[measure] for measures in self._rounds[contestant]]

    def median(self, contestant: str, measure: str) -> float:
        """Return the median over the rounds."""
        return statistics.median(self.values(contestant, measure))

    def ratio(self, over: str, under: str, measure: str) -> float:
        """Return the median of `over` divided by `under`, each of the same round."""
        pairs = zip(self.values(over, measure), self.values(under, measure), strict=True)
        return statistics.median(a / b for a, b in pairs)

    def difference(self, over: str, under: str, measure: str) -> float:
        """Return the median of `over` less `under`, each of the same round."""
        pairs = zip(self.values(over, measure), self.values(under, measure), strict=True)
        return statistics.median(a - b for a, b in pairs)


def in_turn(
    contestants: Mapping[str, Callable[[], Measures]], *, rounds: int, warm_up: int = 1
) -> Results:
    """Run every contestant once a round; `warm_up` rounds before them are not counted."""
    results = Results()
    for turn in range(-warm_up, rounds):
        for name, run in contestants.items():
            measures = run()
            if turn >= 0:
                results.add(name, measures)
    return results


async def in_turn_async(
    contestants: Mapping[str, Callable[[], Awaitable[Measures]]], *, rounds: int, warm_up: int = 1
) -> Results:
    """Run every contestant once a round, on the running loop; see `in_turn`."""
    results = Results()
    for turn in range(-warm_up, rounds):
        for name, run in contestants.items():
            measures = await run()
            if turn >= 0:
                results.add(name, measures)
    return results


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the smallest value that `percent` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank), 1) - 1]


# Goals and the report.


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on a row's ratio, or on our own figure where the row has no peer."""

    bound: float
    at_most: bool

    def met(self, value: float) -> bool:
        """Return whether the value keeps the bound."""
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {_short(self.bound)}"


def at_most(bound: float) -> Goal:
    """Ask for no more than `bound`."""
    return Goal(bound, at_most=True)


def at_least(bound: float) -> Goal:
    """Ask for no less than `bound`."""
    return Goal(bound, at_most=False)


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of the table and of the results' file."""

    figure: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str | None
    ratio: float | None
    goal: str | None
    met: bool | None


class Report:
    """Collects the rows of an area, prints them, and writes `benchmarks/results/AREA.json`."""

    def __init__(
        self, area: str, *, packages: Iterable[str] = (), tools: Mapping[str, str] | None = None
    ) -> None:
        self.area = area
        self.rows: list[Row] = []
        self._versions = {**versions(packages), **(tools or {})}

    def against(
        self,
        figure: str,
        unit: str,
        results: Results,
        measure: str,
        *,
        peer: str,
        ours: str = "ours",
        goal: Goal | None = None,
        faster_is_more: bool = False,
    ) -> Row:
        """Add ours against a peer's: the ratio is ours / peer, and the goal is the ratio's.

        `faster_is_more` turns it to peer / ours: "so many times as fast" of a time or of CPU.
        """
        over, under = (peer, ours) if faster_is_more else (ours, peer)
        return self.compare(
            figure,
            unit,
            results.median(ours, measure),
            (peer, results.median(peer, measure)),
            results.ratio(over, under, measure),
            goal,
        )

    def compare(
        self,
        figure: str,
        unit: str,
        ours: float,
        peer: tuple[str, float],
        ratio: float,
        goal: Goal | None = None,
    ) -> Row:
        """Add ours against a peer's (name, figure), with the ratio worked out by the caller."""
        name, value = peer
        met = None if goal is None else goal.met(ratio)
        return self._add(
            Row(figure, unit, ours, value, name, ratio, None if goal is None else str(goal), met)
        )

    def alone(self, figure: str, unit: str, ours: float, goal: Goal | None = None) -> Row:
        """Add a figure without a peer: the goal is the figure's own."""
        met = None if goal is None else goal.met(ours)
        text = None if goal is None else str(goal)
        return self._add(Row(figure, unit, ours, None, None, None, text, met))

    def _add(self, row: Row) -> Row:
        self.rows.append(row)
        return row

    def finish(self) -> None:
        """Print the table; write the file unless it is a smoke run (QUICK=1)."""
        print(table(self.rows))
        judged = [row.met for row in self.rows if row.met is not None]
        print(f"{self.area}: {sum(judged)} of {len(judged)} goals met")
        if QUICK:
            print("QUICK=1: a smoke, its figures mean nothing and are not written")
            return
        print(f"written to {os.path.relpath(self.write(RESULTS))}")

    def write(self, folder: Path) -> Path:
        """Write AREA.json into the folder and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.area}.json"
        content = {
            "area": self.area,
            "machine": machine(),
            "versions": self._versions,
            "rows": [
                {key: _rounded(value) for key, value in asdict(row).items()} for row in self.rows
            ],
        }
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return path


def table(rows: Iterable[Row]) -> str:
    """Return the rows as a table of plain text."""
    lines = [("figure", "ours", "peer", "ratio", "goal", "met")]
    for row in rows:
        peer = "" if row.peer is None else f"{_short(row.peer)} {row.peer_name}"
        lines.append(
            (
                row.figure,
                f"{_short(row.ours)} {row.unit}",
                peer,
                "" if row.ratio is None else _short(row.ratio),
                row.goal or "",
                {True: "yes", False: "NO", None: ""}[row.met],
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    drawn = [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines
    ]
    drawn.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in drawn)


def _short(value: float) -> str:
    """Write three digits that matter, and no exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.6f}"


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


# The machine and the versions.


def machine() -> dict[str, str | int]:
    """Return what the results depend on: CPU model, cores, Python and kernel."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed versions of ours and of the PyPI packages named."""
    return {name: importlib.metadata.version(name) for name in ("synchromesh", *packages)}


# CPU and memory by process.


def descendants(pid: int) -> list[int]:
    """Return the process and all that it started and that still live, itself first."""
    found = [pid]
    for parent in found:
        for listed in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in listed.read_text().split()]
            except OSError:  # it ended between the listing and the reading
                continue
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU seconds, user and system, of a process, its threads and its descendants.

    Children that ended and were waited for are counted with who waited for them. The resolution is
    a tick of the kernel (10 ms): measure for a second at least.
    """
    ticks = 0
    for each in descendants(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended, and its parent has its time
            continue
        ticks += sum(int(fields[n]) for n in (11, 12, 13, 14))
    return ticks / _TICKS_S


def own_cpu_s() -> float:
    """Return the CPU seconds of this process, all threads, and of its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def pss_mb(pid: int) -> float:
    """Return the proportional share of memory (PSS) of a process and its descendants, in MB."""
    kib = 0
    for each in descendants(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:  # it ended between the listing and the reading
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib * 1024 / 1e6


# Python calls.


class Passed:
    """Counts the Python functions entered (also coroutines resumed) until the block ends, by file.

    with Passed() as passed:
        await call()
    print(passed.calls, passed.files)

    Only this thread is watched, and those that were started after `watch_threads`.
    """

    def __init__(self) -> None:
        self.by_file: Counter[str] = Counter()
        self._entered: list[str] = []

    def __enter__(self) -> Self:
        _watched.append(self._entered)
        sys.setprofile(_watch)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        _watched.remove(self._entered)
        self.by_file.update(name for name in self._entered if name != __file__)

    @property
    def calls(self) -> int:
        """All functions entered: ours, the libraries' and the standard library's."""
        return self.by_file.total()

    @property
    def files(self) -> list[str]:
        """The files of synchromesh among them, from its folder on."""
        return sorted(name.removeprefix(_OURS) for name in self.by_file if name.startswith(_OURS))


def watch_threads() -> None:
    """Have `Passed` count in every thread too that is started from now on; it slows them down."""
    threading.setprofile(_watch)


_watched: list[list[str]] = []


def _watch(frame: FrameType, event: str, _: object) -> None:
    if event == "call":
        for entered in _watched:
            entered.append(frame.f_code.co_filename)
