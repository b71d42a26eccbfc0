"""What a gateway promises to those outside and to the services behind it, on every transport."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from calls_fakes import System, play
from gateway_fakes import (
    GATEWAY,
    NO_RETRY,
    PLACE,
    ROUTES,
    SECRET,
    SHOP,
    Fleet,
    Order,
    Orders,
    PlaceOrder,
    Plant,
    Production,
    SoldOut,
    Token,
    behind,
    json_of,
    now,
    stalls,
)
from synchromesh.calls import (
    HttpTransport,
    Incoming,
)
from synchromesh.errors import (
    BadRequest,
    ConfigError,
    Forbidden,
    KeyReused,
    RateLimited,
    SagaLocked,
    SagaUndone,
    Shed,
    StoreFull,
    SynchromeshError,
    Unauthenticated,
    VersionConflict,
    error_table,
    from_problem,
)
from synchromesh.gateway import (
    ApiKeys,
    Folders,
    Gateway,
    GatewayEngine,
    Principal,
    Rate,
    Route,
    make_key,
)
from synchromesh.gateway.problems import outside, problem_of
from synchromesh.http import (
    ClientExchange,
    Headers,
    HttpExchange,
    HttpPool,
    HttpRequest,
    HttpServer,
)
from synchromesh.runtime import RealRuntime
from synchromesh.telemetry import Tracer

pytestmark = pytest.mark.usefixtures("each_way", "http_way")


@pytest.fixture(params=["inproc", "http"])
def kind(request: pytest.FixtureRequest) -> str:
    """The transport behind the gateway."""
    return str(request.param)


# -- G1: who may -------------------------------------------------------------------------------

PATHS = {
    "POST /orders": ("POST /orders", PLACE),
    "PUT /orders/{order_id}/notes": ("PUT /orders/A-1/notes", {"text": "x"}),
    "GET /orders/{order_id}": ("GET /orders/A-1", None),
    "GET /machines/{id}": ("GET /machines/M-1", None),
}


def test_every_protected_route_is_asked_below() -> None:
    """No route is forgotten in the tests of who may."""
    assert PATHS.keys() == {route.route for route in ROUTES if not route.public}


@pytest.mark.parametrize("route", PATHS)
@pytest.mark.parametrize("headers", [{}, {"x-principal": "shop"}, {"synchromesh-credential": "x"}])
def test_nobody_reaches_a_protected_route(route: str, headers: dict[str, str]) -> None:
    """Without a verified principal no service hears of a request on any protected route (G1)."""

    async def main(plant: Plant) -> None:
        target, body = PATHS[route]
        answer = await plant.ask(target, body, by="", headers=headers)
        assert answer.status == 401
        assert answer.headers.get("www-authenticate") == "Bearer"
        assert json_of(answer)["code"] == "unauthenticated"
        assert plant.asked == []

    behind(main)


@pytest.mark.parametrize("error", [Unauthenticated("no"), Shed("full"), ValueError("a bug")])
def test_an_authenticator_that_fails_lets_nobody_in(error: Exception) -> None:
    """A credential that could not be verified is not a verified one, whatever went wrong."""

    class Failing(Token):
        async def authenticate(self, request: HttpRequest) -> None:
            raise error

    async def main(plant: Plant) -> None:
        answer = await plant.ask("GET /orders/A-1")
        assert answer.status == getattr(error, "status", 500)
        assert plant.asked == []
        assert "a bug" not in answer.body.decode()

    behind(main, gateway=Gateway(auth=[Failing(), SHOP], routes=ROUTES))


def test_a_principal_without_a_name_is_nobody() -> None:
    """What an authenticator leaves unnamed is not let in as the public."""

    async def main(plant: Plant) -> None:
        answer = await plant.ask("GET /orders/A-1", by="", headers={"authorization": ""})
        assert answer.status == 401
        assert plant.asked == []

    behind(main)


@pytest.mark.parametrize("target", ["POST /orders", "GET /orders/A-1"])
def test_a_scope_that_is_missing_is_named(target: str) -> None:
    """A principal without a route's scope is told which one, and no service hears of it."""

    async def main(plant: Plant) -> None:
        answer = await plant.ask(target, PLACE if "POST" in target else None, by="visitor")
        assert answer.status == 403
        assert json_of(answer)["code"] == "forbidden"
        assert "scope" in json_of(answer)["detail"]
        assert plant.asked == []

    behind(main)


