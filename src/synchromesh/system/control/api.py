"""The control socket: HTTP on loopback by which the command line reaches a running system.

Every request carries the token of `run.json`; without it the answer is 401, whatever the path. The
Host must be this socket's own, so that a web page cannot reach it under a name of its choice.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec

from synchromesh.calls.contract import Operation
from synchromesh.codec import decode, encode
from synchromesh.context import check_key
from synchromesh.errors import (
    BadRequest,
    SynchromeshError,
    Unauthenticated,
    UnknownOperation,
    UnknownSaga,
    to_problem,
)
from synchromesh.http import HttpRequest, HttpResponse, error_response
from synchromesh.saga.history import SagaSummary
from synchromesh.service import Service
from synchromesh.system.config.words import in_words
from synchromesh.system.control.faults import BreakRequest, HealRequest
from synchromesh.system.control.status import Overview, status_of

LISTED_MAX = 1000
TIMEOUT_MAX_S = 300.0

# A caller's name begins what its keys are known by, so that nothing that divides a key is in it.
_CLIENT = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")

Answer = Callable[[HttpRequest, str], Awaitable[object]]


class CallRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /call`: one call, its arguments as texts by name, as the command line has them."""

    operation: str
    arguments: dict[str, str] = {}
    key: str = ""
    timeout_s: float = 10.0
    principal: str = ""


class CredentialRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /credentials`: a credential with which a client calls one service."""

    client: str
    service: str
    principal: str = ""


class Control:
    """Answers the control socket of one system."""

    def __init__(self, overview: Overview, *, token: str, authority: Callable[[], str]) -> None:
        self._overview = overview
        self._token = token
        self._authority = authority
        self._instances = overview.instances
        self._services: Mapping[str, Service] = {
            name: instance.service for name, instance in overview.instances.items()
        }
        # The first segment of the path, after the method; what follows it is the argument.
        # These take one, or may take one.
        self._with_argument = frozenset({"sagas", "traces", "faults", "services"})
        self._answers: dict[tuple[str, str], Answer] = {
            ("GET", "status"): self._status,
            ("POST", "call"): self._call,
            ("GET", "sagas"): self._sagas,
            ("GET", "traces"): self._trace,
            ("POST", "credentials"): self._credential,
            ("GET", "faults"): self._faults,
            ("POST", "faults"): self._break_or_heal,
            ("POST", "services"): self._restart,
        }

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Answer one request of the command line."""
        try:
            self._check(request)
            verb, _, rest = request.path[1:].partition("/")
            answer = self._answers.get((request.method, verb))
            if answer is None or (rest and verb not in self._with_argument):
                raise _unknown(request)
            value = await answer(request, unquote(rest))
        except SynchromeshError as error:
            return error_response(error)
        return HttpResponse(200, [("content-type", "application/json")], encode(value))

    def _check(self, request: HttpRequest) -> None:
        if request.headers.get("host") != self._authority():
            raise Unauthenticated("the control socket is asked under another name than its own")
        given = request.headers.get("authorization", "") or ""
        if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise Unauthenticated("the control socket needs the token of run.json")

    async def _status(self, _: HttpRequest, __: str) -> object:
        return await status_of(self._overview)

    async def _faults(self, request: HttpRequest, rest: str) -> object:
        if rest:
            raise _unknown(request)
        return self._overview.faults.told()

    async def _break_or_heal(self, request: HttpRequest, rest: str) -> object:
        faults = self._overview.faults
        if not rest:
            return faults.break_on_purpose(decode(request.body, BreakRequest))
        if rest != "heal":
            raise _unknown(request)
        return {"healed": faults.heal(decode(request.body, HealRequest)), **faults.told()}

    async def _restart(self, request: HttpRequest, rest: str) -> object:
        name, _, act = rest.partition("/")
        if act != "restart":
            raise _unknown(request)
        raise BadRequest(
            f"{name!r} has no process of its own to restart; synchromesh dev --split gives each "
            "service one"
        )

    async def _call(self, request: HttpRequest, _: str) -> object:
        wanted = decode(request.body, CallRequest)
        if not 0 < wanted.timeout_s <= TIMEOUT_MAX_S:
            raise BadRequest(f"timeout {wanted.timeout_s:g} s; use up to {TIMEOUT_MAX_S:g} s")
        operation = self._operation(wanted.operation)
        arguments = arguments_from_texts(operation, wanted.arguments)
        if wanted.key:
            check_key(wanted.key)
        root = self._overview.caller.root(principal=wanted.principal, key=wanted.key or None)
        span = self._overview.tracer.start("client", operation.full_name, trace_id=root.trace_id)
        context = msgspec.structs.replace(root, span_id=span.span_id)
        answer: dict[str, Any] = {
            "trace_id": root.trace_id,
            "key": root.key if operation.is_command else "",
        }
        with span:
            try:
                body = await self._overview.caller.send(
                    operation, arguments, context=context, timeout_s=wanted.timeout_s
                )
            except SynchromeshError as error:
                span.fail(error)
                return {**answer, "result": None, "problem": to_problem(error)}
        return {**answer, "result": msgspec.Raw(body), "problem": None}

    async def _sagas(self, request: HttpRequest, saga_id: str) -> object:
        if not saga_id:
            query = parse_qs(request.query)
            status = query.get("status", [""])[0]
            limit = query.get("limit", ["50"])[0]
            if not limit.isdecimal() or not 1 <= int(limit) <= LISTED_MAX:
                raise BadRequest(f"limit is {limit!r}; use 1 to {LISTED_MAX}")
            return {"sagas": await self._runs(status, int(limit))}
        if saga_id == "last":
            newest = await self._runs("", 1)
            if not newest:
                raise UnknownSaga("no saga has run yet")
            saga_id = newest[0]["id"]
        story = await self._story(saga_id)
        if story is None:
            raise UnknownSaga(f"no saga has the id {saga_id!r}; synchromesh saga list shows them")
        return story

    async def _runs(self, status: str, limit: int) -> list[dict[str, Any]]:
        """Return the newest runs of all services, the newest first; "" is any status."""
        found = [
            _told(service, run)
            for service, instance in self._instances.items()
            for run in await instance.engine.runs(status or None, limit)
        ]
        return sorted(found, key=lambda run: run["started_at"], reverse=True)[:limit]

    async def _story(self, saga_id: str) -> dict[str, Any] | None:
        """Return what happened in a run; None where no service has it."""
        for service, instance in self._instances.items():
            try:
                story = await instance.engine.show(saga_id)
            except UnknownSaga:
                continue
            return {
                **_told(service, story.summary),
                "lines": story.lines,
                "not_undone": story.not_undone,
            }
        return None

    async def _trace(self, _: HttpRequest, trace_id: str) -> object:
        ring = self._overview.ring
        if trace_id == "last":
            newest = await ring.last_trace_id()
            if newest is None:
                raise BadRequest("no client has made a call yet; make one with: synchromesh call")
            trace_id = newest
        spans = await self._spans(trace_id)
        if not spans:
            raise BadRequest(
                f"no spans of trace {trace_id!r} are kept; the ring may have wrapped. The "
                "newest is: synchromesh trace last"
            )
        return {"trace_id": trace_id, "spans": spans}

    async def _spans(self, trace_id: str) -> Sequence[Any]:
        """Return what is kept of a trace, in the order of its beginnings."""
        return await self._overview.ring.trace(trace_id)

    async def _credential(self, request: HttpRequest, _: str) -> object:
        wanted = decode(request.body, CredentialRequest)
        overview = self._overview
        if not _CLIENT.fullmatch(wanted.client):
            raise BadRequest(
                f"{wanted.client[:80]!r} is no name for a client; expected 1 to 63 of a to z, 0 to "
                "9, '_', '.' and '-', a letter or digit first"
            )
        if wanted.client in (*self._services, *overview.clients, *overview.faults.callers):
            raise BadRequest(
                f"{wanted.client!r} is a caller of the system itself; take a name of your own"
            )
        self._known(wanted.service)
        token = overview.signer.token(
            wanted.client,
            wanted.principal,
            audience=wanted.service,
            now_us=overview.runtime.wall_us(),
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
            if name in self._overview.externals:
                raise UnknownOperation(
                    f"{name!r} is an external service: only services of this system call it, and "
                    f"its contract is theirs; there are {known}"
                )
            raise UnknownOperation(f"there is no service {name!r}; there are {known}")
        return service


def arguments_from_texts(operation: Operation[..., Any], texts: Mapping[str, str]) -> bytes:
    """Return canonical arguments from the texts of a command line.

    Where the operation takes one struct, its fields may be named directly.

    Raises:
        BadRequest: a name is unknown, one is missing, or a text does not fit its type.
    """
    shape = operation.shape
    kind: Any = shape.arguments
    is_flat = False
    if shape.body and shape.body not in texts and len(kind.__struct_fields__) == 1:
        body: Any = msgspec.structs.fields(kind)[0].type
        is_flat = bool(_field_names(body))
        kind = body if is_flat else kind
    known = _field_names(kind)
    unknown = next((name for name in texts if name not in known), None)
    if unknown is not None:
        raise BadRequest(
            f"{operation.full_name} has no argument {unknown!r}; it takes "
            f"{', '.join(known) or 'none'}"
        )
    try:
        value = _converted(texts, kind)
    except msgspec.ValidationError as error:
        said = in_words(str(error), operation.full_name, thing="argument")
        raise BadRequest(said) from error
    return operation.canonical(encode({shape.body: value} if is_flat else value))


def _unknown(request: HttpRequest) -> UnknownOperation:
    return UnknownOperation(f"the control socket has no {request.method} {request.path}")


def _told(service: str, run: SagaSummary) -> dict[str, Any]:
    return {"service": service, **asdict(run)}


def _field_names(kind: Any) -> tuple[str, ...]:
    fields: Any = getattr(kind, "__struct_fields__", None)
    return tuple(fields or getattr(kind, "__dataclass_fields__", ()))


def _converted(texts: Mapping[str, str], kind: Any) -> object:
    """Read texts as values of a type: one that begins like JSON is it, or else a plain text."""
    plain = {name: _plain(text) for name, text in texts.items()}
    try:
        value: object = msgspec.convert(plain, kind, strict=False)
    except msgspec.ValidationError:
        if plain == texts:
            raise
        value = msgspec.convert(texts, kind, strict=False)
    return value


def _plain(text: str) -> object:
    """Read a text that is a JSON object or list as one; anything else stays a text."""
    if text[:1] in ("{", "["):
        try:
            plain: object = msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text
        return plain
    return text
