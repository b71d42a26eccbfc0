"""Tokens as Envoy checks them: by the rules of the gateway, or not at all. A pure machine.

`jwt_authn` verifies a token and refuses none: what it is sure of is in the metadata of the request,
and only a request whose metadata says all that a route asks for is Envoy's to answer. What it does
not say is judged by the gateway: a token that has expired, another kind of token, a scope that is
missing. So who is refused is told by the gateway, in its words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.envoy.clusters import issuer_cluster, seconds
from synchromesh.gateway.envoy.names import TYPE
from synchromesh.gateway.envoy.settings import EnvoySettings
from synchromesh.gateway.jwks import EVERY_S, FAILED_S, WITHIN_S
from synchromesh.gateway.jwt import JWT
from synchromesh.gateway.tokens import NAME_MAX

FILTER: Final = "envoy.filters.http.jwt_authn"
# What a header of a token must not have: a key that it brings along, or an unknown extension.
_NEVER: Final = ("jwk", "jku", "x5u", "x5c", "crit", "b64")
_TYPES: Final = r"(?i)(application/)?(jwt|at\+jwt)"


@dataclass(frozen=True, slots=True)
class CheckedIssuer:
    """An issuer whose tokens Envoy checks; `name` is what its parts are called there."""

    name: str
    token: JWT


def issuers(tokens: Iterable[JWT]) -> tuple[CheckedIssuer, ...]:
    """Name issuers, each by a number: what stands in an address may not stand in a name."""
    return tuple(CheckedIssuer(f"issuer.{number}", each) for number, each in enumerate(tokens, 1))


def clusters_of(found: Iterable[CheckedIssuer], settings: EnvoySettings) -> list[dict[str, Any]]:
    """Return the clusters that keys are fetched from."""
    return [issuer_cluster(each.name, each.token.jwks, settings) for each in found]


def jwt_filter(found: Iterable[CheckedIssuer], paths: Sequence[str]) -> dict[str, Any]:
    """Return the filter that verifies tokens, of requests whose paths one of `paths` matches."""
    rules = [
        {"match": {"safe_regex": {"regex": path}}, "requires": {"allow_missing_or_failed": {}}}
        for path in paths
    ]
    return {
        "@type": f"{TYPE}.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": {each.name: _provider(each) for each in found},
        "rules": rules,
    }


def _provider(issuer: CheckedIssuer) -> dict[str, Any]:
    token = issuer.token
    return {
        "issuer": token.issuer,
        "audiences": _texts(token.audience),
        "require_expiration": True,
        "clock_skew_seconds": int(token.leeway_s),
        "from_headers": [{"name": "Authorization", "value_prefix": "Bearer "}],
        # The gateway needs it where Envoy leaves the request to it; no upstream gets it.
        "forward": True,
        "payload_in_metadata": f"{issuer.name}.claims",
        "header_in_metadata": f"{issuer.name}.header",
        "normalize_payload_in_metadata": {"space_delimited_claims": _texts(token.scopes_claim)},
        "clear_route_cache": True,
        "jwt_cache_config": {"jwt_cache_size": min(token.kept_max, 10_000)},
        "remote_jwks": {
            "http_uri": {"uri": token.jwks, "cluster": issuer.name, "timeout": seconds(WITHIN_S)},
            "cache_duration": seconds(EVERY_S),
            # It serves before it has the keys: the gateway judges tokens meanwhile.
            "async_fetch": {"failed_refetch_duration": seconds(FAILED_S), "fast_listener": True},
        },
    }


@dataclass(frozen=True, slots=True)
class SaidOfToken:
    """One way in which a token may say what a route asks for.

    Attributes:
        who: where its claims name who asks.
        metadata: what matches the metadata of a request with such a token.
    """

    who: list[str]
    metadata: list[dict[str, Any]]


def conditions(entry: CompiledRoute, issuer: CheckedIssuer) -> Iterator[SaidOfToken]:
    """Yield what the metadata of a request has to say, in each way that it may be said.

    All scopes have to be in one claim; a token that spreads them is the gateway's to judge.
    """
    token = issuer.token
    header = [
        _said(issuer, "header", ["alg"], _one_of(token.algorithms)),
        *(_unsaid(issuer, "header", [name]) for name in _NEVER),
    ]
    if token.typ:
        typ = r"(?i)(application/)?" + _quoted(token.typ.removeprefix("application/"))
        header.append(_said(issuer, "header", ["typ"], _matching(typ)))
    always = [
        *header,
        _said(issuer, "claims", ["iss"], {"exact": token.issuer}),
        # To the letter: Envoy's own check passes over a scheme and a last slash.
        {**_at(issuer, "claims", ["aud"]), "value": _texts_of(_texts(token.audience))},
        *(
            {**_at(issuer, "claims", [name]), "value": {"present_match": True}}
            for name in token.required
        ),
    ]
    kinds: list[list[dict[str, Any]]] = [[]] if token.typ else [
        [_said(issuer, "header", ["typ"], _matching(_TYPES))],
        [_unsaid(issuer, "header", ["typ"])],
    ]  # fmt: skip
    name = _matching(f"[ -~]{{1,{NAME_MAX}}}")
    who = [
        (path, [_said(issuer, "claims", path, name), *_not_before(issuer, path)])
        for path in _paths_of(token.principal_claim)
    ]
    scopes: list[list[dict[str, Any]]] = [[]]
    if entry.scopes:
        scopes = [
            [
                *(_listed(issuer, path, scope) for scope in sorted(entry.scopes)),
                *_not_before(issuer, path),
            ]
            for claim in _texts(token.scopes_claim)
            for path in _paths_of(claim)
        ]
    for kind, (path, named), scoped in product(kinds, who, scopes):
        yield SaidOfToken(path, [*always, *kind, *named, *scoped])


def _paths_of(name: str) -> list[list[str]]:
    """Return the ways in which a claim may be meant: by its whole name, or step by step."""
    return [[name], name.split(".")] if "." in name else [[name]]


def _not_before(issuer: CheckedIssuer, path: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield that there is no claim of the whole name, which goes before the steps to one."""
    if len(path) > 1:
        yield _unsaid(issuer, "claims", [".".join(path)])


