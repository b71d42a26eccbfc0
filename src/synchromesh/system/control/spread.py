"""Asks all replicas of a system that nobody supervises, and answers as its control API would.

    registry on NATS → who is registered, and where their admin listeners are → each of them

An operator needs the configuration, the registry and the system's key, on any host. What is on a
database is asked of one replica of its service; what processes keep, of all of them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from synchromesh.codec import decode, encode
from synchromesh.discovery import Endpoint
from synchromesh.discovery.nats_kv import NatsRegistry
from synchromesh.errors import (
    BadRequest,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    DiscoveryError,
    SynchromeshError,
    TimedOut,
    UnknownOperation,
)
from synchromesh.http import HttpPool
from synchromesh.identity import Signer
from synchromesh.runtime import RealRuntime
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import GATEWAY, SystemConfig
from synchromesh.system.config.secrets import system_keys
from synchromesh.system.control.action_table import find_action
from synchromesh.system.control.actions import (
    OWN,
    Action,
    Answers,
    RepairAction,
    act,
    joined,
    parse_request,
)
from synchromesh.system.control.gateway_changes import ReloadReport, ReloadRequest
from synchromesh.system.control.operator import Operator
from synchromesh.system.control.remote import MetricsAnswer, Observed
from synchromesh.system.control.replicas import Asking, Replica
from synchromesh.system.control.spans import find_spans
from synchromesh.system.control.spread_reload import reload_all
from synchromesh.system.control.spread_status import ReplicaReport, spread_status
from synchromesh.system.control.status import Status
from synchromesh.system.control.status_parts import ListedInstance
from synchromesh.system.control.successors import Followed, RestartReport, restart_replicas
from synchromesh.telemetry.metrics import merge

KNOWN_WITHIN_S = 10.0

Verb = Callable[[str, bytes], Awaitable[object]]


class NobodyRegistered(ConfigError):
    """Raised where the registry has no replica of the system."""


class AllReplicas:
    """Answers for all replicas that are registered.

    Args:
        registry: is followed meanwhile.
    """

    def __init__(
        self, config: SystemConfig, folder: Path, registry: NatsRegistry, asking: Asking
    ) -> None:
        self._config = config
        self._folder = folder
        self._registry = registry
        self._asking = asking
        self._answers: dict[tuple[str, str], Verb] = {
            ("GET", "status"): self._status,
            ("GET", "metrics"): self._metrics,
            ("GET", "observed"): self._observed,
            ("GET", "traces"): self._trace,
            ("POST", "actions"): self._act,
            ("POST", "faults"): self._break_or_heal,
            ("POST", "breakers"): self._isolate_or_release,
            ("POST", "gateway"): self._reload,
        }

    @property
    def replicas(self) -> list[Replica]:
        """Those that run by themselves or may, by name: not what is registered for others."""
        return [
            Replica(entry, self._asking)
            for entry in self._registry.entries()
            if entry.endpoint.service not in self._config.external
        ]

    async def answer(self, method: str, path: str, body: bytes) -> object:
        """Answer a request of the control API.

        Raises:
            NobodyRegistered: there is no replica to ask.
            ConfigError: it is for a system that one supervisor runs.
            SynchromeshError: the replicas refuse it, or do not answer.
        """
        first, _, rest = path[1:].partition("/")
        found = self._answers.get((method, first))
        if found is None:
            raise ConfigError(
                f"the replicas of {self._config.system.name} run by themselves, and have no "
                f"{method} /{first}: only a system that `synchromesh dev` runs in this folder has"
            )
        self._check_anybody()
        return await found(unquote(rest), body)

    async def restart(
        self, name: str, *, within_s: float, note: Callable[[Followed], None]
    ) -> RestartReport:
        """Restart replicas one by one, as `restart_replicas` says."""
        self._check_anybody()
        return await restart_replicas(
            lambda: self.replicas, self._registry.changed, name, within_s=within_s, note=note
        )

    def _check_anybody(self) -> None:
        if not self.replicas:
            raise NobodyRegistered(
                f"no replica of {self._config.system.name} is registered on NATS, and no system "
                "runs in this folder; start a replica with: synchromesh run NAME, or the system "
                "with: synchromesh dev"
            )

    async def _status(self, _: str, __: bytes) -> Status:
        replicas, config = self.replicas, self._config
        told = await asyncio.gather(*map(_report, replicas))
        reports = [
            *told,
            *(
                ReplicaReport(name, _listed(entry.endpoint), None, "", None)
                for entry in self._registry.entries()
                if (name := entry.endpoint.service) in config.external
            ),
        ]
        return spread_status(
            config.system.name,
            reports,
            services=[name for name in config.services if name not in config.system.joined],
            externals=config.external,
            gateway=GATEWAY if config.gateway.app else "",
            engines=config.engine.shown(self._folder, os.environ),
        )

    async def _metrics(self, _: str, __: bytes) -> MetricsAnswer:
        first, *others = await asyncio.gather(*(each.metrics() for each in self.replicas))
        return MetricsAnswer(merge(first, *others))

    async def _observed(self, _: str, __: bytes) -> Observed:
        return Observed.of(await asyncio.gather(*(each.observed() for each in self.replicas)))

    async def _trace(self, trace_id: str, _: bytes) -> object:
        return await find_spans(self.replicas, trace_id)

    async def _act(self, name: str, body: bytes) -> Answers:
        action = find_action(name)
        wanted = parse_request(action, body)
        known = list(self._config.services)
        if wanted.service not in ("", *known):
            raise UnknownOperation(
                f"there is no service {wanted.service!r}; there are {', '.join(known)}"
            )
        return await act(action, wanted, body, self._ask_all)

    async def _ask_all(self, action: Action, wanted: Any, body: bytes) -> Answers:
        asked = [wanted.service] if wanted.service else list(self._config.services)
        return joined(await asyncio.gather(*(self._act_of(each, action, body) for each in asked)))

    async def _act_of(self, service: str, action: Action, body: bytes) -> Answers:
        """Run an action at one replica of a service, the first that answers.

        What changes something is not tried elsewhere once it may have been done.
        """
        why = f"{service}: no replica of it is registered"
        for replica in self._of(service):
            try:
                return await replica.ask(
                    "POST", f"/actions/{action.name}?{OWN}", Answers, body,
                    within_s=action.within_s,
                )  # fmt: skip
            except ConnectFailed as error:
                why = f"{replica.instance}: {error.message}"
            except (ConnectionLost, DeadlineExceeded, TimedOut) as error:
                why = f"{replica.instance}: {error.message}"
                if isinstance(action, RepairAction):
                    break
        return Answers(silent=[why])

    def _of(self, service: str) -> list[Replica]:
        """Return the replicas of a service, those first that can be asked and take calls."""
        found = [each for each in self.replicas if each.service == service]
        return sorted(found, key=lambda each: (bool(each.why_not()), each.entry.is_draining))

    async def _break_or_heal(self, rest: str, body: bytes) -> dict[str, Any]:
        asked = msgspec.json.decode(body, type=dict[str, Any])
        asked["target"] = self._whole(str(asked.get("target", "")))
        path = f"/faults/{rest}" if rest else "/faults"
        answers, silent = await self._command(path, encode(asked))
        if not rest:
            return {**answers[0], "silent": silent}
        return {
            "healed": _united(answers, "healed"),
            "in_force": _united(answers, "in_force"),
            "struck": sum(each["struck"] for each in answers),
            "silent": silent,
        }

    async def _isolate_or_release(self, rest: str, body: bytes) -> dict[str, Any]:
        path = f"/breakers/{rest}" if rest else "/breakers"
        answers, silent = await self._command(path, body)
        isolated = dict.fromkeys(target for each in answers for target in each["isolated"])
        released = _united(answers, "released")
        return {"isolated": list(isolated), "released": released, "silent": silent}

    async def _reload(self, _: str, body: bytes) -> ReloadReport:
        gateways = [each for each in self.replicas if each.service == GATEWAY]
        if not gateways:
            raise NobodyRegistered(
                "no gateway is registered; start one by: synchromesh run gateway"
            )
        return await reload_all(
            {e.instance: e.reload for e in gateways}, decode(body, ReloadRequest)
        )

    async def _command(self, path: str, body: bytes) -> tuple[list[dict[str, Any]], list[str]]:
        """Have all replicas do something; return their answers, and who has not done it and why.

        Raises:
            SynchromeshError: none has done it.
        """
        asked = self.replicas
        outcomes = await asyncio.gather(
            *(each.ask("POST", path, dict[str, Any], body) for each in asked),
            return_exceptions=True,
        )
        answers, silent, refused = [], [], []
        for replica, outcome in zip(asked, outcomes, strict=True):
            if isinstance(outcome, dict):
                answers.append(outcome)
            elif isinstance(outcome, SynchromeshError):
                silent.append(f"{replica.instance}: {outcome.message}")
                if not isinstance(outcome, ConnectFailed):
                    refused.append(outcome)
            else:
                raise outcome
        if answers:
            return answers, silent
        if refused:
            raise refused[0]
        raise ConnectFailed(f"no replica was reached: {'; '.join(silent)}")

    def _whole(self, target: str) -> str:
        """Return a target whose instance is named with its host, where it was named without.

        Raises:
            BadRequest: several hosts have one of this name.
        """
        caller, colon, callee = target.rpartition(":")
        if "#" not in callee or "@" in callee:
            return target
        entries = self._registry.entries()
        names = {each.endpoint.instance for each in entries}
        meant = sorted(each for each in names if each.partition("@")[0] == callee)
        if len(meant) > 1 and callee not in names:
            raise BadRequest(f"{callee!r} runs on several hosts; say which: {', '.join(meant)}")
        return f"{caller}{colon}{meant[0]}" if len(meant) == 1 else target


@asynccontextmanager
async def all_replicas(config: SystemConfig, folder: Path, who: str) -> AsyncIterator[AllReplicas]:
    """Return what asks all replicas of a system in the name of an operator.

    Raises:
        ConfigError: the registry cannot be used, or the key cannot be read.
        MissingExtra: the extra `nats` is not installed.
        DiscoveryError: the registry does not say who is there.
    """
    keys, runtime = system_keys(config.system, RunDir(folder), folder, os.environ), RealRuntime()
    registry = NatsRegistry(
        config.engine.url("nats", folder, os.environ),
        system=config.system.name,
        signer=Signer(*keys),
        runtime=runtime,
    )
    tasks: list[asyncio.Task[None]] = []
    try:
        await registry.open()
        following = asyncio.create_task(registry.run())
        known = asyncio.create_task(registry.known())
        tasks += (following, known)
        await asyncio.wait(
            (following, known), timeout=KNOWN_WITHIN_S, return_when=asyncio.FIRST_COMPLETED
        )
        if following.done():
            following.result()
        if not known.done():
            raise DiscoveryError(f"{registry!r} has not said who is there in time")
        operator = Operator(keys[0], who, runtime.wall_us)
        async with AsyncExitStack() as pools:
            pool = await pools.enter_async_context(HttpPool(network=runtime.network))
            secured, https = config.system.tls.believing(folder, runtime.network), None
            if secured is not None:
                https = await pools.enter_async_context(HttpPool(network=secured))
            asking = Asking(operator, pool, os.uname().nodename, https)
            yield AllReplicas(config, folder, registry, asking)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await registry.close()


async def _report(replica: Replica) -> ReplicaReport:
    status, why = None, ""
    try:
        status = await replica.status()
    except SynchromeshError as error:
        why = error.message
    endpoint = replica.entry.endpoint
    return ReplicaReport(
        replica.service, _listed(endpoint), replica.pid, replica.admin, status, why
    )


def _listed(endpoint: Endpoint) -> ListedInstance:
    return ListedInstance(endpoint.instance, endpoint.url, is_stale=False)


def _united(answers: Sequence[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    """Return what any of them has, once for each target."""
    found = {each["target"]: each for answer in answers for each in answer[what]}
    return list(found.values())
