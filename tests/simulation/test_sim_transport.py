"""Claims about calls between simulated nodes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec
import pytest

from synchromesh.calls import Command, Contract, Reply, Request, command
from synchromesh.context import CallContext
from synchromesh.discovery import Endpoint
from synchromesh.errors import BadRequest, ConnectFailed
from synchromesh.testing import CALM, NetworkFaults, SimExchange, SimRuntime, World

CONTEXT = CallContext(trace_id="1" * 32, span_id="2" * 16, key="k", deadline_s=3.0)
BILLING = Endpoint("billing-1", "billing", "sim://billing")
FAST = replace(CALM, latency_min_s=0.01, latency_max_s=0.01)


class Billing(Contract, Protocol, service="billing", version="1.0"):
    """What is called here."""

    @command("POST /charges")
    async def charge(self, cents: int) -> int: ...


CHARGE: Command[..., int] = Billing.charge


@dataclass
class Receiver:
    """Answers 1, 2, 3, ... after a while, and keeps what came."""

    takes_s: float = 0.0
    came: list[Request] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    async def dispatch(self, request: Request) -> Reply:
        self.came.append(request)
        try:
            await asyncio.sleep(self.takes_s)
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        self.ends.append("answered")
        return Reply(200, b"%d" % len(self.came))


class Pair:
    """An orders node that calls, and a billing node that answers."""

    def __init__(self, faults: NetworkFaults = FAST, *, takes_s: float = 0.0, boots_s: float = 0.0):
        self.world = World(1, faults=faults)
        self.exchange = SimExchange(self.world)
        self.receiver = Receiver(takes_s)
        self.outcome: object = None
        self._boots_s = boots_s
        self.billing = self.world.node("billing", self._serve)
        self.orders = self.world.node("orders", self._call)

    async def _serve(self, runtime: SimRuntime) -> None:
        await asyncio.sleep(self._boots_s)
        self.exchange.serve(runtime, self.receiver)

    async def _call(self, runtime: SimRuntime) -> None:
        await asyncio.sleep(0.1)
        request = Request(CHARGE, b'{"cents":1}', CONTEXT, "signed")
        try:
            async with asyncio.timeout(1.0):
                self.outcome = await self.exchange.transport(runtime).send(BILLING, request)
        except (TimeoutError, ConnectFailed) as error:
            self.outcome = error

    def run(self) -> Pair:
        self.billing.start()
        self.orders.start()
        self.world.run(asyncio.sleep(5.0))
        return self


def test_a_call_arrives_and_is_answered() -> None:
    """Key, deadline and credential arrive with a request; the answer comes back."""
    pair = Pair().run()
    (came,) = pair.receiver.came
    assert pair.outcome == Reply(200, b"1")
    assert (came.arguments, came.credential, came.context.key) == (b'{"cents":1}', "signed", "k")
    assert came.context.deadline_s is not None
    assert 2.99 < came.context.deadline_s <= 3.01


def test_nobody_answers_for_a_dead_node() -> None:
    """A call to a node that is down is answered by silence."""
    pair = Pair()
    pair.orders.start()
    pair.world.run(asyncio.sleep(5.0))
    assert isinstance(pair.outcome, TimeoutError)


def test_a_node_that_does_not_serve_yet_refuses() -> None:
    """A node that is up and does not serve says that nothing was run."""
    pair = Pair(boots_s=0.5).run()
    assert isinstance(pair.outcome, ConnectFailed)
    assert pair.receiver.came == []


def test_a_lost_message_leaves_the_outcome_unknown() -> None:
    """Where everything is lost the caller waits for its own time-out."""
    pair = Pair(replace(FAST, loss=1.0)).run()
    assert isinstance(pair.outcome, TimeoutError)


def test_a_request_may_come_twice_and_is_answered_once() -> None:
    """A request that is repeated under way runs twice; the caller takes one answer."""
    pair = Pair(replace(FAST, duplication=1.0)).run()
    assert len(pair.receiver.came) == 2
    assert isinstance(pair.outcome, Reply)


def test_no_copy_of_a_refused_request_runs_later() -> None:
    """Refused means that nothing was run and nothing will be, whatever else is under way."""
    storm = replace(FAST, duplication=1.0, tail=0.5, tail_s=4.0)
    for boots_s in (0.3, 0.5, 0.7, 0.9, 1.1):
        pair = Pair(storm, boots_s=boots_s).run()
        if isinstance(pair.outcome, ConnectFailed):
            assert pair.receiver.came == []


def test_a_caller_that_gives_up_cancels_the_callee() -> None:
    """The callee of a call that nobody waits for any more is cancelled (D4)."""
    pair = Pair(takes_s=4.0).run()
    assert isinstance(pair.outcome, TimeoutError)
    assert pair.receiver.ends == ["cancelled"]


def test_a_next_life_gets_no_answers_of_the_one_before() -> None:
    """An answer to a process that died is dropped, also where its node is up again."""
    pair = Pair(takes_s=0.5)
    pair.world.later(0.3, pair.orders.crash, 0.1)
    pair.run()
    assert pair.outcome == Reply(200, b"2")


@pytest.mark.parametrize("key", [" k", "k\n"])
def test_what_no_header_may_carry_is_refused_at_the_callee(key: str) -> None:
    """What travels with a call is checked by the callee, as on a real wire."""
    pair = Pair()

    async def call(runtime: SimRuntime) -> None:
        request = Request(CHARGE, b"{}", msgspec.structs.replace(CONTEXT, key=key), "")
        pair.outcome = await pair.exchange.transport(runtime).send(BILLING, request)

    pair.world.node("rogue", call).start()
    pair.billing.start()
    pair.world.run(asyncio.sleep(5.0))
    assert isinstance(pair.outcome, Reply)
    assert pair.outcome.status == BadRequest.status
    assert pair.receiver.came == []
