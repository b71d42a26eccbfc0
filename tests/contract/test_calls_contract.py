"""What a call promises on every transport: the one suite that each of them has to pass.

HTTP runs on the simulated network, so that seconds cost nothing; that it runs on real sockets as
well is shown by the last test.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

from calls_fakes import (
    ONCE,
    Always,
    Bank,
    Front,
    Hold,
    Leaf,
    Middle,
    NeverHeardOf,
    OutOfStock,
    Reserve,
    Shop,
    System,
    answering,
    parsed,
    passing_on,
    play,
    raising,
)
from synchromesh.calls import Call, Caller, Incoming, Policies, Reply
from synchromesh.codec import encode
from synchromesh.context import CREDENTIAL, DEADLINE_MS
from synchromesh.errors import (
    BadRequest,
    CallError,
    CircuitOpen,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    ContractMismatch,
    DeadlineExceeded,
    DownstreamFailed,
    ForeignAwait,
    InProgress,
    KeyReused,
    KeyUndone,
    NoInstance,
    NotExecuted,
    RemoteFailed,
    SagaConflict,
    Shed,
    StoreBroken,
    StoreFull,
    SynchromeshError,
    TimedOut,
    Unauthenticated,
    UnknownOperation,
    VersionConflict,
    error_table,
)
from synchromesh.identity import Signer
from synchromesh.resilience import BreakerOptions, BreakerState, LimitOptions, Policy, RetryOptions
from synchromesh.runtime import RealRuntime
from synchromesh.store.guard import in_unit

# The transports that have to pass, each by the fast way and by the slow one.
TRANSPORTS = ("inproc", "http", "inproc slow", "http slow")
SKU = Reserve("SX90", 2)


@pytest.fixture(params=TRANSPORTS)
def kind(request: pytest.FixtureRequest) -> str:
    """The transport and the way that have to pass."""
    return str(request.param)


def now() -> float:
    return asyncio.get_running_loop().time()


async def failure(system: System, call: Call[Any], **more: Any) -> SynchromeshError:
    """Make a call that fails, and return how."""
    caller = more.pop("caller", None) or system.caller(policies=ONCE)
    with pytest.raises(SynchromeshError) as caught:
        await caller.call(call, context=caller.root(**more))
    return caught.value


# -- C1, C2: what passes -------------------------------------------------------------------------


def test_arguments_and_results_are_copied(kind: str) -> None:
    """Neither side sees what the other does to a value after it was sent (C1)."""

    async def main(system: System) -> None:
        kept: list[Hold] = []

        async def reserve(request: Reserve) -> Hold:
            request.notes["by"] = "the callee"
            kept.append(Hold("h-1", request.notes))
            return kept[0]

        await system.serve(Shop, {"reserve": parsed(reserve)})
        mine = Reserve("SX90", 1, {"by": "me"})
        caller = system.caller()
        call = Shop.reserve(mine)
        mine.notes["by"] = "me, later"
        hold = await caller.call(call, context=caller.root())
        kept[0].notes["by"] = "the callee, later"
        assert hold == Hold("h-1", {"by": "the callee"})
        assert mine.notes == {"by": "me, later"}

    play(kind, main)


def test_details_of_a_rejection_are_copied(kind: str) -> None:
    """A declared rejection arrives as its own class, with its text and a copy of its details."""

    async def main(system: System) -> None:
        left = {"SX90": 3}
        error = OutOfStock("3 of SX90 are left", left=left)
        await system.serve(Shop, {"reserve": raising(error)})
        got = await failure(system, Shop.reserve(SKU))
        left["SX90"] = 0
        assert type(got) is OutOfStock
        assert got is not error
        assert (got.code, got.status) == (
            "out_of_stock",
            409,
        )
        assert (got.message, got.details) == ("3 of SX90 are left", {"left": {"SX90": 3}})

    play(kind, main)


@pytest.mark.parametrize("error", [OutOfStock("no \udcff left"), Shed("no \udcff left")])
def test_a_message_that_no_encoding_carries_arrives_all_the_same(
    kind: str, error: SynchromeshError
) -> None:
    """Half of a surrogate pair, as in a badly decoded name, costs a character and not the class."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"reserve": raising(error)})
        got = await failure(system, Shop.reserve(SKU))
        assert (type(got), got.message) == (type(error), "no ? left")

    play(kind, main)


@pytest.mark.parametrize(("call", "arguments"), [
    (Shop.stock("a/b c?ä%2F"), {"sku": "a/b c?ä%2F", "least": None, "note": ""}),
    (Shop.stock("..", 0, None), {"sku": "..", "least": 0, "note": None}),
    (Shop.stock("", least=7, note="null"), {"sku": "", "least": 7, "note": "null"}),
    (Shop.stock("5", note="5&x=y"), {"sku": "5", "least": None, "note": "5&x=y"}),
    (Shop.label("A 1", text="\u2028"), {"shelf": "A 1", "text": "\u2028", "weight": 0.0}),
    (Shop.label("1", text="x", weight=1), {"shelf": "1", "text": "x", "weight": 1.0}),
    (Shop.nothing(), {}),
])  # fmt: skip
def test_arguments_arrive_as_they_were_given(
    kind: str, call: Call[Any], arguments: dict[str, Any]
) -> None:
    """Odd texts, nulls, defaults and numbers arrive unchanged, in the same canonical bytes."""

    async def main(system: System) -> None:
        came: list[Incoming] = []

        async def keep(incoming: Incoming) -> bytes:
            came.append(incoming)
            return encode({"stock": 1, "label": "", "nothing": None}[incoming.operation.name])

        await system.serve(Shop, {"stock": keep, "label": keep, "nothing": keep})
        caller = system.caller()
        await caller.call(call, context=caller.root())
        assert came[0].operation.parse(came[0].arguments) == arguments
        assert came[0].arguments == call.arguments

    play(kind, main)


@pytest.mark.parametrize("code", sorted(error_table()))
def test_every_error_of_the_table_keeps_class_code_and_status(kind: str, code: str) -> None:
    """An error that a service tells has the same class, code, status and words here (C2)."""
    cls = error_table()[code]
    error = cls.__new__(cls)
    SynchromeshError.__init__(error, "what happened")
    if isinstance(error, CallError):
        error.retry_after_s, error.attempts_used, error.is_final = 0.25, 0, True
    expected = RemoteFailed if code == "downstream_failed" else cls
    if code == "downstream_failed":
        error = DownstreamFailed("what happened", cause_code="shed", is_final=True)
        expected = DownstreamFailed
    if code == "rejected":
        # The bare class is declared by nobody, and a business no has to be declared.
        error, expected = OutOfStock("what happened"), OutOfStock

    async def main(system: System) -> None:
        reply = Reply.of_error(error)
        await system.mount("shop", Always(reply), [Shop.reserve])
        got = await failure(system, Shop.reserve(SKU))
        assert type(got) is expected
        assert (got.code, got.status, got.message) == (error.code, error.status, "what happened")
        if isinstance(error, CallError):
            assert isinstance(got, CallError)
            assert (got.retry_after_s, got.is_final) == (error.retry_after_s, True)
        assert getattr(got, "cause_code", "shed") == "shed"

    play(kind, main)


