"""What tests of real processes share: a system by `synchromesh dev`, who is alive, whose child."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from notes_app import TESTS

LOOK_EVERY_S = 0.02
# Children of the tests themselves, such as an engine that many of them share: of no system.
SHARED: set[int] = set()
COMMAND = (sys.executable, "-m", "synchromesh.cli")


@contextmanager
def dev(folder: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """Run `synchromesh dev` in a folder, where it may import what tests do; make sure it ends."""
    process = subprocess.Popen(
        [*COMMAND, "--folder", str(folder), "dev", "--json", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def announced(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait until the system is up and return what it printed; what ended instead, said why."""
    assert process.stdout is not None
    text = ""
    while line := process.stdout.readline():
        text += line
        if line == "}\n":
            told: dict[str, Any] = json.loads(text)
            return told
    said = process.stderr.read() if process.stderr is not None else "see standard error"
    raise AssertionError(f"the system did not come up: {text}{said}")


def until(holds: Callable[[], bool], within_s: float = 30.0) -> bool:
    """Look again and again; return True once it holds, False where it does not in time."""
    until_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > until_s:
            return False
        threading.Event().wait(LOOK_EVERY_S)
    return True


def children_of(pid: int) -> list[int]:
    """Return the processes whose parent is `pid`, as the kernel has them, but for `SHARED`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name may have blanks and parentheses in it: what counts comes after the last one.
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        child = int(stat.parent.name)
        if fields[1] == str(pid) and child not in SHARED:
            found.append(child)
    return found


def family_of(pid: int) -> list[int]:
    """Return the children of a process, and theirs."""
    return [each for child in children_of(pid) for each in (child, *family_of(child))]


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
