"""Claims about the whole system under faults: servo-works, its shipped modules, 2,000 universes.

The universes run in processes of their own, two at a time, and are not measured for coverage.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import pytest
from universes import Universe
from universes.listening import collecting_errors

from simulation import __main__ as command
from synchromesh.testing import World

MODULE = "synchromesh.examples.servo_works.simulation"
UNIVERSES, SLOW_UNIVERSES, WORKERS = 2000, 60, 2

# How often each rare path is walked at least, in all universes together. A simulation in which one
# of them never happened proves nothing about it.
FLOORS = {
    "undo before do": 200,
    "tombstone hit": 20,
    "inbox replay": 5000,
    "saga recovered": 500,
    "saga recovered mid-undo": 50,
    "saga undo of unknown": 400,
    "saga cancelled": 200,
    "takeover": 800,
    "ended in good order": 200,
    "client: circuit_open": 400,
    "message late": 2000,
    "message duplicated": 2000,
    "partition": 1000,
    "pause": 300,
    "crash": 4000,
    "crash after send": 800,
    "opened in the storm": 100,
    "clock jump": 400,
    "short deadline": 2000,
    "disk: fail": 100,
    "disk: fail_commits": 100,
    "disk: fill": 100,
    "did not start: store_broken": 50,
    "released": 200,
    "rolled back": 100,
    "message held": 80,
    "told_of_releases": 10,
    "event forgotten": 500,
    "run forgotten": 500,
    "verified": 100,
    "stuck after an absence": 15,
}


def run_apart(*arguments: str, hash_seed: str = "random") -> str:
    """Run the simulation in processes of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", MODULE, "--jobs", str(WORKERS), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"PYTHONHASHSEED": hash_seed},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_nothing_breaks_in_two_thousand_universes() -> None:
    """Under every fault each order is placed or undone, all adds up, and rare paths were walked."""
    counts = Counter(json.loads(run_apart("--count", str(UNIVERSES), "--json")))
    assert counts["universes"] == UNIVERSES
    too_rare = {path: counts[path] for path, least in FLOORS.items() if counts[path] < least}
    assert not too_rare


def test_nothing_breaks_on_the_slow_way() -> None:
    """With the fast way of calls and of HTTP switched off, universes are as sound."""
    counts = json.loads(run_apart("--count", str(SLOW_UNIVERSES), "--slow", "--json"))
    assert counts["universes"] == SLOW_UNIVERSES
    assert counts["call on the slow way"] > 20 * SLOW_UNIVERSES


def test_nothing_breaks_by_a_power_cut_at_any_step() -> None:
    """With the power cut before each step of each node, nothing breaks."""
    count = json.loads(run_apart("--seed", "1", "--count", "1", "--sweep", "--json"))
    assert min(count["universes"], count["crash"]) > 300
    assert count["saga recovered mid-undo"] > 0


def test_a_seed_is_one_universe() -> None:
    """The same seeds give the same steps in other processes, whatever the hash seed is."""
    seeds = ("--seed", "40", "--count", "24", "--trace")
    in_forks = run_apart(*seeds, hash_seed="1")
    assert in_forks == run_apart(*seeds, "--jobs", "1", hash_seed="2")
    assert in_forks.count("make sim SEED=") == 24


@pytest.fixture
def broken() -> Iterator[None]:
    with mock.patch("universes.universe.broken_in", return_value=["the sum is wrong"]):
        yield


@pytest.mark.usefixtures("broken")
def test_a_broken_universe_is_named_by_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    """A universe in which something is broken ends the run with the command that repeats it."""
    assert command.main(["--seed", "3", "--count", "2", "--jobs", "1"]) == 1
    assert capsys.readouterr().out == "the sum is wrong\nto see it again: make sim SEED=3 N=1\n"


@pytest.mark.usefixtures("broken")
def test_a_broken_sweep_is_named_by_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    """A power cut that breaks something is named by node and step."""
    assert command.main(["--seed", "1", "--count", "1", "--kill", "orders-1:20"]) == 1
    assert "--seed 1 --count 1 --kill orders-1:20\n" in capsys.readouterr().out


def test_a_loop_beyond_restarting_is_a_finding() -> None:
    """What a cluster reports of itself is broken, whatever the databases say."""
    universe = Universe(1, is_stormy=False)
    universe.cluster.broken.append("billing/relay/production is beyond restarting")
    assert universe.run().broken == ["billing/relay/production is beyond restarting"]


def test_an_error_in_a_log_is_a_finding() -> None:
    """What services log as errors is heard while a universe lasts; warnings are not."""
    heard: list[str] = []
    log = logging.getLogger("synchromesh.saga")
    with collecting_errors(heard, World(1)):
        log.warning("a breaker opened")
        log.error("saga %r is stuck", "A-1")
    assert heard == ["logged: saga 'A-1' is stuck"]