@pytest.mark.parametrize(("error", "expected", "text"), [
    (RuntimeError("secret at /etc"), RemoteFailed, "the log of 'shop' says why"),
    (TimeoutError("secret"), RemoteFailed, "says why"),
    (asyncio.CancelledError("secret"), RemoteFailed, "says why"),
    (NeverHeardOf("secret"), RemoteFailed, "says why"),
    (OutOfStock("secret", of=object()), RemoteFailed, "says why"),
    (ConfigError("secret"), RemoteFailed, "says why"),
    (StoreBroken("secret"), StoreBroken, "store_broken"),
    (StoreFull("secret"), StoreFull, "store_full"),
    (VersionConflict("s-1", expected=1, actual=2), VersionConflict, "at version 2"),
    (SagaConflict("other input"), SagaConflict, "other input"),
    (KeyReused("other input"), KeyReused, "other input"),
    (KeyUndone("undone"), KeyUndone, "undone"),
    (InProgress("runs"), InProgress, "runs"),
    (BadRequest("qty is missing"), BadRequest, "qty is missing"),
    (TimedOut("secret"), DownstreamFailed, "timed_out"),
    (ConnectFailed("secret"), DownstreamFailed, "connect_failed"),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_what_a_handler_raises_is_told_without_internals(
    kind: str,
    error: BaseException,
    expected: type[SynchromeshError],
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only what callers can act on leaves a service; the reason of a failure is in its log (C2)."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"reserve": raising(error)})
        got = await failure(system, Shop.reserve(SKU))
        assert type(got) is expected
        assert got.status == expected.status
        assert text in got.message
        assert "secret" not in got.message

    play(kind, main)
    if expected in (RemoteFailed, StoreBroken, StoreFull):
        failed = [r for r in caplog.records if r.name == "synchromesh.calls"]
        assert len(failed) == 1
        assert failed[0].exc_info is not None
        assert failed[0].exc_info[1] is error


def test_a_handler_that_answers_no_bytes_has_failed(kind: str) -> None:
    """A handler's mistake is a failure of the callee, not an answer."""

    async def wrong(_: Incoming) -> Any:
        return {"id": "h-1"}

    async def main(system: System) -> None:
        await system.serve(Shop, {"reserve": wrong})
        assert type(await failure(system, Shop.reserve(SKU))) is RemoteFailed

    play(kind, main)


def test_an_answer_that_does_not_fit_is_an_error_of_its_own(kind: str) -> None:
    """It names the field, is asked for once, and no breaker counts it: others pass (B5)."""

    async def main(system: System) -> None:
        asked = []

        async def stock(_: Incoming) -> bytes:
            asked.append(1)
            return encode("many")

        await system.serve(Shop, {"stock": stock, "nothing": answering(None)})
        caller = system.caller()
        for _ in range(20):
            got = await failure(system, Shop.stock("SX90"), caller=caller)
            assert type(got) is ContractMismatch
            assert "Expected `int`" in got.message
            assert "deploy them" in got.message
        assert len(asked) == 20
        assert caller.edges["shop"].failures == 0
        await caller.call(Shop.nothing(), context=caller.root())

    play(kind, main)


def test_a_mismatch_further_down_opens_no_breaker_on_the_way_up(kind: str) -> None:
    """Whoever needed it failed by a dependency, finally: nobody asks again."""

    async def main(system: System) -> None:
        asked = []

        async def leaf(_: Incoming) -> bytes:
            asked.append(1)
            return encode("many")

        await system.serve(Leaf, {"ask": leaf})
        middle = system.caller("middle")
        await system.serve(Middle, {"ask": passing_on(middle, Leaf.ask(1))})
        caller = system.caller()
        got = await failure(system, Middle.ask(1), caller=caller)
        assert isinstance(got, DownstreamFailed)
        assert (got.cause_code, got.is_final, len(asked)) == ("contract_mismatch", True, 1)
        assert caller.edges["middle"].failures == middle.edges["leaf"].failures == 0

    play(kind, main)


# -- what is wrong with a call -------------------------------------------------------------------


def test_unknown_services_and_operations_are_named(kind: str) -> None:
    """A service nobody runs is NoInstance, an operation it has not is UnknownOperation."""

    async def main(system: System) -> None:
        got = await failure(system, Shop.nothing())
        assert type(got) is NoInstance
        assert "'shop'" in got.message
        await system.serve(Shop, {"stock": answering(1)})
        got = await failure(system, Shop.nothing())
        assert type(got) is UnknownOperation
        assert "it has: stock" in got.message

    play(kind, main)


@pytest.mark.parametrize(("arguments", "text"), [
    (b'{"request":{"sku":"SX90","qty":"two"}}', "Expected `int`, got `str` - at `$.request.qty`"),
    (b'{"request":{"sku":"SX90"}}', "missing required field `qty`"),
    (b'{"request":{"sku":"SX90","qty":1},"speed":9}', "unknown field `speed`"),
    (b"{}", "missing required field `request`"),
    (b'{"request":', "truncated"),
])  # fmt: skip
def test_wrong_arguments_are_refused_before_they_are_sent(
    kind: str, arguments: bytes, text: str
) -> None:
    """Wrong types and unknown names are BadRequest and say where."""

    async def main(system: System) -> None:
        receiver = Always(Reply(200, b"null"))
        await system.mount("shop", receiver, [Shop.reserve])
        caller = system.caller()
        with pytest.raises(BadRequest, match=r"shop\.reserve") as caught:
            await caller.send(Shop.reserve, arguments, context=caller.root())
        assert text in caught.value.message
        assert receiver.requests == []

    play(kind, main)


def test_arguments_that_one_transport_does_not_carry_are_refused_by_all(kind: str) -> None:
    """A call that works within a process works between two; the largest still passes."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"reserve": answering(Hold("h-1")), "stock": answering(1)})
        caller = system.caller()
        _, body = Shop.reserve.to_http(Shop.reserve(Reserve("", 1)).arguments)
        fits = 1024 * 1024 - len(body)
        await caller.call(Shop.reserve(Reserve("x" * fits, 1)), context=caller.root())
        await caller.call(Shop.stock("x" * 24_000), context=caller.root())
        for call in (
            Shop.reserve(Reserve("x" * (fits + 1), 1)),
            Shop.stock("x" * 25_000),
            Shop.stock("1", note="ü" * 5_000),
        ):
            got = await failure(system, call)
            assert type(got) is BadRequest
            assert "are carried there" in got.message

    play(kind, main)


def test_an_answer_that_one_transport_does_not_carry_is_a_failure_on_all(kind: str) -> None:
    """It is the callee's own fault, and its log says so."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"label": answering("x" * 8 * 1024 * 1024)})
        got = await failure(system, Shop.label("1", "text"))
        assert type(got) is RemoteFailed

    play(kind, main)


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e300, 1e16])
def test_a_timeout_without_end_is_none(kind: str, timeout_s: float) -> None:
    """However far the deadline is, it can be told."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"nothing": answering(None)})
        caller = system.caller(policies=Policies(default=Policy(timeout_s=None)))
        await caller.call(Shop.nothing(), context=caller.root(), timeout_s=timeout_s)

    play(kind, main)


def test_a_timeout_that_is_no_number_is_refused(kind: str) -> None:
    """It would put the timers of the whole process out of order."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"nothing": answering(None)})
        caller = system.caller()
        with pytest.raises(BadRequest, match=r"shop\.nothing was given the timeout nan s"):
            await caller.call(Shop.nothing(), context=caller.root(), timeout_s=float("nan"))

    play(kind, main)


def test_send_passes_json_both_ways(kind: str) -> None:
    """`send` takes and gives JSON, for those who keep it as such."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"reserve": answering(Hold("h-1")), "nothing": answering(None)})
        caller = system.caller()
        answer = await caller.send(Shop.reserve, encode({"request": SKU}), context=caller.root())
        assert answer == b'{"id":"h-1","notes":{}}'
        assert await caller.send(Shop.nothing, b"{}", context=caller.root()) == b"null"

    play(kind, main)


def test_a_call_that_is_thrown_away_leaves_neither_callee_nor_probe(kind: str) -> None:
    """A call whose coroutine is closed is cancelled at the callee, and its probe is free again."""
    options = BreakerOptions(minimum_calls=1, open_for_s=1.0, open_for_max_s=1.0, open_jitter=0.0)
    policies = Policies(Policy(retry=None, timeout_s=60.0, breaker=options))

    async def main(system: System) -> None:
        mode, ended = "fail", 0

        async def handle(_: Incoming) -> bytes:
            nonlocal ended
            if mode == "fail":
                raise OSError("gone")
            if mode == "hang":
                try:
                    await asyncio.sleep(30.0)
                finally:
                    ended += 1
            return b"1"

        dispatcher = await system.serve(Leaf, {"ask": handle})
        caller = system.caller(policies=policies)

        def ask() -> Coroutine[Any, Any, int]:
            return caller.call(Leaf.ask(1), context=caller.root())

        with pytest.raises(RemoteFailed):
            await ask()
        await asyncio.sleep(1.5)  # the next call is the one probe
        mode, call = "hang", ask()
        call.send(None)
        await asyncio.sleep(0.1)
        call.close()
        await asyncio.sleep(0.1)
        mode = "answer"
        assert await ask() == 1
        assert (ended, dispatcher.in_flight) == (1, 0)

    play(kind, main)


@pytest.mark.parametrize("key", ["a" * 513, "a\nb", " a"])
def test_a_key_that_cannot_be_kept_is_refused(kind: str, key: str) -> None:
    """A key is at most 512 printable characters, on every transport."""

    async def main(system: System) -> None:
        got = await failure(system, Shop.nothing(), key=key)
        assert type(got) is BadRequest
        assert "idempotency key" in got.message

    play(kind, main)


def test_a_call_inside_a_unit_is_refused(kind: str) -> None:
    """A unit of work never waits for the network while it holds the database (I2)."""

    async def main(system: System) -> None:
        receiver = Always(Reply(200, b"null"))
        await system.mount("shop", receiver, [Shop.nothing])
        token = in_unit.set("reserve")
        try:
            got = await failure(system, Shop.nothing())
        finally:
            in_unit.reset(token)
        assert type(got) is ForeignAwait
        assert "the call shop.nothing" in got.message
        assert receiver.requests == []

    play(kind, main)


# -- C3: concurrency and its bound ---------------------------------------------------------------


def test_handlers_run_at_once(kind: str) -> None:
    """Six calls of half a second take about half a second (C3)."""

    async def slow(_: Incoming) -> bytes:
        await asyncio.sleep(0.5)
        return b"1"

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": slow})
        caller, began_s = system.caller(), now()
        calls = [caller.call(Shop.stock("a"), context=caller.root()) for _ in range(6)]
        assert await asyncio.gather(*calls) == [1] * 6
        assert 0.5 <= now() - began_s < 0.6

    play(kind, main)


def test_beyond_the_bound_calls_wait_in_turn_and_then_are_shed(kind: str) -> None:
    """Two run, one waits, the fourth is refused at once; nothing of it ran."""
    began: list[float] = []

    async def slow(_: Incoming) -> bytes:
        began.append(now())
        await asyncio.sleep(0.8)
        return b"1"

    async def main(system: System) -> None:
        dispatcher = await system.serve(Shop, {"stock": slow}, in_flight_max=2, queue_max=1)
        caller = system.caller(policies=ONCE)
        calls = [
            asyncio.create_task(caller.call(Shop.stock("a"), context=caller.root()))
            for _ in range(3)
        ]
        await asyncio.sleep(0.5)
        assert dispatcher.in_flight == 2
        assert "2 in flight" in repr(dispatcher)
        began_s = now()
        got = await failure(system, Shop.stock("a"), caller=caller)
        assert type(got) is Shed
        assert now() - began_s < 0.02
        assert await asyncio.gather(*calls) == [1, 1, 1]
        assert len(began) == 3

    play(kind, main)


@pytest.mark.parametrize("is_direct", [True, False], ids=["itself", "by another"])
def test_a_service_of_one_place_may_be_called_by_those_it_calls(
    kind: str, *, is_direct: bool
) -> None:
    """Who waits for a call holds no place of its service: a ring of calls is no deadlock."""
    callers: dict[str, Caller] = {}

    async def stock(incoming: Incoming) -> bytes:
        if incoming.context.caller == "client":
            inner: Call[int] = Shop.stock("b") if is_direct else Leaf.ask(1)
            await callers["shop"].call(inner, context=incoming.context)
        return b"7"

    async def ask(incoming: Incoming) -> bytes:
        await callers["leaf"].call(Shop.stock("c"), context=incoming.context)
        return b"1"

    async def main(system: System) -> None:
        dispatcher = await system.serve(Shop, {"stock": stock}, in_flight_max=1, queue_max=1)
        await system.serve(Leaf, {"ask": ask}, in_flight_max=1)
        for name in ("shop", "leaf"):
            callers[name] = system.caller(name, policies=ONCE)
        caller = system.caller(policies=ONCE)
        began_s = now()
        call = caller.call(Shop.stock("a"), context=caller.root(), timeout_s=1.0)
        assert await call == 7
        assert now() - began_s < 0.5
        assert dispatcher.in_flight == 0
        assert await dispatcher.drain(0.0) == 0

    play(kind, main)


def test_who_waits_for_a_call_still_keeps_its_service_from_being_drained(kind: str) -> None:
    """It holds no place, and it runs."""
    leave = asyncio.Event()
    callers: list[Caller] = []

    async def stock(incoming: Incoming) -> bytes:
        await callers[0].call(Leaf.ask(1), context=incoming.context)
        return b"7"

    async def ask(_: Incoming) -> bytes:
        await leave.wait()
        return b"1"

    async def main(system: System) -> None:
        dispatcher = await system.serve(Shop, {"stock": stock}, in_flight_max=1)
        await system.serve(Leaf, {"ask": ask})
        callers.append(system.caller("shop", policies=ONCE))
        caller = system.caller(policies=ONCE)
        call = asyncio.create_task(caller.call(Shop.stock("a"), context=caller.root()))
        await asyncio.sleep(0.1)
        assert dispatcher.in_flight == 1
        assert await dispatcher.drain(0.01) == 1
        leave.set()
        assert await dispatcher.drain(1.0) == 0
        assert await call == 7

    play(kind, main)


def test_a_draining_service_finishes_and_takes_nothing_new(kind: str) -> None:
    """What runs is answered, what comes is Shed, and `drain` says when it is over."""

    async def slow(_: Incoming) -> bytes:
        await asyncio.sleep(1.0)
        return b"1"

    async def main(system: System) -> None:
        dispatcher = await system.serve(Shop, {"stock": slow})
        caller = system.caller(policies=ONCE)
        call = asyncio.create_task(caller.call(Shop.stock("a"), context=caller.root()))
        await asyncio.sleep(0.5)
        assert await dispatcher.drain(0.1) == 1
        assert dispatcher.is_draining
        assert type(await failure(system, Shop.stock("a"), caller=caller)) is Shed
        assert await dispatcher.drain() == 0
        assert "draining" in repr(dispatcher)
        assert await call == 1

    play(kind, main)


# -- C4: who calls -------------------------------------------------------------------------------


def test_caller_and_principal_are_those_of_the_credential(kind: str) -> None:
    """A handler is told who calls by the signature, and on whose behalf."""

    async def main(system: System) -> None:
        came: list[Incoming] = []

        async def keep(incoming: Incoming) -> bytes:
            came.append(incoming)
            return b"1"

        await system.serve(Shop, {"stock": keep})
        caller = system.caller("orders")
        forged = replace(caller.root(principal="alice"), caller="billing")
        await caller.call(Shop.stock("a"), context=forged)
        assert (came[0].context.caller, came[0].context.principal.name) == ("orders", "alice")

    play(kind, main)


@pytest.mark.parametrize(("signer", "text"), [
    (Signer(b"another system's key, 32 bytes.."), "not signed by this system"),
    (Signer(b"the system's key, 32 bytes long!", lifetime_s=-60.0), "expired"),
])  # fmt: skip
def test_a_forged_or_expired_hop_is_refused(kind: str, signer: Signer, text: str) -> None:
    """A credential of another key, or of the past, is 401 and nothing runs (C4)."""
    ran: list[Incoming] = []

    async def keep(incoming: Incoming) -> bytes:
        ran.append(incoming)
        return b"1"

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": keep})
        system.signer = signer
        got = await failure(system, Shop.stock("a"))
        assert type(got) is Unauthenticated
        assert got.status == 401
        assert text in got.message
        assert ran == []

    play(kind, main)


def test_a_credential_cannot_be_passed_on(kind: str) -> None:
    """Whoever is called can call nobody else as its caller: what it received was for it (C4)."""

    async def main(system: System) -> None:
        receiver = Always(Reply(200, b"1"))
        await system.mount("front", receiver, [Front.ask])
        await system.serve(Shop, {"stock": answering(1)})
        caller = system.caller("orders")
        await caller.call(Front.ask(1), context=caller.root(principal="alice"))
        received = receiver.requests[0]
        call = Shop.stock("a")
        passed_on = replace(received, operation=call.operation, arguments=call.arguments)
        endpoint = system.known.endpoints["shop"][0]
        reply = await system.transports[endpoint.scheme].send(endpoint, passed_on)
        error = reply.to_error(raises=())
        assert (reply.status, type(error)) == (401, Unauthenticated)
        assert "is for 'front', and was shown to 'shop'" in error.message
        assert [span.kind for span in system.spans] == ["call"]  # nothing was handled

    play(kind, main)


def test_an_unsigned_hop_is_refused(kind: str) -> None:
    """No credential is 401, whatever else is right or wrong with the call (C4)."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": answering(1)})
        receiver = Always(Reply(200, b"1"))
        spy = System(kind, system.runtime)
        await spy.mount("shop", receiver, [Shop.stock])
        caller = spy.caller()
        await caller.call(Shop.stock("a"), context=caller.root())
        await spy.close()
        unsigned = replace(receiver.requests[0], credential="")
        endpoint = system.known.endpoints["shop"][0]
        reply = await system.transports[endpoint.scheme].send(endpoint, unsigned)
        error = reply.to_error(raises=())
        assert reply.status == 401
        assert type(error) is Unauthenticated

    play(kind, main)


