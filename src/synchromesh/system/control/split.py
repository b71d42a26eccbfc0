"""The control socket of a system of processes: asks them all, and answers as one.

A process that does not answer is shown as one that is down; the others' answers count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from synchromesh.calls import Reply
from synchromesh.errors import (
    BadRequest,
    CallError,
    ConfigError,
    ConnectFailed,
    SynchromeshError,
    UnknownOperation,
)
from synchromesh.http import HttpPool, HttpRequest, HttpResponse
from synchromesh.service import Service
from synchromesh.system.config.schema import GATEWAY
from synchromesh.system.control.api import Control
from synchromesh.system.control.status import Overview, findings_in, status_of
from synchromesh.system.leases_api.server import PATH, RegistryServer
from synchromesh.system.supervise.child_process import ChildProcess

ASK_WITHIN_S = 2.0
# How long a process that starts is waited for, so that it hears of a fault, too.
SETTLED_WITHIN_S = 15.0
# What is said of a service whose process does not answer.
SILENT: dict[str, Any] = {
    "instances": [],
    "sagas": {},
    "sagas_since_start": {},
    "behind": {},
    "parked": 0,
    "breakers": {},
    "holds": {},
}


class SplitControl(Control):
    """Answers the control socket of a system of processes, the registry's requests too.

    Args:
        registry: answers what begins with `/registry`.
        services: the definitions, which know their operations.
        processes: by service, the gateway's by its own name.
        pool: how processes are asked.
    """

    def __init__(
        self,
        overview: Overview,
        *,
        token: str,
        authority: Callable[[], str],
        registry: RegistryServer,
        services: Mapping[str, Service],
        processes: Mapping[str, ChildProcess],
        pool: HttpPool,
    ) -> None:
        super().__init__(overview, token=token, authority=authority)
        self._registry = registry
        self._services = services
        self._processes = processes
        self._pool = pool

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Answer one request of the command line, or of a process."""
        if request.path == PATH or request.path.startswith(f"{PATH}/"):
            return await self._registry.handle(request)
        return await super().handle(request)

    async def _status(self, _: HttpRequest, __: str) -> object:
        status = await status_of(self._overview)
        told = await self._ask_all("GET", "/status")
        services = {name: self._service(name, told[name], status["children"])
                    for name in self._services if name in told}  # fmt: skip
        if GATEWAY in told:
            self._add_gateway(status, told[GATEWAY])
        status["services"] = services
        status["spans_dropped"] += sum(
            answer["spans_dropped"] for answer in told.values() if isinstance(answer, dict)
        )
        status["faults"] = self._struck(status["faults"], told)
        status["findings"] = findings_in(services, status["children"])
        return status

    def _service(self, name: str, answer: Any, children: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a service says of itself, or that it says nothing."""
        if isinstance(answer, dict):
            told: dict[str, Any] = answer["services"][name]
            return told
        health = {"service": name, "is_healthy": False, "is_draining": False}
        state = _unanswered(children.get(f"service/{name}", {"state": "starting"}), answer)
        health["children"] = {"process": state}
        return {"pid": self._processes[name].pid, "health": health, **SILENT}

    def _add_gateway(self, status: dict[str, Any], answer: Any) -> None:
        """Add the gateway to a status as if it were of the process that tells it."""
        child, children = self._processes[GATEWAY], status["children"]
        status["gateway"] = {"pid": child.pid, "url": child.url}
        if isinstance(answer, dict):
            status["clients"].update(answer["clients"])
            own = answer["children"].items()
            children.update({name: state for name, state in own if name.startswith(GATEWAY)})
        else:
            state = children.get(GATEWAY, {"state": "starting"})
            children[GATEWAY] = _unanswered(state, answer)

    def _struck(self, own: dict[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
        """Return the faults in force, with what they struck in all processes together."""
        faults = [own, *(a["faults"] for a in told.values() if isinstance(a, dict))]
        struck: dict[str, int] = {}
        for each in faults:
            for rule in each["in_force"]:
                struck[rule["target"]] = struck.get(rule["target"], 0) + rule["struck"]
        in_force = [{**rule, "struck": struck[rule["target"]]} for rule in own["in_force"]]
        return {"in_force": in_force, "struck": sum(each["struck"] for each in faults)}

    async def _faults(self, request: HttpRequest, rest: str) -> object:
        own: Any = await super()._faults(request, rest)
        return self._struck(own, await self._ask_all("GET", "/status"))

    async def _break_or_heal(self, request: HttpRequest, rest: str) -> object:
        # One that starts later is told by its orders; one that has them already can be asked soon.
        children = self._processes.values()
        await asyncio.gather(*(child.settle(SETTLED_WITHIN_S) for child in children))
        own = await super()._break_or_heal(request, rest)
        told = await self._ask_all("POST", request.path, request.body)
        for name, answer in told.items():
            if isinstance(answer, SynchromeshError) and self._processes[name].is_running:
                raise BadRequest(f"{name!r} was not told: {answer.message}; ask again")
        return own

    async def _runs(self, status: str, limit: int) -> list[dict[str, Any]]:
        query = urlencode({"status": status, "limit": limit})
        told = await self._ask_all("GET", f"/sagas?{query}")
        for answer in told.values():
            if isinstance(answer, BadRequest):
                raise answer
        found = [run for answer in told.values() if isinstance(answer, dict)
                 for run in answer["sagas"]]  # fmt: skip
        return sorted(found, key=lambda run: str(run["started_at"]), reverse=True)[:limit]

    async def _story(self, saga_id: str) -> dict[str, Any] | None:
        told = await self._ask_all("GET", f"/sagas/{quote(saga_id, safe='')}")
        return next((answer for answer in told.values() if isinstance(answer, dict)), None)

    async def _spans(self, trace_id: str) -> Sequence[Any]:
        told = await self._ask_all("GET", f"/traces/{quote(trace_id, safe='')}")
        spans: list[Any] = [msgspec.to_builtins(span) for span in await super()._spans(trace_id)]
        for answer in told.values():
            if isinstance(answer, dict):
                spans += answer["spans"]
        return sorted(spans, key=lambda span: int(span["started_us"]))

    async def _restart(self, request: HttpRequest, rest: str) -> object:
        name, _, act = rest.partition("/")
        if act != "restart":
            raise UnknownOperation(f"the control socket has no {request.method} {request.path}")
        child = self._processes.get(name)
        if child is None:
            known = ", ".join(self._processes)
            raise UnknownOperation(f"no process is called {name!r}; there are {known}")
        try:
            await child.restart()
        except ConfigError as error:
            # Whoever asked has the mistake to mend: it is not a failure of the system.
            raise BadRequest(error.message) from error
        return {"service": name, "pid": child.pid}

    async def _ask_all(self, method: str, target: str, body: bytes = b"") -> dict[str, Any]:
        """Return what each process answers, decoded, or the error for which there is no answer."""
        names = list(self._processes)
        answers = await asyncio.gather(*(self._ask(n, method, target, body) for n in names))
        return dict(zip(names, answers, strict=True))

    async def _ask(self, name: str, method: str, target: str, body: bytes) -> Any:
        port = self._processes[name].admin_port
        if port is None:
            return ConnectFailed("its process is not ready")
        headers = [("authorization", f"Bearer {self._token}")]
        try:
            response = await self._pool.request(
                "127.0.0.1", port, method, target, headers, body,
                timeout_s=ASK_WITHIN_S, is_idempotent=True,
            )  # fmt: skip
        except CallError as error:
            return error
        reply = Reply(response.status, response.body)
        return msgspec.json.decode(response.body) if reply.is_answer else reply.to_error(())


def _unanswered(state: Mapping[str, Any], error: SynchromeshError) -> dict[str, Any]:
    """Return the state of a process that does not answer: the one that runs is silent."""
    told = {"restarts": 0, "last_error": error.message, **state}
    if state["state"] == "running":
        told |= {"state": "silent", "last_error": error.message}
    return told
