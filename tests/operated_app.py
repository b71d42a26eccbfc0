"""Tills that wait for somebody to close them, and a gateway: replicas that operators find."""

from __future__ import annotations

from typing import Protocol

import msgspec

from synchromesh import (
    ApiKeys,
    Context,
    Contract,
    Gateway,
    Rate,
    Route,
    Saga,
    Service,
    command,
    query,
)

TOML = """
[system]
name = "{name}"
key = "env:MESH_KEY"
tls = {{ certificate = "tls/host.pem", key = "tls/host.key", ca = "tls/authority.pem" }}

[services.tills]
app = "operated_app:tills"
replicas = 2

[policies."gateway:tills"]
timeout = "20s"

[gateway]
app = "operated_app:way_in"
port = {port}

[engine]
postgres = "env:DATABASE_URL"
nats = "env:NATS_URL"
"""


class Closed(msgspec.Struct, frozen=True):
    by: str


class Tills(Contract, Protocol, service="tills", version="1.0"):
    @command("POST /tills")
    async def open(self, till: str) -> None: ...
    @query("GET /tills")
    async def count(self) -> int: ...


tills = Service("tills", implements=Tills)


@tills.saga(str, deadline="2h")
async def keeping(s: Saga, till: str) -> str:
    told = await s.event(Closed, within="1h")
    return "" if told is None else told.by


@tills.handles(Tills.open)
async def open_till(ctx: Context, till: str) -> None:
    await keeping.start(ctx, till, id=till)


@tills.handles(Tills.count)
async def count(ctx: Context) -> int:
    (found,) = await ctx.read("select count(*) from sm_saga", as_=int)
    return found


way_in = Gateway(
    auth=[ApiKeys()],
    routes=[
        Route("GET /own", Tills.count, deadline="30s", rate=Rate("60/m", burst=4)),
        Route("POST /tills", Tills.open, public=True, deadline="30s"),
        Route("GET /tills", Tills.count, public=True, deadline="30s"),
    ],
)
