"""What an aggregate promises beyond its plain branches: arrays, fields, all or nothing, no content.

The services are those of `gateway_fakes`, and one that is somebody else's.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Protocol

import msgspec
import pytest
from jsonschema import Draft202012Validator

from calls_fakes import Always
from gateway_fakes import (
    NO_RETRY,
    SHOP,
    Basket,
    Fleet,
    Line,
    Machine,
    Orders,
    Plant,
    Production,
    Site,
    UnknownMachine,
    behind,
    json_of,
    now,
    stalls,
)
from synchromesh.calls import Contract, Incoming, Policies, Reply, operations_of, query
from synchromesh.errors import Shed
from synchromesh.gateway import Aggregate, Branch, Each, Gateway, Stale, Static, openapi_of
from synchromesh.resilience import BreakerOptions, Policy

pytestmark = pytest.mark.usefixtures("each_way", "http_way")


@pytest.fixture(params=["inproc", "http"])
def kind(request: pytest.FixtureRequest) -> str:
    """The transport behind the gateway."""
    return str(request.param)


BASKET = Branch(Orders.basket, args={"id": "path.id"}, required=True)


def over(each: Each, *, all_or_nothing: bool = False, **more: Any) -> Gateway:
    """Return a gateway with a machine for each line of a basket."""
    machine = Branch(Fleet.machine, args={"id": "each.sku"}, each=each, **more)
    branches = {"basket": BASKET, "machines": machine}
    page = Aggregate(
        "GET /baskets/{id}", deadline="1s", branches=branches, all_or_nothing=all_or_nothing
    )
    return Gateway(auth=[SHOP], routes=[page])


def with_lines(plant: Plant, *skus: str) -> None:
    plant.orders.answers["basket"] = Basket("B-1", [Line(sku) for sku in skus])


def named(incoming: Incoming) -> str:
    """Return the machine that is asked for."""
    return str(json.loads(incoming.arguments)["id"])


def machines_of(answer: Any) -> list[str | None]:
    data = json_of(answer)["data"]["machines"]
    return [each if each is None else each["id"] for each in data]


def mark_of(answer: Any, branch: str = "machines") -> Any:
    return json_of(answer)["branches"][branch]


def test_each_element_is_asked_for_and_order_is_kept(kind: str) -> None:
    """Whatever comes first, answers stand in the order of the array, and so many are asked at once.

    Nine of 0.1 s each, three at once, take 0.3 s.
    """
    under_way: list[int] = []

    async def main(plant: Plant) -> None:
        running = 0

        def machine(incoming: Incoming) -> Any:
            async def answer() -> Machine:
                nonlocal running
                running += 1
                under_way.append(running)
                await asyncio.sleep(0.05 + 0.01 * (int(named(incoming)[2:]) % 3))
                running -= 1
                return Machine(named(incoming))

            return answer()

        plant.fleet.answers["machine"] = machine
        skus = [f"M-{number}" for number in range(9)]
        with_lines(plant, *skus)
        answer = await plant.ask("GET /baskets/B-1")
        assert machines_of(answer) == skus
        assert mark_of(answer) == {"status": "ok"}
        assert "synchromesh-partial" not in answer.headers
        assert max(under_way) == 3

    behind(main, gateway=over(Each("basket.lines", at_once=3)), kind=kind)


def test_an_empty_array_is_an_empty_answer_and_null_is_absent() -> None:
    """Nothing is asked for nothing; where there is no array the branch has nothing to ask for."""

    async def main(plant: Plant) -> None:
        with_lines(plant)
        answer = await plant.ask("GET /baskets/B-1")
        assert (machines_of(answer), mark_of(answer)) == ([], {"status": "ok"})
        plant.orders.answers["basket"] = Basket("B-1", None)
        answer = await plant.ask("GET /baskets/B-1")
        assert json_of(answer)["data"]["machines"] is None
        assert mark_of(answer) == {"status": "absent", "because": "basket"}
        assert plant.fleet.asked == []
        assert "synchromesh-partial" not in answer.headers

    behind(main, gateway=over(Each("basket.lines")))


def test_an_element_without_an_argument_is_null_and_takes_nothing_away() -> None:
    """What an element does not name is not asked for, and the branch is whole all the same."""
    slot = Branch(Production.slot, args={"order_id": "each.slot"}, each=Each("basket.lines"))
    page = Aggregate("GET /b/{id}", branches={"basket": BASKET, "slots": slot})

    async def main(plant: Plant) -> None:
        plant.orders.answers["basket"] = Basket("B-1", [Line("a"), Line("b", "A-1"), Line("c")])
        answer = await plant.ask("GET /b/B-1")
        assert json_of(answer)["data"]["slots"] == [None, {"starts": "monday"}, None]
        assert mark_of(answer, "slots") == {"status": "ok"}
        assert len(plant.production.asked) == 1

    behind(main, gateway=Gateway(auth=[SHOP], routes=[page]))


def test_an_element_that_failed_is_null_and_named(kind: str) -> None:
    """Each element that is not as it could be is marked at its index, the others are answered."""

    async def main(plant: Plant) -> None:
        wrong = {"M-1": UnknownMachine("there is no M-1"), "M-3": ValueError("select *")}
        plant.fleet.answers["machine"] = lambda i: wrong.get(named(i)) or Machine(named(i))
        with_lines(plant, "M-0", "M-1", "M-2", "M-3")
        answer = await plant.ask("GET /baskets/B-1")
        assert answer.status == 200
        assert machines_of(answer) == ["M-0", None, "M-2", None]
        rejected, failed = mark_of(answer)["elements"]
        assert mark_of(answer)["status"] == "partial"
        assert (rejected["index"], rejected["status"]) == (1, "rejected")
        assert (rejected["code"], rejected["detail"]) == ("unknown_machine", "there is no M-1")
        assert failed == {"index": 3, "status": "failed", "code": "remote_failed"}
        assert answer.headers.get("synchromesh-partial") == "machines"

    behind(main, gateway=over(Each("basket.lines")), kind=kind, policies=NO_RETRY)


NAMES = Branch(Fleet.names, required=True)


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_required_element_decides(kind: str, is_whole: bool) -> None:
    """Of a required branch the first element without data is the answer; the rest is cancelled.

    Where the whole is all or nothing every branch is such a one.
    """
    each = Branch(
        Fleet.machine, args={"id": "each"}, each=Each("names", at_once=2), required=not is_whole
    )
    page = Aggregate("GET /m", branches={"names": NAMES, "machines": each}, all_or_nothing=is_whole)

    async def main(plant: Plant) -> None:
        plant.fleet.answers["names"] = ["M-0", "M-1", "M-2", "M-3"]
        no = UnknownMachine("there is no M-1")
        plant.fleet.answers["machine"] = lambda i: no if named(i) == "M-1" else stalls(i)
        began = now()
        answer = await plant.ask("GET /m")
        assert (answer.status, json_of(answer)["code"]) == (404, "unknown_machine")
        assert "data" not in json_of(answer)
        assert now() - began < 0.1
        await asyncio.sleep(0.01)
        assert len(plant.fleet.asked) == 3, "nothing is begun behind a failure"

    behind(main, gateway=Gateway(auth=[SHOP], routes=[page]), kind=kind)


def test_a_longer_array_is_cut_where_that_is_said(kind: str) -> None:
    """The first are asked for; the branch says that it is partial, and how many there are."""

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = lambda i: Machine(named(i))
        with_lines(plant, *(f"M-{number}" for number in range(5)))
        answer = await plant.ask("GET /baskets/B-1")
        assert machines_of(answer) == ["M-0", "M-1"]
        assert mark_of(answer) == {"status": "partial", "elements": [], "count": 5}
        assert answer.headers.get("synchromesh-partial") == "machines"
        with_lines(plant, "M-0", "M-1")
        assert mark_of(await plant.ask("GET /baskets/B-1")) == {"status": "ok"}

    behind(main, gateway=over(Each("basket.lines", at_most=2, beyond="cut")), kind=kind)


def test_a_longer_array_fails_where_nothing_is_said() -> None:
    """Nothing is asked for any of them, and the branch says why."""

    async def main(plant: Plant) -> None:
        with_lines(plant, "M-0", "M-1", "M-2")
        answer = await plant.ask("GET /baskets/B-1")
        assert answer.status == 200
        assert json_of(answer)["data"]["machines"] is None
        assert mark_of(answer) == {"status": "failed", "code": "too_many_elements"}
        assert plant.fleet.asked == []

    behind(main, gateway=over(Each("basket.lines", at_most=2)))


def test_too_many_of_a_required_branch_are_502() -> None:
    """The whole has failed, and asking again would change nothing."""
    each = Branch(Fleet.machine, args={"id": "each"}, each=Each("names", at_most=1), required=True)
    page = Aggregate("GET /m", branches={"names": NAMES, "machines": each})

    async def main(plant: Plant) -> None:
        plant.fleet.answers["names"] = ["M-0", "M-1"]
        answer = await plant.ask("GET /m")
        assert (answer.status, json_of(answer)["code"]) == (502, "too_many_elements")
        assert json_of(answer)["is_final"] is True

    behind(main, gateway=Gateway(auth=[SHOP], routes=[page]))


def test_the_timeout_of_a_branch_is_that_of_all_its_elements(kind: str) -> None:
    """Elements that had no turn in time are failed, and were never asked for."""

    async def main(plant: Plant) -> None:
        def machine(incoming: Incoming) -> Any:
            async def answer() -> Machine:
                await asyncio.sleep(0.2)
                return Machine(named(incoming))

            return answer()

        plant.fleet.answers["machine"] = machine
        with_lines(plant, "M-0", "M-1", "M-2", "M-3")
        began = now()
        answer = await plant.ask("GET /baskets/B-1")
        assert now() - began == pytest.approx(0.3, abs=0.01)
        assert machines_of(answer) == ["M-0", None, None, None]
        codes = [each["code"] for each in mark_of(answer)["elements"]]
        assert codes == ["timed_out", "deadline_exceeded", "deadline_exceeded"]
        assert len(plant.fleet.asked) == 2

    gateway = over(Each("basket.lines", at_once=1), timeout="300ms")
    behind(main, gateway=gateway, kind=kind, policies=NO_RETRY)


def test_elements_fall_back_each_by_itself(kind: str) -> None:
    """The last answer of an element stands in for it, and is marked with its age."""

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = lambda i: Machine(named(i), number=1)
        with_lines(plant, "M-0", "M-1")
        await plant.ask("GET /baskets/B-1")
        await asyncio.sleep(2.0)
        plant.fleet.answers["machine"] = lambda i: (
            Shed("full") if named(i) == "M-1" else Machine(named(i), number=2)
        )
        with_lines(plant, "M-0", "M-1", "M-2")
        answer = await plant.ask("GET /baskets/B-1")
        data = json_of(answer)["data"]["machines"]
        assert [(each["id"], each["number"]) for each in data] == [
            ("M-0", 2),
            ("M-1", 1),
            ("M-2", 2),
        ]
        (stale,) = mark_of(answer)["elements"]
        assert (stale["index"], stale["status"], stale["code"]) == (1, "stale", "shed")
        assert stale["age_s"] == pytest.approx(2.0, abs=0.1)

    gateway = over(Each("basket.lines"), fallback=Stale("1m"))
    behind(main, gateway=gateway, kind=kind, policies=NO_RETRY)


def test_a_client_that_leaves_takes_all_elements_along(kind: str) -> None:
    """What is asked for elements is cancelled with the request, and no further one is begun."""

    async def main(plant: Plant) -> None:
        ended: list[str] = []

        def machine(incoming: Incoming) -> Any:
            async def answer() -> None:
                try:
                    await asyncio.sleep(3600)
                finally:
                    ended.append(named(incoming))

            return answer()

        plant.fleet.answers["machine"] = machine
        with_lines(plant, "M-0", "M-1", "M-2")
        asking = asyncio.ensure_future(plant.ask("GET /baskets/B-1"))
        await asyncio.sleep(0.1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.sleep(0.1)
        assert sorted(ended) == ["M-0", "M-1"]
        assert len(plant.fleet.asked) == 2

    behind(main, gateway=over(Each("basket.lines", at_once=2)), kind=kind)


# -- all or nothing ----------------------------------------------------------------------------


def test_all_or_nothing_is_one_error_where_any_branch_fails(kind: str) -> None:
    """A branch that is not required decides as well; nothing partial is answered."""

    async def main(plant: Plant) -> None:
        assert (await plant.ask("GET /m/M-1")).status == 200
        plant.production.answers["line"] = ValueError("select *")
        answer = await plant.ask("GET /m/M-1")
        assert (answer.status, json_of(answer)["code"]) == (500, "remote_failed")
        assert "synchromesh-partial" not in answer.headers

    page = Aggregate(
        "GET /m/{id}",
        branches={
            "machine": Branch(Fleet.machine, args={"id": "path.id"}),
            "line": Branch(Production.line, args={"number": "machine.number"}),
        },
        all_or_nothing=True,
    )
    behind(main, gateway=Gateway(auth=[SHOP], routes=[page]), kind=kind, policies=NO_RETRY)


def test_nothing_to_ask_for_is_no_failure_of_the_whole() -> None:
    """A branch whose argument is null is absent, also where all have to answer."""
    page = Aggregate(
        "GET /m/{id}",
        branches={
            "machine": Branch(Fleet.machine, args={"id": "path.id"}),
            "order": Branch(Orders.one, args={"order_id": "machine.order_id"}),
        },
        all_or_nothing=True,
    )

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = Machine("M-1")
        answer = await plant.ask("GET /m/M-1")
        assert answer.status == 200
        assert json_of(answer)["data"]["order"] is None
        assert mark_of(answer, "order") == {"status": "absent", "because": "machine"}

    behind(main, gateway=Gateway(auth=[SHOP], routes=[page]))


# -- which fields are shown --------------------------------------------------------------------


def test_fields_are_picked_and_renamed(kind: str) -> None:
    """What is not picked is not shown; other branches may take from it all the same."""
    page = Aggregate(
        "GET /m/{id}",
        branches={
            "machine": Branch(
                Fleet.machine,
                args={"id": "path.id"},
                required=True,
                pick={"name": "id", "city": "site.city"},
            ),
            "order": Branch(Orders.one, args={"order_id": "machine.order_id"}, pick=("customer",)),
            "others": Branch(
                Fleet.machine, args={"id": "each"}, each=Each("names"), pick={"no": "number"}
            ),
            "names": Branch(Fleet.names),
        },
    )

    async def main(plant: Plant) -> None:
        plant.fleet.answers["names"] = ["M-2", "M-3"]
        site = Site("Graz", 5)
        plant.fleet.answers["machine"] = lambda i: Machine(named(i), "A-1", 7, site=site)
        data = json_of(await plant.ask("GET /m/M-1"))["data"]
        assert data == {
            "machine": {"name": "M-1", "city": "Graz"},
            "order": {"customer": "ada"},
            "others": [{"no": 7}, {"no": 7}],
            "names": ["M-2", "M-3"],
        }
        plant.fleet.answers["machine"] = lambda i: Machine(named(i))
        plant.fleet.answers["names"] = Shed("full")
        data = json_of(await plant.ask("GET /m/M-1"))["data"]
        assert data["machine"] == {"name": "M-1", "city": None}
        assert (data["order"], data["others"], data["names"]) == (None, None, None)

    behind(main, gateway=Gateway(auth=[SHOP], routes=[page]), kind=kind, policies=NO_RETRY)


# -- services that are somebody else's, and answers without content ----------------------------


class Parcel(msgspec.Struct):
    state: str


class Parcels(Contract, Protocol, service="parcels", version="1.0", external=True):
    @query("GET /parcels/{id}")
    async def parcel(self, id: str) -> Parcel: ...  # noqa: A002
    @query("GET /offers")
    async def offers(self, zone: int | None = None) -> list[str]: ...
    @query("GET /numbers")
    async def numbers(self) -> list[int]: ...


async def with_parcels(plant: Plant, *replies: Reply) -> Always:
    """Let somebody else's service answer so."""
    parcels = Always(*replies)
    await plant.system.mount("parcels", parcels, operations_of(Parcels).values())
    return parcels


