"""Copies of requests to another upstream: sends them, and has their answers compared.

A copy begins with its request, and is sent when that one's answer has ended. What a client gets is
read once, by whoever sends it to him; what was read is kept besides, up to a bound.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from typing import Final

import msgspec

from synchromesh.calls import Caller, Forwarder, Forwarding
from synchromesh.calls.tree import tree_of
from synchromesh.context import CallContext
from synchromesh.errors import SynchromeshError, TimedOut
from synchromesh.gateway.asked import AskedRequest
from synchromesh.gateway.comparing import AnswerTold, compare
from synchromesh.gateway.compiled_beside import CompiledMirror
from synchromesh.gateway.mirror_book import KeptDifference, MirrorBook
from synchromesh.gateway.origin import Origins
from synchromesh.http import Body, Headers, HttpResponse
from synchromesh.http.message import has_body
from synchromesh.http.tunnel import Switching
from synchromesh.priority import Priority
from synchromesh.telemetry import Tracer

# A body of a request that is copied: what is read ahead of it.
REQUEST_BYTES_MAX: Final = 64 * 1024
ANSWER_BYTES_MAX: Final = 256 * 1024
_IS_MIRROR: Final = ("synchromesh-mirror", "?1")

_log = logging.getLogger("synchromesh.gateway")


class Mirrors:
    """Sends the copies of one gateway's requests; `close` it.

    Args:
        caller: of the gateway; copies have edges of their own beside it.
        books: what has come of them, by route.
        externals: the upstreams that are not ours.
        origins: tells whom a request comes from.
    """

    def __init__(
        self,
        caller: Caller,
        tracer: Tracer,
        books: dict[str, MirrorBook],
        *,
        externals: AbstractSet[str],
        origins: Origins,
    ) -> None:
        self._caller = caller.apart()
        self._forwarder = Forwarder(self._caller, tracer)
        self._books = books
        self._externals = externals
        self._origins = origins
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def begin(
        self, asked: AskedRequest, forwarding: Forwarding, mirror: CompiledMirror
    ) -> MirroredRequest | None:
        """Begin the copy of a request whose body has been read ahead; None where there is none."""
        book, body = self._books[asked.entry.name], forwarding.body
        sent = b"" if body is None else body.peek()
        if forwarding.is_upload or len(sent) > REQUEST_BYTES_MAX:
            book.counts.too_long += 1
            return None
        if forwarding.quiet_s is not None or not book.take():
            return None
        return MirroredRequest(self, asked, forwarding, mirror, book, sent)

    def send(self, copy: MirroredRequest, told: AnswerTold) -> None:
        """Send a copy whose request was answered, and compare its answer with that."""
        if self._is_closed:
            copy.book.counts.dropped += 1
            copy.book.release()
            return
        task = asyncio.create_task(self._run(copy, told))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            # Not in the task: one that is cancelled before its first step runs no line of it.
            self._tasks.discard(task)
            copy.book.release()

        task.add_done_callback(ended)

    async def close(self) -> None:
        """Give up what is under way, and send no more. May be repeated."""
        self._is_closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    def __repr__(self) -> str:
        return f"<Mirrors of {len(self._books)} routes, {len(self._tasks)} copies under way>"

    async def _run(self, copy: MirroredRequest, told: AnswerTold) -> None:
        book, asked = copy.book, copy.asked
        try:
            answered = await self._answer(copy)
            found = None if answered is None else compare(told, answered, copy.mirror.ignored)
            if answered is None or found is None:
                book.counts.too_long += 1
                return
            request, trace_id = asked.request, copy.forwarding.context.trace_id
            statuses = (told.status, answered.status)
            target = f"{request.method} {request.target}"
            book.tell(KeptDifference(self._caller.wall_us(), trace_id, target, statuses, found))
        except SynchromeshError as error:
            book.fail(error.code)
        except TimeoutError:
            book.fail(TimedOut.code)
        except Exception:  # noqa: BLE001 - it is logged, and nobody waits for it
            book.fail("bug")
            _log.exception("a copy of %s failed", asked.entry.name)

    async def _answer(self, copy: MirroredRequest) -> AnswerTold | None:
        """Send a copy and return its answer; None where that is too long."""
        loop, deadline_s = asyncio.get_running_loop(), copy.asked.entry.deadline_s
        context = msgspec.structs.replace(
            copy.forwarding.context,
            deadline_s=loop.time() + deadline_s,
            attempts_left=0,
            priority=Priority.BATCH,
        )
        forwarding = self._forwarding(copy, context)
        # Its answer may take as long again as its head.
        async with asyncio.timeout(2 * deadline_s):
            with tree_of(context):
                async with self._forwarder.forward(forwarding) as passed:
                    seen = _Seen(passed.response)
                    while passed.response.stream is not None and not seen.is_whole:
                        seen.take(await passed.response.stream.read())
                        if seen.is_too_long:
                            return None
                    return seen.told()

    def _forwarding(self, copy: MirroredRequest, context: CallContext) -> Forwarding:
        """Return what is sent to a mirror: what it would be told if the route led there."""
        asked, passage = copy.asked, copy.mirror.passage
        request = asked.request
        sent = passage.forwarding(
            request,
            asked.places,
            name=f"{passage.to} {asked.entry.template.method} {passage.path} (mirror)",
            context=context,
            origin=self._origins.of_request(request.peer, request.headers),
            is_external=passage.to in self._externals,
            told=self._told(copy),
        )
        # Its own body was read by the first upstream.
        body = Body.of(copy.sent) if copy.sent else None
        return replace(sent, headers=(*sent.headers, _IS_MIRROR), body=body)

    def _told(self, copy: MirroredRequest) -> str:
        passage, who = copy.mirror.passage, copy.asked.principal
        if not passage.tells_principal:
            return ""
        return self._caller.principal_token(who.name, who.scopes, audience=passage.to)


class MirroredRequest:
    """One copy, from the beginning of its request to the end of that one's answer.

    Args:
        sent: the body of the request.
    """

    def __init__(
        self,
        mirrors: Mirrors,
        asked: AskedRequest,
        forwarding: Forwarding,
        mirror: CompiledMirror,
        book: MirrorBook,
        sent: bytes,
    ) -> None:
        self.asked = asked
        self.forwarding = forwarding
        self.mirror = mirror
        self.book = book
        self.sent = sent
        self._mirrors = mirrors
        self._seen: _Seen | None = None

    def watching(self, response: HttpResponse) -> HttpResponse:
        """Return an upstream's answer as it is to be sent, which is kept meanwhile."""
        if isinstance(response, Switching):
            return response
        seen = self._seen = _Seen(response)
        if response.stream is None:
            return response
        if not has_body(response, is_head=self.asked.request.method == "HEAD"):
            seen.is_whole = True  # nobody reads what does not come
            return response
        watched = _Watched(response.stream, seen)
        return HttpResponse(response.status, response.headers, stream=watched)

    def end(self) -> None:
        """Take the end of the answer: the copy is sent, if there is something to compare with."""
        seen, book = self._seen, self.book
        if seen is not None and seen.is_whole and not seen.is_too_long:
            self._mirrors.send(self, seen.told())
            return
        if seen is not None and seen.is_too_long:
            book.counts.too_long += 1
        else:
            book.counts.unanswered += 1
        book.release()

    def __repr__(self) -> str:
        return f"<MirroredRequest of {self.asked.entry.name}>"