# -- D1: deadlines -------------------------------------------------------------------------------


def test_a_childs_deadline_is_never_later_than_its_parents(kind: str) -> None:
    """Each hop has what is left of the one before, or less (D1)."""

    async def main(system: System) -> None:
        deadlines: list[float] = []

        async def leaf(incoming: Incoming) -> bytes:
            assert incoming.context.deadline_s is not None
            deadlines.append(incoming.context.deadline_s)
            return b"1"

        middle = system.caller("middle")

        async def between(incoming: Incoming) -> bytes:
            assert incoming.context.deadline_s is not None
            deadlines.append(incoming.context.deadline_s)
            await asyncio.sleep(0.1)
            call = Leaf.ask(1)
            return encode(await middle.call(call, context=incoming.context, timeout_s=60.0))

        await system.serve(Leaf, {"ask": leaf})
        await system.serve(Middle, {"ask": between})
        caller = system.caller()
        context = caller.root(timeout_s=1.0)
        assert context.deadline_s is not None
        await caller.call(Middle.ask(1), context=context)
        # What a message was under way for is all that remaining milliseconds cannot know.
        slack_s = 0.01 if kind.startswith("http") else 0.0
        for before, after in zip([context.deadline_s, *deadlines], deadlines, strict=False):
            assert after <= before + slack_s

    play(kind, main)


