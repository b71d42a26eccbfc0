"""Claims about the tests themselves: they find bugs that are planted in the product."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simulation.mutants import MUTANTS

HERE = Path(__file__).parent


def test_there_are_mutants_of_every_room_with_state() -> None:
    """At least 26 bugs are planted, each in one function, in all rooms that keep state."""
    assert len(MUTANTS) >= 26
    assert {mutant.target.split(".")[1] for mutant in MUTANTS.values()} == {
        "store", "events", "messaging", "saga", "service", "discovery", "identity", "resilience",
    }  # fmt: skip


@pytest.fixture(scope="module")
def told() -> dict[str, dict[str, str]]:
    """Hunt for every planted bug, and return what is told of each."""
    hunt = subprocess.run(
        [sys.executable, str(HERE / "mutants.py")], capture_output=True, text=True, check=False
    )
    assert hunt.returncode in (0, 1), hunt.stderr
    lines = map(json.loads, hunt.stdout.splitlines())
    return {line["mutant"]: line for line in lines}


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_planted_bug_is_found(told: dict[str, dict[str, str]], name: str) -> None:
    """A planted bug breaks a universe, or fails the test that is about it."""
    assert told[name]["found"], told[name]["error"]
