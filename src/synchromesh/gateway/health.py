"""Tells clients of a gateway whether it takes requests, under a path that no route has.

It stands before the engine, so that such a request takes no place, is counted by no rate and leaves
no span: those who ask are many, and ask every second. Without it there is nothing on the way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

from synchromesh.calls.routes import ANY
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.engine import GatewayEngine
from synchromesh.http import (
    HttpExchange,
    HttpRequest,
    HttpResponse,
    RawPair,
    problem_response,
    ready_answer,
)

_PATH = re.compile(r"(/[A-Za-z0-9_.~-]+)+")
_FIELDS: Final = (
    ("content-type", "application/json"),
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
)
_READY: Final = HttpResponse(200, _FIELDS, b'{"status":"ready"}')
_DRAINS: Final = HttpResponse(503, _FIELDS, b'{"status":"draining"}')
_ANSWERS: Final = {True: ready_answer(_READY), False: ready_answer(_DRAINS)}


class HealthDoor:
    """Answers for one path, and leaves all else to the engine; a handler for `HttpServer`.

    Args:
        path: such as "/healthz"; see `health_mistakes`.
        is_ready: whether the gateway takes requests; asked each time.
    """

    def __init__(self, engine: GatewayEngine, path: str, is_ready: Callable[[], bool]) -> None:
        self._engine = engine
        self._path = path
        self._is_ready = is_ready

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer one request."""
        if request.path != self._path:
            return await self._engine(request)
        if request.method not in ("GET", "HEAD"):
            allow = [("allow", "GET, HEAD")]
            return problem_response(405, "this path takes GET and HEAD", headers=allow)
        return _READY if self._is_ready() else _DRAINS

    @property
    def begin_exchange(self) -> Callable[[HttpExchange], bool]:
        """What answers requests on the fast way."""
        begin, target, is_ready = self._engine.begin_exchange, self._path.encode(), self._is_ready

        def begin_here(exchange: HttpExchange) -> bool:
            if not exchange.target.startswith(target):
                return begin(exchange)
            if exchange.target == target and exchange.method == b"GET":
                exchange.answer(*_ANSWERS[is_ready()])
                return True
            # With a query it is the same path, which the engine must not take for one of a rest.
            is_here = exchange.target.partition(b"?")[0] == target
            return False if is_here else begin(exchange)

        return begin_here

    def body_max(self, method: str, path: str, pairs: Sequence[RawPair]) -> int | None:
        """Say how long the body of a request may be that is passed on; None where it is not."""
        return None if path == self._path else self._engine.body_max(method, path, pairs)

    def stream(self, request: HttpRequest) -> AbstractAsyncContextManager[HttpResponse]:
        """Answer a request that is passed on."""
        return self._engine.stream(request)

    def __repr__(self) -> str:
        return f"<HealthDoor {self._path} of {self._engine!r}>"


def health_mistakes(path: str, entries: Iterable[CompiledRoute]) -> Iterator[str]:
    """Yield what is wrong with a path for health, a sentence each; "" is none.

    A route that has the path is not robbed of it; the rest of a `Forward` is not asked for by name.

    Example:
        >>> [mistake[:32] for mistake in health_mistakes("health", ())]
        ["[gateway] health is 'health'; wr"]
    """
    if not path:
        return
    segments = tuple(path.split("/")[1:])
    # Clients take segments of dots away before they ask, so that such a path is never asked for.
    if not _PATH.fullmatch(path) or {".", ".."}.intersection(segments):
        yield (
            f"[gateway] health is {path[:60]!r}; write a path of letters, digits and ._~-, such as "
            "/healthz, without segments of dots"
        )
        return
    for entry in entries:
        steps, template = entry.template.steps, entry.template
        if template.has_rest or template.method not in ("GET", ANY) or len(steps) != len(segments):
            continue
        if all(step in ("{}", segment) for step, segment in zip(steps, segments, strict=True)):
            yield (
                f"[gateway] health = {path!r} is a path of {entry.name}, which would not be asked "
                "for it any more; choose another path"
            )
