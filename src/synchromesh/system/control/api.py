"""The control API of a running system: HTTP on loopback, by which the command line reaches it.

Every request carries the token of `run.json`; without it the answer is 401, whatever the path. The
Host must be this socket's own, so that a web page cannot reach it under a name of its choice. A
process of a system has one, too: whoever speaks for all of them asks each, and answers as one.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec

from synchromesh.calls import Operation
from synchromesh.codec import decode, encode
from synchromesh.context import check_key
from synchromesh.errors import (
    BadRequest,
    ConfigError,
    SynchromeshError,
    Unauthenticated,
    UnknownOperation,
    to_problem,
)
from synchromesh.http import Handler, HttpRequest, HttpResponse, error_response
from synchromesh.identity import Principal, checked
from synchromesh.service import Service
from synchromesh.spelling import nearest
from synchromesh.system.config.schema import CLIENT, GATEWAY, SystemConfig
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
from synchromesh.system.control.arguments import CallRequest, arguments_from_texts
from synchromesh.system.control.contract_book import (
    ContractBook,
    ContractsReport,
    ReplaceRequest,
    ran_anew,
)
from synchromesh.system.control.gateway_changes import ReloadReport, ReloadRequest
from synchromesh.system.control.isolating import IsolateRequest, isolate_or_release
from synchromesh.system.control.local import LocalProcess
from synchromesh.system.control.remote import MetricsAnswer, Observed, RemoteProcess, act_of
from synchromesh.system.control.spans import Spans, find_spans, first_of
from synchromesh.system.control.spread_reload import reload_all
from synchromesh.system.control.status import Status
from synchromesh.system.control.status_parts import FaultsStatus
from synchromesh.telemetry import Family

if TYPE_CHECKING:
    from synchromesh.system.control.moving import Moving

LISTED_MAX = 1000
TIMEOUT_MAX_S = 300.0
# How long a process that starts is waited for, so that it hears of a fault, too.
SETTLED_WITHIN_S = 15.0

# A caller's name begins what its keys are known by, so that nothing that divides a key is in it.
_CLIENT = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")

Answer = Callable[[HttpRequest, str], Awaitable[object]]

_log = logging.getLogger("synchromesh.system")


class CredentialRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /credentials`: a credential with which a client calls one service."""

    client: str
    service: str
    principal: str = ""
    scopes: frozenset[str] = frozenset()


