"""Whose call it is, in every service of a request: name, kind, scopes and claims, signed."""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec
import pytest

from calls_fakes import KEY, Shop, System, play
from synchromesh import Context, Contract, Saga, Service, Transaction, command, query
from synchromesh.calls import Incoming
from synchromesh.errors import ContractError, Forbidden, SagaUndone, Unauthenticated
from synchromesh.gateway import Principal
from synchromesh.identity import (
    NOBODY,
    PRINCIPAL_BYTES_MAX,
    Claim,
    Credential,
    Signer,
    principal_of,
    principal_text,
)
from synchromesh.testing import SimRuntime, run, serving

ADA = Principal(
    "jwt:ada",
    frozenset({"orders:write", "stock:read"}),
    "token",
    "https://id.servo.works",
    (("site", 7), ("roles", ("buyer", "fitter")), ("is_staff", True)),
)
READER = Principal("jwt:ada", frozenset({"stock:read"}), "token", "https://id.servo.works")


@pytest.mark.parametrize("scope", ["orders:write admin", "", "a\tb", 'a"b', "a\\b", "\u00e9"])
def test_an_upstream_is_told_no_scope_that_would_be_several(scope: str) -> None:
    """Whoever has made the principal: a token of it has them in one text, with blanks between."""
    with pytest.raises(Forbidden, match="a scope with a blank"):
        Signer(KEY).principal_token("ada", frozenset({"a", scope}), audience="legacy", now_us=0)


class Order(msgspec.Struct):
    id: str


class Bank(Contract, Protocol, service="bank", version="1.0"):
    @command("POST /charges")
    async def charge(self, order_id: str) -> str: ...
    @command("POST /refunds")
    async def refund(self, order_id: str) -> None: ...
    @query("GET /balance")
    async def balance(self) -> int: ...


class Orders(Contract, Protocol, service="orders", version="1.0"):
    @command("POST /orders")
    async def place(self, order_id: str) -> str: ...
    @query("GET /who")
    async def who(self) -> str: ...


def services(seen: list[tuple[str, Principal]]) -> tuple[Service, Service]:
    bank, orders = Service("bank", implements=Bank), Service("orders", implements=Orders)

    @bank.writes(Bank.charge, scopes={"orders:write"})
    async def charge(tx: Transaction, order_id: str) -> str:
        seen.append(("charge", tx.principal))
        return f"{order_id} for {tx.principal.name}"

    @bank.writes(Bank.refund)
    async def refund(tx: Transaction, order_id: str) -> None:
        seen.append(("refund", tx.principal))

    @bank.handles(Bank.balance)
    async def balance(ctx: Context) -> int:
        ctx.principal.require("bank:read", "stock:read")
        return 1

    @orders.saga(Order, deadline="10m")
    async def place_order(saga: Saga, order: Order) -> str:
        return await saga.call(Bank.charge(order.id), undo=Bank.refund)

    @orders.handles(Orders.place)
    async def place(ctx: Context, order_id: str) -> str:
        seen.append(("place", ctx.principal))
        started = await place_order.start(ctx, Order(order_id), id=order_id)
        return await started.result(within_s=60.0) or "late"

    @orders.handles(Orders.who)
    async def who(ctx: Context) -> str:
        return str(ctx.principal.claim("site"))

    return bank, orders


def test_what_the_gateway_knew_is_known_in_the_last_service() -> None:
    """Through a handler, a saga and its steps: scopes, kind, issuer and claims."""
    seen: list[tuple[str, Principal]] = []

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, *services(seen)) as client:
            assert await client.call(Orders.place("A-1"), principal=ADA) == "A-1 for jwt:ada"
            assert await client.call(Orders.who(), principal=ADA) == "7"
            assert await client.call(Orders.who()) == "None"

    run(main)
    assert seen == [("place", ADA), ("charge", ADA)]


def test_a_handler_asks_for_scopes() -> None:
    """Who lacks one is Forbidden and nothing runs; nobody has any, whoever calls."""
    seen: list[tuple[str, Principal]] = []

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, *services(seen)) as client:
            for who in (READER, Principal("shop", ADA.scopes - {"orders:write"}), NOBODY, "ada"):
                with pytest.raises(Forbidden, match="needs the scope 'orders:write'"):
                    await client.call(Bank.charge("A-1"), principal=who)
            assert seen == []
            with pytest.raises(Forbidden, match="needs the scope 'bank:read'"):
                await client.call(Bank.balance(), principal=ADA)
            with pytest.raises(SagaUndone):
                await client.call(Orders.place("A-2"), principal=READER)
            assert await client.call(Bank.charge("A-3"), principal=ADA) == "A-3 for jwt:ada"

    run(main)
    assert [what for what, _ in seen if what == "charge"] == ["charge"]


def test_a_text_is_no_set_of_scopes() -> None:
    """Its letters would be."""
    bank = Service("bank", implements=Bank)
    with pytest.raises(ContractError, match=r'write a set, such as \{"bank:read"\}'):
        bank.writes(Bank.refund, scopes="bank:read")(_refund)  # type: ignore[arg-type]


async def _refund(tx: Transaction, order_id: str) -> None: ...


@pytest.mark.parametrize("kind", ["inproc", "http"])
def test_scopes_of_one_call_are_not_those_of_another(kind: str) -> None:
    """Two calls for the same name have each its own, whatever was kept of the hop before."""
    came: list[Principal] = []

    async def keep(incoming: Incoming) -> bytes:
        came.append(incoming.context.principal)
        return b"1"

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": keep})
        caller = system.caller("orders")
        for _ in range(2):
            for who in (ADA, READER, NOBODY):
                await caller.call(Shop.stock("a"), context=caller.root(principal=who))
        await asyncio.gather(
            *(caller.call(Shop.stock("a"), context=caller.root(principal=w)) for w in (READER, ADA))
        )

    play(kind, main)
    assert came[:6] == [ADA, READER, NOBODY] * 2
    assert set(came[6:]) == {ADA, READER}


def test_what_is_signed_cannot_be_added_to() -> None:
    """A scope that is put into a credential on its way makes it none."""
    signer = Signer(KEY)
    token = signer.token("gateway", READER, audience="bank", now_us=0)
    assert signer.verify(token, audience="bank", now_us=1).principal == READER
    more = Credential("gateway", ADA, "bank", 10**12)
    forged = Signer(b"o" * 32).token("gateway", ADA, audience="bank", now_us=0)
    body, _, mac = token.partition(".")
    for wrong in (f"{forged.partition('.')[0]}.{mac}", f"{body}x.{mac}", forged):
        with pytest.raises(Unauthenticated):
            signer.verify(wrong, audience="bank", now_us=1)
    assert more.principal != READER


@pytest.mark.parametrize("who", [NOBODY, Principal("ada"), Principal('{"name":"x"}'), ADA, READER])
def test_a_principal_is_kept_as_a_text(who: Principal) -> None:
    """A run that goes on after a crash acts for whom it was started, with what they may do."""
    assert principal_of(principal_text(who)) == who
    assert principal_of(principal_text(who)).claims == who.claims


def test_a_principal_is_short_enough_to_travel() -> None:
    """It goes along with every call: what is too long is refused where it comes in."""
    assert ADA.is_short()
    few: tuple[tuple[str, Claim], ...] = (("a", "x" * (PRINCIPAL_BYTES_MAX // 2)),)
    assert Principal("ada", claims=few).is_short()
    assert not Principal("ada", claims=few * 2).is_short()