def test_a_callee_is_cancelled_and_its_caller_released_at_the_deadline(kind: str) -> None:
    """At its deadline the caller gets TimedOut, for the outcome is unknown; the callee ends."""
    ended: list[float] = []

    async def stall(_: Incoming) -> bytes:
        try:
            await asyncio.sleep(60.0)
        finally:
            ended.append(now())
        return b"1"

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": stall})
        began_s = now()
        got = await failure(system, Shop.stock("a"), timeout_s=0.5)
        assert type(got) is TimedOut
        assert now() - began_s == pytest.approx(0.5, abs=0.001)
        await asyncio.sleep(0.05)
        assert ended == [pytest.approx(began_s + 0.5, abs=0.02)]

    play(kind, main)


def test_a_callee_that_ignores_its_cancellation_does_not_hold_the_caller(kind: str) -> None:
    """The caller is released at its deadline whatever the callee does."""

    async def stubborn(_: Incoming) -> bytes:
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            await asyncio.sleep(0.8)
        return b"1"

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": stubborn})
        began_s = now()
        assert type(await failure(system, Shop.stock("a"), timeout_s=0.5)) is TimedOut
        assert now() - began_s == pytest.approx(0.5, abs=0.001)

    play(kind, main)


def test_nothing_is_run_after_the_deadline(kind: str) -> None:
    """DeadlineExceeded says that the call certainly did not run: nothing was sent."""

    async def main(system: System) -> None:
        receiver = Always(Reply(200, b"1"))
        await system.mount("shop", receiver, [Shop.stock])
        assert type(await failure(system, Shop.stock("a"), timeout_s=0.0)) is DeadlineExceeded
        assert receiver.requests == []

    play(kind, main)