def test_the_principal_reaches_the_service_signed(kind: str) -> None:
    """A service knows for whom it works by the credential that the gateway signed."""

    async def main(plant: Plant) -> None:
        assert (await plant.ask("GET /orders/A-1")).status == 200
        assert (await plant.ask("GET /fleet/M-1", by="")).status == 200
        by = [(asked.context.caller, asked.context.principal.name) for asked in plant.asked]
        assert by == [("gateway", ""), ("gateway", "shop")]

    behind(main, kind=kind)


# -- G2: what passes ---------------------------------------------------------------------------

IDENTITY = (
    "synchromesh-credential", "traceparent", "tracestate", "deadline-ms", "sent-at",
    "attempts-left", "undoes", "x-forwarded-for", "x-forwarded-host", "x-forwarded-user",
    "x-real-ip", "forwarded", "via", "x-principal", "x-user", "remote-user", "cookie",
)  # fmt: skip


@pytest.mark.parametrize("separator", ["-", "_"])
@pytest.mark.parametrize("spelt", [str.lower, str.upper, str.title])
def test_headers_from_outside_never_pass(spelt: Any, separator: str) -> None:
    """No identity, forwarding or context header reaches a service, however it is spelt (G2)."""
    forged = {spelt(name.replace("-", separator)): f"forged-{n}" for n, name in enumerate(IDENTITY)}
    forged[spelt(f"attempts{separator}left")] = "16"
    seen: list[Headers] = []

    class Spying(HttpPool):
        def send(self, host: str, port: int, exchange: ClientExchange) -> None:
            lines = exchange.wire.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
            seen.append(Headers((n, v) for n, _, v in (line.partition(": ") for line in lines)))
            super().send(host, port, exchange)

    async def main(system: System) -> None:
        pool = Spying(network=system.runtime.network)
        system.transports["http"] = HttpTransport(pool, runtime=system.runtime)
        system.stack.push_async_callback(pool.close)
        plant = Plant(system, GATEWAY, None)
        await plant.start()
        plant.orders.answers = {"one": Order("A-1", "ada"), "place": Order("A-2", "ada")}
        for target, body in (("GET /orders/A-1", None), ("POST /orders", PLACE)):
            answer = await plant.ask(target, body, headers=forged)
            assert answer.status == 200
        for asked in plant.asked:
            assert (asked.context.caller, asked.context.principal.name) == ("gateway", "shop")
            assert asked.context.undoes == ""
            assert asked.context.attempts_left < 16

    play("http", main)
    ours = {
        "traceparent", "deadline-ms", "sent-at", "attempts-left", "idempotency-key",
        "synchromesh-credential", "content-type", "host", "content-length",
    }  # fmt: skip
    assert len(seen) == 2
    for headers in seen:
        assert {name for name, _ in headers} <= ours
        assert not any("forged" in value for _, value in headers)


def test_a_key_from_outside_is_its_principals_own(kind: str) -> None:
    """The client's idempotency key is passed on, and another principal's is another key."""

    async def main(plant: Plant) -> None:
        headers = {"idempotency-key": "order A-1"}
        for by in ("shop", "shop", "partner"):
            assert (await plant.ask("POST /orders", PLACE, by=by, headers=headers)).status == 200
        assert (await plant.ask("POST /orders", PLACE)).status == 200
        keys = [asked.context.key for asked in plant.orders.asked]
        assert keys[0] == keys[1]
        assert len(set(keys)) == 3
        assert keys[0].endswith("/order A-1")
        assert keys[3].partition("/")[0] == keys[0].partition("/")[0]

    behind(
        main,
        kind=kind,
        gateway=Gateway(
            auth=[Token(shop={"w"}, partner={"w"})],
            routes=[Route("POST /orders", Orders.place, scopes={"w"})],
        ),
    )


