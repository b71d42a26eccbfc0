"""The gateway that is measured: plain forwarding, forwarding under policies, and a page."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from synchromesh import Aggregate, ApiKeys, Branch, Contract, Forward, Gateway, Rate, query

SCOPE = "bench:read"
# A rate that is counted and never reached.
RATE = Rate("100000/s", burst=100_000)

CONFIG = """
[system]
name = "bench"

[services.shelf]
app = "benchmarks.app:shelf"

[external.upstream]
url = "{upstream}"

[gateway]
app = "benchmarks.gateway_app:gateway"
"""


class User(Struct, frozen=True):
    """Who the page is for."""

    id: int
    name: str


class Orders(Struct, frozen=True):
    """What they ordered."""

    first: float
    second: float


class Stock(Struct, frozen=True):
    """What there is."""

    sku: str
    qty: int


class Upstream(Contract, Protocol, service="upstream", version="1.0", external=True):
    """What stands behind the gateway; it is not ours."""

    @query("GET /user")
    async def user(self) -> User: ...

    @query("GET /orders")
    async def orders(self) -> Orders: ...

    @query("GET /stock")
    async def stock(self) -> Stock: ...


gateway = Gateway(
    auth=[ApiKeys()],
    routes=[
        Forward("GET /small", to="upstream", public=True),
        Forward("GET /guarded", to="upstream", path="/small", scopes={SCOPE}, rate=RATE),
        Aggregate(
            "GET /page",
            scopes={SCOPE},
            rate=RATE,
            branches={
                "user": Branch(Upstream.user, required=True),
                "orders": Branch(Upstream.orders),
                "stock": Branch(Upstream.stock),
            },
        ),
    ],
)
