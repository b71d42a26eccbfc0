"""What a `Cache` promises: asked once, kept for a time, for whom it is, and no longer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway_fakes import (
    NO_RETRY,
    SECRET,
    SHOP,
    Fleet,
    Machine,
    Orders,
    Plant,
    Production,
    Token,
    UnknownMachine,
    behind,
    json_of,
    now,
    stalls,
)
from synchromesh.calls import Incoming
from synchromesh.errors import Forbidden, Shed
from synchromesh.gateway import (
    Aggregate,
    ApiKeys,
    Branch,
    Cache,
    Cors,
    Gateway,
    Rate,
    Route,
    Stale,
    Static,
)
from synchromesh.gateway.caching import credential_fields
from synchromesh.http import HttpResponse

pytestmark = pytest.mark.usefixtures("each_way", "http_way")


@pytest.fixture(params=["inproc", "http"])
def kind(request: pytest.FixtureRequest) -> str:
    """The transport behind the gateway."""
    return str(request.param)


def machines(cache: Cache, **more: Any) -> Gateway:
    """Return a gateway whose machines may be kept."""
    limits = {name: more.pop(name) for name in ("cache_max", "cache_bytes_max") if name in more}
    route = Route("GET /m/{id}", Fleet.machine, cache=cache, **{"deadline": "1s", **more})
    return Gateway(auth=[SHOP], routes=[route], **limits)


def named(incoming: Incoming) -> str:
    return str(json.loads(incoming.arguments)["id"])


def counting(plant: Plant) -> None:
    """Let each answer differ from the one before."""
    plant.fleet.answers["machine"] = lambda i: Machine(named(i), number=len(plant.fleet.asked))


def slowly(answer: Any) -> Any:
    """Let an answer or an error take so long that all who ask at once wait for it."""

    async def answered(incoming: Incoming) -> Any:
        await asyncio.sleep(0.1)
        return answer(incoming) if callable(answer) else answer

    return answered


def number_of(answer: HttpResponse) -> int:
    assert answer.status == 200, answer.body
    number = json_of(answer)["number"]
    assert isinstance(number, int)
    return number


def told(answer: HttpResponse, name: str) -> str:
    return ", ".join(answer.headers.get_all(name))


def test_an_answer_is_kept_for_its_time(kind: str) -> None:
    """It is given again with its age, and asked for anew once it is too old."""

    async def main(plant: Plant) -> None:
        counting(plant)
        first = await plant.ask("GET /m/M-1")
        assert (number_of(first), told(first, "age")) == (1, "")
        assert told(first, "cache-control") == "private, max-age=30"
        await asyncio.sleep(29.0)
        again = await plant.ask("GET /m/%4D-1")
        assert (number_of(again), told(again, "age")) == (1, "29")
        assert told(again, "etag") == told(first, "etag") != ""
        assert told(again, "synchromesh-trace") != told(first, "synchromesh-trace")
        assert number_of(await plant.ask("GET /m/M-2")) == 2
        await asyncio.sleep(1.0)
        anew = await plant.ask("GET /m/M-1")
        assert (number_of(anew), told(anew, "age")) == (3, "")
        assert told(anew, "etag") != told(first, "etag")

    behind(main, gateway=machines(Cache("30s")), kind=kind)


@pytest.mark.parametrize("max_age", [None, "30s"])
def test_who_has_it_already_is_told_so(max_age: str | None) -> None:
    """With its tag the answer is 304, without a body; with another one it is whole."""

    async def main(plant: Plant) -> None:
        etag = told(await plant.ask("GET /m/M-1"), "etag")
        assert etag.startswith('"'), "it is a strong one"
        for known in (etag, f'"x", {etag}', f"W/{etag}", "*"):
            answer = await plant.ask("GET /m/M-1", headers={"if-none-match": known})
            assert (answer.status, answer.body, told(answer, "etag")) == (304, b"", etag)
            assert told(answer, "cache-control").startswith("private, ")
            assert told(answer, "vary") == "authorization, cookie"
            assert told(answer, "content-type") == ""
        other = await plant.ask("GET /m/M-1", headers={"if-none-match": '"x"'})
        assert (other.status, told(other, "etag")) == (200, etag)
        plant.fleet.answers["machine"] = Machine("M-1", number=8)
        changed = await plant.ask("GET /m/M-1", headers={"if-none-match": etag})
        assert changed.status == (304 if max_age else 200)

    behind(main, gateway=machines(Cache(max_age)))


def test_without_an_age_nothing_is_kept(kind: str) -> None:
    """Clients keep it and ask each time; here the service is asked each time."""

    async def main(plant: Plant) -> None:
        counting(plant)
        first, second = await plant.ask("GET /m/M-1"), await plant.ask("GET /m/M-1")
        assert (number_of(first), number_of(second)) == (1, 2)
        assert told(first, "cache-control") == "private, no-cache"

    behind(main, gateway=machines(Cache()), kind=kind)


@pytest.mark.parametrize("is_shared", [False, True])
def test_each_principal_has_its_own_unless_they_share_it(kind: str, is_shared: bool) -> None:
    """Whose an answer is decides also while it is under way; who may not ask gets none of it."""

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = slowly(
            lambda incoming: Machine("M-1", incoming.context.principal.name)
        )
        at_once = await asyncio.gather(
            *(plant.ask("GET /m/M-1", by=who) for who in ("shop", "depot", "shop", "depot"))
        )
        later = [await plant.ask("GET /m/M-1", by=who) for who in ("shop", "depot")]
        whose = [json_of(each)["order_id"] for each in (*at_once, *later)]
        assert len(set(whose)) == 1 if is_shared else whose == ["shop", "depot"] * 3
        assert len(plant.fleet.asked) == (1 if is_shared else 2)
        # Others' caches cannot look at credentials, whoever shares it here.
        assert told(at_once[0], "cache-control") == "private, max-age=30"
        assert (await plant.ask("GET /m/M-1", by="visitor")).status == 403
        assert (await plant.ask("GET /m/M-1", by="")).status == 401

    auth = Token(shop={"a:b"}, depot={"a:b"}, visitor=set())
    route = Route(
        "GET /m/{id}", Fleet.machine, scopes={"a:b"}, cache=Cache("30s", shared=is_shared)
    )
    behind(main, gateway=Gateway(auth=[auth], routes=[route]), kind=kind)


def test_a_public_answer_may_be_kept_by_others() -> None:
    """Where it is the same for all and needs no principal; it varies by nothing then."""

    async def main(plant: Plant) -> None:
        answer = await plant.ask("GET /m/M-1", by="")
        assert told(answer, "cache-control") == "public, max-age=30"
        assert told(answer, "vary") == ""

    behind(main, gateway=machines(Cache("30s", shared=True), public=True))


def test_what_others_may_keep_holds_nothing_of_one_client() -> None:
    """Its name, its rate and its trace would be told to all who come after it."""
    names = ("x-request-id", "synchromesh-trace", "ratelimit", "ratelimit-policy")
    rate = Rate("1/s", burst=9)

    async def shared(plant: Plant) -> None:
        for headers in ({}, {"if-none-match": "*"}):
            answer = await plant.ask("GET /m/M-1", by="", headers={"x-request-id": "r1", **headers})
            assert answer.status == (304 if headers else 200)
            assert [told(answer, name) for name in names] == ["", "", "", ""]
            assert told(answer, "x-content-type-options") == "nosniff"

    async def private(plant: Plant) -> None:
        answer = await plant.ask("GET /m/M-1", headers={"x-request-id": "r1"})
        assert all(told(answer, name) for name in names)

    behind(shared, gateway=machines(Cache("30s", shared=True), public=True, rate=rate))
    behind(private, gateway=machines(Cache("30s", shared=True), rate=rate))


def test_it_varies_by_origin_and_by_credentials() -> None:
    """A page's answer names its origin; caches must not hand it to another page, or to another."""
    cors = Cors(origins={"https://shop.example"}, credentials=True)

    async def main(plant: Plant) -> None:
        for headers in ({}, {"origin": "https://shop.example"}):
            answer = await plant.ask("GET /m/M-1", headers=headers)
            assert set(told(answer, "vary").split(", ")) == {"origin", "authorization", "cookie"}
            etag = told(answer, "etag")
            known = await plant.ask("GET /m/M-1", headers={**headers, "if-none-match": etag})
            assert known.status == 304
            assert told(known, "vary") == told(answer, "vary")
            allowed = told(known, "access-control-allow-origin")
            assert allowed == headers.get("origin", "")

    behind(main, gateway=machines(Cache("30s"), cors=cors))


