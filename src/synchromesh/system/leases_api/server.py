"""The registry's server on the control socket: leases, and the whole list by a long poll.

    POST /registry/register   an endpoint                     → its incarnation and the ttl
    POST /registry/renew | drain | end   endpoint, incarnation → {}
    GET  /registry?after=REVISION        answered when there is another revision, or after a while
    GET  /registry/policies              → how the calls of who asks are guarded, by the callee
    POST /registry/verify     a credential, an operation  → who calls

Who asks shows the credential of the service that it speaks for (R3), or that of a client from
outside, which registers what its grant says that it serves. A registry that starts anew
knows nobody: for one ttl it *learns*, and says so, and those who resolve keep what they knew (R4).
Its incarnations go on above those of before, so that who was replaced then stays replaced (R2).

Source: Gray & Cheriton, "Leases", SOSP 1989; guarantees R1 to R6.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar
from urllib.parse import parse_qs

import msgspec

from synchromesh.calls.forwarding import by_http
from synchromesh.clients import ClientCredential
from synchromesh.clock import loop_now
from synchromesh.codec import decode, encode
from synchromesh.context import CREDENTIAL
from synchromesh.discovery import Endpoint, Resolved
from synchromesh.discovery.registry import LeaseBackend
from synchromesh.errors import (
    BadRequest,
    ConfigError,
    Forbidden,
    Shed,
    SynchromeshError,
    UnknownOperation,
)
from synchromesh.http import HttpRequest, HttpResponse, error_response
from synchromesh.identity import REGISTRY, Credential, Principal
from synchromesh.system.config.schema import OUTSIDE, PolicySection
from synchromesh.system.config.urls import shown, url_fault

T = TypeVar("T")

PATH = "/registry"
POLL_WAIT_S = 10.0
POLLS_MAX = 1024
# So long may be kept what was verified of a client, whose grant may be taken back.
KEEP_CLIENT_S = 1.0


class Listing(msgspec.Struct, frozen=True):
    """The whole list at one revision.

    Attributes:
        revision: to be sent with the next poll; of a registry that started anew it is another.
        is_learning: True while instances of before may not have registered again.
        services: their instances, ordered by name.
    """

    revision: str
    is_learning: bool
    services: dict[str, Resolved]


class Granted(msgspec.Struct, frozen=True):
    """A lease: the incarnation that renewals carry, and how long it runs."""

    incarnation: int
    ttl_s: float


class Held(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The lease to renew, drain or end."""

    endpoint: Endpoint
    incarnation: int


