"""Services in a test: called as by a client, on databases of their own, in virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Protocol

import pytest

from notes_app import Broken, Note, Notes, Taken, broken, notes
from service_world import Hooks, make_stock
from service_world import Stock as StockContract
from synchromesh.calls import Contract, command
from synchromesh.errors import ConfigError, ContractError, DownstreamFailed, Rejection, TimedOut
from synchromesh.gateway import ApiKeys, Forward, Gateway, Mirror, Route
from synchromesh.http import AsgiHandler, HttpRequest, HttpResponse
from synchromesh.service import Context, Service
from synchromesh.system import load_config
from synchromesh.testing import SimRuntime, Unhandled, World, run, serving, stand_in


class Declined(Rejection, code="declined", status=402):
    """Tells that the bank will not pay."""


class Bank(Contract, Protocol, service="bank", version="1.0", external=True):
    @command("POST /charges", raises=(Declined,))
    async def charge(self, cents: int) -> str: ...


class Shop(Contract, Protocol, service="shop", version="1.0"):
    @command("POST /buys", raises=(Declined,))
    async def buy(self, cents: int) -> str: ...


def test_a_service_answers_and_keeps_what_it_wrote() -> None:
    """Commands are done once per key, queries read, a principal arrives, refusals are raised."""

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, notes) as client:
            assert await client.call(Notes.write(Note("a", "x")), key="k") == 1
            assert await client.call(Notes.write(Note("a", "x")), key="k") == 1
            with pytest.raises(Taken):
                await client.call(Notes.write(Note("a", "x")))
            assert await client.call(Notes.who(), principal="ada") == "ada"
            assert await client.call(Notes.plan("saga")) == "saga"
        async with serving(runtime, notes) as client:
            assert await client.call(Notes.count()) == 2

    run(main)


def test_a_service_that_was_not_handed_in_is_named() -> None:
    """What a service calls has to be served too; the log says so."""

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, make_stock(Hooks())) as client:
            with pytest.raises(DownstreamFailed, match=r"bank\.charge did: no_instance"):
                await client.call(StockContract.build("1", "bolt", 5))

    run(main)


def test_a_fake_stands_for_somebody_elses_service() -> None:
    """A service of an external contract is called without a credential, under the caller's key."""
    seen: list[tuple[str, str, str]] = []
    bank = Service("bank", implements=Bank)
    shop = Service("shop", implements=Shop)

    @bank.handles(Bank.charge)
    async def charge(ctx: Context, cents: int) -> str:
        seen.append((ctx.caller, ctx.principal.name, ctx.key))
        if cents > 100:
            raise Declined("too much")
        return f"receipt {len(seen)}"

    @shop.handles(Shop.buy)
    async def buy(ctx: Context, cents: int) -> str:
        return await ctx.call(Bank.charge(cents))

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, shop, bank) as client:
            for _ in range(2):
                assert await client.call(Shop.buy(5), key="k", principal="ada") == "receipt 1"
            with pytest.raises(Declined):
                await client.call(Shop.buy(500))

    run(main)
    assert seen[0][:2] == ("", "")
    assert "k/" in seen[0][2]
    assert len(seen) == 2


class TheirBank(Contract, Protocol, service="bank", version="2.3"):
    """Their contract as they have it: to them it is not external."""

    @command("POST /charges", raises=(Declined,))
    async def charge(self, cents: int) -> str: ...


shop = Service("shop", implements=Shop)


@shop.handles(Shop.buy)
async def buy_and_charge(ctx: Context, cents: int) -> str:
    return await ctx.call(Bank.charge(cents))


def test_a_service_of_their_own_contract_stands_for_an_external_one() -> None:
    """No credential is asked for, whatever it says; among services of one system it is."""
    theirs = Service("bank", implements=TheirBank)

    @theirs.handles(TheirBank.charge)
    async def charge(ctx: Context, cents: int) -> str:
        assert (ctx.caller, ctx.principal.name) == ("", "")
        return f"receipt for {cents}"

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, shop, externals=[theirs]) as client:
            assert await client.call(Shop.buy(5), principal="ada") == "receipt for 5"
        async with serving(runtime, shop, theirs) as client:
            with pytest.raises(DownstreamFailed, match="bad_request"):
                await client.call(Shop.buy(6))

    run(main)


