"""Steps in transactions of the application's own, where the server lets none begin."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from synchromesh.alone.session_steps import SessionSteps
from synchromesh.errors import Shed
from synchromesh.identity import Principal
from synchromesh.saga.records import SagaStatus
from synchromesh.saga.tables import SagaRow
from synchromesh.store import Unit
from synchromesh.testing import SimRuntime, run

ROW = SagaRow(
    "r1", "buy", 1, None, "", b"1", SagaStatus.RUNNING, "", "", "", "", "", Principal(), 0, None, 0,
    None,
)  # fmt: skip


def test_a_transaction_that_does_not_begin_in_time_is_a_warning_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing was done, so that nothing is said to be undone, and nobody is called for it."""

    @asynccontextmanager
    async def begin() -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield

    async def body(_: Unit) -> None:
        raise AssertionError("it was begun")

    async def main(_: SimRuntime) -> None:
        steps = SessionSteps(None, begin, begin, limit_s=2.0, at_once_max=1)  # type: ignore[arg-type]
        with pytest.raises(Shed, match="no transaction could be begun"):
            await steps.write(ROW, 1, body)

    run(main)
    (told,) = [each for each in caplog.records if each.name == "synchromesh.alone"]
    assert told.levelno == logging.WARNING
    assert told.getMessage() == (
        "a step of saga 'r1' waits for a transaction: none could be begun within 2 s"
    )
