"""Answers what a browser asks before a page of another origin sends a request."""

from __future__ import annotations

from synchromesh.calls.routes import NoMatch
from synchromesh.gateway.answers import preflighted
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.cors import ORIGIN, WANTED_METHOD
from synchromesh.gateway.router import Finding, find
from synchromesh.http import HttpRequest, HttpResponse


def preflight(routes: Finding[CompiledRoute], request: HttpRequest) -> HttpResponse | None:
    """Answer such a request; None for any other, and where the route tells other origins nothing.

    Raises:
        BadRequest: its path is malformed.
    """
    wanted = request.headers.get(WANTED_METHOD) if request.method == "OPTIONS" else None
    if wanted is None or ORIGIN not in request.headers:
        return None
    found = find(routes, wanted, request.path)
    cors = None if isinstance(found, NoMatch) else found.target.cors
    return None if cors is None else preflighted(request, cors)
