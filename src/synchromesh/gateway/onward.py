"""Requests that are passed on by the slow way: what takes a task, as do bodies that still come."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack, nullcontext

import msgspec

from synchromesh.calls import Caller, Forwarder, Forwarding
from synchromesh.context import CallContext
from synchromesh.errors import BadRequest
from synchromesh.gateway.answers import told_of
from synchromesh.gateway.arrival import key_of
from synchromesh.gateway.asked import AskedRequest, RefusedRequest, under
from synchromesh.gateway.compiled_beside import CompiledMirror, CompiledSplit
from synchromesh.gateway.forward import CompiledForward, answer_of
from synchromesh.gateway.mirrors import MirroredRequest, Mirrors
from synchromesh.gateway.origin import Origins
from synchromesh.gateway.tunnels import TunnelPlaces
from synchromesh.http import HttpResponse
from synchromesh.identity import Principal
from synchromesh.resilience import Limiter


class Onward:
    """Passes requests on for one gateway.

    Args:
        caller: signs what tells an upstream who asks.
        forwarder: passes them on.
        limiter: bounds what is in flight; it is not held while a body comes.
        tunnels: bounds the WebSockets.
        externals: the upstreams that are not ours.
        origins: tells whom a request comes from.
        mirrors: sends copies, where a route says so.
    """

    def __init__(
        self,
        caller: Caller,
        forwarder: Forwarder,
        *,
        limiter: Limiter,
        tunnels: TunnelPlaces,
        externals: AbstractSet[str],
        origins: Origins,
        mirrors: Mirrors,
    ) -> None:
        self._caller = caller
        self._forwarder = forwarder
        self._limiter = limiter
        self._tunnels = tunnels
        self._externals = externals
        self._origins = origins
        self._mirrors = mirrors

    async def answer(
        self, stack: AsyncExitStack, asked: AskedRequest, context: CallContext
    ) -> HttpResponse:
        """Return the answer of an upstream; `stack` holds what it takes until it has been read.

        `context` is that of who asks, and may.

        Raises:
            RefusedRequest: the request cannot be passed on as it is.
            CallError: it failed.
        """
        entry = asked.entry
        assert entry.passage is not None
        passage = entry.passage if entry.split is None else self._passage(asked, entry.split)
        forwarding = self._forwarding(asked, passage, context)
        if forwarding.quiet_s is not None:
            stack.enter_context(self._tunnels.taken(forwarding.client))
        # What a body takes, either way, is the client's time: it holds no place of others then.
        forwarding = await self._forwarder.read_ahead(forwarding, asked.entry.deadline_s)
        copy = None if entry.mirror is None else self._copy(asked, forwarding, entry.mirror)
        if copy is not None:
            stack.callback(copy.end)
        async with nullcontext() if forwarding.is_upload else self._limiter:
            passed = await stack.enter_async_context(self._forwarder.forward(forwarding))
        if passed.error is not None:
            # The client gets the upstream's own words; the log has what it was taken for.
            asked.span.fail(passed.error)
            asked.account.traffic.why(passed.error)
            told_of(passed.error, asked.entry, context.trace_id)
        response = passed.response if copy is None else copy.watching(passed.response)
        return answer_of(response, asked.headers, passage.leading(passed.endpoint.url))

    def __repr__(self) -> str:
        return f"<Onward by {self._forwarder!r}>"

    def _passage(self, asked: AskedRequest, split: CompiledSplit) -> CompiledForward:
        """Return the way that a request takes: its route's, or that of the split."""
        passage, is_split = asked.entry.passage, asked.decided.is_split
        assert passage is not None
        if is_split is None:
            client = asked.principal.name
            if not client and split.is_sticky:
                request = asked.request
                client = self._origins.of_request(request.peer, request.headers).client
            is_split = split.takes(client, self._caller.rng)
        return split.passage if is_split else passage

    def _copy(
        self, asked: AskedRequest, forwarding: Forwarding, mirror: CompiledMirror
    ) -> MirroredRequest | None:
        """Begin a copy of a request, where it is to be copied."""
        is_mirrored = asked.decided.is_mirrored
        if is_mirrored is None:
            is_mirrored = mirror.takes(asked.request.method, self._caller.rng)
        return self._mirrors.begin(asked, forwarding, mirror) if is_mirrored else None

    def _forwarding(
        self, asked: AskedRequest, passage: CompiledForward, context: CallContext
    ) -> Forwarding:
        """Return what is passed on. Raises RefusedRequest."""
        entry, request = asked.entry, asked.request
        try:
            key = key_of(request.headers)
            context = under(context, key) if key else msgspec.structs.replace(context, key="")
            return passage.forwarding(
                request,
                asked.places,
                name=f"{passage.to} {entry.template.method} {passage.path}",
                context=context,
                origin=self._origins.of_request(request.peer, request.headers),
                is_external=passage.to in self._externals,
                told=self._told(passage, asked.principal),
            )
        except BadRequest as error:
            raise RefusedRequest(error) from error

    def _told(self, passage: CompiledForward, who: Principal) -> str:
        if not passage.tells_principal:
            return ""
        return self._caller.principal_token(who.name, who.scopes, audience=passage.to)