def test_the_fields_of_credentials_are_those_that_are_read() -> None:
    """Those that the authenticators describe; of one that describes nothing the usual two."""
    assert credential_fields([ApiKeys()]) == ("authorization", "x-api-key")
    assert credential_fields([ApiKeys(), SHOP]) == ("authorization", "cookie", "x-api-key")
    assert credential_fields([]) == ()


def test_equal_requests_at_once_are_one(kind: str) -> None:
    """Ten ask and one call is made; each has a trace of its own; other questions are others."""

    async def main(plant: Plant) -> None:
        counting(plant)
        plant.fleet.answers["machine"] = slowly(plant.fleet.answers["machine"])
        asking = [plant.ask("GET /m/M-1", headers={"x-request-id": f"r{n}"}) for n in range(10)]
        *same, other = await asyncio.gather(*asking, plant.ask("GET /m/M-2"))
        assert len({number_of(each) for each in same}) == 1
        assert json_of(other)["id"] == "M-2"
        assert len({told(each, "synchromesh-trace") for each in same}) == 10
        assert [told(each, "x-request-id") for each in same] == [f"r{n}" for n in range(10)]
        assert len(plant.fleet.asked) == 2

    behind(main, gateway=machines(Cache()), kind=kind)


@pytest.mark.parametrize("error", [ValueError(SECRET), Shed("full"), UnknownMachine("no M-1")])
def test_an_error_is_told_to_all_who_wait_and_kept_for_nobody(kind: str, error: Exception) -> None:
    """A failure or a no is one call for those who ask at once; the next one asks again."""

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = slowly(error)
        answers = await asyncio.gather(*(plant.ask("GET /m/M-1") for _ in range(5)))
        assert len({each.status for each in answers}) == 1
        assert answers[0].status >= 400
        assert len(plant.fleet.asked) == 1
        for each in answers:
            assert told(each, "cache-control") == "no-store"
            assert told(each, "etag") == ""
            assert json_of(each)["trace_id"] == told(each, "synchromesh-trace")
            assert SECRET not in each.body.decode()
        plant.fleet.answers["machine"] = Machine("M-1", number=5)
        assert number_of(await plant.ask("GET /m/M-1")) == 5

    behind(main, gateway=machines(Cache("30s")), kind=kind, policies=NO_RETRY)


