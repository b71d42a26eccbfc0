"""Hedged queries on every transport: the slowest answers get quicker, nothing is left behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from calls_fakes import Leaf, Shop, System, answering, play
from synchromesh.calls import Caller, Incoming, OperationPolicy, Policies
from synchromesh.calls.tree import tree_of
from synchromesh.codec import encode
from synchromesh.discovery import BalancerOptions
from synchromesh.errors import (
    BadRequest,
    CallError,
    ConfigError,
    DownstreamFailed,
    RemoteFailed,
    Shed,
)
from synchromesh.resilience import HedgeOptions, LimitOptions, Policy, RetryOptions

SOON = HedgeOptions(after=0.05, ratio=1.0)
IN_TURN = {"leaf": BalancerOptions(by="round_robin")}
Answer = Callable[[int], Coroutine[Any, Any, object]]


@pytest.fixture(params=["inproc", "http", "inproc slow", "http slow"])
def kind(request: pytest.FixtureRequest) -> str:
    """The transport and the way that have to pass."""
    return str(request.param)


def policies(
    hedge: HedgeOptions | None, retry: RetryOptions | None = None, **more: Any
) -> Policies:
    """Return policies whose one hedged operation is `leaf.ask`; replicas have turns."""
    own = OperationPolicy(timeout_s=2.0, retry=retry, hedge=hedge)
    return Policies(Policy(**more), operations={"leaf.ask": own}, balancers=IN_TURN)


@dataclass
class Replicas:
    """Instances of the leaf: what they were asked, and how often they were cancelled."""

    system: System
    asked: Counter[str] = field(default_factory=Counter)
    cancelled: Counter[str] = field(default_factory=Counter)
    given: list[int] = field(default_factory=list)

    async def serve(self, answers: Mapping[str, Answer]) -> None:
        """Run an instance for each name; an answer is given how often it was asked before."""
        for name, answer in answers.items():
            await self.system.serve(Leaf, {"ask": self._handler(name, answer)}, instance=name)

    def _handler(
        self, name: str, answer: Answer
    ) -> Callable[[Incoming], Coroutine[Any, Any, bytes]]:
        async def handle(incoming: Incoming) -> bytes:
            before = self.asked[name]
            self.asked[name] += 1
            self.given.append(incoming.context.attempts_left)
            try:
                return encode(await answer(before))
            except asyncio.CancelledError:
                self.cancelled[name] += 1
                raise

        return handle


async def quick(_: int) -> int:
    await asyncio.sleep(0.01)
    return 1


async def stuck(_: int, for_s: float = 1.0) -> int:
    await asyncio.sleep(for_s)
    return 2


def failing(error: Exception, after_s: float = 0.01) -> Answer:
    async def fail(_: int) -> object:
        await asyncio.sleep(after_s)
        raise error

    return fail


async def ask(caller: Caller) -> int:
    return await caller.call(Leaf.ask(1), context=caller.root(timeout_s=5.0))


def slowest_of_a_hundred(kind: str, hedge: HedgeOptions | None) -> tuple[float, int]:
    """Ask three replicas, one of which stalls now and then; return p99 and what was sent more."""

    rng = random.Random(3)

    async def usual(_: int) -> int:
        await asyncio.sleep(rng.uniform(0.008, 0.012))
        return 1

    async def now_and_then(before: int) -> int:
        return await (usual(before) if before % 16 < 15 else stuck(before, 0.3))

    async def main(system: System) -> tuple[float, int]:
        replicas = Replicas(system)
        await replicas.serve({"leaf-1": usual, "leaf-2": now_and_then, "leaf-3": usual})
        caller, took = system.caller(policies=policies(hedge)), []
        now = asyncio.get_running_loop().time
        for _ in range(600):
            began_s = now()
            assert await ask(caller) in (1, 2)
            took.append(now() - began_s)
        return sorted(took)[594], replicas.asked.total() - 600

    return play(kind, main)


def test_the_slowest_answers_get_quicker(kind: str) -> None:
    """One replica of three stalls in one call of 16; a few hedges take that out of the p99."""
    without_s, more = slowest_of_a_hundred(kind, None)
    assert without_s >= 0.29
    assert more == 0
    with_s, more = slowest_of_a_hundred(kind, HedgeOptions())
    assert with_s <= 0.1
    assert 0 < more <= 0.05 * 600 + 10


def test_never_more_than_the_share_is_hedged(kind: str) -> None:
    """However slow all of them are: the bucket, and a twentieth of the calls."""

    async def main(system: System) -> None:
        replicas = Replicas(system)
        await replicas.serve({"leaf-1": quick, "leaf-2": quick})
        hedge = HedgeOptions(after=0.001, ratio=0.05, tokens_max=2.0)
        caller = system.caller(policies=policies(hedge))
        for _ in range(200):
            await ask(caller)
        assert 200 + 10 <= replicas.asked.total() <= 200 + 2 + 10

    play(kind, main)


def test_the_loser_is_cancelled_and_the_span_tells(kind: str) -> None:
    """The answer does not wait for it; edge, balancer and limiter get back what it took."""

    async def main(system: System) -> None:
        replicas = Replicas(system)
        await replicas.serve({"leaf-1": stuck, "leaf-2": quick})
        caller, now = system.caller(policies=policies(SOON)), asyncio.get_running_loop().time
        began_s = now()
        assert await ask(caller) == 1
        assert 0.06 <= now() - began_s <= 0.1
        await asyncio.sleep(0.01)  # until the callee has heard of it
        assert replicas.cancelled == {"leaf-1": 1}
        span = system.span("call", "client")
        told = {"instance": "leaf-2", "hedge": "leaf-2", "attempts": "2"}
        assert (span.status, span.attributes) == ("ok", told)
        limiter, breaker = caller.edge("leaf").limiter, caller.edges["leaf"]
        assert limiter is not None
        assert (limiter.in_flight, breaker.calls, breaker.failures) == (0, 1, 0)
        members = caller.called("leaf", is_external=False).balancer.pick
        listed = tuple(system.known.endpoints["leaf"])
        assert [members(listed, now()).in_flight for _ in range(2)] == [1, 1]

    play(kind, main)


def test_the_first_may_win_all_the_same(kind: str) -> None:
    """Then the second one is cancelled, and the span names whose answer it is."""

    async def late(_: int) -> int:
        await asyncio.sleep(0.08)
        return 1

    async def main(system: System) -> None:
        replicas = Replicas(system)
        await replicas.serve({"leaf-1": late, "leaf-2": stuck})
        caller = system.caller(policies=policies(SOON))
        assert await ask(caller) == 1
        await asyncio.sleep(0.01)
        assert replicas.cancelled == {"leaf-2": 1}
        told = {"instance": "leaf-1", "hedge": "leaf-2", "attempts": "2"}
        assert system.span("call", "client").attributes == told

    play(kind, main)


def test_a_hedge_spends_an_attempt_of_the_call_tree(kind: str) -> None:
    """D2: of four extra attempts two go along, one is the hedge, and half of the rest is none."""

    async def main(system: System) -> None:
        replicas = Replicas(system)
        await replicas.serve({"leaf-1": stuck, "leaf-2": quick})
        caller = system.caller(policies=policies(SOON))
        context = caller.root(timeout_s=5.0)
        with tree_of(context) as left:
            assert await caller.call(Leaf.ask(1), context=context) == 1
            # What a cancelled attempt was given is gone: it may still run, and be tried again.
            assert (replicas.given, left.left) == ([2, 0], 1)
            left.left = 0
            assert await caller.call(Leaf.ask(1), context=context) == 2, "none left, no hedge"

    play(kind, main)


def test_a_failure_waits_for_the_other(kind: str) -> None:
    """The first fails while the second is under way, whose answer is the call's."""

    async def main(system: System) -> None:
        replicas = Replicas(system)
        await replicas.serve({"leaf-1": failing(RemoteFailed("no"), 0.055), "leaf-2": quick})
        caller = system.caller(policies=policies(SOON))
        assert await ask(caller) == 1
        assert caller.edges["leaf"].calls >= 1
        assert replicas.cancelled == {}

    play(kind, main)


