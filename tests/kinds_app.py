"""A gateway before services whose contracts have every kind of type that can be sent."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, IntEnum
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Protocol,
    TypedDict,
    TypeVar,
)

from msgspec import UNSET, Meta, Struct, UnsetType, field

from gateway_fakes import SHOP
from synchromesh.calls import Contract, Incoming, command, query
from synchromesh.codec import encode
from synchromesh.errors import Rejection
from synchromesh.gateway import (
    Aggregate,
    Branch,
    Forward,
    Gateway,
    OpenApi,
    Rate,
    Route,
    Stale,
    Static,
)

T = TypeVar("T")

Sku = NewType("Sku", str)
Number = Annotated[int, Meta(ge=-5, lt=100, description="A number of few.")]
Aware = Annotated[dt.datetime, Meta(tz=True)]


class Colour(Enum):
    """What it is painted in."""

    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 9


class Circle(Struct, tag="circle"):
    radius: float


class Square(Struct, tag="square"):
    side: Annotated[float, Meta(gt=0)]
    within: Circle | Square | None = None


class Point(NamedTuple):
    x: int
    y: int = 0


class Row(Struct, array_like=True):
    name: str
    weight: int
    note: str = ""


class Closed(Struct, forbid_unknown_fields=True, rename="camel"):
    long_name: str
    more_of_it: int | UnsetType = UNSET


class Extras(TypedDict):
    a: int
    b: NotRequired[str]


@dataclass
class Money:
    cents: int
    currency: str = "EUR"


class Page(Struct, Generic[T]):
    items: list[T]
    next: str | None = None


class Tree(Struct):
    """A tree of names."""

    name: str
    children: list[Tree] = field(default_factory=list)


class Thing(Struct, kw_only=True):
    """Everything at once."""

    sku: Sku
    number: Number
    share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    is_new: bool = True
    name: Annotated[str, Meta(min_length=1, max_length=20)] = "x"
    code: Annotated[str, Meta(pattern="^[a-z]{2,4}$")] = "ab"
    raw: bytes = b""
    amount: Decimal = Decimal("1.50")
    ident: uuid.UUID | None = None
    at: dt.datetime | None = None
    aware: Aware | None = None
    day: dt.date | None = None
    hour: dt.time | None = None
    lasts: dt.timedelta | None = None
    colour: Colour = Colour.RED
    level: Level | None = None
    shape: Circle | Square | None = None
    point: Point = Point(0)
    row: Row | None = None
    closed: Closed | None = None
    extras: Extras | None = None
    money: Money | None = None
    tree: Tree | None = None
    page: Page[Money] | None = None
    words: Literal["a", "b", 1] | None = None
    pair: tuple[int, str] | None = None
    numbers: Annotated[list[int], Meta(max_length=3)] = []
    unique: frozenset[str] = frozenset()
    by_name: dict[str, Money] = {}
    by_number: dict[int, Money] = {}
    by_colour: dict[Colour, int] = {}
    mixed: int | str | list[bool] = 0
    maybe: str | UnsetType = UNSET
    anything: Any = None


class Found(Struct):
    id: str
    limit: int
    texts: list[str]


class Missing(Rejection, code="missing", status=404):
    """There is no such thing."""


class Taken(Rejection, code="taken", status=409):
    """Somebody else has it."""


class Broken(Rejection, code="broken", status=409):
    """It is there, and broken."""


class Kinds(Contract, Protocol, service="kinds", version="1.0"):
    @command("POST /things", raises=(Taken, Broken))
    async def keep(self, thing: Thing) -> Thing:
        """Keep a thing.

        It is there for ever, as <b>whatever</b> it is.
        """
        ...

    @query("GET /things/{id}", raises=(Missing,))
    async def one(
        self,
        id: str,  # noqa: A002
        limit: Annotated[int, Meta(ge=1, le=50)] = 10,
        colour: Colour | None = None,
        is_new: bool = False,
        since: Aware | None = None,
        texts: list[str] = [],  # noqa: B006
    ) -> Found: ...

    @query("GET /numbers/{number}")
    async def number(self, number: Number) -> Page[Tree]: ...

    @query("GET /shapes")
    async def shapes(self) -> Circle | Square: ...

    @command("PUT /things/{id}/notes")
    async def note(self, id: str, text: str, weight: float = 0.0) -> None: ...  # noqa: A002

    @command("DELETE /things/{id}")
    async def drop(self, id: str) -> None: ...  # noqa: A002


ROUTES = (
    Route("POST /things", Kinds.keep, scopes={"orders:write"}, rate=Rate("9000/s", burst=99)),
    Route("GET /things/{id}", Kinds.one, public=True, fallback=Stale("10m")),
    Route("GET /numbers/{number}", Kinds.number),
    Route("GET /shapes", Kinds.shapes),
    Route("PUT /things/{id}/notes", Kinds.note),
    Route("DELETE /things/{id}", Kinds.drop),
    Aggregate(
        "GET /pages/{id}",
        branches={
            "thing": Branch(Kinds.one, args={"id": "path.id"}, required=True),
            "number": Branch(
                Kinds.number, args={"number": "thing.limit"}, fallback=Static(Page([]))
            ),
            "same": Branch(Kinds.one, args={"id": "thing.id"}, fallback=Stale("1m")),
        },
    ),
)
FORWARD = Forward("PUT /uploads/{name}", to="store", body_max="1KiB")
ABOUT = OpenApi(title="kinds", version="2.1", description="Of every kind.", reference="/reference")
GATEWAY = Gateway(auth=[SHOP], routes=[*ROUTES, FORWARD], openapi=ABOUT)


def handlers() -> dict[str, Any]:
    """Return what answers: with what it was asked, or with something of the type."""

    async def keep(incoming: Incoming) -> bytes:
        return encode(Kinds.keep.parse(incoming.arguments)["thing"])

    async def one(incoming: Incoming) -> bytes:
        asked = Kinds.one.parse(incoming.arguments)
        if asked["id"] == "none":
            raise Missing
        return encode(Found(asked["id"], asked["limit"], asked["texts"]))

    async def number(_: Incoming) -> bytes:
        return encode(Page([Tree("a", [Tree("b")])], "next"))

    async def shapes(_: Incoming) -> bytes:
        return encode(Square(2.0, Circle(1.0)))

    async def nothing(_: Incoming) -> bytes:
        return b"null"

    return {
        "keep": keep, "one": one, "number": number, "shapes": shapes,
        "note": nothing, "drop": nothing,
    }  # fmt: skip
