"""An operation that becomes slower takes no place of another, and is soon let in again itself.

Nothing is configured, and nothing is short: a handler waits for something that has become slower,
so that every call could be answered in its time. All is virtual time.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import Protocol

import pytest

from synchromesh import Context, Contract, Service, SynchromeshError, query
from synchromesh.testing import SimRuntime, run, serving

BEFORE_S, FAST_PER_S = 2.0, 50.0


class Shop(Contract, Protocol, service="shop", version="1.0"):
    @query("GET /slow")
    async def slow(self) -> str: ...

    @query("GET /fast")
    async def fast(self) -> str: ...


class Story:
    """What became of calls of both operations; the one becomes slower at `BEFORE_S`.

    Attributes:
        told: how many of an operation ended how, by the second in which they were made.
    """

    def __init__(self, before_s: float, after_s: float, slow_per_s: float, timeout_s: float):
        self._takes_s = before_s
        self._after_s, self._per_s, self._timeout_s = after_s, slow_per_s, timeout_s
        self.told: Counter[tuple[int, str, str]] = Counter()

    def _service(self) -> Service:
        shop = Service("shop", implements=Shop)

        @shop.handles(Shop.slow)
        async def slow(ctx: Context) -> str:
            await asyncio.sleep(self._takes_s)
            return "slow"

        @shop.handles(Shop.fast)
        async def fast(ctx: Context) -> str:
            await asyncio.sleep(0.005)
            return "fast"

        return shop

    async def play(self, runtime: SimRuntime, for_s: float) -> None:
        """Make calls of both until so long after it has become slower."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        async with serving(runtime, self._service()) as client, asyncio.TaskGroup() as group:

            async def one(name: str) -> None:
                second = math.floor(loop.time() - began_s - BEFORE_S)
                call = Shop.slow() if name == "slow" else Shop.fast()
                try:
                    await client.call(call, timeout_s=self._timeout_s)
                except SynchromeshError as error:
                    self.told[second, name, error.code] += 1
                else:
                    self.told[second, name, "ok"] += 1

            async def drive(name: str, per_s: float) -> None:
                for _ in range(int((BEFORE_S + for_s) * per_s)):
                    group.create_task(one(name))
                    await asyncio.sleep(1 / per_s)

            group.create_task(drive("slow", self._per_s))
            group.create_task(drive("fast", FAST_PER_S))
            await asyncio.sleep(BEFORE_S)
            self._takes_s = self._after_s

    def share(self, name: str, from_s: int = -10) -> float:
        """Return the share of an operation's calls that were answered, of those from then on."""
        ended = {key: n for key, n in self.told.items() if key[0] >= from_s and key[1] == name}
        return sum(n for key, n in ended.items() if key[2] == "ok") / sum(ended.values())


@pytest.mark.parametrize(
    ("before_s", "after_s", "slow_per_s", "timeout_s", "soon_s", "share"),
    [
        (0.01, 0.2, 200.0, 2.0, 0, 1.0),
        (0.05, 0.25, 600.0, 2.0, 0, 1.0),
        (0.1, 0.5, 200.0, 5.0, 2, 0.9),
        (0.01, 0.5, 200.0, 2.0, 3, 0.7),
        (0.1, 1.0, 100.0, 3.0, 5, 0.6),
        (0.1, 0.3, 100.0, 2.0, 1, 1.0),
    ],
)
def test_work_that_has_become_slower_is_let_in_again(
    before_s: float, after_s: float, slow_per_s: float, timeout_s: float, soon_s: int, share: float
) -> None:
    """All calls are answered `soon_s` later, a share of them until then, and others always."""
    story = Story(before_s, after_s, slow_per_s, timeout_s)
    run(lambda runtime: story.play(runtime, soon_s + 3.0))
    assert story.share("fast") == 1.0
    assert story.share("slow", from_s=soon_s) >= 0.99
    assert story.share("slow", from_s=0) >= share


def test_an_operation_that_stalls_takes_no_place_of_another() -> None:
    """It is refused or late, before the breaker opens and while it is open, which is of both."""
    story = Story(0.01, 1_000.0, 200.0, 1.0)
    run(lambda runtime: story.play(runtime, 8.0))
    assert story.share("slow", from_s=0) == 0.0
    refused = {key[2] for key in story.told if key[1] == "fast"} - {"ok"}
    assert refused <= {"circuit_open"}
