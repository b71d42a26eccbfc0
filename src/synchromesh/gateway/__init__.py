"""The API gateway: routes, authentication, rate limits, and response aggregation.

Its names are loaded when they are first asked for: routes are declared by more than the process
that serves them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synchromesh.lazily import names_of

# What type checkers read of the names below; a test holds the two lists equal.
if TYPE_CHECKING:
    from synchromesh.gateway.api_keys import ApiKeys, KeyRing
    from synchromesh.gateway.beside import Mirror, Split
    from synchromesh.gateway.caching import Cache
    from synchromesh.gateway.certificates import Certificates
    from synchromesh.gateway.checking import check, openapi_of
    from synchromesh.gateway.cors import Cors
    from synchromesh.gateway.engine import GatewayEngine
    from synchromesh.gateway.jwt import JWT
    from synchromesh.gateway.keys import ApiKey, KeysFile, make_key, parse_keys
    from synchromesh.gateway.limits import TokenBuckets
    from synchromesh.gateway.origin import Origins, read_proxies
    from synchromesh.gateway.outlining import outline
    from synchromesh.gateway.own import AuthFunction
    from synchromesh.gateway.principal import Auth, Authenticator, DescribedAuth, Folders
    from synchromesh.gateway.routes import (
        Aggregate,
        Branch,
        Each,
        Forward,
        Gateway,
        OpenApi,
        Rate,
        Route,
        Stale,
        Static,
    )
    from synchromesh.identity import Principal

_MODULES = {
    "api_keys": "ApiKeys KeyRing",
    "beside": "Mirror Split",
    "caching": "Cache",
    "certificates": "Certificates",
    "checking": "check openapi_of",
    "cors": "Cors",
    "engine": "GatewayEngine",
    "jwt": "JWT",
    "keys": "ApiKey KeysFile make_key parse_keys",
    "limits": "TokenBuckets",
    "origin": "Origins read_proxies",
    "outlining": "outline",
    "own": "AuthFunction",
    "principal": "Auth Authenticator DescribedAuth Folders Principal",
    "routes": "Aggregate Branch Each Forward Gateway OpenApi Rate Route Stale Static",
}

__all__ = [
    "JWT",
    "Aggregate",
    "ApiKey",
    "ApiKeys",
    "Auth",
    "AuthFunction",
    "Authenticator",
    "Branch",
    "Cache",
    "Certificates",
    "Cors",
    "DescribedAuth",
    "Each",
    "Folders",
    "Forward",
    "Gateway",
    "GatewayEngine",
    "KeyRing",
    "KeysFile",
    "Mirror",
    "OpenApi",
    "Origins",
    "Principal",
    "Rate",
    "Route",
    "Split",
    "Stale",
    "Static",
    "TokenBuckets",
    "check",
    "make_key",
    "openapi_of",
    "outline",
    "parse_keys",
    "read_proxies",
]

if not TYPE_CHECKING:  # a type checker that saw this would take any name for a public one
    __getattr__ = names_of(__name__, _MODULES)
