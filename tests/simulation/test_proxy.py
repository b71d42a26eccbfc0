"""Claims about the proxy before each service of a universe: what TCP alone never does."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Protocol

from synchromesh.calls import Contract, Reply, Request, command
from synchromesh.context import CallContext
from synchromesh.testing import CALM, NetworkFaults, Proxy, SimRuntime, Wire, run

GIVES_UP_S = 0.5


class Billing(Contract, Protocol, service="billing", version="1.0"):
    """What is called here."""

    @command("POST /charges")
    async def charge(self, cents: int) -> int: ...


class Asked:
    """A service behind a proxy with weather of its own, asked once; what came, and the answer."""

    def __init__(self, faults: NetworkFaults, *, seed: int = 1) -> None:
        self.came_s: list[float] = []
        self.answer = b""
        self.left_s: list[float | None] = []
        self._wire = Wire(random.Random(seed), faults)
        run(self._ask)

    async def _dispatch(self, request: Request, _: float | None = None) -> Reply:
        now = asyncio.get_running_loop().time()
        self.came_s.append(now)
        self.left_s.append(request.context.remaining_s(now))
        return Reply(200, b"%d" % len(self.came_s))

    async def _ask(self, runtime: SimRuntime) -> None:
        proxy = Proxy(self._dispatch, runtime, self._wire)
        context = CallContext(trace_id="1" * 32, span_id="2" * 16, key="k", deadline_s=GIVES_UP_S)
        try:
            async with asyncio.timeout(GIVES_UP_S):
                request = Request(Billing.charge, b'{"cents":1}', context, "")
                self.answer = (await proxy.dispatch(request, 0.0)).body
        except TimeoutError:
            pass
        await asyncio.sleep(12.0)


def test_calm_weather_passes_a_request_on_once() -> None:
    """Without faults a request arrives once and is answered."""
    asked = Asked(CALM)
    assert (asked.answer, len(asked.came_s)) == (b"1", 1)


def test_a_request_may_come_twice_and_is_answered_once() -> None:
    """A repeated request runs twice; the caller gets the first answer."""
    asked = Asked(replace(CALM, duplication=1.0))
    assert (asked.answer, len(asked.came_s)) == (b"1", 2)


def test_a_lost_request_runs_never() -> None:
    """A lost request never runs, and nothing says so to its caller."""
    asked = Asked(replace(CALM, loss=1.0))
    assert (asked.answer, asked.came_s) == (b"", [])


def test_a_late_request_runs_though_its_caller_has_given_up() -> None:
    """A request that was held back is delivered, whether somebody still waits for it or not."""
    asked = Asked(replace(CALM, tail=1.0, tail_s=8.0), seed=3)
    assert asked.answer == b""
    assert [came_s > GIVES_UP_S for came_s in asked.came_s] == [True]
    # The clocks of two machines may differ by more than it was late.
    assert asked.left_s == [GIVES_UP_S]