def test_a_call_that_comes_after_its_deadline_is_not_run(kind: str) -> None:
    """The callee refuses what is too late to be of use, with nothing run."""
    ran: list[Incoming] = []

    async def keep(incoming: Incoming) -> bytes:
        ran.append(incoming)
        return b"1"

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": keep})
        receiver = Always(Reply(200, b"1"))
        spy = System(kind, system.runtime)
        await spy.mount("shop", receiver, [Shop.stock])
        caller = spy.caller()
        await caller.call(Shop.stock("a"), context=caller.root())
        await spy.close()
        request = receiver.requests[0]
        endpoint = system.known.endpoints["shop"][0]
        if kind.startswith("http"):
            headers = {CREDENTIAL: request.credential, DEADLINE_MS: "0"}
            host, _, port = endpoint.url.removeprefix("http://").partition(":")
            response = await system.pool.request(
                host, int(port), "GET", "/stock/a", headers.items(), timeout_s=None
            )
            reply = Reply(response.status, response.body)
        else:
            late = replace(request, context=replace(request.context, deadline_s=now()))
            reply = await system.inproc.send(endpoint, late)
        error = reply.to_error(raises=())
        assert type(error) is DeadlineExceeded
        assert error.status == 504
        assert ran == []

    play(kind, main)


def test_the_time_in_the_queue_counts(kind: str) -> None:
    """A call whose deadline passes while it waits for a place is Shed: it did not run."""
    ran: list[float] = []

    async def slow(_: Incoming) -> bytes:
        ran.append(now())
        await asyncio.sleep(1.0)
        return b"1"

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": slow}, in_flight_max=1)
        caller = system.caller(policies=ONCE)
        first = asyncio.create_task(caller.call(Shop.stock("a"), context=caller.root()))
        await asyncio.sleep(0.1)
        got = await failure(system, Shop.stock("b"), caller=caller, timeout_s=0.5)
        assert type(got) in (Shed, TimedOut)  # whoever's clock is first says it
        assert await first == 1
        assert len(ran) == 1

    play(kind, main)


# -- D2, D3: retries -----------------------------------------------------------------------------


def test_retries_of_a_tree_do_not_multiply(kind: str) -> None:
    """Three services in a row that try three times each send the last one 5 calls, not 27 (D2)."""

    async def main(system: System) -> None:
        calls: list[float] = []

        async def leaf(_: Incoming) -> bytes:
            calls.append(now())
            raise ConnectionError("down")

        await system.serve(Leaf, {"ask": leaf})
        middle, front = system.caller("middle"), system.caller("front")
        await system.serve(Middle, {"ask": passing_on(middle, Leaf.ask(1))})
        await system.serve(Front, {"ask": passing_on(front, Middle.ask(1))})
        policies = Policies(attempts_per_tree=4)
        got = await failure(system, Front.ask(1), caller=system.caller(policies=policies))
        assert type(got) is DownstreamFailed
        assert got.cause_code == "downstream_failed"
        assert 3 <= len(calls) <= 1 + 4
        assert got.attempts_used == len(calls) - 1

    play(kind, main)


def test_calls_of_one_handler_share_its_attempts(kind: str) -> None:
    """A handler that calls ten times has no more extra attempts than one that calls once (D2)."""

    async def main(system: System) -> None:
        calls: list[float] = []

        async def leaf(_: Incoming) -> bytes:
            calls.append(now())
            raise ConnectionError("down")

        await system.serve(Leaf, {"ask": leaf})
        middle = system.caller("middle", Policies(default=Policy(breaker=None)))

        async def ten(incoming: Incoming) -> bytes:
            for _ in range(10):
                with pytest.raises(RemoteFailed):
                    await middle.call(Leaf.ask(1), context=incoming.context)
            return b"10"

        await system.serve(Middle, {"ask": ten})
        caller = system.caller()
        context = replace(caller.root(), attempts_left=8)
        assert await caller.call(Middle.ask(1), context=context) == 10
        assert len(calls) == 10 + 4  # half of 8 went along

    play(kind, main)


@pytest.mark.parametrize(("call", "key", "attempts"), [
    (Front.place(1), "", 1),
    (Front.place(1), "k-1", 3),
    (Front.ask(1), "", 3),
])  # fmt: skip
def test_a_command_without_a_key_is_never_retried(
    kind: str, call: Call[int], key: str, attempts: int
) -> None:
    """After an unknown outcome only queries and commands with a key are sent again (D3)."""

    async def main(system: System) -> None:
        came: list[str] = []

        async def fail(incoming: Incoming) -> bytes:
            came.append(incoming.context.key)
            raise ConnectionError("down")

        await system.serve(Front, {"place": fail, "ask": fail})
        caller = system.caller()
        got = await failure(system, call, caller=caller, key=key)
        assert type(got) is RemoteFailed
        assert came == [key] * attempts
        assert got.attempts_used == attempts - 1

    play(kind, main)


@pytest.mark.parametrize(("error", "attempts"), [
    (ValueError("a bug"), 1),
    (NeverHeardOf("not declared"), 1),
    (TimeoutError("of a file that is far away"), 3),
    (ConnectionRefusedError("by somebody else's service"), 3),
    (asyncio.CancelledError("of something awaited"), 3),
], ids=lambda value: getattr(type(value), "__name__", value))  # fmt: skip
def test_a_bug_of_a_handler_is_not_asked_for_again(
    kind: str, error: BaseException, attempts: int
) -> None:
    """Neither here nor by who called us: it is final on the whole way; the world's faults pass."""

    async def main(system: System) -> None:
        leaves: list[str] = []

        async def leaf(incoming: Incoming) -> bytes:
            leaves.append(incoming.context.key)
            raise error

        await system.serve(Leaf, {"ask": leaf})
        middle = system.caller("middle")
        await system.serve(Middle, {"ask": passing_on(middle, Leaf.ask(1))})
        caller = system.caller()
        got = await failure(system, Leaf.ask(1), caller=caller)
        assert (type(got), len(leaves)) == (RemoteFailed, attempts)
        assert isinstance(got, RemoteFailed)
        assert got.is_final == (attempts == 1)
        assert caller.edges["leaf"].failures == attempts  # a breaker counts it all the same (B5)
        del leaves[:]
        above = await failure(system, Middle.ask(1), caller=caller)
        assert (type(above), len(leaves) == 1) == (DownstreamFailed, attempts == 1)

    play(kind, main)