def test_where_both_fail_the_call_is_tried_again(kind: str) -> None:
    """The edge's retries decide, as without hedging; a retry is not hedged."""

    async def back(before: int) -> int:
        await asyncio.sleep(0.06)
        if before == 0:
            raise RemoteFailed("no")
        return 3

    async def main(system: System) -> None:
        replicas = Replicas(system)
        await replicas.serve({"leaf-1": back, "leaf-2": back})
        hedged = policies(SOON, RetryOptions(attempts_max=3, base_s=0.0, cap_s=0.0))
        assert await ask(system.caller(policies=hedged)) == 3
        assert replicas.asked.total() == 3
        none = policies(SOON)
        replicas.asked.clear()
        with pytest.raises(DownstreamFailed):
            await ask(system.caller(policies=none))
        assert replicas.asked == {"leaf-1": 1, "leaf-2": 1}

    play(kind, main)


def test_a_no_is_an_answer(kind: str) -> None:
    """What asking again cannot change ends the call; the other attempt is cancelled."""

    async def main(system: System) -> None:
        replicas = Replicas(system)
        await replicas.serve({"leaf-1": failing(BadRequest("no"), 0.06), "leaf-2": stuck})
        with pytest.raises(BadRequest):
            await ask(system.caller(policies=policies(SOON)))
        await asyncio.sleep(0.01)
        assert replicas.cancelled == {"leaf-2": 1}

    play(kind, main)