@pytest.mark.parametrize("error", [Forbidden("not you"), UnknownMachine("not for you")])
def test_what_refuses_one_is_told_to_nobody_else(kind: str, error: Exception) -> None:
    """Who waits for what another asks, and may have it, asks again and is answered."""

    async def main(plant: Plant) -> None:
        async def answered(incoming: Incoming) -> Any:
            scopes = incoming.context.principal.scopes
            await asyncio.sleep(0.1)
            return Machine("M-1") if "admin" in scopes else error

        async def later(by: str) -> HttpResponse:
            await asyncio.sleep(0.02)
            return await plant.ask("GET /m/M-1", by=by)

        plant.fleet.answers["machine"] = answered
        first = plant.ask("GET /m/M-1", by="clerk")
        answers = await asyncio.gather(first, later("clerk"), later("chief"), later("chief"))
        assert [each.status < 300 for each in answers] == [False, False, True, True]
        assert len(plant.fleet.asked) == 2

    who = Token(clerk={"fleet:read"}, chief={"fleet:read", "admin"})
    route = Route("GET /m/{id}", Fleet.machine, cache=Cache("30s", shared=True), deadline="1s")
    behind(main, gateway=Gateway(auth=[who], routes=[route]), kind=kind, policies=NO_RETRY)


@pytest.mark.parametrize("fallback", [Static(Machine("none")), Stale("1h")])
def test_what_stands_in_for_an_answer_is_not_kept(fallback: Any) -> None:
    """It is marked, has no tag, may be kept by nobody, and a fresh one follows at once."""

    async def main(plant: Plant) -> None:
        await plant.ask("GET /m/M-1")
        await asyncio.sleep(31.0)
        plant.fleet.answers["machine"] = Shed("full")
        answers = await asyncio.gather(*(plant.ask("GET /m/M-1") for _ in range(3)))
        for each in answers:
            assert each.status == 200
            assert "code=shed" in told(each, "synchromesh-fallback")
            assert (told(each, "cache-control"), told(each, "etag")) == ("no-store", "")
        assert plant.engine.state.counts().routes["GET /m/{id}"].degraded == 3
        plant.fleet.answers["machine"] = Machine("M-1", number=5)
        fresh = await plant.ask("GET /m/M-1", headers={"if-none-match": "*"})
        assert fresh.status == 304
        assert number_of(await plant.ask("GET /m/M-1")) == 5

    behind(main, gateway=machines(Cache("30s"), fallback=fallback), policies=NO_RETRY)


