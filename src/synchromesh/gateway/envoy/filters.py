"""The filters of an Envoy, and what routes that it answers ask of them. A pure machine.

decode:  tokens → trace → script → cross-origin → rates → headers → router
encode:  the other way round
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

from synchromesh.gateway.answers import ALWAYS, TRACE
from synchromesh.gateway.arrival import REQUEST_ID
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.cors import SAID_BY_US, CompiledCors
from synchromesh.gateway.envoy.clusters import seconds
from synchromesh.gateway.envoy.names import LUA, TRACE_ID, TYPE
from synchromesh.gateway.envoy.patterns import all_but, closeness
from synchromesh.gateway.forward import DROPPED, CompiledForward
from synchromesh.gateway.limits import RATELIMIT_POLICY, TokenBuckets
from synchromesh.gateway.router import Template

_HTTP: Final = f"{TYPE}.extensions.filters.http"
CORS: Final = "envoy.filters.http.cors"
RATES: Final = "envoy.filters.http.local_ratelimit"
HEADERS: Final = "envoy.filters.http.header_mutation"
TRACES: Final = "envoy.filters.http.header_mutation.trace"
ROUTER: Final = "envoy.filters.http.router"
# What Envoy itself takes off, once it has read it.
_FRAMING: Final = frozenset({"connection", "transfer-encoding", "upgrade"})
# What the script is told by, and takes off: a new name for a trace, which instance has answered,
# and whether it was one at all.
_NEW_TRACE: Final = "synchromesh-new-trace"
_FROM: Final = "synchromesh-upstream-host"
_DETAILS: Final = "synchromesh-details"
_PLACE = re.compile(r"\{([a-z_][a-z0-9_]*)(\.\.\.)?\}")
_LUA_MAGIC = re.compile(r"([^A-Za-z0-9/_])")
# Envoy refuses what comes more often.
_FILL_S: Final = 0.05
# By what a rate counts, besides its route: one name of two issuers is two principals.
CLIENT: Final = ("masked_remote_address",)
WHO: Final = ("prefix", "principal")
_UNBOUNDED: Final = 4_000_000_000


def filters(entries: Iterable[CompiledRoute], buckets_max: int) -> list[dict[str, Any]]:
    """Return the filters behind that of tokens; `entries` are the routes that Envoy answers."""
    rated = [entry for entry in entries if entry.interval_s]
    new = {"append": {"header": {"key": _NEW_TRACE, "value": "%UNIQUE_ID%"}}}
    mutation = f"{_HTTP}.header_mutation.v3.HeaderMutation"
    found = [
        {
            "name": TRACES,
            "typed_config": {"@type": mutation, "mutations": {"request_mutations": [new]}},
        },
        {
            "name": LUA,
            "typed_config": {
                "@type": f"{_HTTP}.lua.v3.Lua",
                "source_codes": {"gateway": {"inline_string": script()}},
            },
        },
        _filter(CORS, f"{_HTTP}.cors.v3.Cors"),
    ]
    if rated:
        found.append({"name": RATES, "typed_config": _rates(rated, buckets_max)})
    router = {"@type": f"{_HTTP}.router.v3.Router", "suppress_envoy_headers": True}
    return [*found, _filter(HEADERS, mutation), {"name": ROUTER, "typed_config": router}]


@cache
def script() -> str:
    """Return the script that knows traces, and where answers lead."""
    return files(__package__).joinpath("answers.lua").read_text()


def _filter(name: str, kind: str) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": kind}}


# -- rates -----------------------------------------------------------------------------------------


def _rates(entries: Sequence[CompiledRoute], buckets_max: int) -> dict[str, Any]:
    """Return the buckets of all routes in one place, so that all ways to a route share them."""
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return {
        "@type": f"{_HTTP}.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "rates",
        "token_bucket": _bucket(_UNBOUNDED, _UNBOUNDED, _FILL_S),
        "always_consume_default_token_bucket": False,
        "filter_enabled": always,
        "filter_enforced": always,
        "max_dynamic_descriptors": buckets_max,
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        "descriptors": [
            {
                "entries": [
                    {"key": "route", "value": entry.name},
                    # Without a value it has a bucket for each that comes.
                    *({"key": key} for key in (CLIENT if entry.is_public else WHO)),
                ],
                "token_bucket": bucket_of(entry),
            }
            for entry in entries
        ],
    }


def bucket_of(entry: CompiledRoute) -> dict[str, Any]:
    """Return the token bucket of a route's rate."""
    number = max(1, math.ceil(_FILL_S / entry.interval_s - 1e-9))
    return _bucket(max(entry.burst, number), number, number * entry.interval_s)


def _bucket(most: int, number: int, each_s: float) -> dict[str, Any]:
    return {"max_tokens": most, "tokens_per_fill": number, "fill_interval": seconds(each_s)}


# -- what a route asks of them ---------------------------------------------------------------------


