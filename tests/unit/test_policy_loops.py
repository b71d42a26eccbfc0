"""Guarded functions on the loops there are, in tasks of anyio, in threads, by pytest-asyncio."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import uvloop

from synchromesh import Policy, deadline
from synchromesh.errors import CircuitOpen, DeadlineExceeded, SynchromeshError
from synchromesh.resilience import AdaptiveLimitOptions, BreakerOptions, RetryOptions

Main = Callable[[], Coroutine[Any, Any, Any]]

OPENS = BreakerOptions(minimum_calls=2, open_for_s=60.0, open_for_max_s=60.0)
# All layers at once: what is queued, timed, retried and counted works on any loop.
WHOLE = Policy(
    timeout_s=30.0,
    retry=RetryOptions(attempts_max=2, base_s=0.0, cap_s=0.0),
    limit=AdaptiveLimitOptions(initial=4, wait_max_s=30.0),
    breaker=OPENS,
)

# On a machine that stands still a deadline may pass before the call.
LATE = {"TimedOut", "DeadlineExceeded"}


def on_uvloop(main: Main) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


LOOPS: dict[str, Callable[[Main], Any]] = {
    "asyncio": lambda main: asyncio.run(main()),
    "anyio": lambda main: anyio.run(main),
    "uvloop": on_uvloop,
}


@pytest.fixture(params=LOOPS)
def play(request: pytest.FixtureRequest) -> Callable[[Main], Any]:
    return LOOPS[request.param]


async def name_of(call: Coroutine[Any, Any, Any]) -> str:
    try:
        return str(await call)
    except (SynchromeshError, ConnectionError) as error:
        return type(error).__name__


def test_all_layers_work_on_it(play: Callable[[Main], Any]) -> None:
    """Places are waited for, what hangs is cut by a deadline, and failures open the breaker."""
    under_way = peak = 0

    @WHOLE.wrap(is_idempotent=True)
    async def call(how: str) -> str:
        nonlocal under_way, peak
        under_way += 1
        peak = max(peak, under_way)
        try:
            await asyncio.sleep(3600.0 if how == "hang" else 0.0)
        finally:
            under_way -= 1
        if how == "fail":
            raise ConnectionError
        return how

    async def main() -> list[str]:
        seen = list(await asyncio.gather(*(call("ok") for _ in range(20))))
        with deadline(0.01):
            seen.append(await name_of(call("hang")))
        with deadline(0.0):
            seen.append(await name_of(call("ok")))
        # Twenty answers before: it takes as many failures.
        while (ended := await name_of(call("fail"))) == "ConnectionError":
            pass
        return [*seen, ended]

    seen = play(main)
    assert seen[:20] == ["ok"] * 20
    assert seen[20] in LATE
    assert seen[21:] == ["DeadlineExceeded", "CircuitOpen"]
    assert peak == 4
    assert under_way == 0


def test_a_loop_for_each_test_begins_with_a_closed_breaker(play: Callable[[Main], Any]) -> None:
    """As with anyio's plugin: a loop a test, and functions of a module."""

    @Policy(timeout_s=1.0, retry=None, breaker=OPENS).wrap
    async def fails() -> None:
        raise ConnectionError

    async def main() -> list[str]:
        return [await name_of(fails()) for _ in range(3)]

    expected = ["ConnectionError", "ConnectionError", "CircuitOpen"]
    assert [play(main) for _ in range(3)] == [expected] * 3


UNDER_PYTEST = """
import asyncio

import pytest

from synchromesh import Policy
from synchromesh.errors import CircuitOpen
from synchromesh.resilience import BreakerOptions

opens = BreakerOptions(minimum_calls=2, open_for_s=60.0, open_for_max_s=60.0)


@Policy(timeout_s=60.0, retry=None, breaker=opens).wrap
async def fails():
    await asyncio.sleep(0)
    raise ConnectionError


@pytest.mark.asyncio
@pytest.mark.parametrize("number", range(3))
async def test_a_loop_for_each(number):
    for error in (ConnectionError, ConnectionError, CircuitOpen):
        with pytest.raises(error):
            await fails()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("error", [ConnectionError, ConnectionError, CircuitOpen, CircuitOpen])
async def test_one_loop_for_all(error):
    with pytest.raises(error):
        await fails()
"""


def test_it_is_tested_by_pytest_asyncio(tmp_path: Path) -> None:
    """Tests with a loop each have an edge each, and those that share a loop share one."""
    (tmp_path / "test_fails.py").write_text(UNDER_PYTEST)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
        "addopts = -p no:schemathesis -p no:cacheprovider\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout


def test_a_scope_of_anyio_cancels_what_is_guarded() -> None:
    """It is neutral, and its place is free again; the scope takes its own cancellation back."""
    policy = Policy(timeout_s=30.0, retry=None, breaker=OPENS)
    guarded = policy.wrap(anyio.sleep_forever, name="x")

    async def main() -> list[bool]:
        seen = []
        for _ in range(5):
            with anyio.move_on_after(0.001) as scope:
                await guarded()
            seen.append(scope.cancelled_caught)
        return seen

    assert anyio.run(main) == [True] * 5


def test_a_task_group_of_anyio_has_the_deadline_around_it() -> None:
    """A task group of anyio has the deadline around it."""
    guarded = Policy(retry=None, breaker=None).wrap(anyio.sleep_forever, name="x")
    seen: list[str] = []

    async def call() -> None:
        seen.append(await name_of(guarded()))

    async def main() -> None:
        with deadline(0.01):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(call)

    anyio.run(main)
    assert len(seen) == 3
    assert set(seen) <= LATE


def test_a_sync_function_in_a_worker_thread_has_the_deadline_of_who_sent_it() -> None:
    """As a sync endpoint of an ASGI framework is run."""
    runs: list[str] = []

    @Policy(timeout_s=None, retry=None).wrap
    def call() -> None:
        runs.append(threading.current_thread().name)

    async def main() -> None:
        await anyio.to_thread.run_sync(call)
        await asyncio.to_thread(call)
        with deadline(0.0):
            with pytest.raises(DeadlineExceeded):
                await anyio.to_thread.run_sync(call)
            with pytest.raises(DeadlineExceeded):
                await asyncio.to_thread(call)

    anyio.run(main)
    assert len(runs) == 2
    assert threading.main_thread().name not in runs


def test_a_sync_function_has_one_edge_for_all_threads() -> None:
    """A sync function has one edge for all threads."""

    @Policy(timeout_s=None, retry=None, breaker=OPENS).wrap
    def fails() -> None:
        raise ConnectionError

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await asyncio.to_thread(fails)
        with pytest.raises(CircuitOpen):
            fails()

    asyncio.run(main())