def _at(issuer: CheckedIssuer, part: str, path: Sequence[str]) -> dict[str, Any]:
    keys = [f"{issuer.name}.{part}", *path]
    return {"filter": FILTER, "path": [{"key": key} for key in keys]}


def _said(
    issuer: CheckedIssuer, part: str, path: Sequence[str], matcher: dict[str, Any]
) -> dict[str, Any]:
    return {**_at(issuer, part, path), "value": {"string_match": matcher}}


def _unsaid(issuer: CheckedIssuer, part: str, path: Sequence[str]) -> dict[str, Any]:
    return {**_at(issuer, part, path), "value": {"present_match": True}, "invert": True}


def _listed(issuer: CheckedIssuer, path: Sequence[str], text: str) -> dict[str, Any]:
    one_of = {"one_of": {"string_match": {"exact": text}}}
    return {**_at(issuer, "claims", path), "value": {"list_match": one_of}}


def _texts_of(texts: Sequence[str]) -> dict[str, Any]:
    """Return what matches one of these texts, or a list of texts with one of them."""
    text = {"string_match": _one_of(texts)}
    return {"or_match": {"value_matchers": [text, {"list_match": {"one_of": text}}]}}


def _matching(expression: str) -> dict[str, Any]:
    return {"safe_regex": {"regex": expression}}


def _one_of(texts: Iterable[str]) -> dict[str, Any]:
    return _matching("|".join(_quoted(text) for text in texts))


def _quoted(text: str) -> str:
    return "".join(char if char.isalnum() else f"\\{char}" for char in text)


def _texts(one_or_more: str | Sequence[str]) -> list[str]:
    return [one_or_more] if isinstance(one_or_more, str) else list(one_or_more)
