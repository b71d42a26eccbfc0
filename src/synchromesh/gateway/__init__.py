"""The API gateway: routes, authentication, rate limits, and response aggregation."""

from synchromesh.gateway.api_keys import ApiKeys, KeyRing
from synchromesh.gateway.beside import Mirror, Split
from synchromesh.gateway.caching import Cache
from synchromesh.gateway.certificates import Certificates
from synchromesh.gateway.check import check, openapi_of
from synchromesh.gateway.cors import Cors
from synchromesh.gateway.engine import GatewayEngine
from synchromesh.gateway.jwt import JWT
from synchromesh.gateway.keys import ApiKey, KeysFile, make_key, parse_keys
from synchromesh.gateway.limits import TokenBuckets
from synchromesh.gateway.origin import Origins, read_proxies
from synchromesh.gateway.outline import outline
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
