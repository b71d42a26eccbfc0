"""Keeps the answers of routes that have a `Cache`, and asks once for all who ask the same."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from synchromesh.clock import loop_now
from synchromesh.codec import digest, encode
from synchromesh.context import CallContext
from synchromesh.errors import BadRequest
from synchromesh.gateway.aggregate import arguments_of
from synchromesh.gateway.answers import FALLBACK, PARTIAL, TRACE
from synchromesh.gateway.arrival import REQUEST_ID
from synchromesh.gateway.asked import AskedRequest
from synchromesh.gateway.caching import (
    CACHE_CONTROL,
    IF_NONE_MATCH,
    CompiledCache,
    etag_of,
    has_it,
)
from synchromesh.gateway.coalescing import Coalescer
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.last_answers import LastAnswers
from synchromesh.http import HttpRequest, HttpResponse

_JSON: Final = ("content-type", "application/json")
_DEGRADED: Final = (FALLBACK, PARTIAL)
# Fields that are of one request or one client.
_ONE_CLIENTS: Final = (CACHE_CONTROL, TRACE, REQUEST_ID, "ratelimit", "ratelimit-policy")


class AnswerCache:
    """Keeps answers, bounded in number and in bytes, and asks for those that it has not.

    What is degraded, an error or a refusal is told to those who wait for it, and kept for nobody.

    Args:
        answers_max: how many are kept.
        bytes_max: how much they may take.
    """

    def __init__(self, answers_max: int, bytes_max: int) -> None:
        self._kept = LastAnswers(answers_max=answers_max, bytes_max=bytes_max)
        self._under_way: Coalescer[HttpResponse] = Coalescer()

    async def answer(
        self,
        asked: AskedRequest,
        context: CallContext,
        ask: Callable[[AskedRequest, CallContext], Coroutine[Any, Any, HttpResponse]],
    ) -> HttpResponse:
        """Answer a request for a route with a `Cache`, or say that the client has it already (304).

        Args:
            asked: the request; who asks may do so.
            context: of whom it is for, and until when.
            ask: gives the answer, with the headers of the request it is handed, and its own.

        Raises:
            SynchromeshError: there is no answer.
        """
        entry, request, ours = asked.entry, asked.request, asked.headers
        cache = entry.cache
        assert cache is not None, "it is asked for routes that have one"
        what = question_of(entry, asked.places, request)
        if what is None:
            return await ask(asked, context)  # it says what does not fit
        # However long the arguments are, what is kept of them is short.
        question = (entry.name, cache.whose(context.principal), digest(what))
        now = loop_now()
        found = self._kept.find(question, at_most_s=cache.max_age_s, now=now)
        # One that has come of age is no fresher for clients than for us (RFC 9111, 4.2).
        if found is not None and found[1] < cache.max_age_s:
            body, age_s = found
            return _fresh(body, age_s, cache, request, ours)

        async def asked_for_all() -> HttpResponse:
            # One that was begun again may find what another has just been told.
            now = loop_now()
            known = self._kept.find(question, at_most_s=cache.max_age_s, now=now)
            if known is not None and known[1] < cache.max_age_s:
                return HttpResponse(200, (), known[0])
            # What is for this client alone is added to an answer that may be for several.
            answer = await ask(replace(asked, headers=[]), context)
            if cache.max_age_s and _is_whole(answer):
                now = loop_now()
                self._kept.keep(question, answer.body, now)
            return answer

        answer = await self._under_way.answer(
            question, asked_for_all, deadline_s=context.deadline_s, who=context.principal
        )
        if not _is_whole(answer):
            asked.account.is_degraded = asked.account.is_degraded or answer.status == 200
            return HttpResponse(answer.status, [*answer.headers, *ours], answer.body)
        return _fresh(answer.body, None, cache, request, ours)

    def __repr__(self) -> str:
        return f"<AnswerCache {self._kept!r}, {self._under_way!r}>"


def question_of(
    entry: CompiledRoute, places: Mapping[str, str], request: HttpRequest
) -> bytes | None:
    """Return what a request asks, in one form however it is spelt; None where it does not fit."""
    try:
        if entry.operation is not None:
            return entry.operation.from_http(places, request.query, request.body)
        if request.query or request.body:
            return None
        return encode(arguments_of(entry.parts, places))
    except BadRequest:
        return None


def _is_whole(answer: HttpResponse) -> bool:
    """Tell whether nothing stands in for an answer, or for a part of it."""
    return answer.status == 200 and not any(name in answer.headers for name in _DEGRADED)


def _fresh(
    body: bytes,
    age_s: float | None,
    cache: CompiledCache,
    request: HttpRequest,
    ours: Iterable[tuple[str, str]],
) -> HttpResponse:
    etag = etag_of(body)
    # What others keep, they tell to others.
    left_out = _ONE_CLIENTS if cache.is_kept_by_others else (CACHE_CONTROL,)
    fields = [
        *(pair for pair in ours if pair[0] not in left_out),
        *cache.fields(etag, age_s),
    ]
    if has_it(request.headers.get_all(IF_NONE_MATCH), etag):
        return HttpResponse(304, fields)
    return HttpResponse(200, [_JSON, *fields], body)
