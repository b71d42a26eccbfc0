"""Which engine serves which route, and why. A pure machine.

Envoy serves what it can serve whole, as the gateway would. It takes a request only where nothing
about it is odd and its token is sure to be valid; every other request of such a route goes on to
the gateway, which judges it. So there is one judge, and no answer depends on two sets of rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Final, Literal

import msgspec

from synchromesh.gateway.api_keys import ApiKeys
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.forward import CompiledForward
from synchromesh.gateway.jwt import JWT
from synchromesh.gateway.principal import Auth
from synchromesh.gateway.routes import Gateway

ENVOY: Final = "envoy"
GATEWAY: Final = "gateway"

# What the export knows of. A route that says more than this stays with the gateway, so that nothing
# is dropped in silence that was added there later.
KNOWN: Final[Mapping[str, frozenset[str]]] = {
    "gateway": frozenset({
        "routes", "auth", "in_flight_max", "tunnels_max", "buckets_max", "stale_max",
        "stale_bytes_max", "cache_max", "cache_bytes_max", "openapi", "cors",
    }),
    "route": frozenset({
        "template", "scopes", "is_public", "deadline_s", "interval_s", "burst", "operation",
        "stand_in", "parts", "passage", "page", "priority", "kinds", "cors",
        "cache", "is_strict", "name", "host", "split", "mirror",
    }),
    "forward": frozenset({
        "to", "path", "passed", "body_bytes_max", "ways", "forwarded", "quiet_s",
        "tells_principal", "has_slashes", "is_guarded",
    }),
    "token": frozenset({
        "issuer", "audience", "jwks", "algorithms", "scopes_claim", "principal_claim", "prefix",
        "grants", "required", "typ", "leeway_s", "kept_max", "claims",
    }),
}  # fmt: skip


class RoutePlan(msgspec.Struct, frozen=True):
    """Which engine serves a route.

    Attributes:
        route: as it was written.
        engine: "envoy", or "gateway" behind it.
        why: what keeps it at the gateway; "" where nothing does.
        upstreams: whom Envoy asks.
        on: which requests of a route that Envoy serves go on to the gateway all the same, besides
            those of `EVERY`.
    """

    route: str
    engine: Literal["envoy", "gateway"]
    why: str = ""
    upstreams: tuple[str, ...] = ()
    on: tuple[str, ...] = ()


# What the gateway judges of every route.
EVERY: Final = (
    "a path that holds something encoded, a backslash, a `;`, an empty segment or one of dots",
    "a preflight (OPTIONS with Access-Control-Request-Method), and any method without a route",
    "an Idempotency-Key, an X-Api-Key, an Upgrade, or a body that comes in chunks",
    "an X-Request-Id or a traceparent that is malformed, or a Host that is no host",
)


def plan(
    gateway: Gateway, entries: Sequence[CompiledRoute], externals: Mapping[str, str]
) -> tuple[RoutePlan, ...]:
    """Return which engine serves each route, in their order.

    Args:
        externals: the external services, each with what keeps Envoy from asking it, "" for nothing.
    """
    issuers = issuers_of(gateway.auth)
    odd = _more("gateway", gateway)
    return tuple(_plan_of(entry, gateway, externals, issuers, odd) for entry in entries)


def _plan_of(
    entry: CompiledRoute,
    gateway: Gateway,
    externals: Mapping[str, str],
    issuers: Sequence[tuple[JWT, str]],
    odd: str,
) -> RoutePlan:
    why = odd or _why(entry, gateway, externals, issuers)
    if why:
        return RoutePlan(entry.name, GATEWAY, why)
    assert entry.passage is not None
    on = []
    if not entry.is_public:
        on.append("a request without a token, or with one that Envoy is not sure of")
        on += [f"a token of {auth.issuer}: {why}" for auth, why in issuers if why]
    if entry.passage.quiet_s is not None:
        on.append("a WebSocket")
    on.append(f"a body of more than {entry.passage.body_bytes_max} bytes, which is 413")
    upstreams = tuple(each.to for each in _passages(entry))
    return RoutePlan(entry.name, ENVOY, upstreams=upstreams, on=tuple(on))


def _why(
    entry: CompiledRoute,
    gateway: Gateway,
    externals: Mapping[str, str],
    issuers: Sequence[tuple[JWT, str]],
) -> str:
    """Return what keeps a route at the gateway; "" where Envoy can serve it."""
    if entry.page is not None:
        return "describes the gateway itself"
    if entry.operation is not None:
        return "calls a contract: JSON becomes a typed call that the gateway signs"
    if entry.passage is None:
        return "puts one answer together from several"
    why = _why_not_there(entry, externals) or _more("route", entry)
    why = why or _more("forward", entry.passage)
    return why if why or entry.is_public else _why_not_they(entry, gateway, issuers)


def _why_not_there(entry: CompiledRoute, externals: Mapping[str, str]) -> str:
    """Return what keeps Envoy from asking the upstreams of a `Forward`; "" for nothing."""
    if entry.mirror is not None:
        return "has copies of its requests sent, and the answers compared"
    if entry.split is not None and entry.split.is_sticky:
        return "has a split that sends each client to the same upstream"
    for passage in _passages(entry):
        if passage.to not in externals:
            return f"leads to {passage.to}, a service of the system: each request there is signed"
        if externals[passage.to]:
            return f"leads to {passage.to}, which {externals[passage.to]}"
        if passage.tells_principal:
            return "tells the upstream who asks, by a token that the gateway signs"
    return ""


def _why_not_they(
    entry: CompiledRoute, gateway: Gateway, issuers: Sequence[tuple[JWT, str]]
) -> str:
    """Return what keeps Envoy from knowing who asks; "" for nothing."""
    if entry.kinds and JWT.kind not in entry.kinds:
        return f"takes no token, but a credential of this kind: {' or '.join(sorted(entry.kinds))}"
    if any(not why for _, why in issuers):
        return ""
    if not issuers:
        kinds = ", ".join(type(each).__name__ for each in gateway.auth)
        return f"asks for a credential, and the gateway alone can check it ({kinds})"
    return f"asks for a token, and the gateway alone can check it: {issuers[0][1]}"


def _passages(entry: CompiledRoute) -> list[CompiledForward]:
    """Return the ways of a `Forward`: its own, and that of its split."""
    ways = [entry.passage, None if entry.split is None else entry.split.passage]
    return [each for each in ways if each is not None]


def issuers_of(auth: Sequence[Auth]) -> list[tuple[JWT, str]]:
    """Return the issuers of tokens, each with why Envoy cannot check its tokens, "" for nothing."""
    found: list[tuple[JWT, str]] = []
    before: list[Auth] = []
    for each in auth:
        if isinstance(each, JWT):
            found.append((each, _why_not(each, before)))
        before.append(each)
    return found


def _why_not(token: JWT, before: Sequence[Auth]) -> str:
    if token.grants is not None:
        return "its grants are a function"
    if not token.jwks:
        return "its keys are found by OpenID Connect Discovery; name their URL or file in jwks"
    if "://" not in token.jwks:
        return "its keys are in a file, which Envoy would read only once; name a URL in jwks"
    other = next((each for each in before if not isinstance(each, JWT | ApiKeys)), None)
    if other is not None:
        return f"{type(other).__name__} is asked before it, and may know the token"
    if any(isinstance(each, JWT) and each.issuer == token.issuer for each in before):
        return "another JWT of the same issuer is asked before it"
    return _more("token", token)


def _more(kind: str, value: Any) -> str:
    """Return what the export does not know of and is set; "" for nothing."""
    for each in fields(value):
        if each.name in KNOWN[kind]:
            continue
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        if getattr(value, each.name) != default:
            return f"has {each.name}, which the export does not know of"
    return ""