class Control:
    """Serves the control API for this process and the other processes of the system.

    Args:
        local: tells what runs in this process.
        remotes: ask the other processes, by the part that each is; also those that start later.
        registry: answers what begins with `/registry`, as (path, handler); None where it is not
            asked over HTTP.
        book: decides which of the other processes are let in, by their contracts.
        authority: the socket's own host and port, once it listens.

    Attributes:
        metrics: collects the metrics of all processes.
        console: returns a URL that lets one browser into the console; None where there is none.
        moving: takes a service to the server, given its name, the request and what restarts it;
            None where services share this process.
    """

    def __init__(
        self,
        local: LocalProcess,
        *,
        token: str,
        authority: Callable[[], str],
        remotes: Mapping[str, RemoteProcess],
        registry: tuple[str, Handler] | None = None,
        book: ContractBook | None = None,
    ) -> None:
        self._local = local
        self._book = book or ContractBook()
        self._token = token
        self._authority = authority
        self.metrics: Callable[[], Awaitable[list[Family]]] = _no_metrics
        self.console: Callable[[], str] | None = None
        self.moving: Moving | None = None
        self.remotes = remotes
        self._registry = registry
        # The services of which a process is being replaced.
        self._restarting: set[str] = set()
        self._services = local.deps.services
        self._tracer = local.deps.tracer(CLIENT)
        self.caller = local.deps.caller(CLIENT, self._tracer)
        # The first segment of the path, after the method; what follows it is the argument.
        # These take one, or may take one.
        self._with_argument = {"actions", "breakers", "traces", "faults", "services", "gateway"}
        self._answers: dict[tuple[str, str], Answer] = {
            ("GET", "status"): self._status,
            ("GET", "metrics"): self._metrics,
            ("POST", "call"): self._call,
            ("POST", "actions"): self._act,
            ("GET", "traces"): self._trace,
            ("GET", "observed"): self._observed,
            ("POST", "console"): self._console,
            ("POST", "credentials"): self._credential,
            ("GET", "faults"): self._faults,
            ("POST", "faults"): self._break_or_heal,
            ("POST", "breakers"): self._isolate_or_release,
            ("POST", "services"): self._of_process,
            ("POST", "gateway"): self._reload,
        }

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Handle a request of the command line, or of a process that asks the registry."""
        if self._registry is not None:
            path, registry = self._registry
            if request.path == path or request.path.startswith(f"{path}/"):
                return await registry(request)
        try:
            self._check(request)
            value = await self.answer(request)
        except SynchromeshError as error:
            return error_response(error)
        return HttpResponse(200, [("content-type", "application/json")], encode(value))

    async def answer(self, request: HttpRequest) -> object:
        """Answer one that may ask, and return a value that JSON can carry.

        Raises:
            SynchromeshError: it asks for what is not there, or is refused.
        """
        first, _, rest = request.path[1:].partition("/")
        method = "GET" if request.method == "HEAD" else request.method
        answer = self._answers.get((method, first))
        if answer is None or (rest and first not in self._with_argument):
            raise _unknown(request)
        return await answer(request, unquote(rest))

    def _check(self, request: HttpRequest) -> None:
        if request.headers.get("host") != self._authority():
            raise Unauthenticated("the control socket is asked under another name than its own")
        given = request.headers.get("authorization", "") or ""
        if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise Unauthenticated("the control socket needs the token of run.json")

    async def status(self) -> Status:
        """Return the merged status of all processes."""
        own, *others = await asyncio.gather(*(each.status() for each in self._all()))
        own = msgspec.structs.replace(own, contract_breaks=self._book.status())
        return Status.merge(own, *others)

    async def replace(self, name: str, reason: str) -> list[str]:
        """Replace the processes of a part; return why they were refused, a line for each.

        Raises:
            BadRequest: a new one could not be started.
        """
        processes = [each for each in self.remotes.values() if each.part.is_named(name)]
        request = ReplaceRequest("dev --reload", reason) if reason else ReplaceRequest()
        answer = await self._restart(name, processes, request)
        return list(answer["breaks"]) if answer["is_refused"] else []

    def _all(self) -> list[LocalProcess | RemoteProcess]:
        return [self._local, *self.remotes.values()]

    async def _status(self, _: HttpRequest, __: str) -> Status:
        return await self.status()

    async def _metrics(self, _: HttpRequest, __: str) -> MetricsAnswer:
        return MetricsAnswer(await self.metrics())

    async def _faults(self, request: HttpRequest, rest: str) -> FaultsStatus:
        if rest:
            raise _unknown(request)
        return (await self.status()).faults if self.remotes else self._local.faults.status()

    async def _break_or_heal(self, request: HttpRequest, rest: str) -> object:
        if rest not in ("", "heal"):
            raise _unknown(request)
        # A process that starts later gets the faults in its spec; one that has its spec already can
        # be asked once it is settled.
        others = list(self.remotes.values())
        await asyncio.gather(*(each.child.settle(SETTLED_WITHIN_S) for each in others))
        wanted, answer = self._local.faults.act(request.body, is_heal=bool(rest))
        self._local.note(rest or "break", wanted.target, wanted.who, wanted.why)
        await asyncio.gather(*(each.forward(request.path, request.body) for each in others))
        return answer

    async def _isolate_or_release(self, request: HttpRequest, rest: str) -> object:
        if rest not in ("", "release"):
            raise _unknown(request)
        others = list(self.remotes.values())
        await asyncio.gather(*(each.child.settle(SETTLED_WITHIN_S) for each in others))
        wanted = decode(request.body, IsolateRequest)
        answer = isolate_or_release(self._local, wanted, is_release=bool(rest))
        await asyncio.gather(*(each.forward(request.path, request.body) for each in others))
        return answer

    async def _reload(self, request: HttpRequest, rest: str) -> ReloadReport:
        if rest != "reload":
            raise _unknown(request)
        wanted, local, remote = decode(request.body, ReloadRequest), self._local, self.remotes
        gateways = {name: each.reload for name, each in remote.items() if each.part.is_gateway}
        if not gateways and local.reload is None:
            raise UnknownOperation(
                "this system serves no gateway; name one as [gateway] app, and start it anew"
            )
        try:
            # A supervisor has read it already.
            now = wanted.config or (local.reread or _nothing)()
        except ConfigError as error:
            return ReloadReport(False, mistakes=error.message.splitlines())
        if gateways:
            wanted = msgspec.structs.replace(wanted, config=now)
            alone = gateways.get(GATEWAY)
            report = await (alone(wanted) if alone else reload_all(gateways, wanted))
        else:
            assert local.reload is not None
            report = await local.reload(wanted, now)
        if report.is_taken:
            local.taken_up(GATEWAY)
        return report

    async def _of_process(self, request: HttpRequest, rest: str) -> object:
        name, _, act = rest.rpartition("/")
        if act not in ("restart", "contracts", "copy"):
            raise _unknown(request)
        processes = [each for each in self.remotes.values() if each.part.is_named(name)]
        if act == "contracts" and processes:
            return self._report(name, decode(request.body, ContractsReport))
        if act == "copy":
            from synchromesh.system.control.moving import CopyRequest, not_in_one_process

            move = self.moving or not_in_one_process
            anew = partial(self._restart, name, processes, ReplaceRequest())
            return await move(name, decode(request.body, CopyRequest), anew)
        wanted = decode(request.body or b"{}", ReplaceRequest)
        if processes:
            self._local.note(act, name, wanted.asked_by or wanted.who, wanted.why or wanted.reason)
            return await self._restart(name, processes, wanted)
        if act == "restart" and await self._restart_within(name):
            self._local.note(act, name, wanted.asked_by or wanted.who, wanted.why or wanted.reason)
            is_same_code = name not in self._local.externals
            return ran_anew(name, {name: os.getpid()}, is_same_code=is_same_code)
        known = dict.fromkeys([*self.remotes, *self._services, *self._local.externals])
        near = nearest(name, known)
        hint = f"there are {', '.join(known)}, and the children that `status --json` names"
        if near:
            hint = f"did you mean {near!r}?"
        raise UnknownOperation(f"no part and no background child is called {name!r}; {hint}")

    async def _restart_within(self, name: str) -> bool:
        """Restart what is no process of its own: a part of this one, or a background child."""
        try:
            if await self._local.restart(name):
                return True
        except SynchromeshError as error:
            raise BadRequest(
                f"{name!r} could not be started: {error.message}; it is tried again by itself"
            ) from error
        for process in self.remotes.values():
            if process.name in name.split("/") and await process.restart_child(name):
                return True
        return False

    def _report(self, name: str, report: ContractsReport) -> list[str]:
        """Take what a process offers and expects; answer what it is refused for."""
        contracts, now_us = report.contracts, self._local.deps.runtime.wall_us()
        admission = self._book.report(name, report.pid, contracts, now_us=now_us)
        if not admission.refused:
            _log.info(
                "process %s of %s is let in",
                report.pid,
                name,
                extra={"offers": " ".join(map("=".join, contracts.offers.digests.items()))},
            )
        if (record := admission.record) is not None:
            _log.warning(
                "contracts of %s do not fit: %s",
                name,
                "; ".join(record.differences),
                extra={"who": record.who, "reason": record.reason},
            )
        return [str(each) for each in admission.refused]

    async def _restart(
        self, name: str, processes: list[RemoteProcess], request: ReplaceRequest
    ) -> dict[str, Any]:
        """Replace processes, one after the other, until one is refused.

        Each is ready and listed before the next one leaves the list. For one service one request
        does so at a time: `restart NAME` and `restart NAME#2` would take two off the list.
        """
        service = name.partition("#")[0]
        if service in self._restarting:
            raise BadRequest(
                f"{service!r} is being restarted for another request, and nothing was done for "
                "this one; wait until that has ended"
            )
        self._restarting.add(service)
        try:
            return await self._replaced(name, processes, request)
        finally:
            self._restarting.discard(service)

    async def _replaced(
        self, name: str, processes: list[RemoteProcess], request: ReplaceRequest
    ) -> dict[str, Any]:
        pids: dict[str, int | None] = {}
        breaks: dict[str, None] = {}
        is_refused = False
        for process in processes:
            with self._book.replacing(process.name, request) as replacement:
                try:
                    pids[process.name] = await process.restart()
                except BadRequest:
                    if not replacement.admission.refused:
                        raise
                    pids[process.name] = process.child.pid
            refused, record = replacement.admission.refused, replacement.admission.record
            is_refused = bool(refused)
            said = record.differences if record else [str(each) for each in refused]
            breaks |= dict.fromkeys(said)
            if refused:
                break
        return ran_anew(name, pids, is_refused=is_refused, breaks=list(breaks))

    async def _call(self, request: HttpRequest, _: str) -> object:
        wanted = decode(request.body, CallRequest)
        if not 0 < wanted.timeout_s <= TIMEOUT_MAX_S:
            raise BadRequest(f"timeout {wanted.timeout_s:g} s; use up to {TIMEOUT_MAX_S:g} s")
        operation = self._operation(wanted.operation)
        arguments = arguments_from_texts(operation, wanted.arguments)
        if wanted.key:
            check_key(wanted.key)
        principal = _principal(wanted.principal, wanted.scopes)
        root = self.caller.root(principal=principal, key=wanted.key or None)
        span = self._tracer.start(
            "client", operation.full_name, trace_id=root.trace_id, marks=root.marks
        )
        context = msgspec.structs.replace(root, span_id=span.span_id)
        answer: dict[str, Any] = {
            "trace_id": root.trace_id,
            "key": root.key if operation.is_command else "",
        }
        with span:
            try:
                body = await self.caller.send(
                    operation, arguments, context=context, timeout_s=wanted.timeout_s
                )
            except SynchromeshError as error:
                span.fail(error)
                return {**answer, "result": None, "problem": to_problem(error)}
        return {**answer, "result": msgspec.Raw(body), "problem": None}

    async def _act(self, request: HttpRequest, name: str) -> Answers:
        action = find_action(name)
        wanted = parse_request(action, request.body)
        if wanted.service:
            self._known(wanted.service)
        if isinstance(action, RepairAction) and action.check is not None:
            action.check(self._taken(), wanted)
        if request.query == OWN:
            return await self._ask_all(action, wanted, request.body)
        return await act(action, wanted, request.body, self._ask_all)

    async def _ask_all(self, action: Action, wanted: Any, body: bytes) -> Answers:
        return joined(await asyncio.gather(
            self._local.act(action, wanted, body),
            *(act_of(each, action, wanted, body) for each in self._by_service()),
        ))  # fmt: skip

    def _by_service(self) -> list[list[RemoteProcess]]:
        found: dict[str, list[RemoteProcess]] = {}
        for process in self.remotes.values():
            found.setdefault(process.part.service, []).append(process)
        return list(found.values())

    def _taken(self) -> dict[str, frozenset[str]]:
        """Return the events that each service takes: by its processes, or by this one's code."""
        return self._book.taken(self._local.deps.subscribers())

    async def _trace(self, request: HttpRequest, trace_id: str) -> Spans:
        return await find_spans(self._all(), trace_id, first_of(request.query))

    async def _console(self, _: HttpRequest, __: str) -> object:
        if self.console is None:
            raise UnknownOperation("this system serves no console; `synchromesh dev` does")
        return {"url": self.console()}

    async def _observed(self, _: HttpRequest, __: str) -> Observed:
        return Observed.of(await asyncio.gather(*(each.observed() for each in self._all())))

    async def _credential(self, request: HttpRequest, _: str) -> object:
        wanted = decode(request.body, CredentialRequest)
        local = self._local
        if not _CLIENT.fullmatch(wanted.client):
            raise BadRequest(
                f"{wanted.client[:80]!r} is not a valid client name; expected 1 to 63 of a to z, "
                "0 to 9, '_', '.' and '-', a letter or digit first"
            )
        if wanted.client in local.faults.callers:
            raise BadRequest(
                f"{wanted.client!r} is a caller of the system itself; take a name of your own"
            )
        self._known(wanted.service)
        token = local.deps.signer.token(
            wanted.client,
            _principal(wanted.principal, wanted.scopes),
            audience=wanted.service,
            now_us=local.deps.runtime.wall_us(),
        )
        return {"credential": token}

    def _operation(self, full_name: str) -> Operation[..., Any]:
        service, _, name = full_name.partition(".")
        operations = self._known(service).operations
        handled = operations.get(name)
        if handled is None:
            known = ", ".join(operations)
            raise UnknownOperation(f"{service} has no operation {name!r}; it has {known}")
        return handled.operation

    def _known(self, name: str) -> Service:
        service = self._services.get(name)
        if service is None:
            known = ", ".join(self._services)
            why = self._local.why_not_asked(name) or f"there is no service {name!r}"
            raise UnknownOperation(f"{why}; there are {known}")
        return service


def _principal(name: str, scopes: frozenset[str]) -> Principal:
    """Return on whose behalf a client calls. Raises BadRequest."""
    principal = Principal(name, scopes)
    if scopes and not name:
        raise BadRequest("scopes are those of a principal; name one")
    try:
        return checked(principal)
    except ValueError as error:
        raise BadRequest(f"the principal cannot be taken: {error}") from error


def _unknown(request: HttpRequest) -> UnknownOperation:
    return UnknownOperation(f"the control socket has no {request.method} {request.path}")


def _nothing() -> SystemConfig:
    raise ConfigError("the configuration is not at hand here; ask the process that runs the system")


async def _no_metrics() -> list[Family]:
    return []
