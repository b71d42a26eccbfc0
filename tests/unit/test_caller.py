"""The calling side: roots of trees, policies, choice of instances and transports."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import Any, Literal

import pytest
from msgspec.structs import replace

from calls_fakes import ONCE, Always, Bank, Front, Leaf, Shop, System, play
from synchromesh.calls import Caller, OperationPolicy, Policies, Reply
from synchromesh.calls.tree import attempts_left, tree_of
from synchromesh.discovery import BalancerOptions, Endpoint
from synchromesh.errors import (
    BadRequest,
    CallError,
    CircuitOpen,
    ConfigError,
    DiscoveryError,
    NoInstance,
    RemoteFailed,
    Shed,
    TimedOut,
)
from synchromesh.resilience import BreakerOptions, LimitOptions, Policy, RetryOptions, Transition
from synchromesh.telemetry import Tracer

DOWN = Reply.of_error(RemoteFailed("down"))


async def fails(caller: Caller, n: int = 1) -> CallError:
    """Call the leaf, and return the error of the last call."""
    for _ in range(n):
        with pytest.raises(CallError) as caught:
            await caller.call(Leaf.ask(1), context=caller.root())
    return caught.value


# -- policies ------------------------------------------------------------------------------------


def test_policies_are_on_without_configuration() -> None:
    """Time, retries with a budget and a breaker guard every call by default."""
    policy = Policies().of_operation(Leaf.ask)
    assert policy.timeout_s == 2.0
    assert policy.retry is not None
    assert policy.budget is not None
    assert policy.breaker is not None


def test_the_nearest_policy_counts() -> None:
    """An edge replaces the default; an operation replaces the edge's time and retries."""
    edge = Policy(timeout_s=1.0, limit=LimitOptions())
    policies = Policies(
        edges={"shop": edge}, operations={"shop.stock": OperationPolicy(timeout_s=0.1, retry=None)}
    )
    assert policies.of_operation(Leaf.ask) is policies.default
    assert policies.of_operation(Shop.reserve) is edge
    assert policies.of_operation(Shop.stock) == dataclasses.replace(edge, timeout_s=0.1, retry=None)


@pytest.mark.parametrize("words", [
    {"attempts_per_tree": -1},
    {"attempts_per_tree": 17},
    {"edges": {"shop.stock": Policy()}},
    {"operations": {"shop": OperationPolicy()}},
    {"operations": {"shop.stock.x": OperationPolicy()}},
])  # fmt: skip
def test_policies_of_the_wrong_kind_are_refused(words: dict[str, object]) -> None:
    """An edge is named by a service, an operation by its full name."""
    with pytest.raises(ConfigError, match=r"attempts_per_tree|is named by"):
        Policies(**words)  # type: ignore[arg-type]


def test_operations_of_one_edge_share_its_breaker() -> None:
    """An operation with its own time and retries trips the edge's breaker, and finds it open."""

    async def main(system: System) -> None:
        shop = Always(DOWN)
        await system.mount("shop", shop, [Shop.stock, Shop.nothing])
        own = OperationPolicy(timeout_s=0.1, retry=None)
        breaker = Policy(retry=None, breaker=BreakerOptions(minimum_calls=4))
        caller = system.caller(policies=Policies(breaker, operations={"shop.stock": own}))
        for call in (Shop.stock("a"), Shop.nothing(), Shop.stock("a"), Shop.nothing()):
            with pytest.raises(RemoteFailed):
                await caller.call(call, context=caller.root())
        for other in (Shop.stock("a"), Shop.nothing()):
            with pytest.raises(CircuitOpen):
                await caller.call(other, context=caller.root())
        assert list(caller.edges) == ["shop"]
        assert repr(caller) == "<Caller client, 1 edges>"

    play("inproc", main)


def test_an_operations_own_retries_have_a_budget() -> None:
    """Also where its edge has no retries, and so no budget of its own."""

    async def main(system: System) -> None:
        leaf = Always(DOWN)
        await system.mount("leaf", leaf, [Leaf.ask])
        own = OperationPolicy(timeout_s=None, retry=RetryOptions(attempts_max=2))
        plain = Policy(retry=None, breaker=None)
        caller = system.caller(policies=Policies(plain, operations={"leaf.ask": own}))
        await fails(caller, 30)
        assert 30 + 10 <= len(leaf.requests) < 60

    play("inproc", main)