def test_who_sent_no_key_is_told_one_to_ask_again_under(kind: str) -> None:
    """After an unknown outcome the client can ask again, under the key that its answer names."""

    async def main(plant: Plant) -> None:
        plant.orders.answers["place"] = stalls
        lost = await plant.ask("POST /orders", PLACE)
        assert (lost.status, json_of(lost)["code"]) == (504, "timed_out")
        # The last attempt had what was left of the route's time; the first one was cut by its own.
        assert json_of(lost)["limit"] == "the timeout of a call that it makes, 2s"
        plant.orders.answers["place"] = Order("A-2", "ada")
        told = lost.headers.get("idempotency-key", "")
        again = await plant.ask("POST /orders", PLACE, headers={"idempotency-key": told})
        assert (again.status, again.headers.get("idempotency-key")) == (200, told)
        keys = [asked.context.key for asked in plant.orders.asked]
        assert keys[0] == keys[1]
        assert keys[0].endswith(f"/{told}")
        assert "idempotency-key" not in (await plant.ask("GET /fleet/M-1")).headers

    behind(main, kind=kind, policies=NO_RETRY)


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "\x85"])
def test_a_bad_key_is_refused(key: str) -> None:
    """A key that is empty, too long or no text is refused before anything is sent."""

    async def main(plant: Plant) -> None:
        answer = await plant.ask("POST /orders", PLACE, headers={"idempotency-key": key})
        assert answer.status == 400
        assert "idempotency-key" in json_of(answer)["detail"]
        assert plant.asked == []

    behind(main)


def test_two_keys_are_refused() -> None:
    """Where two keys came it is unclear which one counts."""

    async def main(plant: Plant) -> None:
        fields = [("authorization", "shop"), ("idempotency-key", "a"), ("idempotency-key", "a")]
        fields.append(("content-type", "application/json"))
        request = HttpRequest(
            "POST", "/orders", "/orders", "", Headers(fields), b'{"sku":"a","qty":1}'
        )
        assert (await plant.engine(request)).status == 400
        assert plant.asked == []

    behind(main)


# -- routes ------------------------------------------------------------------------------------


def test_a_route_answers_what_its_operation_does(kind: str) -> None:
    """The answer is JSON, is for nobody's cache, and names its trace, which the service shares."""

    async def main(plant: Plant) -> None:
        answer = await plant.ask("POST /orders", PLACE)
        assert (answer.status, json_of(answer)) == (200, {"id": "A-2", "customer": "ada"})
        assert answer.headers.get("content-type") == "application/json"
        assert answer.headers.get("cache-control") == "no-store"
        asked = plant.orders.asked[0]
        assert Orders.place.parse(asked.arguments) == {"request": PlaceOrder("SX90", 2)}
        trace_id = answer.headers.get("synchromesh-trace")
        assert trace_id == asked.context.trace_id
        spans = [(s.kind, s.name, s.status) for s in plant.system.spans if s.trace_id == trace_id]
        assert spans == [
            ("handle", "orders.place", "ok"),
            ("call", "orders.place", "ok"),
            ("gateway", "POST /orders", "ok"),
        ]

    behind(main, kind=kind)


def test_what_the_contract_does_not_name_stays_inside(kind: str) -> None:
    """A field that a newer service adds is not shown before the gateway's contract has it."""

    async def main(plant: Plant) -> None:
        plant.orders.answers["one"] = {"id": "A-1", "customer": "ada", "margin": 40}
        assert json_of(await plant.ask("GET /orders/A-1")) == {"id": "A-1", "customer": "ada"}

    behind(main, kind=kind)


