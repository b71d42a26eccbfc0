"""What clients lose while the gateway is reloaded, replaced, and stopped: nothing.

    python -m benchmarks.restarts [CLIENT ...]

Each client sends POSTs, which nobody may send again, over a few kept connections: raw ones, httpx,
aiohttp, undici, and nginx as a proxy before the gateway. Meanwhile `gateway reload` is asked for,
again and again, each time of a gateway that has changed; then `restart gateway`; and at last the
system is stopped. A request counts as lost where its connection ended without an answer, or where
the answer is no 200. Once the system is stopped, connections are refused; nothing was sent then,
and nothing is lost.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import httpx

from benchmarks import restarts_app, tools
from benchmarks.harness import check
from benchmarks.peers import gateways
from benchmarks.processes import ROOT, System, installed, running, synchromesh

BODY = b'{"sku":"SX90","qty":2}'
CONNECTIONS = 8
REQUESTS = int(os.environ.get("REQUESTS", "50000"))
TIMES_MIN = 3
PAUSE_S = 1.0
# What a client says of a connection that was refused: nothing was sent.
REFUSED = frozenset({
    "ClientConnectorError", "ConnectError", "ConnectionRefusedError", "ECONNREFUSED",
})  # fmt: skip
FIELDS = {"content-type": "application/json"}

# Sends one request after the other until it is told to end, and notes what came of each.
Client = Callable[[str, "Load"], Awaitable[None]]


class Load:
    """What came of the requests of one client: statuses, and names of errors."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.over = asyncio.Event()

    async def repeat(self, send: Callable[[], Awaitable[int]]) -> None:
        """Send until the end."""
        while not self.over.is_set():
            try:
                self.outcomes[str(await send())] += 1
            except (OSError, EOFError, aiohttp.ClientError, httpx.HTTPError) as error:
                self.outcomes[type(error).__name__] += 1
                await asyncio.sleep(0.02)

    @property
    def lost(self) -> dict[str, int]:
        """What was neither answered nor refused."""
        kept = REFUSED | {"200"}
        return {name: count for name, count in self.outcomes.items() if name not in kept}


async def raw(url: str, load: Load) -> None:
    """Send by hand, and follow `Connection: close` alone."""
    host, _, port = url.removeprefix("http://").partition(":")
    head = b"POST /look HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\n" % host.encode()
    request = head + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)

    async def one() -> None:
        streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

        async def send() -> int:
            if not streams:
                streams.append(await asyncio.open_connection(host, int(port)))
            reader, writer = streams[0]
            try:
                writer.write(request)
                told = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = told.partition(b"content-length: ")[2].partition(b"\r")[0]
                await reader.readexactly(int(length))
            except BaseException:
                streams.pop()[1].close()
                raise
            if b"connection: close" in told:
                streams.pop()[1].close()
            return int(told[9:12])

        await load.repeat(send)

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))


async def by_httpx(url: str, load: Load) -> None:
    """Send by httpx."""
    async with httpx.AsyncClient(timeout=20.0) as client:

        async def send() -> int:
            answer = await client.post(f"{url}/look", content=BODY, headers=FIELDS)
            return int(answer.status_code)

        await asyncio.gather(*(load.repeat(send) for _ in range(CONNECTIONS)))


async def by_aiohttp(url: str, load: Load) -> None:
    """Send by aiohttp."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20.0)) as session:

        async def send() -> int:
            async with session.post(f"{url}/look", data=BODY, headers=FIELDS) as answer:
                await answer.read()
                return int(answer.status)

        await asyncio.gather(*(load.repeat(send) for _ in range(CONNECTIONS)))


async def by_undici(url: str, load: Load) -> None:
    """Send by undici, in a process of Node's."""
    script = str(ROOT / "benchmarks/peers/undici_load.cjs")
    words = [str(tools.NODE), f"{url}/look", BODY.decode(), str(CONNECTIONS)]
    node = await asyncio.create_subprocess_exec(
        "node", script, *words, stdout=subprocess.PIPE, env=installed()
    )
    await load.over.wait()
    node.send_signal(signal.SIGTERM)
    told, _ = await node.communicate()
    load.outcomes.update(json.loads(told))


CLIENTS: dict[str, Client] = {
    "raw": raw, "httpx": by_httpx, "aiohttp": by_aiohttp, "undici": by_undici, "nginx": raw,
}  # fmt: skip


def reload(system: System, version: int) -> None:
    """Change the gateway and reload it.

    Raises:
        WrongAnswer: the change was not taken: what clients lose by that means nothing.
    """
    restarts_app.write(system.folder, version)
    verb = ("gateway", "reload", "--why", "measured", "--json")
    told = json.loads(synchromesh(system.folder, *verb))
    check(told["mistakes"], [], "gateway reload")
    answer = system.ask(f"/look-{version}", json.loads(BODY))
    check(answer["sku"], "SX90", "the route of the new version")


def restart(system: System, _: int) -> None:
    """Replace the gateway by another process."""
    synchromesh(system.folder, "restart", "gateway")


ACTIONS: dict[str, Callable[[System, int], None]] = {"reload": reload, "restart": restart}


async def measure(name: str, system: System, url: str, action: str, *, is_stopped: bool) -> Load:
    """Load the gateway by one client while something is done to it, and it is stopped at last."""
    load = Load()
    working = asyncio.ensure_future(CLIENTS[name](url, load))
    times, began_s = 0, time.monotonic()
    # What undici has sent is known once it has ended: the others say how long it takes.
    while times < TIMES_MIN or (
        load.outcomes["200"] < REQUESTS and time.monotonic() - began_s < REQUESTS / 250
    ):
        times += 1
        await asyncio.to_thread(ACTIONS[action], system, times)
        await asyncio.sleep(PAUSE_S)
    if is_stopped:
        system.server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(system.server.process.wait)
    load.over.set()
    await working
    meanwhile = f"{action}, stop" if is_stopped else action
    answered, lost = load.outcomes["200"], sum(load.lost.values())
    print(f"{name:<8} {meanwhile:<14} {times:>5} {answered:>9} {lost:>6}  {load.lost or ''}")
    return load


def main(words: Iterable[str]) -> int:
    """Print a line for each client; the exit code is 1 where one has lost a request."""
    names = list(words) or list(CLIENTS)
    unknown = sorted(set(names) - set(CLIENTS))
    if unknown:
        sys.exit(f"there is no client {unknown[0]!r}; there are: {', '.join(CLIENTS)}")
    if {"nginx", "undici"} & set(names):
        tools.fetch()
    is_lost = False
    print(f"{'client':<8} {'meanwhile':<14} {'times':>5} {'answered':>9} {'lost':>6}")
    for name in names:
        with tempfile.TemporaryDirectory(prefix="synchromesh-bench-") as made, ExitStack() as enter:
            folder = Path(made)
            restarts_app.write(folder, 0)
            system = enter.enter_context(running(folder, split=True))
            url = system.gateway
            if name == "nginx":
                (folder / "proxy").mkdir()
                port = int(url.rpartition(":")[2])
                url = enter.enter_context(gateways.nginx(folder / "proxy", port)).wait().url
            for action in ACTIONS:
                # nginx says 502 of a refused connection, too: it is not stopped under it.
                is_stopped = action == "restart" and name != "nginx"
                load = asyncio.run(measure(name, system, url, action, is_stopped=is_stopped))
                is_lost = is_lost or bool(load.lost)
    return int(is_lost)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