def test_an_edge_without_a_breaker_has_none_to_show() -> None:
    """`edges` shows breakers; an edge can be had by hand, before its first call too."""

    async def main(system: System) -> None:
        await system.mount("leaf", Always(DOWN), [Leaf.ask])
        caller = system.caller(policies=Policies(Policy(breaker=None, retry=None)))
        assert type(await fails(caller)) is RemoteFailed
        assert caller.edges == {}
        guarded = system.caller(policies=ONCE)
        breaker = guarded.edge("leaf").breaker
        assert breaker is not None
        breaker.isolate(0.0)
        assert type(await fails(guarded)) is CircuitOpen
        assert guarded.edges["leaf"].state.value == "isolated"

    play("inproc", main)


def test_the_edges_limiter_bounds_what_the_caller_sends() -> None:
    """A bulkhead at the caller sheds what is too much, before it is sent."""

    async def main(system: System) -> None:
        async def slow(_: object) -> bytes:
            await asyncio.sleep(1.0)
            return b"1"

        await system.serve(Leaf, {"ask": slow})
        limited = Policy(retry=None, limit=LimitOptions(in_flight_max=1))
        caller = system.caller(policies=Policies(limited))
        first = asyncio.create_task(caller.call(Leaf.ask(1), context=caller.root()))
        await asyncio.sleep(0.1)
        assert type(await fails(caller)) is Shed
        assert await first == 1

    play("inproc", main)


def test_a_breaker_that_changes_is_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody has to poll to know that an edge opened."""
    told: list[Transition] = []

    async def main(system: System) -> None:
        await system.mount("leaf", Always(DOWN), [Leaf.ask])
        caller = Caller(
            "client",
            resolver=system.known,
            transports=system.transports,
            signer=system.signer,
            tracer=Tracer("client", system.runtime, system.spans),
            runtime=system.runtime,
            policies=ONCE,
        )
        caller.on_transition = told.append
        await fails(caller, 10)

    play("inproc", main)
    assert [(t.name, t.after.value) for t in told] == [("client -> leaf", "open")]
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "breaker client -> leaf: open, was closed (tripped)" in lines


# -- trees ---------------------------------------------------------------------------------------


def test_a_root_has_a_trace_a_key_and_all_its_attempts() -> None:
    """What is given is kept, what is not is made."""

    async def main(system: System) -> None:
        caller = system.caller(policies=Policies(attempts_per_tree=7))
        fresh, other = caller.root(), caller.root()
        assert (fresh.deadline_s, fresh.span_id, fresh.caller) == (None, "", "client")
        assert fresh.attempts_left == 7
        assert fresh.trace_id != other.trace_id
        assert fresh.key != other.key
        given = caller.root(principal="alice", key="", timeout_s=2.0, trace_id="a" * 32)
        assert (given.principal.name, given.key, given.trace_id) == ("alice", "", "a" * 32)
        assert given.deadline_s == 2.0

    play("inproc", main)


def test_a_tree_is_found_by_the_span_of_its_handler() -> None:
    """Calls under the handler's context share its attempts; work with its own span does not."""

    async def main(system: System) -> None:
        context = replace(system.caller().root(), span_id="b" * 16, attempts_left=4)
        with tree_of(context) as left:
            assert attempts_left(replace(context, key="other")) is left
            elsewhere = attempts_left(replace(context, span_id="c" * 16))
            assert elsewhere is not left
            assert elsewhere.left == 4
        assert attempts_left(context) is not left

    play("inproc", main)


def test_the_callers_own_time_bounds_a_call_without_a_deadline() -> None:
    """`timeout_s` is the whole call's, and the sooner of two bounds counts."""

    async def stall(_: object) -> bytes:
        await asyncio.sleep(60.0)
        return b"1"

    async def main(system: System) -> None:
        await system.serve(Leaf, {"ask": stall})
        caller = system.caller()
        loop = asyncio.get_running_loop()
        for context_s, timeout_s, took_s in ((None, 0.3, 0.3), (0.2, 0.3, 0.2), (0.3, 0.1, 0.1)):
            began_s = loop.time()
            context = caller.root(timeout_s=context_s)
            with pytest.raises(TimedOut):
                await caller.call(Leaf.ask(1), context=context, timeout_s=timeout_s)
            assert loop.time() - began_s == pytest.approx(took_s)

    play("inproc", main)


