"""What each policy of a route costs: the CPU of a request that it has, beyond one without."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path

from msgspec import to_builtins

from benchmarks import credentials, policies_app
from benchmarks.app import answer
from benchmarks.gateway_load import Contestant, load, rounds
from benchmarks.harness import Report, Results, WrongAnswer, at_most, check, in_turn, size
from benchmarks.peers import gateways
from benchmarks.processes import Server, System, running, synchromesh

# Short and many: costs are differences, and those of a round have to be of the same moment.
SECONDS = 1
ROUNDS = size(7, 1)
# A running gateway knows of a new key within a second.
KEYS_WITHIN_S = 1.5
ACCESS_LOG = ".synchromesh/telemetry/access.jsonl"
_TOKEN = "token"

# The policy, its contestant, and the one that has all but this policy.
COSTS = (
    ("key", "key", "plain"),
    ("scope", "scope", "key"),
    ("rate", "rate", "key"),
    ("CORS", "cors", "plain"),
    ("mirror, next to none copied", "mirror few", "plain"),
    ("mirror, all copied and compared", "mirror all", "plain"),
    ("two URLs of the upstream", "several", "plain"),
    ("access log", "logged", "plain"),
    ("strict body", "strict", "body"),
)
TOKEN_US_MAX = 3.0


def measure(report: Report, folder: Path, upstream: Server, second: str) -> None:
    """Add the rows of all policies; `second` is another URL of the upstream.

    Raises:
        WrongAnswer: an answer is another one, or a policy did not do its work.
    """
    with ExitStack() as enter:
        split = _start(folder / "split", upstream, second, enter)
        logged = _start(folder / "logged", upstream, second, enter, "gateway.access_log=on")
        one = _start(folder / "one", upstream, second, enter, is_split=False)
        contestants = [*_forwarded(split, logged), *_called(one)]
        time.sleep(KEYS_WITHIN_S)
        for contestant in contestants:
            load(contestant, 1)
        add_rows(report, in_turn(rounds(contestants, SECONDS), rounds=ROUNDS, warm_up=0))
        _check_copies(split)
        if not (logged.folder / ACCESS_LOG).stat().st_size or (split.folder / ACCESS_LOG).exists():
            raise WrongAnswer("the access log is not where it was asked for, and there alone")


def _start(
    folder: Path,
    upstream: Server,
    second: str,
    enter: ExitStack,
    *settings: str,
    is_split: bool = True,
) -> System:
    """Start the gateway in a folder of its own, as processes or as one with its service."""
    folder.mkdir()
    config = policies_app.CONFIG.format(upstream=upstream.url, second=second)
    (folder / "synchromesh.toml").write_text(config)
    token = credentials.token(
        folder / policies_app.KEYS,
        issuer=policies_app.ISSUER,
        audience=policies_app.AUDIENCE,
        scope=policies_app.SCOPE,
    )
    (folder / _TOKEN).write_text(token)
    return enter.enter_context(running(folder, split=is_split, settings=settings))


def _forwarded(split: System, logged: System) -> list[Contestant]:
    """Return what is asked of routes that pass requests on."""
    verb = ("gateway", "key", "add", "bench", "--scope", policies_app.SCOPE, "--json")
    key = {"X-Api-Key": json.loads(synchromesh(split.folder, *verb))["key"]}
    bearer = {"Authorization": f"Bearer {(split.folder / _TOKEN).read_text()}"}
    origin = {"Origin": policies_app.ORIGIN}
    small, nothing = json.loads(gateways.SMALL), dict[str, str]()
    pids = {system.gateway: system.pids()["gateway"] for system in (split, logged)}
    asked = (
        ("plain", split, "/plain", nothing, ""),
        ("key", split, "/known", key, ""),
        ("token", split, "/known", bearer, ""),
        ("scope", split, "/scope", key, ""),
        ("rate", split, "/rate", key, "ratelimit"),
        ("cors", split, "/cors", origin, "access-control-allow-origin"),
        ("mirror few", split, "/mirror-few", nothing, ""),
        ("mirror all", split, "/mirror-all", nothing, ""),
        ("several", split, "/several", nothing, ""),
        ("logged", logged, "/plain", nothing, ""),
    )
    return [
        Contestant(name, at.gateway + path, pids[at.gateway], small, headers, says=says)
        for name, at, path, headers, says in asked
    ]


def _called(one: System) -> list[Contestant]:
    """Return what is asked of routes that call a service in the gateway's own process."""
    item, pid = policies_app.ITEM, one.server.pid
    wanted = to_builtins(answer(item))
    sent = json.dumps(to_builtins(item)).encode()
    url = one.gateway
    return [
        Contestant("contract", f"{url}/free/{item.sku}", pid, wanted),
        Contestant("kept", f"{url}/kept/{item.sku}", pid, wanted, says="etag"),
        Contestant("body", f"{url}/look", pid, wanted, body=sent),
        Contestant("strict", f"{url}/strict", pid, wanted, body=sent),
    ]


def _check_copies(system: System) -> None:
    """Compare what came of the copies: what was not copied, or not compared, costs less."""
    told = json.loads(synchromesh(system.folder, "gateway", "mirror", "--json"))
    (found,) = [each for each in told if each["route"] == "GET /mirror-all"]
    wrong = {name: found[name] for name in ("different", "failed", "dropped") if found[name]}
    check(wrong, {}, "the mirror of all requests")
    check(found["same"] > 0, True, "that copies were compared")


def add_rows(report: Report, results: Results) -> None:
    """Add a row for each policy."""
    report.alone("route without policies: CPU", "µs", results.median("plain", "cpu_us"))
    report.alone(
        "JWT, warm: CPU beyond",
        "µs",
        results.difference("token", "plain", "cpu_us"),
        at_most(TOKEN_US_MAX),
    )
    for policy, over, under in COSTS:
        difference = results.difference(over, under, "cpu_us")
        report.alone(f"{policy}: CPU beyond", "µs", difference)
    report.against(
        "contract route, all in one process: CPU",
        "µs",
        results,
        "cpu_us",
        ours="contract",
        peer="plain",
    )
    report.against(
        "answer from the cache: CPU", "µs", results, "cpu_us", ours="kept", peer="contract"
    )
