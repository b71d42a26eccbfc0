"""`synchromesh test`: a folder's tests, and its opening under faults."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from processes import COMMAND

TOML = """
[system]
name = "tills"
[services.till]
app = "till:till"
"""
OPENING = """
[dev]
opening = "till:open_up"
"""
TILL = """
from typing import Protocol
from synchromesh import Contract, Migration, Service, Transaction, command

class Till(Contract, Protocol, service="till", version="1.0"):
    @command("POST /sales")
    async def sell(self, cents: int) -> int: ...

TABLE = ("create table sale(cents integer)",)
till = Service("till", implements=Till, migrations=[Migration(1, TABLE, 1)])
seen = []

@till.writes(Till.sell)
async def sell(tx: Transaction, cents: int) -> int:
    await tx.execute("insert into sale values (?)", cents)
    return cents

async def open_up(client) -> None:
    for number in range(3):
        await client.call(Till.sell(5), key=f"sale-{number}")
        BUG
"""


def told(folder: Path, *words: str) -> tuple[int, str, str]:
    """Run the verb in a process of its own, for it imports the folder."""
    ran = subprocess.run(
        [*COMMAND, "--folder", str(folder), "test", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "internal error" not in ran.stderr
    return ran.returncode, ran.stdout, ran.stderr


def write(folder: Path, toml: str, bug: str = "") -> None:
    """Write a system of one service."""
    (folder / "synchromesh.toml").write_text(toml)
    (folder / "till.py").write_text(TILL.replace("BUG", bug))


@pytest.mark.parametrize(("fails", "code"), [("", 0), ("assert False", 1)])
def test_the_tests_of_the_folder_are_run(tmp_path: Path, fails: str, code: int) -> None:
    """With the arguments that are given; a failure is a finding."""
    (tmp_path / "test_one.py").write_text(f"def test_one():\n    {fails or 'pass'}\n")
    assert told(tmp_path, "-q", "-p", "no:cacheprovider")[0] == code


def test_where_there_are_none_it_says_so(tmp_path: Path) -> None:
    """It is a mistake, and no success."""
    code, _, error = told(tmp_path, "-q", "-p", "no:cacheprovider")
    assert (code, "pytest found no test in" in error) == (2, True)


def test_the_opening_is_run_under_faults(tmp_path: Path) -> None:
    """It says how many there were."""
    write(tmp_path, TOML + OPENING)
    code, out, error = told(
        tmp_path, "--sim", "--seed", "7", "--storms", "40", "--cuts", "5", "--json"
    )
    assert code == 0, error
    found = json.loads(out)
    assert (found["is_survived"], found["storms"]) == (True, 40)
    assert 0 < found["cuts"] <= 5
    assert found["count"]["crash"] >= found["cuts"]


def test_what_does_not_survive_is_a_finding(tmp_path: Path) -> None:
    """With the universe in which it was seen."""
    write(tmp_path, TOML + OPENING, "seen.append(number); assert len(seen) < 9, 'opened twice'")
    code, out, _ = told(tmp_path, "--sim")
    assert code == 1
    assert out.startswith("only='cut ")
    assert "AssertionError: opened twice" in out


def test_mistakes_are_told(tmp_path: Path) -> None:
    """No opening; a test where none is run."""
    write(tmp_path, TOML)
    code, _, error = told(tmp_path, "--sim")
    assert (code, "[dev] opening names no function" in error) == (2, True)
    code, _, error = told(tmp_path, "--sim", "test_one.py")
    assert (code, "--sim runs no tests, so it takes no 'test_one.py'" in error) == (2, True)
    assert sys.executable in COMMAND
