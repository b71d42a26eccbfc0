"""Real event loops and servers of long answers, for tests with sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest

from bodies import long_body
from synchromesh.http import HttpRequest, HttpResponse
from synchromesh.system import loop_factory

LOOPS = ("asyncio", "uvloop")
# A mark of modules whose tests are about sockets: each runs on both loops.
ON_BOTH_LOOPS = pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"loop_factory": loop_factory(kind)}) for kind in LOOPS],
    ids=LOOPS,
)

MiB = 1024 * 1024
# More than all kernels on the way hold.
LONG = 32 * MiB


def on(kind: str, main: Callable[[], Coroutine[object, object, None]]) -> None:
    """Run a test on a loop of a kind."""
    with asyncio.Runner(loop_factory=loop_factory(kind)) as runner:
        runner.run(main())


class LongAnswers:
    """Answers /whole and /parts with 32 MiB, and all else with a word."""

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, (), bytes(LONG) if request.path == "/whole" else b"quick")

    def body_max(self, method: str, path: str, pairs: object) -> int | None:
        return 0 if path == "/parts" else None

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
        yield HttpResponse(200, (), stream=long_body(LONG))
