"""The way into servo-works from outside: who may ask what, how often, and what answers."""

from pathlib import Path

from contracts.billing import Billing
from contracts.configurator import Configurator
from contracts.fleet import Fleet
from contracts.inventory import Inventory
from contracts.orders import Orders
from contracts.production import Production
from contracts.quoting import Quoting
from shop import rates

from synchromesh import JWT, Aggregate, ApiKeys, Branch, Gateway, Rate, Route, Stale
from synchromesh.gateway import OpenApi

# How often each of them may: customers order, drives report, whoever passes looks into the window.
RATES = rates()

# Customers have API keys, or sign in at an issuer whose public keys are in this file. Without it,
# as servo-works ships, keys alone open the gateway; with it, the extra `jwt` has to be installed.
ISSUER_KEYS = Path(__file__).with_name("issuer-keys.json")
PEOPLE = JWT(
    issuer="https://id.servo-works.example",
    audience="servo-works",
    jwks=ISSUER_KEYS.name,
    algorithms=["ES256"],
)

# The page of one drive in the field: how it is, the order it came with, and the week in which
# another one like it could be built. What it shows of the last two may be old; it says so then.
machine_page = Aggregate(
    "GET /machines/{machine_id}",
    scopes={"fleet:read"},
    deadline="1s",
    branches={
        "machine": Branch(Fleet.machine, args={"machine_id": "path.machine_id"}, required=True),
        "order": Branch(
            Orders.one,
            args={"order_id": "machine.order_id"},
            timeout="300ms",
            fallback=Stale("10m"),
        ),
        "slot": Branch(
            Production.quote,
            args={"sku": "machine.sku"},
            timeout="300ms",
            fallback=Stale("1h"),
        ),
    },
)

gateway = Gateway(
    auth=[ApiKeys(), PEOPLE] if ISSUER_KEYS.exists() else [ApiKeys()],
    openapi=OpenApi(
        title="servo-works",
        description="Drives, motors and what goes with them: prices, stock, orders.",
        reference="/reference",
        public=True,
    ),
    routes=[
        # Whoever looks round the shop needs no key. The list may be an old one, and says so then:
        # what an order costs is said when it is placed.
        Route(
            "GET /prices",
            Configurator.price_list,
            public=True,
            rate=Rate(RATES.window),
            deadline="500ms",
            fallback=Stale("10m"),
        ),
        Route("GET /configurations", Configurator.configure, public=True, rate=Rate(RATES.window)),
        Route(
            "GET /quotes/{sku}",
            Quoting.quote,
            public=True,
            rate=Rate(RATES.window),
            deadline="2s",
        ),
        # Customers order. The rate bounds each of them, not all together.
        Route("POST /orders", Orders.place, scopes={"orders:write"}, rate=Rate(RATES.orders)),
        # What became of an order, and whether it is paid, is never an old answer: people act on it.
        Route("GET /orders/{order_id}", Orders.one, scopes={"orders:read"}),
        Route("GET /invoices/{order_id}", Billing.invoice, scopes={"orders:read"}),
        # How many are on the shelf is old the moment it is read; only an order holds any.
        Route(
            "GET /stock/{sku}",
            Inventory.stock,
            scopes={"stock:read"},
            deadline="500ms",
            fallback=Stale("1m"),
        ),
        # Drives report, and people look at them.
        Route("POST /readings", Fleet.report, scopes={"fleet:write"}, rate=Rate(RATES.readings)),
        machine_page,
    ],
)
