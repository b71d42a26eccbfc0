"""The gateway with a route for each policy: what it costs is measured against the route without."""

from __future__ import annotations

from typing import Protocol

from benchmarks.app import Free, Item, answer
from synchromesh import (
    JWT,
    ApiKeys,
    Context,
    Contract,
    Forward,
    Gateway,
    Rate,
    Route,
    Service,
    query,
)
from synchromesh.gateway import Cache, Cors, Mirror

SCOPE = "bench:read"
# A rate that is counted and never reached.
RATE = Rate("100000/s", burst=100_000)
ORIGIN = "https://shop.example"
ISSUER, AUDIENCE, KEYS = "https://id.example", "bench", "issuer-keys.json"
ITEM = Item("SX90", 21)

CONFIG = """
[system]
name = "bench"
loop = "uvloop"

[services.stand]
app = "benchmarks.policies_app:stand"

[external.upstream]
url = "{upstream}"

[external.beside]
url = "{upstream}"

[external.several]
urls = ["{upstream}", "{second}"]

[gateway]
app = "benchmarks.policies_app:gateway"
"""


class Stand(Contract, Protocol, service="stand", version="1.0"):
    """The least that a service can answer: what is measured is the way there."""

    @query("GET /free/{sku}")
    async def free(self, sku: str) -> Free: ...

    @query("POST /look")
    async def look(self, item: Item) -> Free: ...


stand = Service("stand", implements=Stand)


@stand.handles(Stand.free)
async def free(_: Context, sku: str) -> Free:
    """Answer without waiting."""
    return answer(Item(sku, ITEM.qty))


@stand.handles(Stand.look)
async def look(_: Context, item: Item) -> Free:
    """Answer without waiting."""
    return answer(item)


def _forward(path: str, **policy: object) -> Forward:
    """Return a route to the same answer of the upstream as all others of the kind."""
    return Forward(f"GET {path}", path="/small", **{"to": "upstream", **policy})  # type: ignore[arg-type]


# One that compares copies of all requests, and one that does so of next to none.
_all = Mirror("beside", path="/small", in_flight_max=256)
_few = Mirror("beside", path="/small", percent=0.001)

gateway = Gateway(
    auth=[ApiKeys(), JWT(issuer=ISSUER, audience=AUDIENCE, jwks=KEYS, algorithms=["ES256"])],
    routes=[
        _forward("/plain", public=True),
        _forward("/known"),
        _forward("/scope", scopes={SCOPE}),
        _forward("/rate", rate=RATE),
        _forward("/cors", public=True, cors=Cors(origins={ORIGIN})),
        _forward("/mirror-few", public=True, mirror=_few),
        _forward("/mirror-all", public=True, mirror=_all),
        _forward("/several", public=True, to="several"),
        Route("GET /free/{sku}", Stand.free, public=True),
        Route("GET /kept/{sku}", Stand.free, public=True, cache=Cache("1h", shared=True)),
        Route("POST /look", Stand.look, public=True),
        Route("POST /strict", Stand.look, public=True, strict=True),
    ],
)