class Shown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request for a service carried, for who cannot verify it.

    Attributes:
        credential: its `Synchromesh-Credential`.
        operation: what it asks for, such as "quote"; "" where a client has to be let in to all.
    """

    credential: str
    operation: str = ""


class VerifiedCaller(msgspec.Struct, frozen=True):
    """Who calls: for how many seconds that may be kept, and on whose behalf."""

    caller: str
    keep_s: float
    principal: Principal


class ServedRegistry(LeaseBackend, Protocol):
    """A registry that can be served: it keeps leases, and tells of its list and of changes."""

    @property
    def revision(self) -> int:
        """Another one after each change of the list."""
        ...

    async def changed(self, service: str, /) -> None:
        """Wait until the list may have changed."""
        ...

    def listed(self) -> dict[str, Resolved]:
        """Return the listed endpoints by service."""
        ...


class RegistryServer:
    """Serves the registry to the processes of one system; `handle` is an HTTP handler.

    Args:
        registry: keeps the leases.
        admit: reads a credential for an audience; raises Unauthenticated, Forbidden.
        wall_us: the wall clock; what it says now names this start.
        policies: returns what is configured of a caller's edges, by the callee.
    """

    def __init__(
        self,
        registry: ServedRegistry,
        *,
        admit: Callable[[str, str], Credential],
        wall_us: Callable[[], int],
        policies: Callable[[str], Mapping[str, PolicySection]] = lambda _: {},
    ) -> None:
        self._registry = registry
        self._admit = admit
        self._wall_us = wall_us
        self._policies = policies
        self._base = wall_us()
        self._polls = 0
        self._learns_until_s = loop_now() + registry.ttl_s

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Handle a request of a process."""
        try:
            credential = self._admit(request.headers.get(CREDENTIAL, "") or "", REGISTRY)
            if (request.method, request.path) == ("GET", PATH):
                answer = encode(await self._listing(request.query))
            elif (request.method, request.path) == ("GET", f"{PATH}/policies"):
                answer = encode(self._policies(_edges_of(credential)))
            elif (request.method, request.path) == ("POST", f"{PATH}/verify"):
                answer = encode(self._verified(_decoded(request.body, Shown), credential))
            elif request.method == "POST":
                answer = encode(await self._lease(request, credential))
            else:
                raise _unknown(request)
        except SynchromeshError as error:
            return error_response(error)
        return HttpResponse(200, [("content-type", "application/json")], answer)

    def __repr__(self) -> str:
        return f"<RegistryServer {self._registry!r}, {self._polls} polls wait>"

    async def _listing(self, query: str) -> Listing:
        after = parse_qs(query).get("after", [""])[0]
        if after == self._revision() and self._polls >= POLLS_MAX:
            raise Shed(f"{self._polls} polls of the registry wait and no more may; ask later")
        wait_s = POLL_WAIT_S
        if self._is_learning():
            wait_s = min(wait_s, self._learns_until_s - loop_now())
        self._polls += 1
        try:
            async with asyncio.timeout(wait_s):
                while after == self._revision():
                    await self._registry.changed("")
        except TimeoutError:
            pass  # the same list again shows that the registry lives
        finally:
            self._polls -= 1
        return self._now()

    def _now(self) -> Listing:
        # Listing sweeps, which may move the revision: it is read after that.
        listed = self._registry.listed()
        # Whoever asks is another process: what is in this one is reached by HTTP from there.
        services = {
            name: Resolved(tuple(map(by_http, found.endpoints)), found.is_stale)
            for name, found in listed.items()
        }
        return Listing(self._revision(), self._is_learning(), services)

    def _revision(self) -> str:
        return f"{self._base}.{self._registry.revision}"

    def _is_learning(self) -> bool:
        return loop_now() < self._learns_until_s

    def _verified(self, shown: Shown, asks: Credential) -> VerifiedCaller:
        who = self._admit(shown.credential, asks.service)
        keep_s = (who.expires_us - self._wall_us()) / 1e6
        if isinstance(who, ClientCredential):
            who.check(asks.service, shown.operation)
            keep_s = min(keep_s, KEEP_CLIENT_S)
        return VerifiedCaller(who.service, max(0.0, keep_s), who.principal)

    async def _lease(self, request: HttpRequest, credential: Credential) -> object:
        registry = self._registry
        if request.path == f"{PATH}/register":
            endpoint = _decoded(request.body, Endpoint)
            _check_own(endpoint, credential)
            incarnation = await registry.grant(endpoint)
            return Granted(self._base + incarnation, registry.ttl_s)
        act = {
            f"{PATH}/renew": registry.renew,
            f"{PATH}/drain": registry.drain,
            f"{PATH}/end": registry.end,
        }.get(request.path)
        if act is None:
            raise _unknown(request)
        held = _decoded(request.body, Held)
        _check_own(held.endpoint, credential)
        await act(held.endpoint, held.incarnation - self._base)
        return {}


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return decode(body, kind)
    except ConfigError as error:
        raise BadRequest(error.message) from error  # an endpoint that cannot be one


def _edges_of(credential: Credential) -> str:
    """Return whose policies guard the calls of who asks."""
    is_apart = isinstance(credential, ClientCredential) and not credential.grant.serves
    return OUTSIDE if is_apart else credential.service


def _check_own(endpoint: Endpoint, credential: Credential) -> None:
    if isinstance(credential, ClientCredential):
        if credential.grant.serves != endpoint.service:
            raise Forbidden(
                f"client {credential.grant.name!r} asks for a lease of {endpoint.service!r}, and "
                f"serves {credential.grant.serves or 'nothing'}; whoever runs the system makes "
                f"another credential: synchromesh client add NAME --serves {endpoint.service}"
            )
        if endpoint.metadata:
            raise BadRequest("an instance of a client has no metadata; leave it out")
        # Whoever resolves it takes it apart: what cannot be called must not be listed.
        if fault := url_fault(endpoint.url):
            raise BadRequest(f"the url {shown(endpoint.url)!r} cannot be called: {fault}")
    if credential.service != endpoint.service:
        raise Forbidden(
            f"{credential.service!r} asks for a lease of {endpoint.service!r}; a service registers "
            "its own instances only"
        )


def _unknown(request: HttpRequest) -> UnknownOperation:
    return UnknownOperation(f"the registry has no {request.method} {request.path}")
