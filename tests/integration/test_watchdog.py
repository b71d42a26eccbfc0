"""Code that blocks the event loop is named while it does."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from synchromesh.system import loop_factory
from synchromesh.system.host.watchdog import LoopWatchdog

Main = Coroutine[Any, Any, None]


class Heard(logging.Handler):
    """Lets the blocking code end as soon as it has been named."""

    def __init__(self) -> None:
        super().__init__()
        self.named = threading.Event()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.named.set()


@pytest.fixture
def heard() -> Heard:
    return Heard()


def run(main: Main) -> None:
    """Run on asyncio's loop."""
    asyncio.run(main)


def run_on_uvloop(main: Main) -> None:
    """Run on the product's loop of uvloop, whose frames nobody sees."""
    with asyncio.Runner(loop_factory=loop_factory("uvloop")) as runner:
        runner.run(main)


def run_by_hand(main: Main) -> None:
    """Run on a loop of uvloop without asyncio's runner."""
    loop = loop_factory("uvloop")()
    loop.run_until_complete(main)
    loop.close()


WAYS = (run, run_on_uvloop, run_by_hand)


@pytest.mark.parametrize("way", WAYS)
def test_a_handler_that_blocks_the_loop_is_named_while_it_does(
    heard: Heard, way: Callable[[Main], None]
) -> None:
    """D1: blocking code cannot be cancelled, but the log says which function holds the loop."""
    way(name_what_blocks(heard))


@pytest.mark.parametrize("is_up", [True, False])
def test_what_blocks_a_start_is_no_error(heard: Heard, *, is_up: bool) -> None:
    """A process that imports its code keeps nobody waiting."""
    asyncio.run(name_what_blocks(heard, is_up=is_up))
    assert [each.levelno for each in heard.records] == [logging.ERROR if is_up else logging.INFO]


async def name_what_blocks(heard: Heard, *, is_up: bool = True) -> None:
    """Block the running loop until that is named, and look at what was said."""
    logger = logging.getLogger("synchromesh.system")
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)
    noted: list[str] = []
    freed = threading.Event()

    def note(blocker: str) -> None:
        noted.append(blocker)
        if not blocker:
            freed.set()

    watchdog = LoopWatchdog(blocked_after_s=0.05, on_blocked=note, is_up=lambda: is_up)
    watchdog.start()
    try:

        def forgets_to_await() -> None:
            assert heard.named.wait(10.0), "nobody named the blocker"

        async def handler() -> None:
            forgets_to_await()

        await asyncio.create_task(handler())
        while not freed.is_set():
            await asyncio.sleep(0.01)
    finally:
        watchdog.stop()
        watchdog.stop()
        logger.removeHandler(heard)
        logger.setLevel(logging.NOTSET)
    (record,) = heard.records
    assert "blocked for" in record.getMessage()
    assert noted[-1] == ""
    blocker = noted[0]
    assert blocker in record.getMessage()
    # Which function was called by the loop, and where that stands.
    assert blocker.startswith(f"{__name__}.name_what_blocks.")
    assert ".handler (" in blocker
    assert ", in Condition.wait (" in blocker
    assert "forgets_to_await" in str(record.__dict__["stack"])


@pytest.mark.parametrize("way", WAYS)
def test_a_loop_that_runs_is_left_alone(heard: Heard, way: Callable[[Main], None]) -> None:
    """Awaiting for long is no blocking."""
    way(wait_watched(heard))


async def wait_watched(heard: Heard) -> None:
    """Await something while the loop is watched."""
    logger = logging.getLogger("synchromesh.system")
    logger.addHandler(heard)
    watchdog = LoopWatchdog(blocked_after_s=5.0)
    watchdog.start()
    await asyncio.sleep(0.01)
    watchdog.stop()
    logger.removeHandler(heard)
    assert heard.records == []
