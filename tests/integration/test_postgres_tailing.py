"""A log that several processes write is read by all of them meanwhile, and nothing is skipped.

`make tailing EVENTS=100000` does it with so many.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from asyncio.subprocess import PIPE, Process

import asyncpg
import pytest

from notes_app import TESTS
from postgres_server import _end_with_parent, empty_database
from tail_process import told

EVENTS = int(os.environ.get("TAILED_EVENTS", "480"))
PROCESSES, WRITERS = 4, 2
WAIT_S = 180.0 + EVENTS / 50


@pytest.mark.anyio
async def test_readers_of_four_processes_skip_no_event_of_eight_writers(anyio_backend: str) -> None:
    """Positions are dense in the order in which they become visible, to each of them (E3)."""
    url = await empty_database("tailed")
    each = EVENTS // (PROCESSES * WRITERS)
    total = each * PROCESSES * WRITERS
    made: list[Process] = []
    try:
        for number in range(PROCESSES):
            words = [url, number, WRITERS, each, total]
            made.append(
                await asyncio.create_subprocess_exec(
                    sys.executable, str(TESTS / "tail_process.py"), *map(str, words),
                    stdin=PIPE, stdout=PIPE, preexec_fn=_end_with_parent,
                    env={**os.environ, "PYTHONPATH": str(TESTS)},
                )
            )  # fmt: skip
        async with asyncio.timeout(WAIT_S):
            assert [await says(process) for process in made] == ["ready"] * PROCESSES
            for process in made:
                assert process.stdin is not None
                process.stdin.write(b"go\n")
            read = [(await says(process)).split() for process in made]
    finally:
        for process in made:
            if process.returncode is None:
                process.kill()
            await process.wait()
    assert sum(int(ends) for _, ends in read) > 0, "nobody was at the end of the log meanwhile"
    assert {digest for digest, _ in read} == {await digest_of(url)}
    connection = await asyncpg.connect(url)
    found = await connection.fetchrow(
        "select count(*), count(distinct body), min(position), max(position) from sm_event"
    )
    await connection.close()
    assert tuple(found) == (total, total, 1, total)


async def says(process: Process) -> str:
    """Return the next line of a process."""
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip() or "ended"


async def digest_of(url: str) -> str:
    """Return the digest of the whole log, as it is in the end."""
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(
        "select position, stream, version, body from sm_event order by position"
    )
    await connection.close()
    digest = hashlib.sha256()
    for row in rows:
        digest.update(told(*row))
    return digest.hexdigest()
