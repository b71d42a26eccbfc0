"""The API gateway: routes, authentication, rate limits, and response aggregation.

Its names are loaded when they are first asked for: routes are declared by more than the process
that serves them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synchromesh.lazily import names_of

# What type checkers read of the names below; a test holds the two lists equal.
if TYPE_CHECKING:
    from synchromesh.gateway.api_keys import ApiKeys as ApiKeys
    from synchromesh.gateway.api_keys import KeyRing as KeyRing
    from synchromesh.gateway.beside import Mirror as Mirror
    from synchromesh.gateway.beside import Split as Split
    from synchromesh.gateway.caching import Cache as Cache
    from synchromesh.gateway.certificates import Certificates as Certificates
    from synchromesh.gateway.checking import check as check
    from synchromesh.gateway.checking import openapi_of as openapi_of
    from synchromesh.gateway.cors import Cors as Cors
    from synchromesh.gateway.engine import GatewayEngine as GatewayEngine
    from synchromesh.gateway.jwt import JWT as JWT
    from synchromesh.gateway.keys import ApiKey as ApiKey
    from synchromesh.gateway.keys import KeysFile as KeysFile
    from synchromesh.gateway.keys import make_key as make_key
    from synchromesh.gateway.keys import parse_keys as parse_keys
    from synchromesh.gateway.limits import TokenBuckets as TokenBuckets
    from synchromesh.gateway.origin import Origins as Origins
    from synchromesh.gateway.origin import read_proxies as read_proxies
    from synchromesh.gateway.outlining import outline as outline
    from synchromesh.gateway.own import AuthFunction as AuthFunction
    from synchromesh.gateway.principal import Auth as Auth
    from synchromesh.gateway.principal import Authenticator as Authenticator
    from synchromesh.gateway.principal import DescribedAuth as DescribedAuth
    from synchromesh.gateway.principal import Folders as Folders
    from synchromesh.gateway.routes import Aggregate as Aggregate
    from synchromesh.gateway.routes import Branch as Branch
    from synchromesh.gateway.routes import Each as Each
    from synchromesh.gateway.routes import Forward as Forward
    from synchromesh.gateway.routes import Gateway as Gateway
    from synchromesh.gateway.routes import OpenApi as OpenApi
    from synchromesh.gateway.routes import Rate as Rate
    from synchromesh.gateway.routes import Route as Route
    from synchromesh.gateway.routes import Stale as Stale
    from synchromesh.gateway.routes import Static as Static
    from synchromesh.identity import Principal as Principal

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

__all__ = sorted(" ".join(_MODULES.values()).split())

if not TYPE_CHECKING:  # a type checker that saw this would take any name for a public one
    __getattr__ = names_of(__name__, _MODULES)
