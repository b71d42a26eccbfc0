"""The other side of the HTTP hop: one JSON POST, as aiohttp users write it. Takes its port."""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web


async def look(request: web.Request) -> web.Response:
    """Answer how many pieces are free."""
    item = await request.json()
    return web.json_response({"sku": item["sku"], "free": item["qty"] * 2, "held": 1})


async def main(port: int) -> None:
    """Serve until the process is ended."""
    app = web.Application()
    app.router.add_post("/look", look)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
