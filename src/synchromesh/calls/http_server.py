"""Calls over HTTP, the receiving side: routes of contracts to the dispatchers of services."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any

from synchromesh.calls.contract import Operation
from synchromesh.calls.routes import NoMatch, Routes
from synchromesh.calls.wire import ATTEMPTS_USED, Receiver, Reply, Request
from synchromesh.context import (
    ATTEMPTS_LEFT,
    CREDENTIAL,
    DEADLINE_MS,
    IDEMPOTENCY_KEY,
    SENT_AT,
    TRACEPARENT,
    UNDOES,
    from_headers,
)
from synchromesh.errors import BadRequest, MethodNotAllowed, SynchromeshError, UnknownOperation
from synchromesh.http import (
    Headers,
    HttpRequest,
    HttpResponse,
    error_response,
    problem_response,
)
from synchromesh.runtime import Runtime

_OURS = frozenset(
    {ATTEMPTS_LEFT, CREDENTIAL, DEADLINE_MS, IDEMPOTENCY_KEY, SENT_AT, TRACEPARENT, UNDOES}
)
_JSON = ("content-type", "application/json")
_PROBLEM = ("content-type", "application/problem+json")


class HttpEdge:
    """Answers the HTTP requests of one server for the services that are mounted on it.

    It is a handler for `http.HttpServer`, which bounds sizes and times. Unknown paths are 404,
    other methods of a known path 405 with `Allow`; errors are problem details (RFC 9457).
    """

    def __init__(self, *, runtime: Runtime) -> None:
        self._runtime = runtime
        self._routes: Routes[tuple[Receiver, Operation[..., Any]]] = Routes()

    def mount(
        self, receiver: Receiver, operations: Iterable[Operation[..., Any]], *, prefix: str = ""
    ) -> None:
        """Answer the routes of `operations` by a receiver, under a prefix such as "/billing".

        Raises:
            ConfigError: a route is taken by another operation; mount one of them under a prefix.
        """
        for operation in operations:
            self._routes.add(operation.method, prefix + operation.path, (receiver, operation))

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer one request."""
        found = self._routes.find(request.method, request.path)
        if isinstance(found, NoMatch):
            return _refuse(request, found)
        receiver, operation = found.target
        try:
            headers = _own(request.headers)
            credential = headers.get(CREDENTIAL, "")
            # Before a byte of the arguments is looked at: a stranger is told nothing of them.
            receiver.authenticate(credential)
            context = from_headers(
                headers,
                now=asyncio.get_running_loop().time(),
                wall_us=self._runtime.wall_us(),
                rng=self._runtime.rng,
            )
            if context.undoes:
                arguments = b"{}"  # the record of the key that is undone holds the argument
            else:
                arguments = operation.from_http(found.places, request.query, request.body)
        except SynchromeshError as error:
            return _response(Reply.of_error(error))
        return _response(
            await receiver.dispatch(Request(operation, arguments, context, credential))
        )


def _own(headers: Headers) -> dict[str, str]:
    own: dict[str, str] = {}
    for name, value in headers:
        if name in _OURS:
            if name in own:
                raise BadRequest(f"header {name} is given twice; which of them counts is unclear")
            own[name] = value
    return own


def _refuse(request: HttpRequest, found: NoMatch) -> HttpResponse:
    if not found.allowed:
        return error_response(
            UnknownOperation(
                f"no operation answers {request.method} {request.path[:200]}; "
                "look the route up in the contract of the service"
            )
        )
    allowed = ", ".join(found.allowed)
    return problem_response(
        MethodNotAllowed.status,
        f"{request.path[:200]} takes {allowed}, not {request.method}",
        code=MethodNotAllowed.code,
        headers=[("allow", allowed)],
    )


def _response(reply: Reply) -> HttpResponse:
    headers = [_JSON if reply.is_answer else _PROBLEM]
    if reply.attempts_used:
        headers.append((ATTEMPTS_USED, str(reply.attempts_used)))
    if reply.retry_after_s is not None:
        headers.append(("retry-after", str(math.ceil(reply.retry_after_s))))
    return HttpResponse(reply.status, headers, reply.body)