def test_a_query_carries_no_key(kind: str) -> None:
    """A query in a handler of a command is not sent under the command's key."""

    async def main(system: System) -> None:
        receiver = Always(Reply(200, b"1"))
        await system.mount("front", receiver, [Front.ask])
        caller = system.caller()
        await caller.call(Front.ask(1), context=caller.root(key="k-1"))
        assert receiver.requests[0].context.key == ""

    play(kind, main)


@pytest.mark.parametrize("key", ["order A-1", "Bestellung-ä/β#1", "100%", '{"a":1}'])
def test_key_and_what_it_undoes_arrive(kind: str, key: str) -> None:
    """Any printable key arrives as it was given, also one that no header can carry."""

    async def main(system: System) -> None:
        receiver = Always(Reply(200, b"1"))
        await system.mount("front", receiver, [Front.place])
        caller = system.caller()
        context = replace(caller.root(key=key), undoes=f"{key}/do")
        await caller.call(Front.place(1), context=context)
        sent = receiver.requests[0].context
        assert (sent.key, sent.undoes) == (key, f"{key}/do")

    play(kind, main)


def test_a_business_no_is_never_retried(kind: str) -> None:
    """A rejection is an answer: one attempt, and the breaker counts a success."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"reserve": raising(OutOfStock())})
        caller = system.caller()
        for _ in range(12):
            got = await failure(system, Shop.reserve(SKU), caller=caller)
            assert type(got) is OutOfStock
        snapshot = caller.edges["shop"]
        assert (snapshot.state.value, snapshot.calls, snapshot.failures) == ("closed", 12, 0)

    play(kind, main)


def test_a_retry_goes_to_another_instance(kind: str) -> None:
    """An instance that failed this call is passed over while there is another."""

    async def main(system: System) -> None:
        ill, well = Always(Reply.of_error(Shed("full"))), Always(Reply(200, b"7"))
        await system.mount("leaf", ill, [Leaf.ask], instance="leaf-1")
        await system.mount("leaf", well, [Leaf.ask], instance="leaf-2")
        caller = system.caller()
        for _ in range(4):
            assert await caller.call(Leaf.ask(1), context=caller.root()) == 7
        assert len(well.requests) == 4
        assert 1 <= len(ill.requests) <= 4

    play(kind, main)


def test_the_attempts_that_an_answer_cost_are_counted(kind: str) -> None:
    """What a callee used up below, though it answered, is gone for its caller's other calls."""

    async def main(system: System) -> None:
        ok, failed = Reply(200, b"1", 1), Reply.of_error(RemoteFailed("down"))
        await system.mount("leaf", Always(ok), [Leaf.ask])
        last = Always(failed)
        await system.mount("middle", last, [Middle.ask])
        front = system.caller("front", Policies(default=Policy(retry=RetryOptions(9))))

        async def both(incoming: Incoming) -> bytes:
            await front.call(Leaf.ask(1), context=incoming.context)
            with pytest.raises(RemoteFailed):
                await front.call(Middle.ask(1), context=incoming.context)
            return b"1"

        await system.serve(Front, {"ask": both})
        caller = system.caller()
        await caller.call(Front.ask(1), context=replace(caller.root(), attempts_left=4))
        assert len(last.requests) == 1 + 1  # 2 went along, the answer cost 1 of them

    play(kind, main)


# -- D4: cancellation ----------------------------------------------------------------------------