@pytest.mark.parametrize(
    ("own", "limit"),
    [
        (OperationPolicy(0.2), 'policies."client:leaf".operations.ask.timeout = 0.2s'),
        (OperationPolicy(0.3, is_timed_as_edge=True), 'policies."client:leaf".timeout = 0.3s'),
        (OperationPolicy(None), "the deadline of who calls"),
    ],
)
def test_a_time_out_names_the_key_that_is_configured(own: OperationPolicy, limit: str) -> None:
    """The operation's where that has a timeout of its own; else the edge's, as of retries alone."""

    async def stall(_: object) -> bytes:
        await asyncio.sleep(60.0)
        return b"1"

    async def main(system: System) -> None:
        await system.serve(Leaf, {"ask": stall})
        caller = system.caller(
            policies=Policies(Policy(timeout_s=0.3), operations={"leaf.ask": own})
        )
        with pytest.raises(TimedOut) as caught:
            await caller.call(Leaf.ask(1), context=caller.root(timeout_s=1.0))
        assert caught.value.limit == limit

    play("inproc", main)


# -- instances and transports --------------------------------------------------------------------


@pytest.mark.parametrize("error", [DiscoveryError("the registry is down"), OSError("no route")])
def test_a_registry_that_cannot_be_asked_is_no_instance(error: Exception) -> None:
    """The caller gets a CallError whatever the registry's trouble is."""

    async def main(system: System) -> None:
        system.known.error = error
        got = await fails(system.caller(policies=ONCE))
        assert type(got) is NoInstance
        assert str(error) in got.message
        assert got.via == "leaf.ask"

    play("inproc", main)


def test_an_endpoint_that_no_transport_reaches_is_a_mistake_of_configuration() -> None:
    """The message names the scheme and those that there are."""

    async def main(system: System) -> None:
        system.known.endpoints["leaf"] = [Endpoint("leaf-1", "leaf", "sim://leaf")]
        caller = system.caller()
        with pytest.raises(ConfigError, match=r"'sim', and 'client' has no .*: http, inproc"):
            await caller.call(Leaf.ask(1), context=caller.root())

    play("inproc", main)


@pytest.mark.parametrize("url", [
    "http:///a", "http://h:x", "http://h:99999", "http://h/?a=1", "http://h/#a",
])  # fmt: skip
def test_a_url_that_is_none_is_a_mistake_of_configuration(url: str) -> None:
    """Host, port and at most a prefix make a url of an instance."""

    async def main(system: System) -> None:
        system.known.endpoints["leaf"] = [Endpoint("leaf-1", "leaf", url)]
        caller = system.caller()
        with pytest.raises(ConfigError, match=r"http://host:port"):
            await caller.call(Leaf.ask(1), context=caller.root())

    play("http", main)


@pytest.mark.parametrize("by", ["peak_ewma", "round_robin"])
def test_all_instances_have_their_share(by: Literal["peak_ewma", "round_robin"]) -> None:
    """Calls spread over what is ready; in turn where the balancer says so."""

    async def main(system: System) -> None:
        leaves = [Always(Reply(200, b"1")) for _ in range(3)]
        for number, leaf in enumerate(leaves):
            await system.mount("leaf", leaf, [Leaf.ask], instance=f"leaf-{number}")
        policies = Policies(balancers={"leaf": BalancerOptions(by=by)})
        caller = system.caller(policies=policies)
        for _ in range(300):
            await caller.call(Leaf.ask(1), context=caller.root())
        shares = [len(leaf.requests) for leaf in leaves]
        assert sum(shares) == 300
        assert min(shares) >= (100 if by == "round_robin" else 60)

    play("inproc", main)


def test_a_foreign_service_cannot_spend_our_attempts() -> None:
    """What it says that it used is not believed."""

    async def main(system: System) -> None:
        bank = Always(Reply(500, b"", attempts_used=9))
        await system.mount("bank", bank, [Bank.charge])
        caller = system.caller()
        with pytest.raises(RemoteFailed) as caught:
            await caller.call(Bank.charge(1), context=caller.root())
        assert (len(bank.requests), caught.value.attempts_used) == (3, 2)

    play("inproc", main)


def test_keys_are_for_commands() -> None:
    """A query under a context with an odd key is not refused for it: it carries none."""

    async def main(system: System) -> None:
        await system.mount("front", Always(Reply(200, b"1")), [Front.ask, Front.place])
        caller = system.caller()
        context = caller.root(key="a\nb")
        assert await caller.call(Front.ask(1), context=context) == 1
        with pytest.raises(BadRequest):
            await caller.call(Front.place(1), context=context)

    play("inproc", main)


@pytest.mark.parametrize("wrong", [float("nan"), True, "1"])
def test_a_tree_whose_time_is_no_number_is_refused(wrong: Any) -> None:
    """As a deadline it would compare with nothing, and bound no call of the tree."""

    async def main(system: System) -> None:
        with pytest.raises(BadRequest, match="make it a number of seconds"):
            system.caller().root(timeout_s=wrong)

    play("inproc", main)
