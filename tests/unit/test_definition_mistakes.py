"""Mistakes of a definition are refused at the line that has them, with what to write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import pytest

from synchromesh.alone import Alone
from synchromesh.calls import Contract, PublicEvent, command, event, query
from synchromesh.errors import ContractError, ForeignAwait, Rejection
from synchromesh.service import Context, Service, Transaction
from synchromesh.store import Migration
from synchromesh.testing import SimRuntime, run, serving


class Nothing(Rejection, code="nothing", status=404):
    """Tells that there is nothing."""


class Made(msgspec.Struct):
    n: int


class A(Contract, Protocol, service="a", version="1.0"):
    @command("POST /x", raises=(Nothing,))
    async def x(self, n: int) -> int: ...
    @query("GET /y")
    async def y(self, n: int) -> int: ...

    made: PublicEvent[Made] = event(Made)


def service() -> Any:
    return Service("a", implements=A)


async def in_transaction(tx: Transaction, n: int) -> int:
    return n


async def in_context(ctx: Context, n: int) -> int:
    return n


Refused = Callable[[], object]

ANY_COMMAND: Any = command
ANY_QUERY: Any = query
ANY_ALONE: Any = Alone

TUPLES: list[tuple[Refused, str]] = [
    (
        lambda: command("POST /x", raises=Nothing)(in_context),  # type: ignore[arg-type]
        r"raises= of 'in_context' is a class; write a tuple: \(Nothing,\)",
    ),
    (
        lambda: query("GET /x", raises=(ValueError,))(in_context),  # type: ignore[arg-type]
        "has <class 'ValueError'>; give classes of Rejection",
    ),
    (
        lambda: query("GET /x", raises=None)(in_context),  # type: ignore[arg-type]
        "raises= of 'in_context' is None; write a tuple",
    ),
    (
        lambda: Migration(1, ("create table t(n)"), 1),  # type: ignore[arg-type]
        r"migration 1: statements is a text; write a tuple: \('create table t\(n\)',\)",
    ),
    (
        lambda: Migration(1, (b"create",), 1),  # type: ignore[arg-type]
        "statements has b'create'; give SQL",
    ),
    (
        lambda: Service("a", migrations=Migration(1, ("create table t(n)",), 1)),  # type: ignore[arg-type]
        "migrations= of a is Migration.*; write a tuple",
    ),
    (lambda: Service("a", migrations=["create table t(n)"]), "give a Migration for each"),  # type: ignore[list-item]
    (lambda: Service("a", ignored=A.made), r"ignored= of a is <event a.made>; write a tuple"),  # type: ignore[arg-type]
    (lambda: Service("a", ignored=[Made]), "give a PublicEvent for each"),  # type: ignore[list-item]
    (
        lambda: service().projection("p", events=Made),
        r"events= of projection 'p' is a class; write a tuple: \(Made,\)",
    ),
    (lambda: service().projection("p", events=(A.made,)), "has <event a.made>; give classes"),
    (
        lambda: service().projection("p", events=(Made,), tables="create table t(n integer)"),
        "tables= of projection 'p' is a text",
    ),
]

PAIRINGS: list[tuple[Refused, str]] = [
    (
        lambda: service().writes(A.y)(in_transaction),
        "a.y is a query, and @a.writes handles commands; write @a.handles",
    ),
    (lambda: service().writes(in_transaction), "@a.writes is given <function in_transaction"),
    (lambda: service().handles(A.x(1)), "@a.handles is given <Call a.x .*not called"),
    (lambda: service().handles(A.made), "@a.handles is given <event a.made>"),
    (
        lambda: service().writes(A.x)(in_context),
        "takes a Context first, and is given a Transaction",
    ),
    (
        lambda: service().handles(A.x)(in_transaction),
        "takes a Transaction first, and is given a Context",
    ),
    (lambda: service().on(A.x), "@a.on is given <command a.x POST /x>; give it a public event"),
    (lambda: service().on(Made), "@a.on is given <class '.*Made'>"),
    (lambda: service().on(A.made)(in_context), "the handler of a.made takes a Context first"),
    (
        lambda: service().projection("p", events=(Made,))(in_context),
        "projection 'p' takes a Context first",
    ),
]


# As `@command` stands over a function, without parentheses.
BARE: list[tuple[Refused, str]] = [
    (
        lambda: ANY_COMMAND(in_context),
        r'@command stands over in_context without .*; write such as @command\("POST /reservations"',
    ),
    (lambda: ANY_QUERY(in_context), r'write such as @query\("GET /stock/{sku}"\)'),
    (lambda: service().writes(in_transaction), r"not called: @a\.writes\(Inventory\.reserve\)"),
    (lambda: service().handles(in_context), r"not called: @a\.handles\(Inventory\.reserve\)"),
    (lambda: service().on(in_transaction), "give it a public event of a contract, such as"),
    (lambda: service().saga(in_context), r'such as @a\.saga\(PlaceOrder, deadline="10m"\)'),
    (lambda: service().projection(in_context), r'@a\.projection\("sold", events=\(Sold,\)\)'),
    (lambda: service().schedule(in_context), r'@a\.schedule\("0 9 \* \* mon-fri"\)'),
    (lambda: ANY_ALONE("b").saga(in_context), r"@b\.saga stands over in_context without"),
]


@pytest.mark.parametrize(("define", "said"), [*TUPLES, *PAIRINGS, *BARE])
def test_what_is_declared_wrong_is_refused_where_it_is_declared(define: Refused, said: str) -> None:
    """Not at the first call, and with what is to be written instead."""
    with pytest.raises(ContractError, match=said):
        define()


@pytest.mark.parametrize(("kind", "how"), [("command", "writes"), ("query", "handles")])
def test_a_service_says_where_operations_are_declared(kind: str, how: str) -> None:
    """Who looks for `@service.command` is told of the contract; any other name is none."""
    with pytest.raises(AttributeError, match=rf"such as by @{kind}, .* @a\.{how}\("):
        getattr(service(), kind)
    assert not hasattr(service(), "commands")


def test_a_list_is_as_good_as_a_tuple() -> None:
    """What has the right elements is taken."""
    assert Migration(1, ["create table t(n)"], 1).statements == ("create table t(n)",)  # type: ignore[arg-type]
    assert command("POST /x", raises=[Nothing])(in_context).raises == (Nothing,)  # type: ignore[arg-type]


NOT_CALLED: Any = A.y
SENT: list[tuple[Callable[[Context], Any], str]] = [
    (
        lambda ctx: ctx.call(NOT_CALLED),
        r"a\.y is sent as it is; call it with its arguments: a\.y\(\.\.\.\)",
    ),
    (lambda _: A.y(1), r"a\.y is awaited, .*; send it: await ctx\.call\(a\.y\(\.\.\.\)\)"),
]


@pytest.mark.parametrize(("send", "said"), SENT)
def test_a_call_that_is_not_made_or_not_sent_is_told_in_our_words(
    send: Callable[[Context], Any], said: str
) -> None:
    """An operation that is sent, and a call that is awaited."""
    own, told = service(), []

    @own.handles(A.x)  # type: ignore[untyped-decorator]
    async def x(ctx: Context, n: int) -> int:
        with pytest.raises(ContractError, match=said) as raised:
            await send(ctx)
        told.append(raised)
        return n

    own.handles(A.y)(in_context)

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, own) as client:
            assert await client.call(A.x(1), key="k") == 1

    run(main)
    assert len(told) == 1


def test_a_unit_that_awaits_what_it_may_not_is_named_by_its_handler() -> None:
    """A lambda, too: by the function that it stands in."""
    own, told = service(), []

    async def late(tx: Transaction) -> int:
        await asyncio.sleep(1.0)
        return 1

    @own.handles(A.x)  # type: ignore[untyped-decorator]
    async def lend(ctx: Context, n: int) -> int:
        with pytest.raises(ForeignAwait) as raised:
            await ctx.write(lambda tx: late(tx))
        told.append(raised.value.message)
        return n

    own.handles(A.y)(in_context)

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, own) as client:
            await client.call(A.x(1), key="k")

    run(main)
    (said,) = told
    assert "lend.<locals>.<lambda>' awaited" in said


def test_a_handler_that_awaits_what_it_may_not_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """By its operation, and by nothing of ours."""
    own = service()

    @own.writes(A.x)  # type: ignore[untyped-decorator]
    async def lend(tx: Transaction, n: int) -> int:
        await asyncio.sleep(1.0)
        return n

    own.handles(A.y)(in_context)

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, own) as client:
            with pytest.raises(ForeignAwait):
                await client.call(A.x(1), key="k")

    run(main)
    assert "unit 'a.x' awaited the event loop" in caplog.text
