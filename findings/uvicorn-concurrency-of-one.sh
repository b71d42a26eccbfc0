#!/bin/sh
# uvicorn with limit_concurrency=1 answers nobody, and idle connections of a pool take its places.
#
# "Maximum number of concurrent connections or tasks to allow, before issuing HTTP 503 responses" is
# what one sets so that a process works on so many requests at once: 1 for a model that has room for
# one. The connection that a request has come by is counted before the limit is looked at, so that
# N lets in N - 1, and 1 none: each request is answered 503, by an idle server. And a connection counts
# as long as it is open. HTTP clients keep theirs: with a limit of 3, two clients that have had their
# answers, and do nothing, keep out a third one, for as long as keep-alive lasts.
#
# What to do: have a semaphore in the application, or in a middleware, for work at once; and set
# limit_concurrency, as a bound on memory, above all connections that clients may keep, plus one.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    uvicorn==0.54.0 httpx==0.28.1
cat > "$work/shown.py" <<'PY'
import asyncio
import socket
import sys
from contextlib import AsyncExitStack
from importlib.metadata import version

import httpx
import uvicorn


async def app(scope, receive, send):
    headers = [(b"content-length", b"4")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"done"})


async def asked(limit, clients):
    """Ask by one client after the other, none of which ends; return the statuses."""
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    options = {"limit_concurrency": limit, "lifespan": "off", "log_level": "critical"}
    server = uvicorn.Server(uvicorn.Config(app, **options))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    async with AsyncExitStack() as until:
        statuses = []
        for _ in range(clients):
            client = await until.enter_async_context(httpx.AsyncClient(base_url=url))
            statuses.append((await client.get("/")).status_code)
    server.should_exit = True
    await serving
    return statuses


seen = {limit: asyncio.run(asked(limit, 3)) for limit in (1, 3, 4)}
print(f"version: uvicorn {version('uvicorn')}, httpx {version('httpx')}")
print(
    "behaviour: one would expect 200 each time, for never is more than one request under way; one "
    "place less is given than is said, and idle connections keep theirs"
)
print(f"seen: statuses of three clients in turn, by limit: {seen}")
sys.exit(0 if seen == {1: [503, 503, 503], 3: [200, 200, 503], 4: [200, 200, 200]} else 1)
PY
"$work/venv/bin/python" "$work/shown.py"
