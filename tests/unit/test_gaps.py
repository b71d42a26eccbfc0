"""Before a fork, gaps in memory are taken: what is allocated afterwards is together."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from synchromesh.system.host import gaps

# Leaves gaps of a size, and prints how far apart what is allocated then is: with them, and without.
PROGRAM = """
from synchromesh.system.host.gaps import take_gaps

def spread():
    blocks = [bytes(SIZE) for _ in range(40)]
    return len({id(block) // 4096 for block in blocks})

kept = [bytes(SIZE) for _ in range(40_000)]
del kept[::50]
before = spread()
take_gaps()
print(before, spread())
"""


@pytest.mark.parametrize("size", [300, 900])
def test_what_is_allocated_after_it_is_on_few_pages(size: int) -> None:
    """Of the pools of Python (300 bytes), and of the C library (900)."""
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONMALLOC"}
    done = subprocess.run(
        [sys.executable, "-c", f"SIZE = {size}\n{PROGRAM}"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(int, done.stdout.split())
    assert before > 20
    assert after <= 40 * (size + 100) // 4096 + 2


def test_another_allocator_is_not_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no block is ever the first of a pool, as without the GIL, little is taken in vain."""
    taken: list[bytes] = []
    monkeypatch.setattr(gaps, "_FIRST", -1)
    monkeypatch.setattr(gaps, "_taken", taken)
    gaps._take_of_pools()
    assert 0 < sum(map(sys.getsizeof, taken)) <= gaps._BYTES_MAX