def of_parcels(**more: Any) -> Gateway:
    parcel = Branch(Parcels.parcel, args={"id": "path.id"}, **more)
    branches = {"names": NAMES, "parcel": parcel}
    return Gateway(auth=[SHOP], routes=[Aggregate("GET /p/{id}", branches=branches)])


def test_an_external_service_is_a_branch_as_any_other(kind: str) -> None:
    """It is asked by GET under the policy of its edge, and told nothing of who asks."""
    trips = BreakerOptions(
        minimum_calls=1, failure_rate=0.01, open_for_s=0.5, open_jitter=0.0, probes_max=1
    )
    policies = Policies(Policy(retry=None), edges={"parcels": Policy(retry=None, breaker=trips)})

    async def main(plant: Plant) -> None:
        parcels = await with_parcels(
            plant, Reply(200, b'{"state":"sent","more":1}'), Reply(500, b"")
        )
        plant.fleet.answers["names"] = []
        answer = await plant.ask("GET /p/P%201")
        assert json_of(answer)["data"]["parcel"] == {"state": "sent"}
        assert mark_of(answer, "parcel") == {"status": "ok"}
        (sent,) = parcels.requests
        assert (sent.credential, sent.context.deadline_s) == ("", None)
        assert sent.context.principal.name == ""
        assert json.loads(sent.arguments) == {"id": "P 1"}
        failed = await plant.ask("GET /p/P-1")
        assert mark_of(failed, "parcel") == {"status": "failed", "code": "remote_failed"}
        refused = await plant.ask("GET /p/P-1")
        assert mark_of(refused, "parcel") == {"status": "failed", "code": "circuit_open"}
        assert len(parcels.requests) == 2

    behind(main, gateway=of_parcels(), kind=kind, policies=policies)