def test_cancelling_the_caller_cancels_every_callee_below(kind: str) -> None:
    """Cancellation reaches the leaf of the tree, and no task is left behind (D4)."""
    ended: list[str] = []

    async def main(system: System) -> None:
        async def leaf(_: Incoming) -> bytes:
            try:
                await asyncio.sleep(60.0)
            except asyncio.CancelledError:
                ended.append("leaf")
                raise
            return b"1"

        await system.serve(Leaf, {"ask": leaf})
        unhurried = Policies(default=Policy(timeout_s=None))
        middle = passing_on(system.caller("middle", unhurried), Leaf.ask(1))
        await system.serve(Middle, {"ask": middle})
        caller = system.caller(policies=unhurried)
        call = asyncio.create_task(caller.call(Middle.ask(1), context=caller.root()))
        await asyncio.sleep(0.5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.sleep(0.05)
        assert ended == ["leaf"]
        assert all(dispatcher.in_flight == 0 for dispatcher in system.dispatchers)
        assert caller.edges["middle"].failures == 0

    play(kind, main)


# -- B2, B5: breakers ----------------------------------------------------------------------------


def test_breakers_do_not_cascade(kind: str) -> None:
    """Where C fails, B's edge to C opens and A's edge to B never does (B5)."""

    async def main(system: System) -> None:
        await system.serve(Leaf, {"ask": raising(ConnectionError("down"))})
        middle = system.caller("middle")
        await system.serve(Middle, {"ask": passing_on(middle, Leaf.ask(1))})
        client = system.caller("client")
        causes = set()
        for _ in range(40):
            got = await failure(system, Middle.ask(1), caller=client)
            assert type(got) is DownstreamFailed
            causes.add(got.cause_code)
        assert causes == {"remote_failed", "circuit_open"}
        assert middle.edges["leaf"].state.value == "open"
        assert client.edges["middle"].state.value == "closed"
        assert client.edges["middle"].failures == 0

    play(kind, main)


def test_only_the_edge_to_who_stalls_opens(kind: str) -> None:
    """Three in a row with the same times: the middle one can still tell whose fault it is (B5)."""

    async def main(system: System) -> None:
        async def hang(_: Incoming) -> bytes:
            await asyncio.sleep(60)
            return encode(1)

        await system.serve(Leaf, {"ask": hang})
        middle = system.caller("middle")
        await system.serve(Middle, {"ask": passing_on(middle, Leaf.ask(1))})
        caller = system.caller()
        for _ in range(3):
            asked = (
                failure(system, Middle.ask(n), caller=caller, timeout_s=5.0) for n in range(20)
            )
            for got in await asyncio.gather(*asked):
                assert isinstance(got, DownstreamFailed | NotExecuted), got
        assert middle.edges["leaf"].state is BreakerState.OPEN
        assert caller.edges["middle"].state is BreakerState.CLOSED
        assert caller.edges["middle"].failures == 0

    play(kind, main)


def test_a_callee_that_stalls_opens_the_edge_of_callers_with_less_time_than_its_timeout(
    kind: str,
) -> None:
    """One second where the edge has two is more than the callee ever took: it counts (B5)."""

    async def main(system: System) -> None:
        async def hang(_: Incoming) -> bytes:
            await asyncio.sleep(60)
            return encode(1)

        await system.serve(Leaf, {"ask": hang})
        caller = system.caller()
        asked = (failure(system, Leaf.ask(n), caller=caller, timeout_s=1.0) for n in range(30))
        for got in await asyncio.gather(*asked):
            assert isinstance(got, TimedOut), got
        assert caller.edges["leaf"].state is BreakerState.OPEN

    play(kind, main)


def test_impatience_opens_no_edge(kind: str) -> None:
    """Who gives a callee less than its usual answer takes learns nothing about it (B5)."""

    async def main(system: System) -> None:
        async def ask(_: Incoming) -> bytes:
            await asyncio.sleep(0.05)
            return encode(1)

        await system.serve(Leaf, {"ask": ask})
        caller = system.caller()
        for n in range(20):
            await caller.call(Leaf.ask(n), context=caller.root())
        asked = (failure(system, Leaf.ask(n), caller=caller, timeout_s=0.005) for n in range(20))
        for got in await asyncio.gather(*asked):
            assert isinstance(got, TimedOut), got
        assert caller.edges["leaf"].state is BreakerState.CLOSED
        assert caller.edges["leaf"].failures == 0

    play(kind, main)


def test_an_open_breaker_sends_nothing_and_does_not_wait(kind: str) -> None:
    """Calls over an open edge are refused at once; after its rest it recovers (B2)."""

    async def main(system: System) -> None:
        receiver = Always(Reply.of_error(RemoteFailed("down")))
        await system.mount("leaf", receiver, [Leaf.ask])
        options = BreakerOptions(minimum_calls=5, open_jitter=0.0)
        policies = Policies(default=Policy(retry=None, breaker=options))
        caller = system.caller(policies=policies)
        for _ in range(5):
            await failure(system, Leaf.ask(1), caller=caller)
        began_s = now()
        got = await failure(system, Leaf.ask(1), caller=caller)
        assert type(got) is CircuitOpen
        assert now() == began_s
        assert len(receiver.requests) == 5
        receiver.replies = [Reply(200, b"1")]
        await asyncio.sleep(0.6)
        assert await caller.call(Leaf.ask(1), context=caller.root()) == 1
        assert caller.edges["leaf"].state.value == "half_open"
        await asyncio.sleep(1.0)
        assert caller.edges["leaf"].state.value == "closed"

    play(kind, main)


@pytest.mark.parametrize(("timeout_s", "failures"), [(0.1, 0), (0.2, 12), (None, 12)])
def test_a_time_out_counts_only_if_the_callee_had_enough_time(
    kind: str, timeout_s: float | None, failures: int
) -> None:
    """Of a callee that never answered a quarter of the edge's own timeout is enough (B5)."""

    async def stall(_: Incoming) -> bytes:
        await asyncio.sleep(60.0)
        return b"1"

    async def main(system: System) -> None:
        await system.serve(Leaf, {"ask": stall})
        options = BreakerOptions(minimum_calls=100, window_s=60.0)
        policies = Policies(default=Policy(timeout_s=0.5, retry=None, breaker=options))
        caller = system.caller(policies=policies)
        for _ in range(12):
            got = await failure(system, Leaf.ask(1), caller=caller, timeout_s=timeout_s)
            assert type(got) is TimedOut
        assert caller.edges["leaf"].failures == failures

    play(kind, main)


# -- services that are not ours ------------------------------------------------------------------


def test_an_external_service_is_told_a_trace_and_a_key_and_nothing_else(kind: str) -> None:
    """No credential, deadline, attempts or principal of ours leaves the system."""

    async def main(system: System) -> None:
        receiver = Always(Reply(200, b'"c-1"'))
        await system.mount("bank", receiver, [Bank.charge])
        caller = system.caller()
        context = caller.root(principal="alice", key="k-1", timeout_s=5.0)
        assert await caller.call(Bank.charge(5), context=context) == "c-1"
        sent = receiver.requests[0]
        assert (sent.credential, sent.context.key) == ("", "k-1")
        assert sent.context.trace_id == context.trace_id
        told = replace(sent.context, trace_id="", span_id="", key="")
        assert told == type(told)(trace_id="", span_id="", marks=context.marks)

    play(kind, main)


def test_a_dispatcher_may_stand_for_an_external_service(kind: str) -> None:
    """It takes calls without a credential; their caller is nobody."""

    async def main(system: System) -> None:
        came: list[Incoming] = []

        async def charge(incoming: Incoming) -> bytes:
            came.append(incoming)
            return b'"c-1"'

        await system.serve(Bank, {"charge": charge}, is_external=True)
        caller = system.caller()
        assert await caller.call(Bank.charge(5), context=caller.root()) == "c-1"
        assert came[0].context.caller == ""
        assert came[0].context.key

    play(kind, main)


@pytest.mark.parametrize(("status", "body", "expected"), [
    (409, b"<html>", OutOfStock),
    (410, b"", NeverHeardOf),
    (402, b'{"code":"out_of_stock"}', OutOfStock),
    (402, b'{"detail":"card"}', BadRequest),
    (403, b'{"code":"circuit_open"}', BadRequest),
    (429, b"", "rate_limited"),
    (500, b"[1]", RemoteFailed),
    (500, b'{"code":"config"}', RemoteFailed),
    (503, b"\xff", RemoteFailed),
    (503, b'{"code":"shed"}', RemoteFailed),
    (302, b"", RemoteFailed),
    (200, b"<html>", RemoteFailed),
])  # fmt: skip
def test_errors_of_external_services_have_a_class(
    kind: str, status: int, body: bytes, expected: type[SynchromeshError] | str
) -> None:
    """By a code of `raises`, by a status that one of them has, or by the kind of status."""

    async def main(system: System) -> None:
        await system.mount("bank", Always(Reply(status, body)), [Bank.charge])
        got = await failure(system, Bank.charge(5))
        assert expected in (type(got), got.code)

    play(kind, main)


def test_an_external_service_may_answer_nothing_and_may_ask_to_wait(kind: str) -> None:
    """`Retry-After` is passed on, and an answer without a body is null."""

    async def main(system: System) -> None:
        reply = Reply(503, b"busy", retry_after_s=2.0)
        receiver = Always(reply)
        await system.mount("bank", receiver, [Bank.charge])
        got = await failure(system, Bank.charge(5))
        assert type(got) is Shed
        assert got.retry_after_s == 2.0
        await system.mount("shop", Always(Reply(204, b"")), [Shop.nothing])
        caller = system.caller()
        assert await caller.send(Shop.nothing, b"{}", context=caller.root()) == b"null"

    play(kind, main)


@pytest.mark.parametrize("retry_after_s", [None, 0.0, 7.0])
def test_a_503_that_asks_nobody_to_come_back_is_a_failure(
    kind: str, retry_after_s: float | None
) -> None:
    """It opens the breaker; an overload answer, which says when to come back, does not (B5)."""

    async def main(system: System) -> None:
        receiver = Always(Reply(503, b"<html>", retry_after_s=retry_after_s))
        await system.mount("bank", receiver, [Bank.charge])
        trips = BreakerOptions(minimum_calls=5, open_for_s=60.0, open_for_max_s=60.0)
        policy = Policy(retry=None, breaker=trips)
        caller = system.caller(policies=Policies(default=policy))
        for _ in range(10):
            with pytest.raises((Shed, RemoteFailed, CircuitOpen)):
                await caller.call(Bank.charge(5), context=caller.root())
        is_failure = retry_after_s is None
        assert len(receiver.requests) == (5 if is_failure else 10)
        assert caller.edges["bank"].failures == (5 if is_failure else 0)

    play(kind, main)


# -- traces --------------------------------------------------------------------------------------


def test_a_call_is_one_span_at_each_end(kind: str) -> None:
    """The handle span is the call span's child; the call span counts attempts and has a status."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": answering(1), "nothing": raising(InProgress("runs"))})
        caller = system.caller("orders")
        context = caller.root()
        await caller.call(Shop.stock("a"), context=context)
        called, handled = system.span("call", "orders"), system.span("handle", "shop")
        assert called.trace_id == handled.trace_id == context.trace_id
        assert (called.parent_id, handled.parent_id) == ("", called.span_id)
        assert called.name == handled.name == "shop.stock"
        assert called.attributes == {"instance": "shop-1", "attempts": "1"}
        assert (called.status, handled.status) == ("ok", "ok")

    play(kind, main)


def test_the_spans_of_a_failed_call_say_its_code(kind: str) -> None:
    """One call span with three attempts, three handle spans, all with the error's code."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": raising(OSError("secret"))})
        caller = system.caller("orders")
        await failure(system, Shop.stock("a"), caller=caller)
        called = system.span("call", "orders")
        assert (called.status, called.attributes["attempts"]) == ("remote_failed", "3")
        handled = [span for span in system.spans if span.kind == "handle"]
        assert [(s.status, s.parent_id) for s in handled] == [("remote_failed", called.span_id)] * 3
        assert "secret" not in repr(list(system.spans))

    play(kind, main)


def test_an_instance_that_has_gone_is_a_failed_connection(kind: str) -> None:
    """Nothing was sent to an instance that does not listen: retried even without a key."""

    async def main(system: System) -> None:
        await system.mount("front", Always(Reply(200, b"1")), [Front.place])
        if kind.startswith("http"):
            await system.stack.aclose()
            again = System(kind, system.runtime)
            again.known = system.known
        else:
            system.inproc.remove("front-1")
            again = system
        got = await failure(again, Front.place(1), caller=again.caller(), key="")
        assert type(got) is ConnectFailed
        assert got.attempts_used == 2
        await again.close()

    play(kind, main)


@pytest.mark.anyio
async def test_http_runs_on_real_sockets(caplog: pytest.LogCaptureFixture) -> None:
    """The same transport on TCP: an answer, a rejection, a failure, a cancelled callee."""
    caplog.set_level(logging.CRITICAL)
    system = System("http", RealRuntime())
    cancelled = asyncio.Event()

    async def stock(incoming: Incoming) -> bytes:
        if incoming.operation.parse(incoming.arguments)["sku"] == "late":
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        raise RuntimeError("down")

    try:
        await system.serve(Shop, {"reserve": answering(Hold("h-1")), "stock": stock})
        caller = system.caller()
        hold = await caller.call(Shop.reserve(SKU), context=caller.root())
        assert hold == Hold("h-1")
        assert type(await failure(system, Shop.stock("a"))) is RemoteFailed
        got = await failure(system, Shop.stock("late"), timeout_s=0.05)
        assert type(got) in (TimedOut, ConnectionLost)
        await cancelled.wait()
    finally:
        await system.close()


# -- several instances ---------------------------------------------------------------------------


def test_an_instance_that_is_well_again_gets_calls_again(kind: str) -> None:
    """A probe brings it back, on either way, and what is counted of it comes out even."""

    async def main(system: System) -> None:
        ill = True

        async def work(_: Incoming) -> bytes:
            await asyncio.sleep(0.01)
            if ill:
                raise OSError("it fails")
            return encode(1)

        async def well(_: Incoming) -> bytes:
            await asyncio.sleep(0.01)
            return encode(1)

        await system.serve(Leaf, {"ask": work}, instance="leaf-1")
        await system.serve(Leaf, {"ask": well}, instance="leaf-2")
        caller = system.caller()
        balancer = caller.called("leaf", is_external=False).balancer
        seen = set()
        for _ in range(60):
            calls = (caller.call(Leaf.ask(1), context=caller.root()) for _ in range(20))
            await asyncio.gather(*calls)
            seen.add(balancer.ejected)
        assert ("leaf-1",) in seen
        ill = False
        for _ in range(1000):
            await caller.call(Leaf.ask(1), context=caller.root())
        assert list(balancer.ejected) == []
        assert {member.in_flight for member in balancer._outliers.open} == {0}
        assert caller.edges["leaf"].failures == 0

    play(kind, main)


def test_an_open_breaker_does_not_wait_for_a_place(kind: str) -> None:
    """B2: a rejection never waits, and a full limiter is no reason to."""

    async def main(system: System) -> None:
        async def hang(_: Incoming) -> bytes:
            await asyncio.sleep(5.0)
            return encode(1)

        await system.serve(Leaf, {"ask": hang})
        policy = Policy(timeout_s=9.0, retry=None, limit=LimitOptions(2, 8))
        caller = system.caller(policies=Policies(default=policy))
        calls = [
            asyncio.create_task(caller.call(Leaf.ask(1), context=caller.root())) for _ in range(2)
        ]
        await asyncio.sleep(0.1)
        breaker = caller.edge("leaf").breaker
        assert breaker is not None
        breaker.isolate(now())
        began_s = now()
        got = await failure(system, Leaf.ask(1), caller=caller)
        assert (type(got), now() - began_s) == (CircuitOpen, 0.0)
        await asyncio.gather(*calls)

    play(kind, main)


def test_a_handler_that_waits_for_others_is_not_slow_itself(kind: str) -> None:
    """Its caller takes off what it waited, for answers and for a business no (`away-ms`)."""

    async def main(system: System) -> None:
        async def leaf(_: Incoming) -> bytes:
            await asyncio.sleep(0.2)
            return encode(1)

        async def reserve(incoming: Incoming) -> bytes:
            await middle.call(Leaf.ask(1), context=incoming.context)
            raise OutOfStock("none is left")

        async def stock(incoming: Incoming) -> bytes:
            await asyncio.sleep(0.01)
            return encode(await middle.call(Leaf.ask(1), context=incoming.context))

        await system.serve(Leaf, {"ask": leaf})
        middle = system.caller("shop")
        await system.serve(Shop, {"reserve": reserve, "stock": stock})
        caller = system.caller()
        for _ in range(40):
            await caller.call(Shop.stock("SX90"), context=caller.root())
            await failure(system, Shop.reserve(SKU), caller=caller)
        usual_s = [plan.tracker.usual_s for plan in caller._plans.values()]
        assert max(usual_s) < 0.02

    play(kind, main)
