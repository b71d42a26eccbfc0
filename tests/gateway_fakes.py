"""A gateway before a few services, for tests: what stands behind it can be told what to answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, Protocol

import msgspec

from calls_fakes import System, play
from synchromesh.calls import Caller, Contract, Incoming, Policies, command, operations_of, query
from synchromesh.certificate import ClientCertificate
from synchromesh.codec import encode
from synchromesh.errors import Rejection
from synchromesh.gateway import (
    Aggregate,
    Auth,
    Branch,
    Gateway,
    GatewayEngine,
    Principal,
    Rate,
    Route,
    Stale,
    Static,
)
from synchromesh.gateway.access_log import AccessLog
from synchromesh.gateway.checking import compiled
from synchromesh.gateway.origin import Origins
from synchromesh.gateway.state import GatewayState
from synchromesh.http import Headers, HttpExchange, HttpRequest, HttpResponse, HttpServer, RawPair
from synchromesh.resilience import Policy
from synchromesh.telemetry import Tracer


class UnknownMachine(Rejection, code="unknown_machine", status=404):
    """Tells that no such machine is in the field."""


class SoldOut(Rejection, code="sold_out", status=409):
    """Tells that there are no more."""


class Site(msgspec.Struct):
    city: str
    zone: int | None = None


class Machine(msgspec.Struct):
    id: str
    order_id: str | None = None
    number: int = 0
    grade: Literal["a", "b"] = "a"
    site: Site | None = None


class Order(msgspec.Struct):
    id: str
    customer: str


class Slot(msgspec.Struct):
    starts: str


class Line(msgspec.Struct):
    sku: str
    slot: str | None = None


class Basket(msgspec.Struct):
    id: str
    lines: list[Line] | None


class PlaceOrder(msgspec.Struct):
    sku: str
    qty: int


class Fleet(Contract, Protocol, service="fleet", version="1.0"):
    @query("GET /machines/{id}", raises=(UnknownMachine,))
    async def machine(self, id: str) -> Machine: ...  # noqa: A002
    @query("GET /machines")
    async def machines(self, ids: list[str], since: int = 0) -> list[Machine]: ...
    @query("GET /names")
    async def names(self) -> list[str]: ...
    @command("DELETE /machines/{id}")
    async def scrap(self, id: str) -> None: ...  # noqa: A002


class Orders(Contract, Protocol, service="orders", version="1.0"):
    @query("GET /orders/{order_id}")
    async def one(self, order_id: str) -> Order: ...
    @query("GET /baskets/{id}")
    async def basket(self, id: str) -> Basket: ...  # noqa: A002
    @command("POST /orders", raises=(SoldOut,))
    async def place(self, request: PlaceOrder) -> Order: ...
    @command("PUT /orders/{order_id}/notes")
    async def note(self, order_id: str, text: str) -> None: ...


class Production(Contract, Protocol, service="production", version="1.0"):
    @query("GET /slots/{order_id}")
    async def slot(self, order_id: str) -> Slot: ...
    @query("GET /lines/{number}")
    async def line(self, number: Annotated[int, msgspec.Meta(ge=0)]) -> str: ...


class Token(Auth):
    """Knows principals by a header that says who they are; for tests of what comes after."""

    def __init__(self, **scopes: set[str]) -> None:
        self.scopes = scopes

    def open(self, folders: object, runtime: object) -> Token:
        return self

    async def authenticate(self, request: HttpRequest) -> Principal | None:
        name = request.headers.get("authorization")
        return None if name is None else Principal(name, frozenset(self.scopes.get(name, ())))

    def known(self, exchange: HttpExchange) -> Principal | None:
        names = [value.decode() for name, value in exchange.pairs if name == b"authorization"]
        return Principal(names[0], frozenset(self.scopes.get(names[0], ()))) if names else None

    def refresh(self) -> None:
        return None

    async def close(self) -> None:
        return None


@dataclass
class Service:
    """Answers each operation with what it was told, and keeps what it was asked."""

    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[Incoming] = field(default_factory=list)

    def handler(self, name: str) -> Any:
        async def handle(incoming: Incoming) -> bytes:
            self.asked.append(incoming)
            answer = self.answers[name]
            if callable(answer):
                answer = answer(incoming)
            if isinstance(answer, Coroutine):
                answer = await answer
            if isinstance(answer, BaseException):
                raise answer
            return encode(answer)

        return handle


class Connection:
    """What is known of the connection of a client, who may have shown a certificate."""

    def __init__(self, certificate: ClientCertificate | None = None) -> None:
        self.certificate = certificate

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.certificate if name == "client_certificate" else default


def came(
    headers: Headers | Iterable[tuple[str, str]] = (), certificate: ClientCertificate | None = None
) -> HttpRequest:
    """Return a request with some fields."""
    connection = Connection(certificate)
    return HttpRequest("GET", "/", "/", "", Headers(headers), b"", connection=connection)


def came_as(
    fields: Iterable[RawPair], certificate: ClientCertificate | None = None
) -> HttpExchange:
    """Return the same as it came from the wire."""
    client = Client("10.0.0.1:4711", certificate)
    pairs = fields if isinstance(fields, list) else list(fields)
    return HttpExchange(client, b"GET", b"/", pairs, b"", is_plain=True)


class Client:
    """Is the connection of one request, and takes its answer."""

    def __init__(self, peer: str, certificate: ClientCertificate | None = None) -> None:
        self.peer = peer
        self.transport = Connection(certificate)

    @cached_property
    def answer(self) -> asyncio.Future[HttpResponse]:
        return asyncio.get_running_loop().create_future()

    def answered(self, head: bytes, body: bytes) -> None:
        status, *lines = head.decode("latin-1").removesuffix("\r\n").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        fields = [(n, v) for n, v in pairs if n != "content-length"]
        if not self.answer.done():
            self.answer.set_result(HttpResponse(int(status.split(" ")[1]), fields, body))

    def begun(self, head: bytes, data: bytes) -> None:
        raise AssertionError("nothing is streamed here")

    def part(self, data: bytes) -> bool:
        raise AssertionError("nothing is streamed here")

    def ended(self, *, is_whole: bool) -> None:
        raise AssertionError("nothing is streamed here")

    def answered_by(self, request: object, answering: object) -> None:
        raise AssertionError("nothing is streamed here")


def is_fast() -> bool:
    """Tell whether the gateway is asked by its fast way first; see the fixture `http_way`."""
    return bool((HttpServer.__init__.__kwdefaults__ or {})["is_fast"])


def log_of(system: System, share: float, origins: Origins | None) -> AccessLog | None:
    """Return the access log of a gateway; None for a share of 0."""
    if not share:
        return None
    runtime = system.runtime
    return AccessLog(share, random.Random(7), runtime.wall_us, origins or Origins())


class Plant:
    """Three services behind one gateway."""

    def __init__(
        self,
        system: System,
        gateway: Gateway,
        policies: Policies | None,
        origins: Origins | None = None,
        log_share: float = 0.0,
    ) -> None:
        self.system = system
        self.gateway = gateway
        self.log = log_of(system, log_share, origins)
        self.begin: Callable[[HttpExchange], bool] | None = None
        self.fleet, self.orders, self.production = Service(), Service(), Service()
        self.caller: Caller = system.caller("gateway", policies)
        self.engine = GatewayEngine(
            gateway,
            caller=self.caller,
            tracer=Tracer("gateway", system.runtime, system.spans),
            authenticators=[auth.open(None, None) for auth in gateway.auth],  # type: ignore[arg-type]
            origins=origins,
            state=GatewayState.of(gateway, compiled(gateway), self.log),
        )

    async def start(self) -> None:
        for contract, service in (
            (Fleet, self.fleet),
            (Orders, self.orders),
            (Production, self.production),
        ):
            handlers = {name: service.handler(name) for name in operations_of(contract)}
            await self.system.serve(contract, handlers)

    @property
    def asked(self) -> list[Incoming]:
        return [*self.fleet.asked, *self.orders.asked, *self.production.asked]

    async def ask(
        self,
        route: str,
        body: object = None,
        *,
        by: str = "shop",
        peer: str = "10.0.0.1:4711",
        headers: Mapping[str, str] | None = None,
        certificate: ClientCertificate | None = None,
    ) -> HttpResponse:
        """Ask the gateway."""
        method, target = route.split(" ")
        path, _, query_text = target.partition("?")
        fields = {"host": "api"} | ({"authorization": by} if by else {}) | dict(headers or {})
        data = b"" if body is None else encode(body)
        if body is not None:
            fields.setdefault("content-type", "application/json")
        if is_fast():
            client = Client(peer, certificate)
            pairs = [(name.encode(), value.encode()) for name, value in fields.items()]
            exchange = HttpExchange(
                client, method.encode(), target.encode(), pairs, data, is_plain=True
            )
            if self.begin is None:
                self.begin = self.engine.begin_exchange
            if self.begin(exchange):
                try:
                    return await client.answer
                except asyncio.CancelledError:
                    exchange.lose()
                    raise
        request = HttpRequest(
            method, target, path, query_text, Headers(fields.items()), data, peer,
            connection=Connection(certificate),
        )  # fmt: skip
        return await self.engine(request)


SHOP = Token(shop={"orders:write", "fleet:read"}, visitor=set())

ROUTES = (
    Route("POST /orders", Orders.place, scopes={"orders:write"}, rate=Rate("20/s", burst=3)),
    Route("PUT /orders/{order_id}/notes", Orders.note),
    Route("GET /orders/{order_id}", Orders.one, scopes={"fleet:read"}),
    Route("GET /fleet/{id}", Fleet.machine, public=True, deadline="1s"),
    Aggregate(
        "GET /machines/{id}",
        deadline="1s",
        branches={
            "machine": Branch(Fleet.machine, args={"id": "path.id"}, required=True),
            "order": Branch(Orders.one, args={"order_id": "machine.order_id"}),
            "production": Branch(
                Production.slot,
                args={"order_id": "machine.order_id"},
                timeout="300ms",
                fallback=Stale("10m"),
            ),
            "line": Branch(
                Production.line, args={"number": "machine.number"}, fallback=Static("unknown")
            ),
        },
    ),
)
GATEWAY = Gateway(auth=[SHOP], routes=ROUTES)


PLACE = {"sku": "SX90", "qty": 2}
NO_RETRY = Policies(default=Policy(retry=None))
# What no answer to the outside may show.
SECRET = "select * from holds at 10.0.0.7:5432"


def now() -> float:
    """Return the time of the loop's clock."""
    return asyncio.get_running_loop().time()


def stalls(_: Incoming) -> Any:
    """Answer never."""
    return asyncio.sleep(3600)


def json_of(response: HttpResponse) -> Any:
    """Return what a response says."""
    return msgspec.json.decode(response.body)


def behind(
    main: Any,
    *,
    gateway: Gateway = GATEWAY,
    kind: str = "inproc",
    policies: Policies | None = None,
    origins: Origins | None = None,
    log_share: float = 0.0,
) -> Any:
    """Run a test in virtual time, with three services behind a gateway."""

    async def system_main(system: System) -> Any:
        site = Plant(system, gateway, policies, origins, log_share)
        await site.start()
        site.fleet.answers |= {"machine": lambda i: Machine("M-1", "A-1", 7), "scrap": None}
        site.orders.answers |= {"one": Order("A-1", "ada"), "place": Order("A-2", "ada")}
        site.orders.answers["note"] = None
        site.production.answers |= {"slot": Slot("monday"), "line": "north"}
        return await main(site)

    return play(kind, system_main)
