"""The routes of an Envoy: those that it answers, each before what the gateway has of it.

    odd requests → gateway | per route, the closest first: plain ones → upstream, rest → gateway | →

A pure machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from synchromesh.calls.forwarding import IDEMPOTENT
from synchromesh.calls.routes import ANY
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.envoy.clusters import GATEWAY_CLUSTER, external_cluster, seconds
from synchromesh.gateway.envoy.filters import WHO, per_route
from synchromesh.gateway.envoy.names import CHUNKED
from synchromesh.gateway.envoy.patterns import ODD_PATH, closeness, path_pattern, substitution
from synchromesh.gateway.envoy.plan import ENVOY, RoutePlan
from synchromesh.gateway.envoy.settings import EnvoySettings
from synchromesh.gateway.envoy.tokens import FILTER, CheckedIssuer, SaidOfToken, conditions
from synchromesh.gateway.forward import CompiledForward
from synchromesh.gateway.hosts import Hosts
from synchromesh.resilience import Policy

_NEVER_ANY: Final = ("CONNECT", "TRACE")
_READS: Final = ("GET", "HEAD")
_REQUEST_ID: Final = r"(?:[A-Za-z0-9._~:/+=@-]{1,128})?"
_TRACEPARENT: Final = r"(?:00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?"
_HOST: Final = r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(:[0-9]{1,5})?"
# The address of whoever sent the request; what a client says of it was taken off.
PEER: Final = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"
_PROTO: Final = "%REQ(X-FORWARDED-PROTO)%"
_ASKED: Final = "%REQ(X-FORWARDED-HOST?:AUTHORITY)%"
_SPARE_S: Final = 0.1


def virtual_hosts(
    plans: Sequence[tuple[CompiledRoute, RoutePlan]],
    settings: EnvoySettings,
    issuers: Sequence[CheckedIssuer],
) -> list[dict[str, Any]]:
    """Return the virtual hosts: one for each host and pattern of routes, and one for all others.

    The host decides first: each has its own routes, then those of the patterns that it fits, and
    then those without a host.
    """
    whose = {id(entry): plan for entry, plan in plans}
    ways, found = ways_of(plans), []
    for each in Hosts([entry for entry, _ in plans]).every:
        routes = [_to_gateway(match, "odd") for match in _odd()]
        if settings.health:
            routes.insert(0, _to_gateway({"path": settings.health}, "health"))
        for _, group in groupby(each.entries, key=lambda entry: entry.host):
            for entry in sorted(group, key=lambda entry: closeness(entry.template)):
                if whose[id(entry)].engine == ENVOY:
                    routes += _shared(entry, settings, issuers, ways)
                    routes += _direct(entry, settings, issuers, ways)
                routes.append(_to_gateway(_match(entry, _methods(entry)), entry.name))
        routes.append(_to_gateway({"prefix": "/"}, "none"))
        host = each.closest[0].host if each.closest else ""
        found.append({"name": host or "others", "domains": [host or "*"], "routes": routes})
    return found


def ways_of(
    plans: Sequence[tuple[CompiledRoute, RoutePlan]],
) -> Mapping[str, list[CompiledRoute]]:
    """Return the routes that lead to each upstream, in their order."""
    found: dict[str, list[CompiledRoute]] = {}
    for entry, _ in plans:
        for each in (entry, entry.to_other()):
            if each is not None and each.passage is not None:
                found.setdefault(each.passage.to, []).append(each)
    return found


def _odd() -> Iterator[dict[str, Any]]:
    """Yield what matches the requests that the gateway judges, whatever their route."""
    yield {"safe_regex": {"regex": ODD_PATH}}
    for name in ("idempotency-key", "x-api-key", "upgrade", CHUNKED):
        yield {"prefix": "/", "headers": [{"name": name, "present_match": True}]}
    yield {
        "prefix": "/",
        "headers": [
            _header(":method", {"exact": "OPTIONS"}),
            {"name": "access-control-request-method", "present_match": True},
        ],
    }
    for name, form in (
        ("x-request-id", _REQUEST_ID),
        ("traceparent", _TRACEPARENT),
        (":authority", _HOST),
    ):
        yield {
            "prefix": "/",
            "headers": [
                {
                    **_header(name, {"safe_regex": {"regex": form}}),
                    "invert_match": True,
                    "treat_missing_header_as_empty": True,
                }
            ],
        }


def _to_gateway(match: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "name": f"gateway: {name}",
        "match": match,
        # How long it may take, and how often it is asked, the gateway says itself.
        "route": {"cluster": GATEWAY_CLUSTER, "timeout": "0s", "idle_timeout": "0s"},
        "request_headers_to_add": [_add("x-forwarded-for", PEER)],
        "request_headers_to_remove": ["forwarded"],
    }


def _shared(
    entry: CompiledRoute,
    settings: EnvoySettings,
    issuers: Sequence[CheckedIssuer],
    ways: Mapping[str, Sequence[CompiledRoute]],
) -> Iterator[dict[str, Any]]:
    """Yield the routes of the requests that a split draws; it is drawn once for each request."""
    other = entry.to_other()
    if other is None or entry.split is None:
        return
    drawn = {"numerator": round(entry.split.share * 1_000_000), "denominator": "MILLION"}
    for route in _direct(other, settings, issuers, ways):
        yield {**route, "match": {**route["match"], "runtime_fraction": {"default_value": drawn}}}


def _direct(
    entry: CompiledRoute,
    settings: EnvoySettings,
    issuers: Sequence[CheckedIssuer],
    ways: Mapping[str, Sequence[CompiledRoute]],
) -> Iterator[dict[str, Any]]:
    assert entry.passage is not None
    if entry.is_public:
        asked: list[tuple[CheckedIssuer, SaidOfToken] | None] = [None]
    else:
        asked = [(each, said) for each in issuers for said in conditions(entry, each)]
    methods = _methods(entry)
    repeated = [method for method in methods if method in IDEMPOTENT]
    if methods == [ANY]:
        repeated = sorted(IDEMPOTENT)
    length = {"start": 1, "end": entry.passage.body_bytes_max + 1}
    none = {
        **_header("content-length", {"safe_regex": {"regex": "0*"}}),
        "treat_missing_header_as_empty": True,
    }
    some = {"name": "content-length", "range_match": length}
    ways_to_try = (
        # What may be sent again: all of it; what was not even sent.
        (repeated, none, "5xx,reset,connect-failure"),
        ([] if set(methods) <= IDEMPOTENT else methods, none, "connect-failure"),
        (methods if entry.passage.body_bytes_max else [], some, "connect-failure"),
    )
    for who in asked:
        for these, body, retry_on in ways_to_try:
            if these:
                match = _match(entry, these)
                match["headers"] = [*match.get("headers", []), body, *_told(entry.passage)]
                if who is not None:
                    match["dynamic_metadata"] = who[1].metadata
                yield {
                    "name": entry.name,
                    "match": match,
                    "route": _action(entry, entry.passage, settings, retry_on, who),
                    **per_route(
                        entry, ways[entry.passage.to], settings.upstreams[entry.passage.to].scheme
                    ),
                    **_request_headers(entry.passage),
                }


def _told(passage: CompiledForward) -> list[dict[str, Any]]:
    """Return what matches clients whose addresses can be told: those of IPv6 need quotes."""
    if not passage.tells_origin(is_external=True):
        return []
    matcher = {"string_match": {"contains": ":"}, "treat_missing_header_as_empty": True}
    return [{"name": "x-forwarded-for", **matcher, "invert_match": True}]


def _request_headers(passage: CompiledForward) -> dict[str, Any]:
    added = [_add("via", "1.1 synchromesh")]
    if passage.tells_origin(is_external=True):
        added += [
            _add("x-forwarded-for", PEER),
            _add("x-forwarded-proto", _PROTO),
            _add("x-forwarded-host", _ASKED),
            _add("forwarded", f'for={PEER};proto={_PROTO};host="{_ASKED}"'),
        ]
        return {"request_headers_to_add": added}
    return {"request_headers_to_add": added}


def _action(
    entry: CompiledRoute,
    passage: CompiledForward,
    settings: EnvoySettings,
    retry_on: str,
    who: tuple[CheckedIssuer, SaidOfToken] | None,
) -> dict[str, Any]:
    policy = settings.policies.of_edge(passage.to)
    action: dict[str, Any] = {
        "cluster": external_cluster(passage.to),
        "auto_host_rewrite": True,
        # It would cut an answer that is still coming; when it has to begin each attempt says.
        "timeout": "0s",
        "idle_timeout": seconds(settings.pool.quiet_s),
        "retry_policy": _retries(policy, entry.deadline_s, retry_on),
    }
    if passage.path != entry.template.path:
        action["regex_rewrite"] = {
            "pattern": {"regex": f"^{path_pattern(entry.template.path)}$"},
            "substitution": substitution(entry.template.path, passage.path),
        }
    if entry.interval_s:
        action["rate_limits"] = [{"actions": [*_counted(entry, who)]}]
    return action


def _retries(policy: Policy, deadline_s: float, retry_on: str) -> dict[str, Any]:
    """Return how often it is tried: as often as fits in the time in which an answer has to begin.

    What may have been done is repeated only where that does no harm; what was not sent, always.
    """
    try_s = deadline_s if policy.timeout_s is None else min(policy.timeout_s, deadline_s)
    attempts = 1 if policy.retry is None else policy.retry.attempts_max
    attempts = min(attempts, max(1, int((deadline_s + _SPARE_S) / try_s)))
    return {
        "retry_on": retry_on,
        "num_retries": attempts - 1,
        "per_try_timeout": seconds(try_s),
        "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.250s"},
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.host."
                    "previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
        "host_selection_retry_max_attempts": 3,
    }


def _counted(
    entry: CompiledRoute, who: tuple[CheckedIssuer, SaidOfToken] | None
) -> Iterator[dict[str, Any]]:
    """Yield by what a rate counts: the route, and who asks.

    Envoy counts nothing of a request that lacks one of these, so each has to be there: who asks is
    looked for where the route's own condition has found it.
    """
    yield {"generic_key": {"descriptor_key": "route", "descriptor_value": entry.name}}
    if who is None:
        yield {"masked_remote_address": {"v4_prefix_mask_len": 32, "v6_prefix_mask_len": 64}}
        return
    issuer, said = who
    path = [f"{issuer.name}.claims", *said.who]
    key = {"key": FILTER, "path": [{"key": step} for step in path]}
    prefix, name = WHO
    # A value may not be empty, a prefix may.
    told = {"descriptor_key": prefix, "descriptor_value": f"prefix {issuer.token.prefix}"}
    yield {"generic_key": told}
    yield {"metadata": {"descriptor_key": name, "metadata_key": key, "source": "DYNAMIC"}}


def _methods(entry: CompiledRoute) -> list[str]:
    method = entry.template.method
    return list(_READS) if method == "GET" else [method]


def _match(entry: CompiledRoute, methods: Sequence[str]) -> dict[str, Any]:
    template = entry.template
    match: dict[str, Any]
    if not template.places:
        match = {"path": template.path}
    else:
        match = {"safe_regex": {"regex": path_pattern(template.path)}}
    if ANY in methods:
        never = "|".join(_NEVER_ANY)
        method = {**_header(":method", {"safe_regex": {"regex": never}}), "invert_match": True}
    elif len(methods) == 1:
        method = _header(":method", {"exact": methods[0]})
    else:
        method = _header(":method", {"safe_regex": {"regex": "|".join(methods)}})
    return {**match, "headers": [method]}


def _header(name: str, matcher: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "string_match": matcher}


def _add(name: str, value: str) -> dict[str, Any]:
    header = {"key": name, "value": value}
    return {"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