@pytest.mark.parametrize("reply", [Reply(204, b""), Reply(200, b""), Reply(200, b"null")])
@pytest.mark.parametrize("fallback", [None, Static(Parcel("unknown"))])
def test_an_answer_without_content_stands_for_what_is_said(
    kind: str, reply: Reply, fallback: Static | None
) -> None:
    """204, no body and null are an answer: that value, and no failure."""

    async def main(plant: Plant) -> None:
        await with_parcels(plant, reply)
        plant.fleet.answers["names"] = []
        answer = await plant.ask("GET /p/P-1")
        assert json_of(answer)["data"]["parcel"] == {"state": "none"}
        assert mark_of(answer, "parcel") == {"status": "ok"}

    gateway = of_parcels(empty=Static(Parcel("none")), fallback=fallback)
    behind(main, gateway=gateway, kind=kind, policies=NO_RETRY)


def test_without_a_value_for_it_no_content_is_a_failure(kind: str) -> None:
    """An answer that its contract does not know is none."""

    async def main(plant: Plant) -> None:
        await with_parcels(plant, Reply(204, b""))
        plant.fleet.answers["names"] = []
        answer = await plant.ask("GET /p/P-1")
        assert json_of(answer)["data"]["parcel"] is None
        assert mark_of(answer, "parcel")["status"] == "failed"

    behind(main, gateway=of_parcels(), kind=kind, policies=NO_RETRY)