def per_route(entry: CompiledRoute, beside: Sequence[CompiledRoute], scheme: str) -> dict[str, Any]:
    """Return what a route says to the filters; `beside` are all that lead to its upstream."""
    passage = entry.passage
    assert passage is not None
    config: dict[str, Any] = {
        HEADERS: {
            "@type": f"{_HTTP}.header_mutation.v3.HeaderMutationPerRoute",
            "mutations": {
                "request_mutations": [_removed(all_but(_kept(passage)))],
                "response_mutations": _answered(entry),
            },
        },
        LUA: {"@type": f"{_HTTP}.lua.v3.LuaPerRoute", "name": "gateway"},
    }
    if entry.cors is not None and not entry.cors.is_open:
        config[CORS] = {"@type": f"{_HTTP}.cors.v3.CorsPolicy", **_cors(entry.cors)}
    return {
        "typed_per_filter_config": config,
        "metadata": {"filter_metadata": {LUA: {"told": _told(entry, beside, scheme)}}},
    }


def _kept(passage: CompiledForward) -> set[str]:
    """Return the headers of a request that reach the upstream, or that Envoy itself needs."""
    kept = {*passage.passed, REQUEST_ID, "traceparent", "tracestate", "content-length", "host"}
    if passage.tells_origin(is_external=True):
        kept |= {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"}
    return kept


def _answered(entry: CompiledRoute) -> list[dict[str, Any]]:
    """Return what is done with the head of an answer: what is ours to say is said by us alone."""
    dropped = "|".join(map(re.escape, sorted(DROPPED - _FRAMING)))
    found = [_removed(f"{dropped}|synchromesh-.*")]
    if entry.cors is not None:
        found.append(_removed(f"{SAID_BY_US}.*"))
    caching, sniffing = ALWAYS
    found += [
        _said(*caching, "ADD_IF_ABSENT"),
        _said(*sniffing),
        _said(TRACE, TRACE_ID),
        _said(REQUEST_ID, "%REQ(X-REQUEST-ID)%"),
        _said(_FROM, "%UPSTREAM_HOST_NAME%"),
        _said(_DETAILS, "%RESPONSE_CODE_DETAILS%"),
    ]
    if entry.cors is not None:
        # Of a list of origins the filter says which; the answer varies whoever asks.
        found += [
            _said(name, value, "APPEND_IF_EXISTS_OR_ADD")
            for name, value in entry.cors.said_to_others
        ]
    return found


def _removed(expression: str) -> dict[str, Any]:
    return {"remove_on_match": {"key_matcher": {"safe_regex": {"regex": expression}}}}


def _said(name: str, value: str, how: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> dict[str, Any]:
    return {"append": {"header": {"key": name, "value": value}, "append_action": how}}


def _cors(cors: CompiledCors) -> dict[str, Any]:
    said = dict(next(iter(cors.said.values())))
    policy: dict[str, Any] = {
        "allow_origin_string_match": [{"exact": origin} for origin in sorted(cors.said)],
        "allow_credentials": "access-control-allow-credentials" in said,
    }
    if exposed := said.get("access-control-expose-headers"):
        policy["expose_headers"] = exposed
    return policy


# -- leading ---------------------------------------------------------------------------------------


def _told(entry: CompiledRoute, beside: Sequence[CompiledRoute], scheme: str) -> dict[str, Any]:
    """Return what the script is told of a route."""
    rate = {}
    if entry.interval_s:
        buckets = TokenBuckets(interval_s=entry.interval_s, burst=entry.burst, name=entry.name)
        policy = dict(buckets.allowance("", now=0.0).fields)[RATELIMIT_POLICY]
        rate = {"rate": {"policy": policy, "name": f'"{entry.name}"', "burst": entry.burst}}
    return {
        **rate,
        "ways": _ways(entry, beside),
        "scheme": scheme,
        "token_s": str(math.ceil(entry.interval_s)),
    }


def _ways(entry: CompiledRoute, beside: Sequence[CompiledRoute]) -> list[dict[str, str]]:
    """Return the ways of an upstream's paths outside: the route's own, those of its host, others'.

    What leads there on any host does so on this one.
    """
    hosts = dict.fromkeys((entry.host, ""))
    groups = [[entry], *([each for each in beside if each.host == host] for host in hosts)]
    return [way for group in groups for way in _sorted(group)]


def _sorted(entries: Sequence[CompiledRoute]) -> list[dict[str, str]]:
    there: dict[str, str] = {}
    for entry in entries:
        assert entry.passage is not None
        there.setdefault(entry.passage.path, entry.template.path)
    paths = sorted(there, key=lambda path: closeness(Template("ANY", path)))
    return [_way(path, there[path]) for path in paths]


def _way(path: str, outside: str) -> dict[str, str]:
    numbers = {place[1]: number for number, place in enumerate(_PLACE.finditer(path), 1)}
    parts = [
        _PLACE.sub(lambda place: "(.*)" if place[2] else "([^/]+)", part)
        if part.startswith("{")
        else _LUA_MAGIC.sub(r"%\1", part)
        for part in path.split("/")
    ]
    to = _PLACE.sub(lambda place: f"%{numbers[place[1]]}", outside)
    return {"from": f"^{'/'.join(parts)}$", "to": to}