class _Seen:
    """What is seen of an answer."""

    def __init__(self, response: HttpResponse) -> None:
        self.is_whole = response.stream is None
        self.is_too_long = False
        self._response = response
        self._parts = [response.body] if response.body else []
        self._size = len(response.body)

    def take(self, part: bytes) -> None:
        """Take a part; b"" is the end."""
        if not part:
            self.is_whole = True
        elif self._size + len(part) > ANSWER_BYTES_MAX:
            self.is_too_long = True
            self._parts.clear()
        else:
            self._size += len(part)
            self._parts.append(part)

    def told(self) -> AnswerTold:
        headers: Headers = self._response.headers
        return AnswerTold(
            self._response.status,
            b"".join(self._parts),
            headers.get("content-type", "").partition(";")[0].strip().lower(),
            headers.get("content-encoding", "").strip().lower(),
        )


class _Watched(Body):
    """Reads another body, and shows what was read."""

    __slots__ = ("_body", "_seen")

    def __init__(self, body: Body, seen: _Seen) -> None:
        super().__init__(length=body.length, on_room=_nothing)
        self._body = body
        self._seen = seen

    async def read(self) -> bytes:
        part = await self._body.read()
        if not self._seen.is_too_long:
            self._seen.take(part)
        return part


def _nothing() -> None:
    """Need no room: the other body does."""