def test_other_branches_take_from_what_no_content_stands_for(kind: str) -> None:
    """An array that is not there is the array that was written for it."""
    page = Aggregate(
        "GET /o",
        branches={
            "offers": Branch(Parcels.offers, required=True, empty=Static(["M-1"])),
            "machines": Branch(Fleet.machine, args={"id": "each"}, each=Each("offers")),
        },
    )

    async def main(plant: Plant) -> None:
        await with_parcels(plant, Reply(204, b""))
        answer = await plant.ask("GET /o")
        assert json_of(answer)["data"]["offers"] == ["M-1"]
        assert machines_of(answer) == ["M-1"]

    behind(main, gateway=Gateway(auth=[SHOP], routes=[page]), kind=kind)


@pytest.mark.parametrize("is_required", [False, True])
def test_elements_that_do_not_fit_fail_before_anything_is_sent(is_required: bool) -> None:
    """Each of them by itself; of a required branch the first is the end of the whole."""
    lines = Branch(
        Production.line, args={"number": "each"}, each=Each("numbers"), required=is_required
    )
    page = Aggregate(
        "GET /l", branches={"numbers": Branch(Parcels.numbers, required=True), "lines": lines}
    )

    async def main(plant: Plant) -> None:
        await with_parcels(plant, Reply(200, b"[-1,-2,3]"))
        answer = await plant.ask("GET /l")
        if is_required:
            assert (answer.status, json_of(answer)["code"]) == (400, "bad_request")
        else:
            assert json_of(answer)["data"]["lines"] == [None, None, "north"]
            assert [each["code"] for each in mark_of(answer, "lines")["elements"]] == [
                "bad_request", "bad_request",
            ]  # fmt: skip
        assert len(plant.production.asked) == (0 if is_required else 1)

    behind(main, gateway=Gateway(auth=[SHOP], routes=[page]))


