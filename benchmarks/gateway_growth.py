"""How the gateway grows: with the number of its routes, and of connections that wait."""

from __future__ import annotations

import resource
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks import gateway_app
from benchmarks.harness import Measures, Report, WrongAnswer, at_most, in_turn, pss_mb, size
from benchmarks.peers import gateways
from benchmarks.processes import Server, running
from benchmarks.product import finder

FEW, MANY = 10, 10_000
FOUND = size(50_000, 2_000)
ROUNDS = size(7, 1)

IDLE = size(10_000, 1_000)
IDLE_MIB_MAX = 200
# Files that a process needs besides, and connections that the gateway takes beyond those that wait.
SPARE = 500
SETTLE_S = size(3, 1)


def allow_files() -> None:
    """Raise the limit of open files, also of what is started; exits where it is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < IDLE + SPARE:
        sys.exit(
            f"{IDLE:,} idle connections need {IDLE + SPARE:,} open files and the limit is {hard:,}:"
            f" raise it as root, such as by `ulimit -n {IDLE + SPARE}`"
        )
    if soft != resource.RLIM_INFINITY and soft < IDLE + SPARE:
        resource.setrlimit(resource.RLIMIT_NOFILE, (IDLE + SPARE, hard))


def matching(report: Report) -> None:
    """Add how long a route is looked for among few and among many."""
    results = in_turn({str(count): _found(count) for count in (FEW, MANY)}, rounds=ROUNDS)
    report.against(
        f"match among {MANY:,} routes: CPU",
        "µs",
        results,
        "us",
        ours=str(MANY),
        peer=str(FEW),
        goal=at_most(2),
    )


def _found(count: int) -> Callable[[], Measures]:
    """Return a round of looking for each route in turn, as requests of many clients do.

    A request's path has just been received. So paths are written when they are needed, which is
    measured by itself and taken off: a list of them would be as large as the routes.
    """
    find = finder([f"GET /things-{n}/{{id}}/parts/{{part}}" for n in range(count)])

    def pass_over(path: str) -> str:
        return path

    def timed(use: Callable[[str], str]) -> float:
        began_s = time.process_time()
        for n in range(FOUND):
            use(f"/things-{n * 7919 % count}/4711/parts/SX90")
        return time.process_time() - began_s

    def found() -> Measures:
        return {"us": (timed(find) - timed(pass_over)) * 1e6 / FOUND}

    return found


def idle(report: Report, upstream: Server) -> None:
    """Add what the gateway takes of memory while so many clients keep a connection and wait."""
    settings = [
        "system.loop=uvloop",
        f"gateway.clients.connections={IDLE + SPARE}",
        "gateway.clients.idle=10m",
    ]
    config = gateway_app.CONFIG.format(upstream=upstream.url)
    with running(config, split=True, settings=settings) as system, ExitStack() as enter:
        pid = system.pids()["gateway"]
        system.ask("/small")
        before_mib = _mib(pid)
        port = int(system.gateway.rpartition(":")[2])
        waiting = [enter.enter_context(_asked(port)) for _ in range(IDLE)]
        time.sleep(SETTLE_S)
        # A connection that was closed meanwhile can be read.
        poll = select.poll()
        for each in waiting:
            poll.register(each, select.POLLIN)
        if closed := poll.poll(0):
            raise WrongAnswer(f"{len(closed):,} of {IDLE:,} idle connections were closed")
        after_mib = _mib(pid)
    report.alone(
        f"{IDLE:,} idle connections: memory of the gateway", "MiB", after_mib, at_most(IDLE_MIB_MAX)
    )
    each_kib = (after_mib - before_mib) * 1024 / IDLE
    report.alone("an idle connection: memory of the gateway", "KiB", each_kib)


def _asked(port: int) -> socket.socket:
    """Return a connection that was answered once: what is made for requests is there."""
    client = socket.create_connection(("127.0.0.1", port), 10.0)
    client.sendall(b"GET /small HTTP/1.1\r\nHost: bench\r\n\r\n")
    answer = b""
    while not answer.endswith(gateways.SMALL):
        piece = client.recv(65536)
        if not piece:
            raise WrongAnswer(f"the gateway closed a connection after {answer!r:.200}")
        answer += piece
    return client


def _mib(pid: int) -> float:
    return pss_mb(pid) * 1e6 / 2**20
