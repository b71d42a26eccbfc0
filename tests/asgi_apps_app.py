"""Two ASGI applications as services of a system, and a service that calls one of them."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Protocol

from synchromesh import Context, Contract, Service, query
from synchromesh.asgi import current
from synchromesh.http import Message, Receive, Scope, Send


class Shop(Contract, Protocol, service="shop", version="1.0"):
    @query("GET /prices/{sku}")
    async def price(self, sku: str) -> dict[str, str]: ...


class Orders(Contract, Protocol, service="orders", version="1.0"):
    @query("GET /quotes/{sku}")
    async def quote(self, sku: str) -> dict[str, str]: ...

    @query("GET /left/{sku}")
    async def left(self, sku: str) -> int: ...


orders = Service("orders", implements=Orders)


@orders.handles(Orders.quote)
async def quote(ctx: Context, sku: str) -> dict[str, str]:
    return await ctx.call(Shop.price(sku), timeout_s=30.0)


@orders.handles(Orders.left)
async def left(ctx: Context, sku: str) -> int:
    return 7


class Application:
    """Answers who calls and what it asked of orders; `/slow` waits, and `/fails` raises."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if scope["path"].endswith("/slow"):
            print("a slow one has come", flush=True)
            await asyncio.sleep(0.5)
        request = current()
        answer = {
            "pid": str(os.getpid()),
            "caller": request.caller,
            "left": str(await request.call(Orders.left("axle"), timeout_s=30.0)),
            "pool": scope["state"]["pool"],
        }
        json_type = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": json_type})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        scope["state"]["pool"] = "open"
        print("the pool is open", flush=True)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("the pool is closed", flush=True)
        message: Message = {"type": "lifespan.shutdown.complete"}
        await send(message)


class Broken:
    """Cannot start."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})


def wsgi(environ: object, start_response: object) -> None:
    """A WSGI application."""


async def handler(request: object) -> None:
    """One handler of an application."""


shop, till, broken = Application(), Application(), Broken()