def test_answers_are_as_they_are_described() -> None:
    """Whole, cut, partial, failed, skipped or absent: the document's schema takes each of them."""
    branches = {
        "basket": Branch(Orders.basket, args={"id": "path.id"}, pick={"no": "id", "of": "lines"}),
        "names": Branch(Fleet.names, required=True, empty=Static(["none"])),
        "machines": Branch(
            Fleet.machine,
            args={"id": "each.sku"},
            each=Each("basket.lines", at_most=2, beyond="cut"),
            pick={"id": "id", "city": "site.city"},
            fallback=Stale("1m"),
        ),
        "slots": Branch(
            Production.slot, args={"order_id": "each.slot"}, each=Each("basket.lines", at_most=3)
        ),
        "all": Branch(Fleet.machine, args={"id": "each"}, each=Each("names"), required=True),
    }
    gateway = Gateway(auth=[SHOP], routes=[Aggregate("GET /b/{id}", branches=branches)])
    document = openapi_of(gateway)
    answers = document["paths"]["/b/{id}"]["get"]["responses"]
    body = answers["200"]["content"]["application/json"]["schema"]
    validator = Draft202012Validator({**body, "components": document["components"]})
    seen: set[str] = set()

    async def main(plant: Plant) -> None:
        async def look() -> None:
            told = json_of(await plant.ask("GET /b/B-1"))
            assert [error.message for error in validator.iter_errors(told)] == []
            seen.update(mark["status"] for mark in told["branches"].values())

        plant.fleet.answers["machine"] = lambda i: Machine(named(i), site=Site("Graz"))
        plant.fleet.answers["names"] = ["M-1"]
        lines = [Line("a", "x"), Line("b"), Line("c", "y")]
        for basket in (
            Basket("B-1", lines[:2]), Basket("B-1", lines), Basket("B-1", None),
            Basket("B-1", [*lines, *lines]), Shed("full"),
        ):  # fmt: skip
            plant.orders.answers["basket"] = basket
            await look()
        plant.orders.answers["basket"] = Basket("B-1", lines)
        plant.fleet.answers["machine"] = lambda i: (
            Machine(named(i)) if named(i) == "M-1" else Shed("full")
        )
        plant.production.answers["slot"] = Shed("full")
        await look()

    behind(main, gateway=gateway, policies=NO_RETRY)
    assert seen == {"ok", "partial", "failed", "skipped", "absent"}
