"""What a registry on NATS costs: `python -m benchmarks.bench_registry_nats`.

1,000 instances renew their leases, 100 processes watch all of them, and nothing changes. The server
is a process of its own, and so are the watchers; what is told is the processor time of each, and
how soon a watcher hears of an instance that comes, and of one that is killed. Linux.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from benchmarks.harness import Report, at_most, check, size
from nats_server import NatsServer
from nats_world import at, credential, listed, registry_at, running, until
from synchromesh.errors import DiscoveryError

INSTANCES, WATCHERS, SERVICES, SECONDS = 1000, 100, 20, 20.0
Shares = tuple[float, float]
TICKS_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_S


async def watch_many(url: str) -> None:
    """Watch as many processes would, until killed."""
    tasks = []
    for _ in range(WATCHERS):
        registry = registry_at(url)
        await registry.open()
        tasks.append(asyncio.create_task(registry.run()))
        await until(lambda told=registry: not told.is_down)  # type: ignore[misc]
    print("watching", flush=True)
    await asyncio.gather(*tasks)


async def hold(url: str) -> None:
    """Hold one lease until killed."""
    async with running(url) as registry:
        registration = await registry.register(
            at("mortal", "mortal"), credential=credential("mortal")
        )
        print("up", flush=True)
        await registration.run()


async def child(name: str, url: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.bench_registry_nats",
        name,
        url,
        cwd=Path(__file__).parents[1],
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    return process


@asynccontextmanager
async def registered() -> AsyncIterator[tuple[NatsServer, list[Any], asyncio.subprocess.Process]]:
    """Have all instances registered and renewed, and a process with all watchers."""
    server = NatsServer()
    holders = [registry_at(server.url) for _ in range(10)]
    for holder in holders:
        await holder.open()
    renewals = []
    for number in range(INSTANCES):
        holder, service = holders[number % len(holders)], f"service{number % SERVICES}"
        endpoint, registration = at(f"i{number}", service), None
        while registration is None:
            with suppress(DiscoveryError):  # a busy machine is no failure
                registration = await holder.register(endpoint, credential=credential(service))
        renewals.append(asyncio.create_task(registration.run()))
    watchers = await child("watch", server.url)
    try:
        yield server, holders, watchers
    finally:
        watchers.kill()
        await watchers.wait()
        for task in renewals:
            task.cancel()
        await asyncio.gather(*renewals, return_exceptions=True)
        for holder in holders:
            await holder.close()
        server.close()


async def idle(server: NatsServer, watchers: asyncio.subprocess.Process, seconds: float) -> Shares:
    """Return the shares of a core of the server and of all watchers, where nothing changes."""
    async with running(server.url) as reader:

        def count() -> int:
            return sum(len(each.endpoints) for each in reader.listed().values())

        await until(lambda: count() == INSTANCES)
        began_s, before = time.monotonic(), (cpu_s(server.pid), cpu_s(watchers.pid))
        await asyncio.sleep(seconds)
        took_s = time.monotonic() - began_s
        used = (cpu_s(server.pid) - before[0], cpu_s(watchers.pid) - before[1])
        check(count(), INSTANCES, "the registry, asked how many are listed,")
        return used[0] / took_s, used[1] / took_s


async def measure_registry(report: Report) -> None:
    """Add the rows of a registry in which nothing changes."""
    async with registered() as (server, _, watchers):
        shares = await idle(server, watchers, size(20, 3))
    figure = f"{INSTANCES:,} instances, {WATCHERS} watchers"
    report.alone(f"{figure}: NATS and all watchers", "% of a core", 100 * sum(shares), at_most(1))
    report.alone(f"{figure}: NATS", "% of a core", 100 * shares[0])
    report.alone(f"{figure}: a watcher", "% of a core", 100 * shares[1] / WATCHERS)


async def main() -> None:
    """Measure, and print."""
    async with registered() as (server, holders, watchers), running(server.url) as reader:
        shares = await idle(server, watchers, SECONDS)
        print(f"{INSTANCES} instances, {WATCHERS} watchers, nothing changes, {SECONDS:.0f} s:")
        print(f"  server {shares[0]:.2%} of a core")
        print(f"  a watcher {shares[1] / WATCHERS:.3%}")
        heard = []
        for number in range(50):
            watching = asyncio.create_task(listed(reader, f"new{number}", service=f"new{number}"))
            await asyncio.sleep(0)
            at_s = time.monotonic()
            await holders[0].register(
                at(f"new{number}", f"new{number}"), credential=credential(f"new{number}")
            )
            await watching
            heard.append(1000 * (time.monotonic() - at_s))
        print(f"  heard of after p50 {statistics.median(heard):.1f} ms, max {max(heard):.1f} ms")
        seen = []
        for _ in range(5):
            process = await child("hold", server.url)
            await listed(reader, "mortal", service="mortal")
            process.kill()
            at_s = time.monotonic()
            await listed(reader, service="mortal")
            seen.append(time.monotonic() - at_s)
            await process.wait()
        print(f"  kill -9 of a host seen after {min(seen):.2f} to {max(seen):.2f} s")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        match sys.argv[1:]:
            case ["watch", url]:
                asyncio.run(watch_many(url))
            case ["hold", url]:
                asyncio.run(hold(url))
            case _:
                asyncio.run(main())