def test_arguments_come_from_path_query_and_body() -> None:
    """An encoded slash is a character of an argument; the query fills what the path leaves."""
    gateway = Gateway(
        auth=[SHOP],
        routes=[
            Route("PUT /o/{order_id}", Orders.note),
            Route("GET /o", Orders.one),
            Route("GET /lines/{number}", Production.line),
        ],
    )

    async def main(plant: Plant) -> None:
        assert (await plant.ask("PUT /o/a%2Fb", {"text": "x"})).status == 200
        assert (await plant.ask("GET /o?order_id=a%20b")).status == 200
        assert (await plant.ask("GET /lines/7")).status == 200
        given = [json.loads(asked.arguments) for asked in plant.asked]
        assert given == [{"order_id": "a/b", "text": "x"}, {"order_id": "a b"}, {"number": 7}]

    behind(main, gateway=gateway)


BAD = {
    "a field too few": ("POST /orders", {"sku": "a"}, 400, "`qty`"),
    "a wrong type": ("POST /orders", {"sku": "a", "qty": "2"}, 400, "`int`"),
    "an unknown argument": ("GET /orders/a?x=1", None, 400, "'x'"),
    "an argument twice": ("GET /orders/a?order_id=b", None, 400, "given twice"),
    "a query at a command": ("POST /orders?sku=a", PLACE, 400, "takes no query"),
    "a body at a query": ("GET /orders/a", {}, 400, "no body"),
    "no UTF-8 in the path": ("GET /orders/%ff", None, 400, "UTF-8"),
    "a NUL in the path": ("GET /orders/%00", None, 400, "control"),
    "no UTF-8 in the query": ("GET /orders/a?x=%ff", None, 400, "UTF-8"),
    "a query at an aggregate": ("GET /machines/a?x=1", None, 400, "neither a query"),
    "a path that is not there": ("GET /nothing", None, 404, "nothing under this path"),
    "an empty place": ("GET /orders/", None, 404, "nothing under this path"),
    "another method": ("DELETE /orders", None, 405, "takes POST"),
}
NOT_THERE = {404: "unknown_operation", 405: "method_not_allowed"}