def test_an_aggregate_is_kept_where_it_is_whole(kind: str) -> None:
    """A partial one is not, and its branches are asked again by the next request."""
    page = Aggregate(
        "GET /p/{id}",
        branches={
            "machine": Branch(Fleet.machine, args={"id": "path.id"}, required=True),
            "line": Branch(Production.line, args={"number": "machine.number"}),
        },
        cache=Cache("30s"),
    )

    async def main(plant: Plant) -> None:
        plant.production.answers["line"] = Shed("full")
        partial = await plant.ask("GET /p/M-1")
        assert told(partial, "synchromesh-partial") == "line"
        assert (told(partial, "cache-control"), told(partial, "etag")) == ("no-store", "")
        plant.production.answers["line"] = slowly("north")
        answers = await asyncio.gather(*(plant.ask("GET /p/M-1") for _ in range(5)))
        assert {each.body for each in answers} == {answers[0].body}
        asked = len(plant.asked)
        kept = await plant.ask("GET /p/M-1")
        assert json_of(kept)["data"]["line"] == "north"
        assert (told(kept, "age"), len(plant.asked), asked) == ("0", asked, 4)
        assert (await plant.ask("GET /p/M-1?x=1")).status == 400

    behind(main, gateway=Gateway(auth=[SHOP], routes=[page]), kind=kind, policies=NO_RETRY)


def test_the_first_may_leave_and_the_others_are_answered(kind: str) -> None:
    """What was begun for one goes on for those who wait for it, and for nobody else."""

    async def main(plant: Plant) -> None:
        ended: list[str] = []

        def slow(incoming: Incoming) -> Any:
            async def answer() -> Machine:
                try:
                    await asyncio.sleep(0.5)
                    return Machine(named(incoming), number=3)
                finally:
                    ended.append(named(incoming))

            return answer()

        plant.fleet.answers["machine"] = slow
        first, second, third = (asyncio.ensure_future(plant.ask("GET /m/M-1")) for _ in range(3))
        alone = asyncio.ensure_future(plant.ask("GET /m/M-2"))
        await asyncio.sleep(0.1)
        for each in (first, third, alone):
            each.cancel()
        await asyncio.sleep(0.1)
        assert ended == ["M-2"], "nobody is left who waits for it"
        assert number_of(await second) == 3
        assert len(plant.fleet.asked) == 2
        # Who comes behind a question that was given up asks it anew.
        assert number_of(await plant.ask("GET /m/M-2")) == 3

    behind(main, gateway=machines(Cache("30s")), kind=kind)


