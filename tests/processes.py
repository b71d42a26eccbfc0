"""What tests of real processes share: who is alive, and whose child."""

import os
import select
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


def ends(pid: int, within_s: float = 10.0) -> bool:
    """Wait for the end of a process that is not our child; False where it does not end in time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], within_s)[0])
    finally:
        os.close(handle)