def test_a_stand_in_answers_what_it_was_told() -> None:
    """A recorded answer, a refusal, a function; what it was told nothing of is named."""

    async def charge(cents: int) -> str:
        await asyncio.sleep(0.1)
        return f"receipt for {cents}"

    async def main(runtime: SimRuntime) -> None:
        for answer, told in ((charge, "receipt for 5"), ("recorded", "recorded")):
            bank = stand_in(Bank, charge=answer)
            async with serving(runtime, shop, externals=[bank]) as client:
                assert await client.call(Shop.buy(5)) == told
        declines = stand_in(Bank, charge=Declined("too much"))
        async with serving(runtime, shop, externals=[declines]) as client:
            with pytest.raises(Declined):
                await client.call(Shop.buy(5))
        async with serving(runtime, shop, externals=[stand_in(Bank)]) as client:
            with pytest.raises(DownstreamFailed, match=r"bank\.charge"):
                await client.call(Shop.buy(5))

    run(main)
    with pytest.raises(ValueError, match="no operation 'charges'; did you mean 'charge'"):
        stand_in(Bank, charges="x")


def test_configured_policies_and_bounds_are_in_force(tmp_path: Path) -> None:
    """A time-out of the edge, and the number of calls that a service works on, as in the file."""
    (tmp_path / "synchromesh.toml").write_text(
        '[system]\nname = "shop"\n'
        '[services.shop]\napp = "shop:shop"\nin_flight = 1\nwaiting = 0\n'
        '[external.bank]\nurl = "http://127.0.0.1:1"\n'
        '[policies."shop:bank"]\ntimeout = "300ms"\nretry = { attempts = 1 }\n'
    )
    config = load_config(tmp_path)

    async def charge(cents: int) -> str:
        await asyncio.sleep(1.0)
        return "late"

    async def main(runtime: SimRuntime) -> None:
        loop, bank = asyncio.get_running_loop(), stand_in(Bank, charge=charge)
        async with serving(runtime, shop, externals=[bank]) as client:
            assert await client.call(Shop.buy(5)) == "late"
        async with serving(runtime, shop, externals=[bank], config=config) as client:
            began_s, caller = loop.time(), client.up["shop"].caller
            with pytest.raises(TimedOut):
                await caller.call(Bank.charge(6), context=caller.root(key="k"))
            assert 0.3 <= loop.time() - began_s < 0.4
            with pytest.raises(DownstreamFailed, match="timed_out"):
                await client.call(Shop.buy(6))
            # A handler that waits for the bank holds no place: the bound is that of its own time.
            places = client.deps.places("shop")
            assert (places.in_flight_max, places.queue_max) == (1, 0)

    run(main)


def test_a_background_failure_is_not_lost() -> None:
    """A projection that can never be made fails the test, with its cause."""

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, broken) as client:
            await client.call(Broken.now())
            await asyncio.sleep(600.0)

    with pytest.raises(Unhandled, match=r"broken/projection/never is parked at .*cannot be made"):
        run(main)


def test_a_service_that_does_not_fit_is_refused() -> None:
    """A contract without handlers is an error before anything runs."""

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, Service("notes", implements=Notes)):
            raise AssertionError("it must not start")

    with pytest.raises(ContractError):
        run(main)


GATEWAY = Gateway(
    auth=[ApiKeys()],
    routes=[
        Route("POST /notes", Notes.write, scopes={"notes:write"}),
        Route("GET /notes", Notes.count, public=True),
        Route("GET /me", Notes.who),
    ],
)