@pytest.mark.parametrize(("target", "body", "status", "words"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_asked_is_refused_in_words(
    target: str, body: object, status: int, words: str
) -> None:
    """Wrong input is a problem that says what was wrong, names no service, and reaches none."""

    async def main(plant: Plant) -> None:
        answer = await plant.ask(target, body)
        problem = json_of(answer)
        assert (answer.status, problem["status"]) == (status, status)
        assert answer.headers.get("content-type") == "application/problem+json"
        assert problem["code"] == NOT_THERE.get(status, "bad_request")
        assert words in problem["detail"]
        assert "orders." not in problem["detail"]
        assert problem.get("trace_id") == answer.headers.get("synchromesh-trace")
        assert plant.asked == []

    behind(main)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_says_that_it_is_json(content_type: str) -> None:
    """A body of another kind, or of none, is 415."""

    async def main(plant: Plant) -> None:
        answer = await plant.ask("POST /orders", PLACE, headers={"content-type": content_type})
        assert answer.status == 415
        assert [(s.kind, s.status) for s in plant.system.spans] == [("gateway", "bad_request")]
        assert plant.asked == []
        right = {"content-type": "Application/JSON; charset=utf-8"}
        assert (await plant.ask("POST /orders", PLACE, headers=right)).status == 200

    behind(main)


def test_a_body_that_is_packed_is_415_and_says_which_coding_is_read() -> None:
    """It is no broken JSON: the answer names the mend, and `Accept-Encoding` (RFC 9110)."""

    async def main(plant: Plant) -> None:
        packed = {"content-type": "application/json", "content-encoding": "gzip"}
        answer = await plant.ask("POST /orders", PLACE, headers=packed)
        assert (answer.status, answer.headers.get("accept-encoding")) == (415, "identity")
        assert b"content-encoding: gzip is not read here; send it as it is" in answer.body
        assert plant.asked == []
        plain = packed | {"content-encoding": "Identity"}
        assert (await plant.ask("POST /orders", PLACE, headers=plain)).status == 200

    behind(main)


# -- rates and bounds --------------------------------------------------------------------------


def test_a_rate_bounds_each_principal_on_each_route() -> None:
    """Past its burst a principal is told when to come again; others and other routes go on."""
    gateway = Gateway(
        auth=[Token()],
        routes=[
            Route("POST /orders", Orders.place, rate=Rate("2/s", burst=3)),
            Route("GET /orders/{order_id}", Orders.one),
        ],
    )

    async def main(plant: Plant) -> None:
        for _ in range(3):
            assert (await plant.ask("POST /orders", PLACE)).status == 200
        refused = await plant.ask("POST /orders", PLACE)
        assert (refused.status, refused.headers.get("retry-after")) == (429, "1")
        assert json_of(refused)["code"] == "rate_limited"
        assert len(plant.orders.asked) == 3
        assert (await plant.ask("POST /orders", PLACE, by="other")).status == 200
        assert (await plant.ask("GET /orders/A-1")).status == 200
        await asyncio.sleep(0.5)
        assert (await plant.ask("POST /orders", PLACE)).status == 200

    behind(main, gateway=gateway)


def test_a_rate_of_a_public_route_bounds_each_address() -> None:
    """Without a principal the client's address counts, and of IPv6 its network."""
    route = Route("GET /fleet/{id}", Fleet.machine, public=True, rate=Rate("1/s"))

    async def main(plant: Plant) -> None:
        async def status(peer: str) -> int:
            return (await plant.ask("GET /fleet/M-1", by="", peer=peer)).status

        assert [await status("10.0.0.1:1"), await status("10.0.0.1:2")] == [200, 429]
        assert await status("10.0.0.2:1") == 200
        assert [await status("2001:db8::1:5"), await status("2001:db8::2:5")] == [200, 429]
        assert await status("2001:db8:0:1::1:5") == 200
        assert [await status(""), await status("")] == [200, 429]

    behind(main, gateway=Gateway(routes=[route]))


def test_past_its_bound_the_gateway_sheds() -> None:
    """More requests at once than `in_flight_max` are 503 at once, and none of them is kept."""

    async def main(plant: Plant) -> None:
        plant.orders.answers["one"] = stalls
        waiting = asyncio.ensure_future(plant.ask("GET /orders/A-1"))
        await asyncio.sleep(0.1)
        began = now()
        answer = await plant.ask("GET /fleet/M-1")
        assert (answer.status, json_of(answer)["code"]) == (503, "shed")
        assert now() == began
        assert (await waiting).status == 504
        assert (await plant.ask("GET /fleet/M-1")).status == 200

    behind(main, gateway=Gateway(auth=[SHOP], routes=ROUTES, in_flight_max=1), policies=NO_RETRY)


def test_a_504_says_what_cut_it(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """By how long it was: the route's time or that of a call; the log has the key, too (G6)."""

    async def main(plant: Plant) -> None:
        plant.orders.answers["one"] = stalls
        answer = await plant.ask("GET /orders/A-1")
        assert (answer.status, json_of(answer)["limit"]) == (
            504, "the timeout of a call that it makes, 2s",
        )  # fmt: skip
        assert "policies" not in answer.body.decode()

    behind(main, kind=kind, policies=NO_RETRY)
    assert 'policies."gateway:orders".timeout = 2s' in caplog.text


def test_a_deadline_ends_the_answer_and_the_work(kind: str) -> None:
    """At a route's deadline the client has its 504, and the service is cancelled (D1)."""
    ended: list[float] = []

    async def endless(_: Incoming) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(now())

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = endless
        began = now()
        answer = await plant.ask("GET /fleet/M-1", by="")
        assert (answer.status, json_of(answer)["code"]) == (504, "timed_out")
        assert json_of(answer)["limit"] == "the deadline of this route, 1s"
        assert now() - began == pytest.approx(1.0, abs=0.01)
        await asyncio.sleep(0.01)
        assert ended == [pytest.approx(began + 1.0, abs=0.01)]

    behind(main, kind=kind)


# -- G6: what errors say -----------------------------------------------------------------------


def test_a_business_no_passes_whole(kind: str) -> None:
    """A declared rejection has its code, status, words and details outside as inside."""

    async def main(plant: Plant) -> None:
        plant.orders.answers["place"] = SoldOut("1 of SX90 is left", left=1)
        answer = await plant.ask("POST /orders", PLACE)
        problem = json_of(answer)
        assert answer.status == 409
        assert (problem["code"], problem["detail"]) == ("sold_out", "1 of SX90 is left")
        assert problem["details"] == {"left": 1}
        assert problem["trace_id"] == answer.headers.get("synchromesh-trace")

    behind(main, kind=kind)


INNER: dict[str, tuple[BaseException, int, str]] = {
    "an exception": (ValueError(SECRET), 500, "remote_failed"),
    "a store's": (StoreFull(SECRET), 500, "remote_failed"),
    "a conflict": (VersionConflict(SECRET, expected=1, actual=2), 409, "version_conflict"),
    "a refusal": (BadRequest(SECRET), 400, "bad_request"),
    "a ban": (Forbidden(SECRET), 403, "forbidden"),
    "a rate": (RateLimited(SECRET, retry_after_s=7), 429, "rate_limited"),
    "an overload": (Shed(SECRET, retry_after_s=7), 503, "shed"),
    "a key": (KeyReused(SECRET), 422, "key_reused"),
    "a lock": (SagaLocked(SECRET, retry_after_s=7), 409, "saga_locked"),
    "an undone saga": (SagaUndone(SECRET), 409, "saga_undone"),
    "a hop's credential": (Unauthenticated(SECRET), 502, "call_failed"),
}


@pytest.mark.parametrize(("error", "status", "code"), INNER.values(), ids=INNER.keys())
def test_no_internals_are_told(
    kind: str, error: BaseException, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of an error from within, its kind is told and where to look; its words stay inside (G6)."""

    async def main(plant: Plant) -> None:
        plant.orders.answers["one"] = error
        answer = await plant.ask("GET /orders/A-1")
        text = answer.body.decode()
        assert (answer.status, json_of(answer)["code"]) == (status, code)
        assert not any(inner in text for inner in (SECRET, "orders", "10.0.0.7", "Traceback"))
        assert json_of(answer)["trace_id"] == answer.headers.get("synchromesh-trace")
        if isinstance(error, RateLimited | Shed | SagaLocked):
            assert answer.headers.get("retry-after") == "7"
        if isinstance(error, SagaUndone):
            assert json_of(answer)["is_final"] is True

    with caplog.at_level(logging.ERROR):
        behind(main, kind=kind, policies=NO_RETRY)


def test_an_answer_of_another_release_is_502(kind: str) -> None:
    """The service did answer, and what does not fit is said inside only."""

    async def main(plant: Plant) -> None:
        plant.orders.answers["one"] = {"id": 7, "customer": SECRET}
        answer = await plant.ask("GET /orders/A-1")
        problem = json_of(answer)
        assert (answer.status, problem["status"]) == (502, 502)
        assert (problem["code"], problem["is_final"]) == ("contract_mismatch", True)
        assert "the trace id leads to the reason" in problem["detail"]
        text = answer.body.decode()
        assert not any(inner in text for inner in (SECRET, "orders", "Expected", "release"))

    behind(main, kind=kind)


@pytest.mark.parametrize("cls", error_table().values(), ids=lambda cls: cls.code)
def test_every_error_has_words_for_the_outside(cls: type[SynchromeshError]) -> None:
    """Whatever class an error has, what is told of it is a problem without its own words."""
    error = from_problem({"code": cls.code, "detail": SECRET}, status=cls.status)
    problem = problem_of(outside(error), trace_id="t")
    assert SECRET not in json.dumps(problem)
    assert problem["status"] >= 400
    assert not problem.keys() & {"attempts_used", "cause_code"}
    if error.status >= 500:
        assert problem["status"] >= 500


def test_a_service_that_is_not_there_is_503() -> None:
    """A service without an instance is unavailable, and its name stays inside."""

    async def main(plant: Plant) -> None:
        plant.system.known.endpoints["orders"] = []
        answer = await plant.ask("GET /orders/A-1")
        assert (answer.status, json_of(answer)["code"]) == (503, "no_instance")
        assert "orders" not in answer.body.decode()

    behind(main, policies=NO_RETRY)


# -- serving -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_gateway_opens_with_every_mistake_named(tmp_path: Path) -> None:
    """Mistakes of routes and of the keys' file are one error, before anything listens."""
    bad = Gateway(auth=[ApiKeys()], routes=[Route("GET x", Orders.one)])
    runtime = RealRuntime()
    system = System("inproc", runtime)
    tracer = Tracer("gateway", runtime, system.spans)
    with pytest.raises(ConfigError) as refused:
        await GatewayEngine.open(
            bad,
            caller=system.caller(),
            tracer=tracer,
            runtime=runtime,
            folders=Folders(tmp_path, tmp_path),
        )
    assert "mistakes: 2" in refused.value.message
    assert "'GET x' is not a route" in refused.value.message
    assert "api-keys.json" in refused.value.message
    await system.close()


@pytest.mark.anyio
async def test_a_gateway_serves_real_clients(tmp_path: Path) -> None:
    """Over real sockets and with a real key there is an answer, and a drain loses none (G7)."""
    runtime = RealRuntime()
    text, key = make_key("shop", ["orders:write"], rng=runtime.rng)
    (tmp_path / "api-keys.json").write_bytes(
        json.dumps(
            {"keys": [{"id": key.id, "principal": key.principal, "hash": key.hash,
                       "scopes": list(key.scopes)}]}
        ).encode()
    )  # fmt: skip
    system = System("http", runtime)
    plant = Plant(system, Gateway(auth=[SHOP], routes=ROUTES), None)
    await plant.start()
    release = asyncio.Event()

    async def slowly(_: Incoming) -> Order:
        await release.wait()
        return Order("A-2", "ada")

    plant.orders.answers["place"] = slowly
    engine = await GatewayEngine.open(
        Gateway(auth=[ApiKeys()], routes=ROUTES),
        caller=system.caller("gateway"),
        tracer=Tracer("gateway", runtime, system.spans),
        runtime=runtime,
        folders=Folders(tmp_path, tmp_path),
    )
    server = HttpServer(engine, network=runtime.network)
    await server.start()
    pool = HttpPool(network=runtime.network)

    async def ask(**headers: str) -> Any:
        fields = {"content-type": "application/json", **headers}.items()
        return await pool.request(
            server.host,
            server.port,
            "POST",
            "/orders",
            fields,
            b'{"sku":"a","qty":1}',
            timeout_s=60.0,
        )

    assert (await ask()).status == 401
    assert (await ask(authorization=f"Bearer {text}x")).status == 401
    asked = asyncio.ensure_future(ask(authorization=f"Bearer {text}"))
    while not plant.orders.asked:
        await asyncio.sleep(0)
    draining = asyncio.ensure_future(server.drain(5.0))
    await asyncio.sleep(0)
    release.set()
    answer = await asked
    assert (answer.status, json_of(answer)) == (200, {"id": "A-2", "customer": "ada"})
    assert await draining == 0
    await pool.close()
    await engine.close()
    await plant.engine.close()
    await system.close()


def test_a_call_takes_no_place_before_it_is_known_who_asks() -> None:
    """A principal that is known is answered while as many as there are places are looked up."""

    class Slow(Token):
        async def authenticate(self, request: HttpRequest) -> Principal | None:
            if request.headers.get("authorization") == "unknown":
                await asyncio.sleep(3600)
            return await super().authenticate(request)

        def known(self, exchange: HttpExchange) -> Principal | None:
            found = super().known(exchange)
            return None if found is None or found.name == "unknown" else found

    async def main(plant: Plant) -> None:
        plant.orders.answers["one"] = Order("o", "ada")
        loop = asyncio.get_running_loop()
        unknown = [loop.create_task(plant.ask("GET /orders/o", by="unknown")) for _ in range(9)]
        await asyncio.sleep(1.0)
        for _ in range(9):
            assert (await plant.ask("GET /orders/o")).status == 200
        for task in unknown:
            task.cancel()
        await asyncio.gather(*unknown, return_exceptions=True)

    auth = [Slow(shop={"fleet:read"})]
    behind(main, gateway=Gateway(auth=auth, routes=ROUTES, in_flight_max=2))
