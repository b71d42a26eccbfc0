"""Restarts and the supervisor: how often, after which pauses, and when it is somebody else's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from synchromesh.errors import ConfigError, StoreBroken
from synchromesh.service import Child, RestartsExhausted, Supervisor
from synchromesh.service.restarts import RestartOptions, Restarts
from synchromesh.testing import SimRuntime, run


def test_pauses_double_up_to_a_bound() -> None:
    """The more failures within the window, the longer the pause."""
    options = RestartOptions(restarts_max=6, window_s=60.0, pause_base_s=0.5, pause_cap_s=5.0)
    restarts = Restarts(options)
    pauses = [restarts.failed(now=float(n)) for n in range(7)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, None]
    assert repr(restarts) == "<Restarts 7/6>"


def test_failures_older_than_the_window_are_forgiven() -> None:
    """Seldom failures never escalate, and pauses are short again."""
    restarts = Restarts(RestartOptions(restarts_max=1, window_s=10.0))
    assert [restarts.failed(now=n * 10.0) for n in range(50)] == [0.1] * 50
    assert restarts.failed(now=499.9) is None


def test_no_restart_at_all_can_be_asked_for() -> None:
    """With `restarts_max=0` the first failure escalates."""
    assert Restarts(RestartOptions(restarts_max=0)).failed(now=0.0) is None


@pytest.mark.parametrize("wrong", [{"restarts_max": -1}, {"window_s": 0.0}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    """The message names the values."""
    with pytest.raises(ConfigError, match="restarts_max"):
        RestartOptions(**wrong)


class Escalations(list[tuple[str, float, str]]):
    """Notes what was escalated, and when."""

    def __call__(self, child: str, error: BaseException) -> None:
        self.append((child, asyncio.get_running_loop().time(), str(error)))


def test_a_child_is_restarted_and_in_the_end_escalates() -> None:
    """It is down then, and is shown as failed; the others go on."""

    async def main(_: SimRuntime) -> None:
        told = Escalations()
        started: list[float] = []

        async def failing() -> None:
            started.append(asyncio.get_running_loop().time())
            raise StoreBroken("the disk is gone")

        supervisor = Supervisor(
            "stock",
            escalate=told,
            options=RestartOptions(restarts_max=3, pause_base_s=1.0, pause_cap_s=3.0),
        )
        supervisor.start(Child("relay", failing))
        supervisor.start(Child("sweep", lambda: asyncio.sleep(1000.0)))
        await asyncio.sleep(0.5)
        assert supervisor.states["relay"].state == "restarting"
        health = [supervisor.is_healthy]
        await asyncio.sleep(100.0)
        assert started == [0.0, 1.0, 3.0, 6.0]
        assert told == [("relay", 6.0, "the disk is gone")]
        state = supervisor.states["relay"]
        assert (state.state, state.restarts, state.last_error) == ("failed", 3, "store_broken")
        assert supervisor.states["sweep"].state == "running"
        assert [*health, supervisor.is_healthy] == [True, False]
        assert repr(supervisor) == "<Supervisor stock: relay failed, sweep running>"
        await supervisor.close()

    run(main)


async def returns() -> None:
    """End, as a loop never should."""


async def is_cancelled_within() -> None:
    """Await something that is cancelled, and be cancelled with it."""
    something = asyncio.get_running_loop().create_future()
    something.cancel()
    await something


@pytest.mark.parametrize("ends", [returns, is_cancelled_within])
def test_no_loop_ends_silently(ends: Any) -> None:
    """One that returns, or ends by a cancellation that was not the supervisor's, has failed."""

    async def main(_: SimRuntime) -> None:
        told = Escalations()
        supervisor = Supervisor("stock", escalate=told, options=RestartOptions(restarts_max=1))
        supervisor.start(Child("loop", ends))
        await asyncio.sleep(10.0)
        assert [child for child, _, _ in told] == ["loop"]
        assert supervisor.states["loop"].last_error == "RuntimeError"
        await supervisor.close()

    run(main)


def test_a_child_that_gave_up_is_not_restarted() -> None:
    """What has used up restarts of its own escalates at once, however many are left here."""

    async def main(runtime: SimRuntime) -> None:
        async def gives_up() -> None:
            raise RestartsExhausted("its own child failed too often")

        escalations = Escalations()
        supervisor = Supervisor("orders", escalate=escalations)
        supervisor.start(Child("projection", gives_up))
        await asyncio.sleep(0.01)
        assert escalations == [("projection", 0.0, "its own child failed too often")]
        assert (supervisor.states["projection"].state, supervisor.is_healthy) == ("failed", False)
        await supervisor.close()

    run(main)


def test_a_child_that_recovers_is_running_again() -> None:
    """Its restarts are counted, and nobody is told."""

    async def main(_: SimRuntime) -> None:
        told = Escalations()
        lives = iter([ValueError(), ValueError(), None])

        async def recovering() -> None:
            error = next(lives)
            if error is not None:
                raise error
            await asyncio.sleep(1000.0)

        supervisor = Supervisor("stock", escalate=told)
        supervisor.start(Child("loop", recovering))
        await asyncio.sleep(10.0)
        state = supervisor.states["loop"]
        assert (state.state, state.restarts, state.last_error) == ("running", 2, "ValueError")
        assert told == []
        await supervisor.close()

    run(main)


def test_closing_ends_every_child_and_waits_for_its_clean_up() -> None:
    """Also those that pause before a restart; it may be repeated (D4)."""

    async def main(_: SimRuntime) -> None:
        ended: list[str] = []

        async def cleaning() -> None:
            try:
                await asyncio.sleep(1000.0)
            finally:
                await asyncio.sleep(1.0)
                ended.append("cleaning")

        async def failing() -> None:
            raise ValueError

        supervisor = Supervisor("stock", escalate=Escalations())
        assert repr(supervisor) == "<Supervisor stock: no children>"
        supervisor.start(Child("a", cleaning))
        supervisor.start(Child("b", failing))
        await asyncio.sleep(0.05)
        await supervisor.close()
        await supervisor.close()
        assert ended == ["cleaning"]

    run(main)
