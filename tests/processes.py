"""What tests of real processes share: who is alive, and whose child."""

import time
from collections.abc import Callable
from pathlib import Path


def children_of(pid: int) -> list[int]:
    """Return the processes whose parent is `pid`, as the kernel has them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name may have blanks and parentheses in it: what counts comes after the last one.
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[1] == str(pid):
            found.append(int(stat.parent.name))
    return found


def is_alive(pid: int) -> bool:
    """Return True where a process runs; one that waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def comes_true(holds: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Return True once something holds, False where it does not in time."""
    until_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.02)
    return True
