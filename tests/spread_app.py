"""A writer, replicas of a service of queries, and a gateway, each run as a process of its own."""

from __future__ import annotations

from replicas_app import Quotes
from shop_app import Shop
from synchromesh import Gateway, Route

TOML = """
[system]
name = "{name}"
key = "env:MESH_KEY"

[services.shop]
app = "shop_app:shop"

[services.quotes]
app = "replicas_app:quotes"
replicas = 3

[gateway]
app = "spread_app:way_in"
port = {port}

[admin.ports]
gateway = {admin}

[engine]
postgres = "env:DATABASE_URL"
nats = "env:NATS_URL"

[policies."gateway:shop"]
timeout = "20s"

[policies."gateway:quotes"]
timeout = "20s"
"""

way_in = Gateway(
    routes=[
        Route("POST /sales", Shop.sell, public=True, deadline="30s"),
        Route("GET /quotes/{sku}", Quotes.one, public=True, deadline="30s"),
    ]
)
