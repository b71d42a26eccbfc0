"""A service that stalls while a file is there, one that needs it for some work, and a gateway."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Protocol

from synchromesh import Context, Contract, Gateway, Route, Service, query

# In the environment: the path of the file.
STALLED = "STALL_APP_STALLED"
TOML = """
[system]
name = "stalls"

[services.front]
app = "stall_app:front"

[services.back]
app = "stall_app:back"

[gateway]
app = "stall_app:way_in"
"""


class Front(Contract, Protocol, service="front", version="1.0"):
    @query("GET /alone")
    async def alone(self) -> int: ...
    @query("GET /needing")
    async def needing(self) -> int: ...


class Back(Contract, Protocol, service="back", version="1.0"):
    @query("GET /it")
    async def it(self) -> int: ...


front = Service("front", implements=Front)
back = Service("back", implements=Back)


@front.handles(Front.alone)
async def alone(ctx: Context) -> int:
    return 1


@front.handles(Front.needing)
async def needing(ctx: Context) -> int:
    return await ctx.call(Back.it())


@back.handles(Back.it)
async def it(ctx: Context) -> int:
    while Path(os.environ[STALLED]).exists():
        await asyncio.sleep(0.05)
    return 1


way_in = Gateway(
    routes=[
        Route("GET /alone", Front.alone, public=True, deadline="20s"),
        Route("GET /needing", Front.needing, public=True, deadline="1s"),
    ]
)
