"""A process that is killed while its saga works on a list: its ledger is whole, or empty."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ledger_app import CAP, ITEMS
from notes_app import TESTS

# At so many lines of the ledger it is killed, once each.
KILLED_AT = {"ends": (9,), "undoes": (17, ITEMS + CAP + 9)}


def lines_of(folder: Path) -> list[list[str]]:
    """Return the ledger."""
    ledger = folder / "ledger"
    return [line.split() for line in ledger.read_text().splitlines()] if ledger.exists() else []


@pytest.mark.parametrize("how", KILLED_AT)
def test_a_list_survives_kills(tmp_path: Path, how: str) -> None:
    """Each item is entered under its one key, and is struck where the run is undone."""

    def live(*lines: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(TESTS / "ledger_app.py"), str(tmp_path), how]
        command += map(str, lines)
        return subprocess.run(command, capture_output=True, text=True, timeout=120.0, check=False)

    for lines in KILLED_AT[how]:
        killed = live(lines)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert len(lines_of(tmp_path)) == lines
    ended = live()
    assert ended.returncode == 0, ended.stderr
    told = ended.stdout

    ledger = lines_of(tmp_path)
    entered = Counter(line[1] for line in ledger if line[0] == "enter")
    struck = [line[1] for line in ledger if line[0] == "strike"]
    keys = [f"A-1/enter#{number}" for number in range(1, ITEMS + 1)]
    assert sorted(entered) == sorted(keys), "each has one key, in each life"
    # What was under way when it was killed is done again, under the same key.
    assert sum(entered.values()) <= ITEMS + CAP * len(KILLED_AT[how])
    if how == "ends":
        assert (told, struck) == (f"{ITEMS}\n", [])
    else:
        assert told == "undone\n"
        assert list(dict.fromkeys(struck)) == keys[::-1], "in reverse, over all lives"
        assert len(struck) <= ITEMS + len(KILLED_AT[how])
        assert ledger.index(["strike", keys[-1]]) > ITEMS - 1
