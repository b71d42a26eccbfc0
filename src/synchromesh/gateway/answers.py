"""What the gateway itself says in its answers: problems, and the fields that each of them has."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from synchromesh.calls.routes import NoMatch
from synchromesh.codec import encode
from synchromesh.errors import (
    Forbidden,
    MethodNotAllowed,
    SynchromeshError,
    TimedOut,
    Unauthenticated,
    UnknownOperation,
)
from synchromesh.gateway.arrival import arrival_of
from synchromesh.gateway.composition import BranchOutcome
from synchromesh.gateway.cors import ORIGIN, WANTED_HEADERS, WANTED_METHOD, CompiledCors
from synchromesh.gateway.limits import RATELIMIT, whole_seconds
from synchromesh.gateway.problems import outside, problem_of
from synchromesh.http import HttpRequest, HttpResponse, problem_response

TRACE: Final = "synchromesh-trace"
PARTIAL: Final = "synchromesh-partial"
FALLBACK: Final = "synchromesh-fallback"
# What was asked for with a credential is for nobody else, and JSON is never to be taken for HTML.
ALWAYS: Final = (("cache-control", "no-store"), ("x-content-type-options", "nosniff"))
_PROBLEM: Final = ("content-type", "application/problem+json")

_log = logging.getLogger("synchromesh.gateway")


class AskedRoute(Protocol):
    """Is what an answer says of the route that was asked: its name, and if it changes nothing."""

    @property
    def name(self) -> str:
        """Method and path, as it was written."""
        ...

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing."""
        ...

    @property
    def deadline_s(self) -> float:
        """How long a request may take."""
        ...

    @property
    def parts(self) -> Mapping[str, object]:
        """Of an aggregate its branches, which may have times of their own."""
        ...


def refused(
    error: SynchromeshError, fields: Iterable[tuple[str, str]] = ALWAYS, *, trace_id: str = ""
) -> HttpResponse:
    """Answer with an error that is worded for the outside, as a problem (RFC 9457)."""
    headers = [_PROBLEM, *fields]
    if error.retry_after_s is not None:
        headers.append(("retry-after", str(_retry_after(error.retry_after_s, headers))))
    if isinstance(error, Unauthenticated):
        headers.append(("www-authenticate", "Bearer"))
    return HttpResponse(error.status, headers, encode(problem_of(error, trace_id=trace_id)))


def _retry_after(wait_s: float, fields: Iterable[tuple[str, str]]) -> int:
    """Return after how many seconds to ask again: not before the rate has a place for it."""
    spent = [value for name, value in fields if name == RATELIMIT and ";r=0;" in value]
    return max([whole_seconds(wait_s), *(int(value.rpartition(";t=")[2]) for value in spent)])


OR_BRANCH = ", or the timeout of a branch"
"""What else may have cut a call of an aggregate."""


def told_of(error: Exception, route: AskedRoute, trace_id: str) -> SynchromeshError:
    """Log what failed within, and return what the outside may know of it (G6)."""
    if not isinstance(error, SynchromeshError):
        _log.error("%s failed in trace %s", route.name, trace_id, exc_info=error)
    elif error.status >= 500:
        _log.warning("%s failed in trace %s: %s", route.name, trace_id, error)
    told = outside(error, is_read=route.is_read)
    if isinstance(told, TimedOut) and isinstance(error, TimedOut):
        # Its key would name services: the log, and `why`, have that.
        _, _, length = error.limit.partition(" = ")
        told.limit = (
            f"the timeout of a call that it makes, {length}"
            if length
            else f"the deadline of this route, {route.deadline_s:g}s{OR_BRANCH * bool(route.parts)}"
        )
    return told


def unrouted(request: HttpRequest, found: NoMatch, cors: CompiledCors | None) -> HttpResponse:
    """Answer a request that there is no route for."""
    fields = [*ALWAYS, *arrival_of(request.headers).fields]
    if cors is not None:
        fields += cors.fields(request.headers.get_all(ORIGIN))
    if not found.allowed:
        return refused(UnknownOperation("there is nothing under this path"), fields)
    allowed = ", ".join(found.allowed)
    return problem_response(
        MethodNotAllowed.status,
        f"this path takes {allowed}, not {request.method}",
        code=MethodNotAllowed.code,
        headers=[*fields, ("allow", allowed)],
    )


def preflighted(request: HttpRequest, cors: CompiledCors) -> HttpResponse:
    """Tell a browser whether a page may send what it wants to; nothing is run for it."""
    headers = request.headers
    wanted = ",".join(headers.get_all(WANTED_HEADERS))
    said = cors.preflight(headers.get(ORIGIN, ""), headers.get(WANTED_METHOD, ""), wanted)
    if isinstance(said, str):
        return refused(Forbidden(f"this is not for other origins' pages: {said}"))
    return HttpResponse(204, said)


def mark_of(outcome: BranchOutcome) -> str:
    """Say what stands in for an answer, as a structured field (RFC 9651): source, age and why."""
    age = "" if outcome.age_s is None else f";age_s={outcome.age_s:.3f}"
    why = "" if outcome.error is None else f";code={outside(outcome.error).code}"
    return f"{outcome.status.value}{age}{why}"