def test_a_client_comes_in_through_a_gateway() -> None:
    """Keys, scopes and idempotency keys count; who asks is told on; a refusal is an answer."""

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, notes, gateway=GATEWAY) as client:
            send, note = client.gateway.send, Note("a", "x")
            ada = client.gateway.key("ada", "notes:write")
            reader = client.gateway.key("eve", "notes:read")
            for _ in range(2):
                answer = await send("POST /notes", note, key=ada, idempotency_key="k")
                assert (answer.status, answer.value(int)) == (200, 1)
            again = await send("POST /notes", note, key=ada, idempotency_key="k2")
            assert (again.status, again.value(dict[str, Any])["type"]) == (
                409,
                "urn:synchromesh:error:taken",
            )
            assert (await send("POST /notes", note)).status == 401
            assert (await send("POST /notes", note, key=reader)).status == 403
            assert (await send("POST /notes", note, key=f"{ada[:-1]}?")).status == 401
            assert (await send("GET /me", headers={"x-api-key": ada})).value(
                str
            ) == "ada may notes:write"
            assert (await send("GET /notes")).value(int) == await client.call(Notes.count()) == 1
            assert (await send("GET /nothing", key=ada)).status == 404

    run(main)


def test_a_gateway_that_is_wrong_is_named() -> None:
    """It is checked before anything listens, and its services are stopped."""
    wrong = Gateway(routes=[Route("GET /notes", Notes.count)])

    async def main(runtime: SimRuntime) -> None:
        with pytest.raises(ConfigError, match="GET /notes"):
            async with serving(runtime, notes, gateway=wrong):
                pass

    run(main)


async def monolith(request: HttpRequest) -> HttpResponse:
    """Answer what was asked, in the words of somebody else."""
    if request.path == "/broken":
        return HttpResponse(500, [("content-type", "text/plain")], b"out of order")
    here = f"http://{request.headers.get('host')}"
    return HttpResponse(201, [("location", f"{here}/made")], request.body or b"-")


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """Answer by ASGI, with what was sent."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode() + body})


PASSING = Gateway(
    routes=[
        Forward("GET /count", to="notes", public=True, mirror=Mirror("old", path="/n")),
        Forward("ANY /old/{path...}", to="old", path="/{path...}", public=True),
        Forward("POST /app/{name}", to="app", public=True),
        Forward("POST /charges", to="bank", public=True),
    ]
)


def test_a_forward_leads_to_a_service_a_stand_in_or_a_function() -> None:
    """Each is asked by HTTP, and answers in its own words; a copy is compared."""

    async def main(runtime: SimRuntime) -> None:
        async with serving(
            runtime,
            notes,
            externals=[stand_in(Bank, charge="done")],
            upstreams={"old": monolith, "app": AsgiHandler(asgi)},
            gateway=PASSING,
        ) as client:
            send = client.gateway.send
            await client.call(Notes.write(Note("a", "x")))
            assert (await send("GET /count")).value(int) == 1
            made = await send("POST /old/things", {"a": 1})
            assert (made.status, made.body) == (201, b'{"a":1}')
            assert made.headers["location"] == "/old/made"
            broken = await send("GET /old/broken")
            assert (broken.status, broken.body) == (500, b"out of order")
            assert (await send("POST /app/x", 7)).body == b"/app/x7"
            assert (await send("POST /charges", {"cents": 5})).value(str) == "done"
            await asyncio.sleep(1.0)
            assert [each.different for each in client.gateway.mirrors()] == [1]

    run(main)


def test_a_forward_to_somebody_who_is_not_there_is_named() -> None:
    """Before anything is asked."""

    async def main(runtime: SimRuntime) -> None:
        with pytest.raises(ConfigError, match=r"passes requests on to 'old', and nobody stands"):
            async with serving(runtime, notes, gateway=PASSING):
                pass

    run(main)


def test_a_gateway_outlives_no_power_cut() -> None:
    """In a world its node comes up again with it, and what was answered holds."""
    world, told = World(3), []

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, notes, gateway=GATEWAY) as client:
            key = client.gateway.key("ada", "notes:write")
            for n in range(5):
                answer = await client.gateway.send(
                    "POST /notes", Note(f"{n}", "x"), key=key, idempotency_key=f"k{n}"
                )
                told.append((n, answer.status))
            await asyncio.Event().wait()

    node = world.node("shop", main)
    world.on_step = lambda each: each.crash(0.5) if each.steps == 60 else None
    node.start()
    world.run(asyncio.sleep(30.0))
    assert world.count["crash"] == 1
    assert {n for n, status in told if status == 200} == set(range(5))
    assert world.disk.rows("/notes.db", "select count(*) from note") == [(5,)]
