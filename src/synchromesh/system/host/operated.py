"""The verbs of operators, at the admin listener of a replica that nobody supervises.

Everything else there is for anybody who reaches it; these need an operator's credential, and are
answered by the control API of the process, for itself alone: who asks, asks all replicas.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from synchromesh.codec import encode
from synchromesh.errors import Forbidden, SynchromeshError, UnknownOperation
from synchromesh.http import HttpRequest, HttpResponse, error_response
from synchromesh.identity import Signer
from synchromesh.system.control.operator import identify
from synchromesh.system.control.replicas import DRAIN, VERBS
from synchromesh.system.host.host import Host

# What is asked for itself alone. Neither calls nor credentials: an operator is no client.
_ALLOWED = frozenset(
    {
        ("GET", "status"),
        ("GET", "metrics"),
        ("GET", "observed"),
        ("GET", "traces"),
        ("POST", "actions"),
        ("POST", "faults"),
        ("POST", "breakers"),
        ("POST", "gateway"),
    }
)
_BEARER = "Bearer "

_log = logging.getLogger("synchromesh.system")


class Accountable(msgspec.Struct, frozen=True):
    """What each request may say of who asks, and why."""

    who: str = ""
    why: str = ""


class OperatedReplica:
    """Answers operators for the process of one replica.

    Args:
        instance: what it is registered as.
        drain: has the process leave, answer what it has taken, and end.
    """

    def __init__(
        self, host: Host, signer: Signer, instance: str, *, drain: Callable[[], None]
    ) -> None:
        self._host = host
        self._signer = signer
        self._instance = instance
        self._drain = drain

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Answer a verb; 401 without a credential, whatever is asked for."""
        try:
            value = await self._done(request, self._identified(request))
        except SynchromeshError as error:
            return error_response(error)
        fields = [("content-type", "application/json"), ("cache-control", "no-store")]
        return HttpResponse(200, fields, encode(value))

    def _identified(self, request: HttpRequest) -> str:
        given = request.headers.get("authorization", "") or ""
        shown = given.removeprefix(_BEARER) if given.startswith(_BEARER) else ""
        now_us = self._host.runtime.wall_us()
        return identify(self._signer, shown, instance=self._instance, now_us=now_us)

    async def _done(self, request: HttpRequest, who: str) -> object:
        path = request.path.removeprefix(VERBS)
        if request.method == "POST":
            self._note(path, request.body, who)
        if (request.method, path) == ("POST", DRAIN):
            # The answer goes first.
            asyncio.get_running_loop().call_soon(self._drain)
            return {"instance": self._instance, "pid": os.getpid()}
        if (request.method, path.split("/")[1]) not in _ALLOWED:
            raise UnknownOperation(f"a replica has no verb {request.method} {path}")
        return await self._host.control.answer(replace(request, path=path))

    def _note(self, path: str, body: bytes, who: str) -> None:
        """Log who does what. Raises Forbidden where they would have it recorded for another."""
        try:
            said = msgspec.json.decode(body or b"{}", type=Accountable)
        except (msgspec.MsgspecError, RecursionError):
            said = Accountable()  # what it is, is said by who reads it
        if said.who not in ("", who):
            raise Forbidden(f"the credential is one of {who!r}, who cannot act as {said.who!r}")
        _log.info("an operator asks for %s", path, extra={"who": who, "reason": said.why})


def serve_operators(
    host: Host, signer: Signer, instance: str, *, drain: Callable[[], None]
) -> None:
    """Answer operators at the admin listener, and register where that is."""
    config, own = host.config, host.config.system
    replica = OperatedReplica(host, signer, instance, drain=drain)
    host.admin.room(VERBS, replica.answer)
    host.operated_at = config.admin.reached_at(host.admin.url, own.advertise or own.host)
