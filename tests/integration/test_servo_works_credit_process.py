"""The credit provider as a real process: ready, killed, back with the same books, stopped."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest
from credit_provider import __file__ as program

from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime

REQUEST = {"customer": "acme", "amount_minor": 12_900, "currency": "EUR", "reference": "inv-1"}


async def started(books: Path) -> tuple[Process, int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "credit_provider",
        cwd=Path(program).parent,
        env={**os.environ, "CREDIT_DB": str(books)},
        stdout=PIPE,
    )
    assert process.stdout is not None
    return process, json.loads(await process.stdout.readline())["port"]


async def charged(pool: HttpPool, port: int) -> tuple[int, bytes]:
    response = await pool.request(
        "127.0.0.1",
        port,
        "POST",
        "/charges",
        [("idempotency-key", "key-1")],
        json.dumps(REQUEST).encode(),
        timeout_s=10.0,
    )
    return response.status, response.body


@pytest.mark.anyio
async def test_a_killed_provider_knows_what_it_answered(tmp_path: Path) -> None:
    """What was answered before SIGKILL is answered again after it; SIGTERM ends it cleanly."""
    async with HttpPool(network=RealRuntime().network) as pool:
        process, port = await started(tmp_path / "credit.db")
        try:
            first = await charged(pool, port)
        finally:
            process.kill()
            await process.wait()
        process, port = await started(tmp_path / "credit.db")
        try:
            assert await charged(pool, port) == first
            assert first[0] == 201
        finally:
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