def test_a_single_instance_is_not_asked_twice(kind: str) -> None:
    """Nor anybody while the edge has no slot free for a retry."""

    async def main(system: System) -> None:
        replicas = Replicas(system)
        await replicas.serve({"leaf-1": stuck})
        assert await ask(system.caller(policies=policies(SOON))) == 2
        await replicas.serve({"leaf-2": stuck})
        full = policies(SOON, limit=LimitOptions(in_flight_max=1))
        assert await ask(system.caller(policies=full)) == 2
        assert replicas.asked.total() == 2

    play(kind, main)


def test_a_caller_that_leaves_takes_both_along(kind: str) -> None:
    """A cancelled call cancels both attempts; one that is late does, too, and is a time-out."""

    async def main(system: System) -> None:
        replicas = Replicas(system)
        await replicas.serve({"leaf-1": stuck, "leaf-2": stuck})
        caller = system.caller(policies=policies(SOON))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await ask(caller)
        await asyncio.sleep(0.01)
        assert replicas.cancelled == {"leaf-1": 1, "leaf-2": 1}
        with pytest.raises(CallError, match="did not answer within"):
            await caller.call(Leaf.ask(1), context=caller.root(timeout_s=0.3))
        await asyncio.sleep(0.01)
        assert replicas.cancelled.total() == 4
        limiter = caller.edge("leaf").limiter
        assert limiter is not None
        assert limiter.in_flight == 0

    play(kind, main)


def test_a_shed_hedge_is_no_failure(kind: str) -> None:
    """A replica that is too busy for a second attempt leaves the first one its time."""

    async def late(_: int) -> int:
        await asyncio.sleep(0.2)
        return 1

    async def main(system: System) -> None:
        replicas = Replicas(system)
        await replicas.serve({"leaf-1": late, "leaf-2": failing(Shed("full"))})
        caller = system.caller(policies=policies(SOON))
        assert await ask(caller) == 1
        assert (caller.edges["leaf"].failures, replicas.cancelled) == (0, {})

    play(kind, main)


def test_a_command_is_not_hedged() -> None:
    """One that is to be is refused; what an edge hedges are its queries."""
    own = OperationPolicy(hedge=SOON)
    refused = Policies(operations={"shop.reserve": own, "shop.stock": own})
    with pytest.raises(ConfigError, match=r"shop\.reserve is a command, and its policy has hedge"):
        refused.of_operation(Shop.reserve)
    assert refused.of_operation(Shop.stock).hedge == SOON
    whole = Policies(edges={"shop": Policy(hedge=SOON)})
    assert whole.of_operation(Shop.reserve).hedge is None
    assert whole.of_operation(Shop.stock).hedge == SOON


def test_what_is_no_call_is_not_hedged() -> None:
    """A function or a block has no second instance."""
    policy = Policy(timeout_s=None, retry=None, hedge=SOON)
    with pytest.raises(ConfigError, match="make it hedge=None"):
        policy.wrap(answering)
    with pytest.raises(ConfigError, match="make it hedge=None"):
        policy.guard("billing -> provider")
    assert "hedge     a query is sent a second time after 0.05 s, at most 100%" in policy.explain()
