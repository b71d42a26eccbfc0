"""Claims about the simulation itself: it finds bugs that are planted in the product."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from simulation.mutants import MUTANTS

HERE = Path(__file__).parent
SEEDS_MAX = 2000


def test_there_are_mutants_of_every_room_with_state() -> None:
    """At least eight bugs are planted, each in one function, in all rooms that keep state."""
    targets = [mutant.target for mutant in MUTANTS.values()]
    assert len(targets) >= 8
    assert {target.split(".")[1] for target in targets} == {
        "store", "events", "messaging", "saga", "service",
    }  # fmt: skip


@pytest.fixture(scope="module")
def hunts() -> dict[str, subprocess.CompletedProcess[str]]:
    """Hunt for every planted bug, two at a time."""

    def hunt(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(HERE / "mutants.py"), name, "--seeds", str(SEEDS_MAX)],
            capture_output=True,
            text=True,
            check=False,
        )

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(sorted(MUTANTS), pool.map(hunt, sorted(MUTANTS)), strict=True))


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_planted_bug_is_found(
    hunts: dict[str, subprocess.CompletedProcess[str]], name: str
) -> None:
    """A planted bug breaks something in one of at most 2,000 universes."""
    hunt = hunts[name]
    assert hunt.returncode == 0, hunt.stdout + hunt.stderr
    seed, broken = json.loads(hunt.stdout)["found"]
    assert seed < SEEDS_MAX
    assert broken