def test_the_deadline_of_the_first_is_not_that_of_the_others(kind: str) -> None:
    """It runs out of time with its own call; who came later has time for another one."""

    async def main(plant: Plant) -> None:
        def stalls_once(incoming: Incoming) -> Any:
            if len(plant.fleet.asked) == 1:
                return stalls(incoming)
            return slowly(Machine(named(incoming), number=len(plant.fleet.asked)))(incoming)

        plant.fleet.answers["machine"] = stalls_once
        began = now()
        first = asyncio.ensure_future(plant.ask("GET /m/M-1"))
        await asyncio.sleep(0.8)
        later = [asyncio.ensure_future(plant.ask("GET /m/M-1")) for _ in range(3)]
        assert (await first).status == 504
        assert now() - began == pytest.approx(1.0, abs=0.01)
        assert {number_of(each) for each in await asyncio.gather(*later)} == {2}
        assert len(plant.fleet.asked) == 2
        plant.fleet.answers["machine"] = stalls
        began = now()
        ends = await asyncio.gather(*(plant.ask("GET /m/M-9") for _ in range(3)))
        assert {each.status for each in ends} == {504}
        assert now() - began == pytest.approx(1.0, abs=0.01)

    behind(main, gateway=machines(Cache("30s")), kind=kind, policies=NO_RETRY)


def test_what_is_kept_is_bounded_in_number_and_in_bytes() -> None:
    """What was not asked for the longest makes room; what is too long by itself is not kept."""

    async def asked_for(plant: Plant, *names: str) -> list[int]:
        return [number_of(await plant.ask(f"GET /m/{name}")) for name in names]

    async def by_number(plant: Plant) -> None:
        counting(plant)
        assert await asked_for(plant, "a", "b", "a", "c", "a", "b") == [1, 2, 1, 3, 1, 4]

    async def by_bytes(plant: Plant) -> None:
        counting(plant)
        length = len((await plant.ask("GET /m/a")).body)
        assert 60 < length < 90
        assert await asked_for(plant, "a", "b", "c") == [1, 2, 3]
        assert await asked_for(plant, "a" * 300, "a" * 300) == [4, 5]
        assert await asked_for(plant, "c") == [3]

    behind(by_number, gateway=machines(Cache("1h"), cache_max=2))
    behind(by_bytes, gateway=machines(Cache("1h"), cache_bytes_max=200))


def test_a_kept_answer_counts_for_the_rate() -> None:
    """Who may not ask so often is refused, whatever it would cost."""

    async def main(plant: Plant) -> None:
        statuses = [(await plant.ask("GET /m/M-1")).status for _ in range(3)]
        assert statuses == [200, 200, 429]

    behind(main, gateway=machines(Cache("30s"), rate=Rate("1/s", burst=2)))


def test_arguments_that_do_not_fit_are_not_a_question() -> None:
    """They are refused as ever, and nothing of them is kept."""
    route = Route("GET /l/{number}", Production.line, cache=Cache("30s"))

    async def main(plant: Plant) -> None:
        for _ in range(2):
            answer = await plant.ask("GET /l/x")
            assert (answer.status, told(answer, "cache-control")) == (400, "no-store")
        same = [await plant.ask(f"GET /l/{number}") for number in ("7", "%37")]
        assert [each.status for each in same] == [200, 200]
        assert len(plant.production.asked) == 1

    behind(main, gateway=Gateway(auth=[SHOP], routes=[route]))


def test_a_bug_of_ours_is_nobodys_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is 500 for all who wait for it, and the next one asks again."""

    async def main(plant: Plant) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("synchromesh.gateway.engine.encode", None)
            answers = await asyncio.gather(*(plant.ask("GET /o/A-1") for _ in range(3)))
            assert [each.status for each in answers] == [500, 500, 500]
        assert (await plant.ask("GET /o/A-1")).status == 200

    route = Route("GET /o/{order_id}", Orders.one, cache=Cache("30s"))
    behind(main, gateway=Gateway(auth=[SHOP], routes=[route]))
